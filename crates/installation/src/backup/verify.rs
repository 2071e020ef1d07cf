//! Looking whether a backup is whole and good, without an installation.

use std::cell::RefCell;
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
use super::segments::Chains;
use crate::catalog::{Catalog, DatabaseCatalog};
use vault::audit::{AuditLog, Pin, Report};
use vault::{KeyUrl, VaultDatabase, VaultError};

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
    /// What could not be looked at.
    pub notes: Vec<String>,
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
/// `segments` are files of archived segments that are not in the backup; those that it needs and that are
/// neither in it nor among them are named in [`Verified::notes`].
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
    segments: &[PathBuf],
    work_dir: &Path,
) -> Result<Verified, BackupError> {
    let work = Work::new(work_dir)?;
    let look = RefCell::new(Look::new(pins));
    let manifest = archive::read(
        path,
        secret,
        |manifest| {
            look.borrow_mut().begin(manifest, segments);
            Ok(())
        },
        |item, content| {
            let mut look = look.borrow_mut();
            let file = work.dir.join("item");
            match item.kind {
                ItemKind::Catalog | ItemKind::Vault | ItemKind::AuditLog => {
                    extract(&file, content)?;
                    look.database(item, &file);
                    work.clear()
                }
                ItemKind::MasterKey | ItemKind::Segment | ItemKind::File => {
                    look.file(item, content)
                }
            }
        },
    )?;
    Ok(look.into_inner().finish(manifest))
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
    /// The logs and their archived segments.
    chains: Chains,
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
            chains: Chains::default(),
            keys: BTreeMap::new(),
        }
    }

    /// Takes what the manifest says, and which segments are at hand that are not in the backup.
    pub(super) fn begin(&mut self, manifest: &Manifest, segments: &[PathBuf]) {
        self.chains = Chains::new(&manifest.archived, segments);
    }

    /// Looks at the database of an entry in `file`.
    pub(super) fn database(&mut self, item: &Item, file: &Path) {
        let mut records = None;
        let looked = integrity(file).and_then(|()| match item.kind {
            ItemKind::Catalog => self.catalog(file),
            ItemKind::Vault => self.vault(item, file).map(|n| records = Some(n)),
            _ => self.log(item, file).map(|n| records = Some(n)),
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
        if item.kind == ItemKind::Segment {
            self.chains.segment(item, content, self.pins);
        }
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
        let catalog = DatabaseCatalog::open(file).map_err(text)?;
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
        let text = |e: VaultError| e.to_string();
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
        if let Some(key) = self.keys.remove(&name) {
            vault
                .check_master(&key)
                .map_err(|e| format!("its master key in the backup: {e}"))?;
        }
        let report = self.chain(item, vault.connection())?;
        self.versions(item, &vault, &report).map_err(text)?;
        Ok(report.records)
    }

    /// Looks for the key versions that the catalog names.
    fn versions(
        &mut self,
        item: &Item,
        vault: &VaultDatabase,
        report: &Report,
    ) -> Result<(), VaultError> {
        for (url, what) in &self.named {
            let Ok(url) = url.parse::<KeyUrl>() else {
                continue;
            };
            let key = &url.key;
            if url.vault_name() != Some(vault.name())
                || vault.has_version(&key.name, key.version.as_deref())?
                || vault.was_purged(&key.name)?
                || self.chains.was_purged(report.log, &key.name)
            {
                continue;
            }
            let what = format!("{}: it has not got {url}, which {what} is under", item.path);
            match report.archived {
                0 => self
                    .findings
                    .push(format!("{what}: it is older than the catalog")),
                archived => self.chains.notes.push(format!(
                    "{what}: the key was purged, or the vault is older than the catalog; its first \
                     {archived} records, which were archived, may tell"
                )),
            }
        }
        Ok(())
    }

    fn log(&mut self, item: &Item, file: &Path) -> Result<u64, String> {
        let db = AuditLog::open_database(file).map_err(|e| e.to_string())?;
        Ok(self.chain(item, &db)?.records)
    }

    /// Verifies the audit log in a database.
    fn chain(&mut self, item: &Item, db: &database::Connection) -> Result<Report, String> {
        let name = item.log().unwrap_or_default();
        let report = self.chains.log(db, &name, self.pins)?;
        match &report.finding {
            None => Ok(report),
            Some(finding) => Err(format!("its audit log: {}", finding.what)),
        }
    }

    pub(super) fn finish(mut self, manifest: Manifest) -> Verified {
        let has = |kind| manifest.items.iter().any(|item| item.kind == kind);
        for (kind, what) in [
            (ItemKind::Catalog, "the catalog"),
            (ItemKind::AuditLog, "the installation's audit log"),
        ] {
            // What is on a server has its backups there.
            if !has(kind) && manifest.catalog_at.is_none() {
                self.findings.push(format!("{what} is missing"));
            }
        }
        // Of a vault on a server the host has the master key alone.
        let unknown = self.keys.keys().filter(|_| manifest.catalog_at.is_none());
        for vault in unknown {
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
        let (findings, mut notes) = self.chains.finish();
        let logs: Vec<String> = manifest.items.iter().filter_map(Item::log).collect();
        for pin in self.pins {
            let note = format!(
                "the checkpoints are of the audit log {} too, which is not in the backup",
                pin.log_name()
            );
            if !logs.iter().any(|log| log == pin.log_name()) && !notes.contains(&note) {
                notes.push(note);
            }
        }
        self.findings.extend(findings);
        Verified {
            manifest,
            items: self.items,
            findings: self.findings,
            notes,
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
        crate::files::private_dir(parent)?;
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
