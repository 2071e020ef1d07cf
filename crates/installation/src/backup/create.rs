//! Making a backup.
//!
//! # Order of steps
//!
//! 1. The copies of databases are made in `STATE_DIR/.backup-UUID`, which is locked and, if its maker was
//!    killed, removed by the next one.
//! 2. The archive is written beside its name as `.FILE.UUID`, synced, linked to its name, which must not be
//!    taken, and its directory synced. Killed before that, no file of that name is there.

use std::collections::BTreeMap;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, BufWriter, Read, Seek, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use database::Database;
use rusqlite::backup::{Backup, StepResult};
use rusqlite::{Connection, OpenFlags};
use rustix::fs::{FlockOperation, flock};
use time::OffsetDateTime;
use uuid::Uuid;
use zeroize::Zeroizing;

use super::archive::Writer;
use super::archived::ArchivedPart;
use super::made::{self, MadeBackup};
use super::manifest::{FORMAT, Item, ItemKind, Manifest};
use super::segments;
use super::{BackupError, Protection};
use crate::files::{self, rename_new, sync_dir};
use crate::place::CATALOG_FILE;
use crate::{Installation, InstallationError};
use keys::{FIPS, Hashing, hex};
use traces::Span;
use vault::VaultDatabase;
use vault::audit::{self, AuditRecord};

/// Directories of keys and certificates that are taken as they are, and what the names of their files end in.
const PRIVATE_FILES: [(&str, &str); 4] = [
    ("tokens", ".p8"),
    ("federation", ".p8"),
    ("tls", ".pem"),
    ("tls", ".key"),
];
/// How the directory of copies begins.
const COPIES: &str = ".backup-";
/// Pages that are copied at a time.
const PAGES: i32 = 1024;
/// Longest file that is no database: keys and certificates.
const FILE_LIMIT: u64 = 1 << 20;

/// What is to be made.
pub struct CreateBackup<'a> {
    /// The new file.
    pub path: &'a Path,
    /// For whom.
    pub protection: Protection,
    /// Whether the vaults' master keys are to be in it.
    pub master_keys: bool,
    /// Whether a program with the feature `fips` makes it too, though age's cipher is not the validated
    /// module's.
    pub allow_non_fips: bool,
}

/// What was made.
pub struct CreatedBackup {
    /// What is in it.
    pub manifest: Manifest,
    /// Its length.
    pub bytes: u64,
}

/// Makes a backup of an installation, while it is in use.
///
/// # Errors
/// [`BackupError`]; there is no file of that name then.
pub fn create(
    installation: &Installation,
    request: &CreateBackup<'_>,
) -> Result<CreatedBackup, BackupError> {
    let path = request.path;
    if FIPS && !request.allow_non_fips {
        return Err(BackupError::OutsideModule);
    }
    refuse_taken(path)?;
    record(installation, request)?;
    let copies = Copies::new(installation.state_dir())?;
    let copying = Span::begin("copy databases");
    let mut sources = Sources::open(installation, request.master_keys)?;
    let items = sources.copy(installation.state_dir(), &copies)?;
    drop(copying);
    let manifest = Manifest {
        format: FORMAT,
        program: concat!("sealdisk ", env!("CARGO_PKG_VERSION")).into(),
        created: sources.begun,
        installation: installation.id(),
        state_dir: installation.state_dir().to_string_lossy().into_owned(),
        master_keys: request.master_keys,
        items: items.iter().map(|(item, _)| item.clone()).collect(),
        left_out: std::mem::take(&mut sources.left_out),
        archived: std::mem::take(&mut sources.archived),
        catalog_at: installation
            .place()
            .catalog
            .server()
            .map(ToString::to_string),
    };
    let writing = Span::begin("write backup");
    let bytes = write(path, &request.protection, &manifest, items)?;
    writing.set("sealdisk.bytes", i64::try_from(bytes).unwrap_or(i64::MAX));
    drop(writing);
    let made = MadeBackup {
        created: manifest.created,
        file: std::path::absolute(path).unwrap_or_else(|_| path.into()),
    };
    // The backup is there all the same.
    if let Err(error) = made::note(installation.state_dir(), &made) {
        log::warn!("it is not noted that a backup was made: {error}");
    }
    Ok(CreatedBackup { manifest, bytes })
}

/// What an entry is read from.
enum Content {
    /// A copy of a database, or an archived segment.
    File(File),
    /// A small file, or a key.
    Bytes(Zeroizing<Vec<u8>>),
}

/// A database of which a read transaction has begun.
struct Snapshot {
    path: String,
    file: PathBuf,
    kind: ItemKind,
    db: Connection,
    moment: OffsetDateTime,
}

struct Sources {
    begun: OffsetDateTime,
    snapshots: Vec<Snapshot>,
    files: Vec<(String, ItemKind, Zeroizing<Vec<u8>>)>,
    left_out: Vec<String>,
    archived: Vec<ArchivedPart>,
}

impl Sources {
    /// Begins a transaction on every database, in the order that the module's description gives.
    fn open(installation: &Installation, master_keys: bool) -> Result<Self, BackupError> {
        let state = installation.state_dir();
        let mut sources = Self {
            begun: OffsetDateTime::now_utc(),
            snapshots: Vec::new(),
            files: Vec::new(),
            left_out: vec!["disks, snapshots and images: `sealdisk disk copy` or `export`".into()],
            archived: Vec::new(),
        };
        // The first call makes it.
        installation.audit_log()?;
        let server = installation.place().catalog.server();
        match server {
            None => sources.begin(state, CATALOG_FILE, ItemKind::Catalog)?,
            Some(url) => sources.left_out.push(format!(
                "the catalog, which is at {url}: its backups are the server's"
            )),
        }
        let vaults = installation.catalog().vaults()?.into_iter();
        for vault in vaults.map(|vault| vault.record) {
            let name = &vault.name;
            if vault.kind.is_remote() {
                let what = format!("the keys of the vault '{name}', which are at {}", vault.url);
                sources.left_out.push(what);
                continue;
            }
            let path = format!("vaults/{name}/vault.db");
            // Of a catalog that hosts share, they have different vaults. One whose database alone is missing is lost.
            if server.is_some() && !is_there(&state.join("vaults").join(name))? {
                let what = format!("the key vault '{name}', which is not kept on this host");
                sources.left_out.push(what);
                continue;
            }
            if let Some(hsm) = vault.kind.token() {
                sources.left_out.push(format!(
                    "the token '{}' with the private keys of the vault '{name}', and its PIN",
                    hsm.token
                ));
            }
            sources.begin(state, &path, ItemKind::Vault)?;
        }
        sources.begin(state, "audit.db", ItemKind::AuditLog)?;
        sources.take_files(installation, master_keys)?;
        Ok(sources)
    }

    fn begin(&mut self, state: &Path, path: &str, kind: ItemKind) -> Result<(), BackupError> {
        let file = state.join(path);
        if kind == ItemKind::Vault {
            if !is_there(&file)? {
                return Err(BackupError::Argument(format!(
                    "{} is lost, and a backup without it would not be whole: bring it back, or give the key \
                     vault up with `sealdisk keyvault delete --force`",
                    file.display()
                )));
            }
            // One that a former version has left gets its present form first.
            VaultDatabase::open(&file)?;
        }
        let fail = BackupError::database(&file);
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let db = Connection::open_with_flags(&file, flags).map_err(&fail)?;
        db.busy_timeout(std::time::Duration::from_secs(30))
            .and_then(|()| db.execute_batch("BEGIN"))
            .map_err(&fail)?;
        // A transaction is of the moment of its first read.
        db.query_row("SELECT count(*) FROM sqlite_schema", [], |_| Ok(()))
            .map_err(&fail)?;
        self.snapshots.push(Snapshot {
            path: path.into(),
            kind,
            db,
            moment: OffsetDateTime::now_utc(),
            file,
        });
        Ok(())
    }

    /// What is beside the databases.
    fn take_files(
        &mut self,
        installation: &Installation,
        master_keys: bool,
    ) -> Result<(), BackupError> {
        let state = installation.state_dir();
        self.take(state, "audit.key")?;
        for (dir, suffix) in PRIVATE_FILES {
            for name in names(&state.join(dir))? {
                if name.ends_with(suffix) {
                    self.take(state, &format!("{dir}/{name}"))?;
                }
            }
        }
        let vaults: Vec<String> = self
            .snapshots
            .iter()
            .filter(|snapshot| snapshot.kind == ItemKind::Vault)
            .filter_map(|s| Some(s.path.strip_prefix("vaults/")?.split('/').next()?.into()))
            .collect();
        for name in vaults {
            let dir = state.join("vaults").join(&name);
            for file in names(&dir)?.into_iter().filter(|f| f.ends_with(".tpm2")) {
                self.take(state, &format!("vaults/{name}/{file}"))?;
            }
            if master_keys {
                let key = installation.vault(&name)?.expose_master_key();
                self.files.push((
                    format!("vaults/{name}/master.key"),
                    ItemKind::MasterKey,
                    key,
                ));
            } else {
                let database = VaultDatabase::open(&dir.join("vault.db"))?;
                let what = format!(
                    "the master key of the vault '{name}': {}",
                    database.describe_master()?
                );
                self.left_out.push(what);
            }
        }
        Ok(())
    }

    fn take(&mut self, state: &Path, path: &str) -> Result<(), BackupError> {
        let file = state.join(path);
        let fail = BackupError::io("read", &file);
        let mut bytes = Zeroizing::new(Vec::new());
        let read = OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_NOFOLLOW)
            .open(&file)
            .and_then(|opened| opened.take(FILE_LIMIT + 1).read_to_end(&mut bytes));
        match read {
            // A signing key that was retired meanwhile.
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(e) => return Err(fail(e)),
            Ok(_) if bytes.len() as u64 > FILE_LIMIT => {
                return Err(fail(io::Error::other("it is larger than a key can be")));
            }
            Ok(_) => {}
        }
        self.files.push((path.into(), ItemKind::File, bytes));
        Ok(())
    }

    /// Copies all databases; the entries of the archive. Keys come before what is under them, and
    /// segments before their logs, so that a reader has them when it looks at that.
    fn copy(&mut self, state: &Path, copies: &Copies) -> Result<Vec<(Item, Content)>, BackupError> {
        let mut items = Vec::new();
        let mut databases = Vec::new();
        for (path, kind, bytes) in self.files.drain(..) {
            let item = Item {
                path,
                kind,
                bytes: bytes.len() as u64,
                sha256: hex(&keys::sha256(&bytes)),
                moment: None,
                keys: BTreeMap::new(),
            };
            items.push((item, Content::Bytes(bytes)));
        }
        let snapshots = std::mem::take(&mut self.snapshots);
        for (number, snapshot) in snapshots.into_iter().enumerate() {
            let copy = copies.dir.join(format!("{number}.db"));
            snapshot.copy_to(&copy)?;
            let mut file = File::open(&copy).map_err(BackupError::io("open", &copy))?;
            let mut hashing = Hashing::new(&mut file);
            let bytes =
                io::copy(&mut hashing, &mut io::sink()).map_err(BackupError::io("read", &copy))?;
            let sha256 = hashing.hex();
            file.rewind().map_err(BackupError::io("read", &copy))?;
            let keys = match snapshot.kind {
                ItemKind::Vault => VaultDatabase::look(&copy)?.newest_versions()?,
                _ => BTreeMap::new(),
            };
            let item = Item {
                path: snapshot.path,
                kind: snapshot.kind,
                bytes,
                sha256,
                moment: Some(snapshot.moment),
                keys,
            };
            if let Some(log) = item.log() {
                self.list_archived(&copy, &log)?;
            }
            databases.push((item, Content::File(file)));
        }
        items.extend(self.take_segments(state));
        items.extend(databases);
        Ok(items)
    }

    /// What was archived from the log in the copy of a database.
    fn list_archived(&mut self, copy: &Path, log: &str) -> Result<(), BackupError> {
        let db = Connection::open_with_flags(copy, OpenFlags::SQLITE_OPEN_READ_ONLY)
            .map_err(BackupError::database(copy))?;
        let kept = audit::kept(&Database::from(db), log)?.into_iter();
        self.archived
            .extend(kept.map(|kept| ArchivedPart::new(log, kept)));
        Ok(())
    }

    /// The segments that are in the state directory; the others are left out.
    fn take_segments(&mut self, state: &Path) -> Vec<(Item, Content)> {
        let mut items = Vec::new();
        for part in &mut self.archived {
            let (file, bytes, sha256) = match segments::find(state, part) {
                Ok(Some(found)) => found,
                Ok(None) => {
                    self.left_out.push(part.describe());
                    continue;
                }
                Err(why) => {
                    log::warn!("{why}");
                    self.left_out.push(format!("{}; {why}", part.describe()));
                    continue;
                }
            };
            part.included = true;
            let item = Item {
                path: part.entry(),
                kind: ItemKind::Segment,
                bytes,
                sha256,
                moment: None,
                keys: BTreeMap::new(),
            };
            items.push((item, Content::File(file)));
        }
        items
    }
}

impl Snapshot {
    /// Copies the database as of the transaction. The copy has no write-ahead log: it is whole in itself.
    fn copy_to(&self, path: &Path) -> Result<(), BackupError> {
        let fail = BackupError::database(&self.file);
        OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(path)
            .map_err(BackupError::io("make", path))?;
        let mut copy = Connection::open(path).map_err(&fail)?;
        // It is read once and removed; a crash leaves nothing of worth.
        copy.execute_batch("PRAGMA synchronous = OFF")
            .map_err(&fail)?;
        let backup = Backup::new(&self.db, &mut copy).map_err(&fail)?;
        loop {
            match backup.step(PAGES).map_err(&fail)? {
                StepResult::Done => break,
                StepResult::More => {}
                // Nobody writes to what a read transaction sees, and nobody else opens the copy.
                _ => std::thread::sleep(std::time::Duration::from_millis(5)),
            }
        }
        drop(backup);
        copy.query_row("PRAGMA journal_mode = DELETE", [], |_| Ok(()))
            .map_err(&fail)?;
        copy.close().map_err(|(_, e)| fail(e))
    }
}

fn write(
    path: &Path,
    protection: &Protection,
    manifest: &Manifest,
    items: Vec<(Item, Content)>,
) -> Result<u64, BackupError> {
    let parent = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let new = parent.join(format!(".{name}.{}", Uuid::new_v4()));
    let fail = || BackupError::io("write", path);
    let file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&new)
        .map_err(fail())?;
    let unfinished = Unfinished(&new);
    let written = (|| {
        let mut writer = Writer::new(BufWriter::with_capacity(1 << 16, file), protection)?;
        let time = manifest.created.unix_timestamp();
        writer.manifest(manifest)?;
        for (item, content) in items {
            match content {
                Content::File(mut file) => {
                    writer.add(&item.path, item.bytes, time, &mut file)?;
                }
                Content::Bytes(bytes) => {
                    writer.add(&item.path, item.bytes, time, &mut bytes.as_slice())?;
                }
            }
        }
        let mut out = writer.finish()?;
        out.flush()?;
        let file = out.into_inner().map_err(|e| e.into_error())?;
        file.sync_all()?;
        file.metadata().map(|metadata| metadata.len())
    })();
    let bytes = written.map_err(fail())?;
    publish(&new, path)?;
    drop(unfinished);
    sync_dir(parent).map_err(BackupError::io("sync", parent))?;
    Ok(bytes)
}

/// Gives a complete file its name, unless that is taken.
fn publish(new: &Path, path: &Path) -> Result<(), BackupError> {
    rename_new(new, path).map_err(|e| match e.kind() {
        io::ErrorKind::AlreadyExists => taken(path),
        _ => BackupError::io("rename", new)(e),
    })
}

/// An earlier backup is never written over.
fn refuse_taken(path: &Path) -> Result<(), BackupError> {
    match is_there(path)? {
        false => Ok(()),
        true => Err(taken(path)),
    }
}

/// As [`files::is_there`].
fn is_there(path: &Path) -> Result<bool, BackupError> {
    files::is_there(path).map_err(BackupError::io("look at", path))
}

fn taken(path: &Path) -> BackupError {
    BackupError::Argument(format!(
        "{} exists; give the name of a new file",
        path.display()
    ))
}

/// A file that is removed: it is not complete, or has its name by now.
struct Unfinished<'a>(&'a Path);

impl Drop for Unfinished<'_> {
    fn drop(&mut self) {
        match fs::remove_file(self.0) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => {
                log::warn!("cannot remove {}: {e}", self.0.display());
            }
            _ => {}
        }
    }
}

/// The directory of copies.
struct Copies {
    dir: PathBuf,
    _lock: File,
}

impl Copies {
    fn new(state_dir: &Path) -> Result<Self, BackupError> {
        for name in names(state_dir)? {
            if name.starts_with(COPIES) {
                sweep(&state_dir.join(name))?;
            }
        }
        let dir = state_dir.join(format!("{COPIES}{}", Uuid::new_v4()));
        DirBuilder::new()
            .mode(0o700)
            .create(&dir)
            .map_err(BackupError::io("make", &dir))?;
        let lock = File::open(&dir)
            .and_then(|lock| {
                flock(&lock, FlockOperation::LockExclusive)?;
                Ok(lock)
            })
            .map_err(BackupError::io("lock", &dir))?;
        Ok(Self { dir, _lock: lock })
    }
}

impl Drop for Copies {
    fn drop(&mut self) {
        if let Err(e) = fs::remove_dir_all(&self.dir) {
            log::warn!("cannot remove {}: {e}", self.dir.display());
        }
    }
}

/// Removes the copies of a maker that was killed.
fn sweep(dir: &Path) -> Result<(), BackupError> {
    let Ok(lock) = File::open(dir) else {
        return Ok(());
    };
    match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => fs::remove_dir_all(dir).map_err(BackupError::io("remove", dir)),
        Err(_) => Ok(()),
    }
}

/// The names in a directory, in order; none when it is not there.
fn names(dir: &Path) -> Result<Vec<String>, BackupError> {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(BackupError::io("list", dir)(e)),
    };
    let mut names = Vec::new();
    for entry in entries {
        let entry = entry.map_err(BackupError::io("list", dir))?;
        names.extend(entry.file_name().into_string());
    }
    names.sort();
    Ok(names)
}

/// Records that everything is about to be copied, and for whom.
fn record(installation: &Installation, request: &CreateBackup<'_>) -> Result<(), BackupError> {
    let operator = installation.operator();
    let whom = match &request.protection {
        Protection::Passphrase(_) => "a passphrase".into(),
        Protection::Recipients(recipients) => {
            let names: Vec<String> = recipients.iter().map(ToString::to_string).collect();
            names.join(" ")
        }
    };
    let keys = match request.master_keys {
        true => "with the master keys",
        false => "without master keys",
    };
    let append = || -> Result<(), InstallationError> {
        installation.audit_log()?.append(
            &AuditRecord::new(operator.object_id, &operator.origin, "BackupCreate")
                .with_detail(format!("{} {keys}, for {whom}", request.path.display())),
        )?;
        Ok(())
    };
    Ok(append()?)
}
