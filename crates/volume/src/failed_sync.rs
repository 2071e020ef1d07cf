//! That a sync has failed, which nothing but a check of the disk takes back.
//!
//! A kernel that could not sync may have dropped what it could not write, and reports that once: the
//! next sync succeeds without it. So after one failure no later sync proves anything. It is noted in a
//! word beside the current map, which outlives the process where the map does (see
//! [`RuntimeMap`](super::RuntimeMap)), and everybody who flushes looks there.

use std::fmt;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

/// The word when no sync has failed.
const NONE: u64 = 0;
/// The word after a check: of the map file only the page cache may have what was written to it, so the
/// first flush writes all of it again. No sync counts as failed.
pub(super) const CHECKED: u64 = 3;

/// Which of a layer's files a sync has failed of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FailedSync {
    /// The ciphertext.
    Data,
    /// The block map.
    Map,
}

impl FailedSync {
    /// As in messages.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Data => "data",
            Self::Map => "map",
        }
    }

    pub(super) fn word(self) -> u64 {
        match self {
            Self::Data => 1,
            Self::Map => 2,
        }
    }

    /// What the word says. One that this program does not know says the worst.
    pub(super) fn from_word(word: u64) -> Option<Self> {
        match word {
            NONE | CHECKED => None,
            2 => Some(Self::Map),
            _ => Some(Self::Data),
        }
    }
}

impl fmt::Display for FailedSync {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What was said by the kernel when a sync failed; the word of the current map says that one has.
#[derive(Default)]
pub(super) struct Reason(OnceLock<String>);

impl Reason {
    /// Notes in `word` that a sync has failed. The first failure stays.
    pub(super) fn note(&self, word: &AtomicU64, what: FailedSync, error: &dyn fmt::Display) {
        // One that came first has its reason already, and this one is thrown away.
        let _ = self.0.set(error.to_string());
        let note = |now| FailedSync::from_word(now).is_none().then_some(what.word());
        // It is refused when there is a failure already.
        let _ = word.try_update(Ordering::SeqCst, Ordering::SeqCst, note);
    }

    pub(super) fn text(&self) -> &str {
        let before = "another process saw it fail";
        self.0.get().map_or(before, String::as_str)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_failure_stays_with_its_reason() {
        let (word, reason) = (AtomicU64::new(CHECKED), Reason::default());
        assert_eq!(FailedSync::from_word(CHECKED), None);
        reason.note(&word, FailedSync::Map, &"first");
        reason.note(&word, FailedSync::Data, &"second");
        let found = FailedSync::from_word(word.into_inner());
        assert_eq!((found, reason.text()), (Some(FailedSync::Map), "first"));
        assert_eq!(FailedSync::from_word(77), Some(FailedSync::Data));
    }
}
