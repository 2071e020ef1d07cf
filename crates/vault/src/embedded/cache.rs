//! Private keys that are kept ready for use.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::private_keys::PrivateKey;
use crate::store::KeyRow;

/// Reading a key checks it and sets up its arithmetic, which costs more than its use. Only who
/// serves many requests keeps keys: in other processes none is in memory for longer than it is
/// used.
#[derive(Default)]
pub(super) struct KeyCache(Mutex<Slots>);

#[derive(Default)]
struct Slots {
    /// The least recently used first.
    kept: VecDeque<Kept>,
    count: usize,
}

/// A key with all that was authenticated when it was opened: a row that was changed since is not
/// the same.
struct Kept {
    row: KeyRow,
    key: Arc<dyn PrivateKey>,
}

impl Kept {
    fn is_of(&self, row: &KeyRow) -> bool {
        self.row.has_key_of(row)
    }
}

impl KeyCache {
    pub fn resize(&self, count: usize) {
        let mut slots = self.slots();
        slots.count = count;
        let surplus = slots.kept.len().saturating_sub(count);
        slots.kept.drain(..surplus);
    }

    pub fn get(&self, row: &KeyRow) -> Option<Arc<dyn PrivateKey>> {
        let mut slots = self.slots();
        let at = slots.kept.iter().position(|kept| kept.is_of(row))?;
        let kept = slots.kept.remove(at)?;
        let key = kept.key.clone();
        slots.kept.push_back(kept);
        Some(key)
    }

    pub fn keep(&self, row: &KeyRow, key: &Arc<dyn PrivateKey>) {
        let mut slots = self.slots();
        if slots.count == 0 || slots.kept.iter().any(|kept| kept.is_of(row)) {
            return;
        }
        if slots.kept.len() == slots.count {
            slots.kept.pop_front();
        }
        slots.kept.push_back(Kept {
            row: row.clone(),
            key: key.clone(),
        });
    }

    /// Drops all versions of a key that is gone.
    pub fn forget(&self, name: &str) {
        let is_other = |kept: &Kept| !kept.row.name.eq_ignore_ascii_case(name);
        self.slots().kept.retain(is_other);
    }

    #[cfg(test)]
    pub fn len(&self) -> usize {
        self.slots().kept.len()
    }

    fn slots(&self) -> MutexGuard<'_, Slots> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
