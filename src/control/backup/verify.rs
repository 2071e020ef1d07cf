//! Looking whether a backup is whole and good, without an installation.

use std::collections::BTreeMap;
use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rusqlite::{Connection, OpenFlags};
use uuid::Uuid;
use zeroize::Zeroizing;

use super::BackupError;
use super::archive::{self, Secret};
use super::manifest::{Item, ItemKind, Manifest};
use crate::audit::{AuditLog, Pin, verify_database};
use crate::catalog::{Catalog, SqliteCatalog};
use crate::vault::{KeyUrl, VaultDatabase};

/// A master key has 32 bytes.
const KEY_LIMIT: u64 = 64;

/// What a backup has in it, and what is wrong with it.
pub struct Verified {
    /// What it says about itself.
    pub manifest: Manifest,
    /// Each entry.
    pub items: Vec<VerifiedItem>,
    /// What does not fit; nothing for a good backup.
    pub findings: Vec<String>,
}

/// An entry that was looked at.
pub struct VerifiedItem {
    /// As the manifest has it.
    pub item: Item,
    /// How many records its audit log has, when it has one.
    pub records: Option<u64>,
}

/// Reads a backup to its end and looks at everything in it: the archive's own integrity, that of each
/// database, each audit log from its first record to its signed head (and against `pins`, heads that were
/// exported earlier), that each key's newest version is there and every version that the catalog names,
/// and that master keys, when they are in it, open what is under them.
///
/// Databases are put, one after the other, into a directory of mode 0700 in `work_dir`, which should be
/// on a tmpfs or as well guarded as the installation.
///
/// # Errors
/// [`BackupError`] for what cannot be read; what does not fit is in [`Verified::findings`].
pub fn verify(
    path: &Path,
    secret: &Secret,
    pins: &[Pin],
    work_dir: &Path,
) -> Result<Verified, BackupError> {
    let work = Work::new(work_dir)?;
    let mut look = Look::new(pins);
    let manifest = archive::read(
        path,
        secret,
        |_| Ok(()),
        |item, content| {
            let file = work.dir.join("item");
            match item.kind {
                ItemKind::Catalog | ItemKind::Vault | ItemKind::AuditLog => {
                    extract(&file, content)?;
                    look.database(item, &file);
                    work.clear()
                }
                ItemKind::MasterKey | ItemKind::File => look.file(item, content),
            }
        },
    )?;
    Ok(look.finish(manifest))
}

/// What was seen so far.
pub(super) struct Look<'a> {
    pins: &'a [Pin],
    items: Vec<VerifiedItem>,
    findings: Vec<String>,
    /// The key versions that the catalog names, and for what.
    named: BTreeMap<String, String>,
    /// The vaults that are in the backup, or said to be elsewhere.
    vaults: Vec<String>,
    /// The master keys whose vault did not come yet.
    keys: BTreeMap<String, Zeroizing<Vec<u8>>>,
}

impl<'a> Look<'a> {
    pub(super) fn new(pins: &'a [Pin]) -> Self {
        Self {
            pins,
            items: Vec::new(),
            findings: Vec::new(),
            named: BTreeMap::new(),
            vaults: Vec::new(),
            keys: BTreeMap::new(),
        }
    }

    /// Looks at the database of an entry in `file`.
    pub(super) fn database(&mut self, item: &Item, file: &Path) {
        let mut records = None;
        let looked = integrity(file).and_then(|()| match item.kind {
            ItemKind::Catalog => self.catalog(file),
            ItemKind::Vault => self.vault(item, file).map(|n| records = Some(n)),
            _ => self.log(file).map(|n| records = Some(n)),
        });
        if let Err(why) = looked {
            self.findings.push(format!("{}: {why}", item.path));
        }
        self.items.push(VerifiedItem {
            item: item.clone(),
            records,
        });
    }

    /// Looks at an entry that is no database.
    pub(super) fn file(&mut self, item: &Item, content: &mut dyn Read) -> Result<(), BackupError> {
        if let (ItemKind::MasterKey, Some(vault)) = (item.kind, item.vault()) {
            let mut key = Zeroizing::new(Vec::with_capacity(KEY_LIMIT as usize));
            content
                .take(KEY_LIMIT)
                .read_to_end(&mut key)
                .map_err(BackupError::io("read", Path::new(&item.path)))?;
            self.keys.insert(vault.into(), key);
        }
        self.items.push(VerifiedItem {
            item: item.clone(),
            records: None,
        });
        Ok(())
    }

    fn catalog(&mut self, file: &Path) -> Result<(), String> {
        let text = |e: crate::catalog::CatalogError| e.to_string();
        let catalog = SqliteCatalog::open(file).map_err(text)?;
        for set in catalog.all_des().map_err(text)? {
            let set = set.record;
            let what = format!("the disk encryption set '{}'", set.name);
            self.named.entry(set.key_url).or_insert(what);
        }
        for row in catalog.resources().map_err(text)? {
            let record = row.record;
            let what = format!("the {} '{}'", record.kind, record.name);
            for layer in record.layers {
                self.named.entry(layer.key_url).or_insert(what.clone());
            }
            self.named.entry(record.key_url).or_insert(what);
        }
        Ok(())
    }

    fn vault(&mut self, item: &Item, file: &Path) -> Result<u64, String> {
        let text = |e: crate::vault::VaultError| e.to_string();
        let vault = VaultDatabase::open(file).map_err(text)?;
        let name = vault.name().to_owned();
        if item.vault() != Some(name.as_str()) {
            return Err(format!("it is the database of the vault '{name}'"));
        }
        self.vaults.push(name.clone());
        let newest = vault.newest_versions().map_err(text)?;
        if newest != item.keys {
            return Err("its keys are not those that it had when the backup was made".into());
        }
        for (url, what) in &self.named {
            let Ok(url) = url.parse::<KeyUrl>() else {
                continue;
            };
            if url.vault_name() != Some(name.as_str()) {
                continue;
            }
            let key = &url.key;
            let there = vault.has_version(&key.name, key.version.as_deref());
            if !there.map_err(text)? && !vault.was_purged(&key.name).map_err(text)? {
                self.findings.push(format!(
                    "{}: it has not got {url}, which {what} is under: it is older than the catalog",
                    item.path
                ));
            }
        }
        if let Some(key) = self.keys.remove(&name) {
            vault
                .check_master(&key)
                .map_err(|e| format!("its master key in the backup: {e}"))?;
        }
        let log = format!("vault/{name}");
        let report = verify_database(vault.connection(), &log, self.pins);
        let report = report.map_err(|e| e.to_string())?;
        match report.finding {
            None => Ok(report.records),
            Some(finding) => Err(format!("its audit log: {}", finding.what)),
        }
    }

    fn log(&self, file: &Path) -> Result<u64, String> {
        let db = AuditLog::open_database(file).map_err(|e| e.to_string())?;
        let report = verify_database(&db, "installation", self.pins).map_err(|e| e.to_string())?;
        match report.finding {
            None => Ok(report.records),
            Some(finding) => Err(finding.what),
        }
    }

    pub(super) fn finish(mut self, manifest: Manifest) -> Verified {
        let has = |kind| manifest.items.iter().any(|item| item.kind == kind);
        for (kind, what) in [
            (ItemKind::Catalog, "the catalog"),
            (ItemKind::AuditLog, "the installation's audit log"),
        ] {
            if !has(kind) {
                self.findings.push(format!("{what} is missing"));
            }
        }
        for vault in self.keys.keys() {
            let what = format!("there is a master key of the vault '{vault}', and no such vault");
            self.findings.push(what);
        }
        for url in self.named.keys() {
            let url: Option<KeyUrl> = url.parse().ok();
            let vault = url.as_ref().and_then(KeyUrl::vault_name);
            if let Some(vault) = vault.filter(|v| !self.vaults.iter().any(|known| known == v)) {
                let what = format!("the vault '{vault}', which the catalog names, is missing");
                if !self.findings.contains(&what) {
                    self.findings.push(what);
                }
            }
        }
        Verified {
            manifest,
            items: self.items,
            findings: self.findings,
        }
    }
}

/// SQLite's own check of a database.
fn integrity(file: &Path) -> Result<(), String> {
    let text = |e: rusqlite::Error| e.to_string();
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let db = Connection::open_with_flags(file, flags).map_err(text)?;
    let found: String = db
        .query_row("PRAGMA integrity_check(1)", [], |row| row.get(0))
        .map_err(text)?;
    match found.as_str() {
        "ok" => Ok(()),
        _ => Err(format!("the database is damaged: {found}")),
    }
}

/// Writes an entry into a new file.
pub(super) fn extract(file: &Path, content: &mut dyn Read) -> Result<(), BackupError> {
    let mut out = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(file)
        .map_err(BackupError::io("make", file))?;
    io::copy(content, &mut out)
        .and_then(|_| out.flush())
        .and_then(|()| out.sync_all())
        .map_err(BackupError::io("write", file))
}

/// A directory for what is being looked at.
pub(super) struct Work {
    pub(super) dir: PathBuf,
}

impl Work {
    pub(super) fn new(parent: &Path) -> Result<Self, BackupError> {
        crate::control::files::private_dir(parent)?;
        let dir = parent.join(format!(".verify-{}", Uuid::new_v4()));
        DirBuilder::new()
            .mode(0o700)
            .create(&dir)
            .map_err(BackupError::io("make", &dir))?;
        Ok(Self { dir })
    }

    /// Removes what is in it.
    fn clear(&self) -> Result<(), BackupError> {
        for entry in fs::read_dir(&self.dir).map_err(BackupError::io("list", &self.dir))? {
            let path = entry.map_err(BackupError::io("list", &self.dir))?.path();
            fs::remove_file(&path).map_err(BackupError::io("remove", &path))?;
        }
        Ok(())
    }
}

impl Drop for Work {
    fn drop(&mut self) {
        if let Err(e) = fs::remove_dir_all(&self.dir) {
            log::warn!("cannot remove {}: {e}", self.dir.display());
        }
    }
}
