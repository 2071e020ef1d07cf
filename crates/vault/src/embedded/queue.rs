//! Uses of keys that wait for the transaction that settles them.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::store::KeyRow;
use crate::{Caller, KeyId, KeyPermission, VaultError, VaultErrorCode};

/// A use of a key that is to be checked and recorded.
pub(super) struct KeyUse {
    pub caller: Caller,
    pub key: KeyId,
    /// The name in the audit log.
    pub operation: &'static str,
    pub permission: KeyPermission,
}

/// How a use was settled.
pub(super) enum Settled {
    /// Allowed and recorded.
    Done(Box<KeyRow>),
    /// The key is not as it was when RSA ran; nothing was recorded.
    Again,
}

/// What was done before settling.
pub(super) enum Speculation {
    /// Nothing, there is nothing to do or it was refused.
    None,
    /// RSA ran with the key version as it was at that revision, with this result.
    Ran {
        seq: i64,
        rev: i64,
        result: Result<(), VaultErrorCode>,
    },
}

pub(super) struct Ticket {
    pub(super) key_use: Arc<KeyUse>,
    pub(super) speculation: Speculation,
    pub(super) outcome: Mutex<Option<Result<Settled, VaultError>>>,
}

/// The tickets that nobody has taken up yet.
#[derive(Default)]
pub(super) struct Queue(Mutex<Vec<Arc<Ticket>>>);

impl Queue {
    pub(super) fn lock(&self) -> MutexGuard<'_, Vec<Arc<Ticket>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Ticket {
    pub(super) fn put(&self, outcome: Result<Settled, VaultError>) {
        *self.outcome.lock().unwrap_or_else(PoisonError::into_inner) = Some(outcome);
    }

    pub(super) fn take(&self) -> Option<Result<Settled, VaultError>> {
        self.outcome
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take()
    }
}
