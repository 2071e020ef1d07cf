//! The master key of an embedded vault, and what is stored under it.
//!
//! The master key is 32 random bytes. Where it is, is the owner's choice ([`MasterSource`]) and stands in
//! the vault's own database; whoever has only the database has no key. A vault that never was given a
//! choice takes the systemd credential `sealdisk-vault-NAME` when systemd provides one, else the file
//! `master.key` beside the database.

mod key;
mod load;
mod source;
mod tpm;

pub(crate) use key::{MasterKey, Slot};
pub(crate) use load::default_source;
pub(crate) use source::{DEFAULT_FILE, destroy, is_own_file};
pub use source::{MasterPlace, MasterSource};
