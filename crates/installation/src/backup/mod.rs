//! Backups of an installation: everything but its disks, in one encrypted file.
//!
//! # The file
//!
//! An age file (age-encryption.org/v1), for a passphrase or for X25519 recipients, of a tar archive: the
//! programs `age` and `tar` open it where this one is not. Its first entry is `manifest.json`
//! ([`Manifest`]), which names every other entry in its order with its length and SHA-256. age
//! authenticates each 64 KiB and the end, so that a file that was changed or cut off is refused; who made
//! it, it proves only with a passphrase.
//!
//! # Of what moment it is
//!
//! Each database is copied by SQLite's online backup from a read transaction, write-ahead log included,
//! while servers and attached disks go on. All transactions begin before the first byte is copied, in
//! this order: the catalog, the vaults by name, the installation's audit log. So a vault has every key
//! version that the catalog names, and the installation's log every record of what the catalog says; each
//! vault's log is in its own database, of the same moment. The manifest has the moments.
//!
//! # Archived segments
//!
//! A log of which records were archived has the signed lines of those segments, and `manifest.json` too
//! ([`ArchivedPart`]), with the names and hashes of their files. Of these the backup has the ones that are
//! in the state directory, wherever there, as `segments/NAME`; a restore puts them into
//! `STATE_DIR/segments`. All others are named as left out: their place is the operator's. A segment gets
//! its name before its records are removed from the log, so that every record is in the copy of the log
//! or in a file that was there before the copy; the files are opened after all copies were made, and one
//! that was taken away by then is named as one that is elsewhere.
//!
//! # Secrets
//!
//! Vaults' private keys are in the archive as they are in `vault.db`: sealed under the master key. Master
//! keys are in it only when that was asked for. The key of the installation's log, the keys that sign
//! tokens and assertions, and that of the TLS authority are in it, and are never written elsewhere than into the
//! encrypted stream. The copies of databases lie in a directory of mode 0700 in the state directory, as
//! secret there as the databases beside them.

mod archive;
mod archived;
mod create;
mod error;
mod made;
mod manifest;
mod restore;
mod segments;
mod verify;

pub use archive::{Protection, Secret};
pub use archived::ArchivedPart;
pub use create::{CreateBackup, CreatedBackup, create};
pub use error::BackupError;
pub use made::{MadeBackup, directory_of_units, last_made};
pub use manifest::{Item, ItemKind, Manifest};
pub use restore::{Restore, Restored, restore};
pub use verify::{Verified, VerifiedItem, verify};
