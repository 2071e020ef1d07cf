//! Uses of keys that were allowed last: their work begins without a look at the vault.
//!
//! That look only spares work for what would be refused. What counts are the checks in the transaction
//! that records a use, after its work. So nobody may do anything because of what is kept here: whoever is
//! refused has had RSA run in vain, once, and is looked at from then on.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use uuid::Uuid;

use super::queue::KeyUse;
use crate::store::KeyRow;
use crate::{KeyId, KeyPermission};

#[derive(Default)]
pub(super) struct Allowed(Mutex<Rows>);

#[derive(Default)]
struct Rows {
    of: HashMap<Use, Arc<KeyRow>>,
    count: usize,
}

/// A kind of use.
#[derive(PartialEq, Eq, Hash)]
struct Use {
    caller: Uuid,
    permission: KeyPermission,
    key: KeyId,
}

impl Use {
    fn of(key_use: &KeyUse) -> Self {
        Self {
            caller: key_use.caller.object_id,
            permission: key_use.permission,
            key: key_use.key.clone(),
        }
    }
}

impl Allowed {
    pub fn resize(&self, count: usize) {
        let mut rows = self.rows();
        rows.count = count;
        rows.of.clear();
    }

    /// The key version of such a use, as it was when one was allowed last.
    pub fn get(&self, key_use: &KeyUse) -> Option<Arc<KeyRow>> {
        self.rows().of.get(&Use::of(key_use)).cloned()
    }

    pub fn keep(&self, key_use: &KeyUse, row: &Arc<KeyRow>) {
        let mut rows = self.rows();
        if rows.count == 0 {
            return;
        }
        if rows.of.len() >= rows.count {
            rows.of.clear();
        }
        rows.of.insert(Use::of(key_use), Arc::clone(row));
    }

    pub fn forget(&self, key_use: &KeyUse) {
        self.rows().of.remove(&Use::of(key_use));
    }

    /// Forgets all uses of a key that was changed or is gone.
    pub fn forget_key(&self, name: &str) {
        let is_other = |key_use: &Use| !key_use.key.name.eq_ignore_ascii_case(name);
        self.rows().of.retain(|key_use, _| is_other(key_use));
    }

    #[cfg(test)]
    pub fn len(&self) -> usize {
        self.rows().of.len()
    }

    fn rows(&self) -> MutexGuard<'_, Rows> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
