//! The operations that go on in this process.

use std::collections::HashMap;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use uuid::Uuid;

/// The operations that go on, by their ids, with what they are about.
#[derive(Default)]
pub struct Going {
    targets: Mutex<HashMap<Uuid, String>>,
    left: Condvar,
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
    fn targets(&self) -> MutexGuard<'_, HashMap<Uuid, String>> {
        self.targets.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has an operation go on, unless one about the same resource or `most` do.
    pub fn enter(&self, target: &str, id: Uuid, most: usize) -> Entered {
        let mut targets = self.targets();
        let mut going = targets.iter();
        if let Some((id, _)) = going.find(|(_, other)| other.eq_ignore_ascii_case(target)) {
            return Entered::Already(*id);
        }
        if targets.len() >= most {
            return Entered::TooMany;
        }
        targets.insert(id, target.into());
        Entered::New
    }

    /// It has ended.
    pub fn leave(&self, id: Uuid) {
        self.targets().remove(&id);
        self.left.notify_all();
    }

    /// Waits until it has ended, but no longer than that.
    pub fn wait(&self, id: Uuid, patience: Duration) {
        let goes_on = |targets: &mut HashMap<Uuid, String>| targets.contains_key(&id);
        let waited = self
            .left
            .wait_timeout_while(self.targets(), patience, goes_on);
        drop(waited.unwrap_or_else(PoisonError::into_inner));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_operation_for_each_resource_goes_on() {
        let going = Going::default();
        let [one, two] = [1, 2].map(Uuid::from_u128);
        assert_eq!(going.enter("/a", one, 2), Entered::New);
        assert_eq!(going.enter("/A", two, 2), Entered::Already(one));
        assert_eq!(going.enter("/b", two, 1), Entered::TooMany);
        going.leave(one);
        going.wait(one, Duration::from_secs(60));
        assert_eq!(going.enter("/a", two, 1), Entered::New);
    }
}
