//! What a backup says about itself.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use uuid::Uuid;

use super::archived::{ArchivedPart, DIRECTORY};
use crate::log_databases::{INSTALLATION_LOG, vault_log_name};

/// The format of the manifest and of the archive.
pub(super) const FORMAT: u32 = 1;

/// The first entry of the archive. Field names are the JSON's.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Manifest {
    /// The format.
    pub format: u32,
    /// What made it.
    pub program: String,
    /// When it was begun.
    #[serde(with = "time::serde::rfc3339")]
    pub created: OffsetDateTime,
    /// The installation's id.
    pub installation: Uuid,
    /// Its state directory.
    pub state_dir: String,
    /// Whether the vaults' master keys are in it.
    pub master_keys: bool,
    /// The other entries, in their order.
    pub items: Vec<Item>,
    /// What the installation needs and is not in it.
    pub left_out: Vec<String>,
    /// What was archived from its audit logs, the oldest of each log first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub archived: Vec<ArchivedPart>,
    /// The server that has the catalog, and its backups, if one has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub catalog_at: Option<String>,
}

/// An entry of the archive.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Item {
    /// Its path below the state directory.
    pub path: String,
    /// What it is.
    pub kind: ItemKind,
    /// Its length.
    pub bytes: u64,
    /// Its SHA-256, in hexadecimal.
    pub sha256: String,
    /// Of which moment a database is.
    #[serde(
        default,
        with = "time::serde::rfc3339::option",
        skip_serializing_if = "Option::is_none"
    )]
    pub moment: Option<OffsetDateTime>,
    /// The newest version of each key of a vault.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub keys: BTreeMap<String, String>,
}

/// What an entry is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum ItemKind {
    /// `catalog.db`.
    Catalog,
    /// A `vault.db`.
    Vault,
    /// `audit.db`.
    AuditLog,
    /// An archived segment of an audit log.
    Segment,
    /// A vault's master key.
    MasterKey,
    /// Any other file.
    File,
}

impl Item {
    /// The audit log that is in a database, as exports call it.
    pub(super) fn log(&self) -> Option<String> {
        match self.kind {
            ItemKind::Vault => Some(vault_log_name(self.vault()?)),
            ItemKind::AuditLog => Some(INSTALLATION_LOG.into()),
            _ => None,
        }
    }

    /// The vault that a database or master key belongs to.
    pub fn vault(&self) -> Option<&str> {
        self.path.strip_prefix("vaults/")?.split('/').next()
    }
}

impl ItemKind {
    /// What is at a path below a state directory; `None` where no entry has its place.
    ///
    /// A database is looked at by its kind and restored by its path, and what SQLite keeps beside one (a
    /// journal, a write-ahead log) would change it afterwards. So one decides the other.
    pub(super) fn at(path: &str) -> Option<Self> {
        let parts: Vec<&str> = path.split('/').collect();
        match parts.as_slice() {
            ["catalog.db"] => Some(Self::Catalog),
            ["audit.db"] => Some(Self::AuditLog),
            ["vaults", _, "vault.db"] => Some(Self::Vault),
            ["vaults", _, "master.key"] => Some(Self::MasterKey),
            ["vaults", _, file] if file.ends_with(".tpm2") => Some(Self::File),
            ["audit.key"] | ["tokens" | "federation" | "tls", _] => Some(Self::File),
            [DIRECTORY, _] => Some(Self::Segment),
            _ => None,
        }
    }
}

/// Whether a path of an archive is one that this program writes: relative, of plain names.
pub(super) fn is_plain(path: &str) -> bool {
    let plain = |part: &str| {
        !part.is_empty()
            && !part.starts_with('.')
            && part
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
    };
    path.len() <= 255 && path.split('/').all(plain)
}

#[cfg(test)]
mod tests {
    use super::is_plain;

    #[test]
    fn only_paths_below_the_state_directory_are_plain() {
        for good in ["catalog.db", "vaults/a-b/vault.db", "tokens/17-ab.p8"] {
            assert!(is_plain(good), "{good}");
        }
        for bad in [
            "",
            "/etc/passwd",
            "../x",
            "vaults/../x",
            "vaults//x",
            "a\0b",
            ".x",
            "vaults/.l",
        ] {
            assert!(!is_plain(bad), "{bad:?}");
        }
    }
}
