//! Bringing an installation back from a backup, into an empty state directory.
//!
//! # Order of steps
//!
//! 1. Everything is extracted into `STATE_DIR/.restore-UUID`, synced and verified there.
//! 2. What is in it is moved up, the catalog last, and the state directory is synced before that.
//!
//! No command opens a state directory without a catalog in which there is anything of an installation,
//! or such a directory. Killed before the last rename, the next restore finds `.restore-UUID/catalog.db`
//! and so knows that all the rest is of a restore that was cut off: it removes that and begins anew.
//! After the last rename it is complete.
//!
//! Where the catalog is on a server it is not in the backup. The state directory's note of it takes its place: it is put
//! there last, once the server was found to have that installation.

use std::collections::BTreeSet;
use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use serde_json::json;
use time::OffsetDateTime;
use uuid::Uuid;

use super::archive::{self, Secret};
use super::archived::DIRECTORY;
use super::manifest::{ItemKind, Manifest};
use super::verify::{Look, extract};
use super::{BackupError, Verified};
use crate::catalog::{
    AccessCatalog, Catalog, DatabaseCatalog, OperationCatalog, OperationState, RestoredRecord,
};
use crate::envelope::ResourceKind;
use crate::files::{private_dir, sync_dir};
use crate::known_server::{KnownServer, SERVER_FILE};
use crate::on_server::{IfMissing, catalog_for};
use crate::place::CATALOG_FILE;
use crate::server_databases::LOG;
use crate::{CatalogAt, Installation, InstallationError, Place, RESTORING};
use database::postgres::{self, ServerUrl};
use vault::audit::{AuditError, AuditLog, AuditRecord, Pin};
use vault::{MasterSource, VaultDatabase, moment};

/// What a restore puts into the state directory.
const PARTS: [&str; 8] = [
    "vaults",
    "audit.db",
    "audit.key",
    "tokens",
    "federation",
    "tls",
    DIRECTORY,
    "catalog-copy.json",
];
/// What is there last, and makes it an installation: one of these.
const LAST: [&str; 2] = [CATALOG_FILE, SERVER_FILE];

/// What is to be restored.
pub struct Restore<'a> {
    /// The backup.
    pub path: &'a Path,
    /// What opens it.
    pub secret: &'a Secret,
    /// Heads of audit logs that were exported earlier.
    pub pins: &'a [Pin],
    /// Archived segments that are not in the backup.
    pub segments: &'a [PathBuf],
}

/// What was brought back.
pub struct Restored {
    /// What was found in the backup.
    pub verified: Verified,
    /// What is still to be done.
    pub notes: Vec<String>,
}

/// Restores a backup into a state directory; its catalog too, unless that is on a server, which is there then.
///
/// # Errors
/// [`BackupError::NotEmpty`], [`BackupError::Bad`] for one in which [`verify`](super::verify) would find
/// something; nothing is in the state directory then.
pub fn restore(request: &Restore<'_>, place: &Place) -> Result<Restored, BackupError> {
    let (path, state_dir) = (request.path, place.state_dir.as_path());
    private_dir(state_dir)?;
    let state_dir = std::path::absolute(state_dir).map_err(BackupError::io("find", state_dir))?;
    prepare(&state_dir)?;
    let staging = Staging::new(&state_dir)?;
    let verified = extract_all(request, &staging.dir)?;
    if !verified.findings.is_empty() {
        return Err(BackupError::Bad {
            path: path.into(),
            findings: verified.findings,
        });
    }
    let last = join_server(&staging.dir, &verified.manifest, &place.catalog)?;
    let mut notes = settle(&staging.dir, &verified.manifest, &state_dir)?;
    staging.publish(&state_dir, last)?;
    let installation = Installation::open(Place {
        state_dir,
        catalog: place.catalog.clone(),
    })?;
    record(&installation, path, &verified.manifest)?;
    notes.extend(verified.notes.iter().cloned());
    if last == SERVER_FILE {
        notes.extend(place_master_keys(&installation)?);
    }
    // A server's catalog was not restored, and has what other hosts have, too.
    if last == CATALOG_FILE {
        notes.extend(not_in_place(&installation)?);
    }
    Ok(Restored { verified, notes })
}

/// The file that is put into the state directory last. Where that is the note of a server, it is made, and the server is
/// found to have the installation.
fn join_server(
    dir: &Path,
    manifest: &Manifest,
    catalog: &CatalogAt,
) -> Result<&'static str, BackupError> {
    match (catalog.server(), &manifest.catalog_at) {
        (None, None) => Ok(CATALOG_FILE),
        (None, Some(place)) => Err(BackupError::Argument(format!(
            "the backup has no catalog, which is at {place}: give --catalog, once that is there again"
        ))),
        (Some(_), None) => Err(BackupError::Argument(
            "the backup has a catalog of its own: restore it without --catalog and SEALDISK_CATALOG, and move it with \
             `sealdisk catalog migrate`"
                .into(),
        )),
        (Some(url), Some(_)) => {
            KnownServer::new(manifest.installation, url.to_string()).note(dir)?;
            // An error says which installation is there, if one is.
            catalog_for(dir, url, IfMissing::LookOnly)?;
            check_log_key(url, &dir.join("audit.key"))?;
            Ok(SERVER_FILE)
        }
    }
}

/// Whether a key is that of the log on a server.
fn check_log_key(url: &ServerUrl, key: &Path) -> Result<(), InstallationError> {
    match postgres::open_as_it_is(url.as_str(), &LOG).map_err(AuditError::from)? {
        Some(log) => Ok(AuditLog::check_shared_key(&log, key)?),
        None => Ok(()),
    }
}

/// Puts the master keys of vaults on a server where these expect them; what is left to be done.
fn place_master_keys(installation: &Installation) -> Result<Vec<String>, BackupError> {
    let mut notes = Vec::new();
    for record in installation.vaults_here()? {
        let name = &record.name;
        let dir = installation.vault_dir(name);
        let restored = dir.join("master.key");
        let database = installation.vault_database(name)?;
        let described = database.describe_master()?;
        match (restored.exists(), database.master_source()) {
            (true, None) => {}
            (true, Some(MasterSource::Beside { file })) => {
                let to = dir.join(file);
                fs::rename(&restored, &to).map_err(BackupError::io("make", &to))?;
            }
            (true, Some(_)) => notes.push(format!(
                "the key vault '{name}' has its master key elsewhere: {described}; it is in {}, too: put it there, and remove \
                 that file",
                restored.display()
            )),
            (false, _) => notes.push(format!(
                "the key vault '{name}' needs its master key on this host: {described}"
            )),
        }
    }
    Ok(notes)
}

/// What the catalog has and is not in its place, and the other way round.
fn not_in_place(installation: &Installation) -> Result<Vec<String>, BackupError> {
    let mut notes = Vec::new();
    for row in installation.catalog().resources()? {
        let resource = row.record;
        if !resource.directory.join("header").exists() {
            notes.push(format!(
                "the {} '{}' is not in {}: put its directory there",
                resource.kind,
                resource.name,
                resource.directory.display()
            ));
        }
    }
    for path in unknown_headers(installation)? {
        let path = path.display();
        notes.push(format!(
            "{path} has a header that the backup does not know: `sealdisk catalog rebuild --data-dir {path}` adds it"
        ));
    }
    Ok(notes)
}

/// Refuses a state directory that is in use; removes what a restore that was cut off has left.
fn prepare(state_dir: &Path) -> Result<(), BackupError> {
    let names = list(state_dir)?;
    let unfinished: Vec<&String> = names
        .iter()
        .filter(|name| name.starts_with(RESTORING))
        .collect();
    let is_last_in = |dir: &Path| LAST.iter().any(|last| dir.join(last).exists());
    let cut_off = !is_last_in(state_dir)
        && unfinished
            .iter()
            .any(|name| is_last_in(&state_dir.join(name)));
    for name in &names {
        let path = state_dir.join(name);
        let ours = name.starts_with(RESTORING) || (cut_off && PARTS.contains(&name.as_str()));
        // The root of a file system has one.
        if name == "lost+found" {
            continue;
        }
        if !ours && !is_empty_dir(&path) {
            return Err(BackupError::NotEmpty {
                path: state_dir.into(),
                found: name.clone(),
            });
        }
    }
    // The sign that a restore was cut off goes last.
    let (last, first): (Vec<&String>, Vec<&String>) = names
        .iter()
        .filter(|name| *name != "lost+found")
        .partition(|name| name.starts_with(RESTORING));
    for name in first.into_iter().chain(last) {
        let path = state_dir.join(name);
        let removed = match path.is_dir() {
            true => fs::remove_dir_all(&path),
            false => fs::remove_file(&path),
        };
        removed.map_err(BackupError::io("remove", &path))?;
    }
    sync_dir(state_dir).map_err(BackupError::io("sync", state_dir))
}

fn is_empty_dir(path: &Path) -> bool {
    fs::read_dir(path).is_ok_and(|mut entries| entries.next().is_none())
}

fn list(dir: &Path) -> Result<Vec<String>, BackupError> {
    let mut names = Vec::new();
    for entry in fs::read_dir(dir).map_err(BackupError::io("list", dir))? {
        let entry = entry.map_err(BackupError::io("list", dir))?;
        names.push(entry.file_name().to_string_lossy().into_owned());
    }
    names.sort();
    Ok(names)
}

/// Extracts every entry, and looks at it.
fn extract_all(request: &Restore<'_>, dir: &Path) -> Result<Verified, BackupError> {
    let manifest = archive::read(
        request.path,
        request.secret,
        |_| Ok(()),
        |item, content| {
            let file = dir.join(&item.path);
            if let Some(parent) = file.parent() {
                DirBuilder::new()
                    .mode(0o700)
                    .recursive(true)
                    .create(parent)
                    .map_err(BackupError::io("make", parent))?;
            }
            extract(&file, content)
        },
    )?;
    let mut look = Look::new(request.pins);
    look.begin(&manifest, request.segments);
    for item in &manifest.items {
        let file = dir.join(&item.path);
        match item.kind {
            ItemKind::Catalog | ItemKind::Vault | ItemKind::AuditLog => look.database(item, &file),
            ItemKind::MasterKey | ItemKind::Segment | ItemKind::File => {
                let mut content = File::open(&file).map_err(BackupError::io("open", &file))?;
                look.file(item, &mut content)?;
            }
        }
    }
    Ok(look.finish(manifest))
}

/// Has the databases fit to where they are restored; what is left to be done. A vault does not know which keys were made
/// and granted since, so that a disk which runs with one must not lose it by what the vault does not know.
fn settle(dir: &Path, manifest: &Manifest, state_dir: &Path) -> Result<Vec<String>, BackupError> {
    let mut notes = Vec::new();
    for item in manifest.items.iter().filter(|i| i.kind == ItemKind::Vault) {
        let Some(name) = item.vault() else {
            continue;
        };
        let database = VaultDatabase::open(&dir.join(&item.path))?;
        database.mark_incomplete(OffsetDateTime::now_utc())?;
        let has_key = dir.join("vaults").join(name).join("master.key").exists();
        if has_key {
            let before = database.describe_master()?;
            database.expect_master_beside()?;
            notes.push(format!(
                "the master key of the vault '{name}' is in vaults/{name}/master.key now (before: \
                 {before}): `sealdisk keyvault reseal {name}` gives it a new one elsewhere"
            ));
        } else {
            notes.push(format!(
                "the vault '{name}' needs its master key: {}",
                database.describe_master()?
            ));
        }
    }
    if manifest.catalog_at.is_some() {
        return Ok(notes);
    }
    move_directories(dir, Path::new(&manifest.state_dir), state_dir)?;
    end_operations(dir)?;
    revoke_access(dir)?;
    notes.push(mark(dir, manifest)?);
    Ok(notes)
}

/// What the management API had not ended when the backup was made does not go on here: it may be the deletion of what
/// was to be restored.
fn end_operations(dir: &Path) -> Result<(), BackupError> {
    let catalog = DatabaseCatalog::open(&dir.join(CATALOG_FILE))?;
    for mut operation in catalog.running_operations()? {
        operation.state = OperationState::Failed;
        operation.answer["status"] = json!(409);
        operation.answer["error"] = json!({
            "code": "OperationInterrupted",
            "message": "The installation was restored from a backup that was made while the operation went on.",
        });
        catalog.put_operation(&operation)?;
    }
    Ok(())
}

/// Nobody knows here which access was revoked since the backup was made.
fn revoke_access(dir: &Path) -> Result<(), BackupError> {
    let catalog = DatabaseCatalog::open(&dir.join(CATALOG_FILE))?;
    for access in catalog.accesses(None)? {
        catalog.delete_access(access.id)?;
    }
    Ok(())
}

/// Has the catalog say that it does not know what was made, or purged, since the backup; what is to be done about it.
fn mark(dir: &Path, manifest: &Manifest) -> Result<String, BackupError> {
    let catalog = DatabaseCatalog::open(&dir.join(CATALOG_FILE))?;
    catalog.mark_restored(&RestoredRecord {
        backup: Some(manifest.created),
        time: OffsetDateTime::now_utc(),
    })?;
    catalog.forget_purged_vaults()?;
    Ok(format!(
        "disks that were made since the backup, at {}, are not known: `sealdisk catalog rebuild --all-directories-named`, \
         with --data-dir for each directory of disks outside of the state directory, adds them; until then no key is \
         called safe to disable, and a running disk whose key or policy the backup lacks is served for its grace period",
        moment(manifest.created)
    ))
}

/// The directories with a header that the catalog does not know, where it has others: in the usual places and beside
/// those that it knows.
fn unknown_headers(installation: &Installation) -> Result<Vec<PathBuf>, BackupError> {
    let rows = installation.catalog().resources()?;
    let known: BTreeSet<PathBuf> = rows.into_iter().map(|row| row.record.directory).collect();
    let usual = ResourceKind::ALL.map(|kind| installation.resources_dir(kind));
    let beside = known.iter().filter_map(|dir| dir.parent());
    let places: BTreeSet<&Path> = usual.iter().map(PathBuf::as_path).chain(beside).collect();
    let mut found = Vec::new();
    for place in places {
        // One that is not mounted yet is told of with its disks.
        let Ok(entries) = fs::read_dir(place) else {
            continue;
        };
        for entry in entries.flatten() {
            let path = entry.path();
            let is_hidden = entry.file_name().as_bytes().starts_with(b".");
            if !is_hidden && !known.contains(&path) && path.join("header").exists() {
                found.push(path);
            }
        }
    }
    found.sort();
    Ok(found)
}

/// What lay in the state directory from then lies in the one from now.
fn move_directories(dir: &Path, from: &Path, to: &Path) -> Result<(), BackupError> {
    if from == to {
        return Ok(());
    }
    let catalog = DatabaseCatalog::open(&dir.join(CATALOG_FILE))?;
    for row in catalog.resources()? {
        let mut record = row.record;
        if let Ok(below) = record.directory.strip_prefix(from) {
            let moved = to.join(below).as_os_str().as_bytes().to_vec();
            record.directory = std::ffi::OsString::from_vec(moved).into();
            catalog.update_disk(row.rev, &record)?;
        }
    }
    Ok(())
}

fn record(
    installation: &Installation,
    path: &Path,
    manifest: &Manifest,
) -> Result<(), BackupError> {
    let operator = installation.operator();
    let append = || -> Result<(), InstallationError> {
        installation.audit_log()?.append(
            &AuditRecord::new(operator.object_id, &operator.origin, "BackupRestore")
                .with_detail(format!("{} of {}", path.display(), manifest.created)),
        )?;
        Ok(())
    };
    Ok(append()?)
}

/// The directory in which a restore is made ready.
struct Staging {
    dir: PathBuf,
}

impl Staging {
    fn new(state_dir: &Path) -> Result<Self, BackupError> {
        let dir = state_dir.join(format!("{RESTORING}{}", Uuid::new_v4()));
        DirBuilder::new()
            .mode(0o700)
            .create(&dir)
            .map_err(BackupError::io("make", &dir))?;
        Ok(Self { dir })
    }

    /// Moves everything to its place, what makes it an installation last.
    fn publish(&self, state_dir: &Path, last: &str) -> Result<(), BackupError> {
        sync_all(&self.dir).map_err(BackupError::io("sync", &self.dir))?;
        let sync = || sync_dir(state_dir).map_err(BackupError::io("sync", state_dir));
        sync()?;
        for name in list(&self.dir)?.iter().filter(|name| *name != last) {
            let to = state_dir.join(name);
            fs::rename(self.dir.join(name), &to).map_err(BackupError::io("make", &to))?;
        }
        sync()?;
        let to = state_dir.join(last);
        fs::rename(self.dir.join(last), &to).map_err(BackupError::io("make", &to))?;
        sync()
    }
}

/// What was not moved is of no use.
impl Drop for Staging {
    fn drop(&mut self) {
        match fs::remove_dir_all(&self.dir) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => {
                log::warn!("cannot remove {}: {e}", self.dir.display());
            }
            _ => {}
        }
    }
}

/// Makes the names in a directory, and in those below it, durable.
fn sync_all(dir: &Path) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            sync_all(&entry.path())?;
        }
    }
    sync_dir(dir)
}
