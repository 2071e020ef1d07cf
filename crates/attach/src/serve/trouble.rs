//! What holds a job up.
//!
//! It is tried again every few seconds, and nobody knows meanwhile whether it meets the same. So it is held up while
//! that is tried too: only what goes on for a while has got over it.

use std::time::{Duration, Instant};

/// How long a job has to go on until what held it up is over: for longer than several tries take.
const OVER: Duration = Duration::from_secs(15);

/// What holds a job up, if anything does.
#[derive(Default)]
pub(crate) struct Trouble(Option<(String, Instant)>);

impl Trouble {
    /// It meets that, or nothing, at the moment; what holds it up now.
    pub(crate) fn met(&mut self, error: Option<String>, now: Instant) -> Option<String> {
        match error {
            Some(error) => self.0 = Some((error, now)),
            None => {
                self.0
                    .take_if(|(_, last)| now.saturating_duration_since(*last) >= OVER);
            }
        }
        self.0.as_ref().map(|(error, _)| error.clone())
    }

    /// There is no such job any more, or it is not to go on.
    pub(crate) fn end(&mut self) {
        self.0 = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_job_is_held_up_while_it_is_tried_again() {
        let begun = Instant::now();
        let at = |seconds| begun + Duration::from_secs(seconds);
        let full = || Some("no space".to_owned());
        let mut trouble = Trouble::default();
        assert_eq!(trouble.met(None, at(0)), None);
        // Each try takes a moment until it fails.
        for second in [2, 4, 8, 22] {
            assert_eq!(trouble.met(full(), at(second)), full());
            assert_eq!(trouble.met(None, at(second + 1)), full());
        }
        assert_eq!(trouble.met(None, at(36)), full());
        assert_eq!(trouble.met(None, at(37)), None);
        assert_eq!(trouble.met(None, at(38)), None);
        // Another one is no part of it.
        trouble.met(full(), at(40));
        trouble.end();
        assert_eq!(trouble.met(None, at(41)), None);
    }
}
