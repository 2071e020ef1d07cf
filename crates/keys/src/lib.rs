//! Plaintext key material: types that cannot be printed, cloned by accident or swapped, in memory
//! that is locked, kept out of core dumps and zeroed when it is given back.

pub mod read_only;
pub mod units;

mod call_stack;
mod dek;
mod digest;
mod error;
mod kept;
mod locked;
mod random;
mod sealing;
mod stack;

pub use call_stack::{
    QUEUE_STACK, ROOMY_STACK, lock_stack, lock_stack_again, scrub_stack, spawn_with_keys,
    wipe_call_stack, with_wiped_call_stack,
};
pub use dek::{DEK_LEN, Dek, DekHalf, harden_process};
pub use digest::{Hashing, hex, sha256};
pub use error::KeyError;
pub use kept::KeptDeks;
pub use locked::{Locked, LockedBytes, PageLock, SparePages};
#[cfg(feature = "fips")]
pub use random::is_approved;
pub use random::{FIPS, crypto_module, fill_random, require_module};
pub use sealing::{FileGuard, SEALING_KEY_LEN, SealingError, SealingKey};
pub use stack::DekStack;
