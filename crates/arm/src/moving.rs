//! Which disks this server moves between one and two DEKs.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use uuid::Uuid;

use crate::error::ArmError;

/// Copies at once.
const MOST: usize = 4;

/// The disks whose data this server copies.
#[derive(Clone, Default)]
pub(crate) struct Moving(Arc<Mutex<HashSet<Uuid>>>);

impl Moving {
    fn disks(&self) -> MutexGuard<'_, HashSet<Uuid>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether a disk moves.
    pub(crate) fn has(&self, disk: Uuid) -> bool {
        self.disks().contains(&disk)
    }

    /// Notes that a disk moves; nothing when it does already.
    ///
    /// # Errors
    /// 429 when enough do.
    pub(crate) fn begin(&self, disk: Uuid) -> Result<Option<Move>, ArmError> {
        let mut disks = self.disks();
        if disks.contains(&disk) {
            return Ok(None);
        }
        if disks.len() >= MOST {
            return Err(ArmError {
                retry_after: Some(10),
                ..ArmError::new(
                    429,
                    "TooManyRequests",
                    format!("The data of {MOST} disks is being copied. Try again later."),
                )
            });
        }
        disks.insert(disk);
        Ok(Some(Move(self.clone(), disk)))
    }
}

/// A disk that moves, until it is dropped.
pub(crate) struct Move(Moving, Uuid);

impl Drop for Move {
    fn drop(&mut self) {
        self.0.disks().remove(&self.1);
    }
}
