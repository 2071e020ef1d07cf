//! The operations that go on in this process.

use std::collections::HashMap;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use uuid::Uuid;

use disks::JobProgress;
use disks::import::Cancel;

/// The operations that go on, by their ids.
#[derive(Default)]
pub struct Going {
    known: Mutex<HashMap<Uuid, Entry>>,
    left: Condvar,
}

/// An operation that goes on.
struct Entry {
    /// The id of the resource that it is about.
    target: String,
    share: Share,
    cancel: Cancel,
    /// How far it is with the data that it copies, once that is known.
    progress: Option<JobProgress>,
}

/// Which limit an operation counts against. What an operation begins has another than itself, so that one wish counts
/// once against each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Share {
    /// It does something of its own.
    Work,
    /// It copies the data of a disk.
    Copy,
    /// It waits until it can copy, or for somebody else who does.
    Watch,
}

impl Share {
    /// That of an operation for which the data of a disk or a snapshot is copied: by whoever has it attached, or by itself.
    pub fn of_copy(is_attached: bool) -> Self {
        match is_attached {
            true => Self::Watch,
            false => Self::Copy,
        }
    }

    /// So many at once; each has a thread.
    pub fn most(self) -> usize {
        match self {
            Self::Work => 64,
            Self::Copy => 4,
            Self::Watch => 256,
        }
    }
}

/// What has become of an operation that was to go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Entered {
    /// It does.
    New,
    /// This one, about the same resource, does already.
    Already(Uuid),
    /// Too many do.
    TooMany,
}

impl Going {
    fn known(&self) -> MutexGuard<'_, HashMap<Uuid, Entry>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has an operation go on, unless one about the same resource or `most` of that share do.
    pub fn enter(&self, target: &str, id: Uuid, share: Share, most: usize) -> Entered {
        let mut known = self.known();
        if let Some(id) = about(&known, target) {
            return Entered::Already(id);
        }
        if count(&known, share) >= most {
            return Entered::TooMany;
        }
        let entry = Entry {
            target: target.into(),
            share,
            cancel: Cancel::default(),
            progress: None,
        };
        known.insert(id, entry);
        Entered::New
    }

    /// Has an operation count against another limit; not where enough do already, or it has ended.
    pub fn change_share(&self, id: Uuid, share: Share) -> bool {
        let mut known = self.known();
        let has_room = count(&known, share) < share.most();
        match known.get_mut(&id) {
            Some(entry) if entry.share == share => true,
            Some(entry) if has_room => {
                entry.share = share;
                true
            }
            _ => false,
        }
    }

    /// Whether one about that resource goes on.
    pub fn has(&self, target: &str) -> bool {
        about(&self.known(), target).is_some()
    }

    /// Notes how far an operation is with the data that it copies.
    pub fn note_progress(&self, id: Uuid, progress: JobProgress) {
        if let Some(entry) = self.known().get_mut(&id) {
            entry.progress = Some(progress);
        }
    }

    /// How many percent of its data the one about that resource has copied, if one does and knows it: tenths, rounded
    /// down.
    pub fn percent(&self, target: &str) -> Option<f64> {
        let known = self.known();
        let id = about(&known, target)?;
        let JobProgress { done, total } = known.get(&id)?.progress?;
        // A disk has 64 TiB at most, and where there is nothing to copy all of that is copied.
        let tenths = done.min(total).saturating_mul(1000);
        let tenths = tenths.checked_div(total).unwrap_or(1000);
        Some(tenths as f64 / 10.0)
    }

    /// The wish that an operation ends.
    pub fn cancel_of(&self, id: Uuid) -> Cancel {
        let known = self.known();
        let cancel = known.get(&id).map(|entry| entry.cancel.clone());
        cancel.unwrap_or_default()
    }

    /// Wishes that the one ends which copies the data of that disk, if one does.
    pub fn cancel_copy(&self, target: &str) -> Option<Uuid> {
        let known = self.known();
        let id = about(&known, target)?;
        let entry = known.get(&id).filter(|entry| entry.share == Share::Copy)?;
        entry.cancel.request();
        Some(id)
    }

    /// It has ended.
    pub fn leave(&self, id: Uuid) {
        self.known().remove(&id);
        self.left.notify_all();
    }

    /// Waits until it has ended, but no longer than that.
    pub fn wait(&self, id: Uuid, patience: Duration) {
        let goes_on = |known: &mut HashMap<Uuid, Entry>| known.contains_key(&id);
        let waited = self
            .left
            .wait_timeout_while(self.known(), patience, goes_on);
        drop(waited.unwrap_or_else(PoisonError::into_inner));
    }
}

fn about(known: &HashMap<Uuid, Entry>, target: &str) -> Option<Uuid> {
    let mut known = known.iter();
    let (id, _) = known.find(|(_, entry)| entry.target.eq_ignore_ascii_case(target))?;
    Some(*id)
}

fn count(known: &HashMap<Uuid, Entry>, share: Share) -> usize {
    known.values().filter(|entry| entry.share == share).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_operation_for_each_resource_goes_on() {
        let going = Going::default();
        let [one, two] = [1, 2].map(Uuid::from_u128);
        let enter = |target: &str, id, most| going.enter(target, id, Share::Work, most);
        assert_eq!(enter("/a", one, 2), Entered::New);
        assert_eq!(enter("/A", two, 2), Entered::Already(one));
        assert_eq!(enter("/b", two, 1), Entered::TooMany);
        going.leave(one);
        going.wait(one, Duration::from_secs(60));
        assert_eq!(enter("/a", two, 1), Entered::New);
    }

    #[test]
    fn each_share_has_its_own_limit() {
        let going = Going::default();
        let id = |n: usize| Uuid::from_u128(n as u128);
        let most = Share::Copy.most();
        let enter =
            |n: usize, share: Share| going.enter(&format!("/{n}"), id(n), share, share.most());
        for n in 0..most {
            assert_eq!(enter(n, Share::Copy), Entered::New);
        }
        assert_eq!(enter(most, Share::Copy), Entered::TooMany);
        assert_eq!(enter(most, Share::Watch), Entered::New);
        assert_eq!(enter(most + 1, Share::Work), Entered::New);
        assert!(!going.change_share(id(most), Share::Copy));
        assert!(going.change_share(id(0), Share::Copy), "it does already");
        assert_eq!(going.cancel_copy(&format!("/{most}")), None, "it waits");
        assert!(going.change_share(id(0), Share::Watch));
        assert!(going.change_share(id(most), Share::Copy));
        assert_eq!(going.cancel_copy(&format!("/{most}")), Some(id(most)));
        assert!(going.cancel_of(id(most)).check().is_err());
        assert!(going.cancel_of(id(1)).check().is_ok());
        let target = format!("/{most}");
        assert_eq!(going.percent(&target), None, "nobody knows");
        for (done, total, percent) in [(0, 3, 0.0), (2, 3, 66.6), (3, 3, 100.0), (0, 0, 100.0)] {
            going.note_progress(id(most), JobProgress { done, total });
            assert_eq!(going.percent(&target), Some(percent));
        }
        going.leave(id(most));
        assert!(!going.change_share(id(most), Share::Copy), "it has ended");
    }
}
