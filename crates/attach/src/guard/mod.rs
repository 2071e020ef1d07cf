//! The guard of a disk's key: when the vault is asked, when the key is destroyed and given back, and the record of
//! both.

pub(crate) mod checker;
pub(crate) mod key_guard;
#[cfg(test)]
mod key_guard_tests;
pub(crate) mod records;
