//! The subcommands of `backup`.

use std::fs::File;
use std::io::BufReader;
use std::path::{Path, PathBuf};

use clap::builder::BoolishValueParser;
use clap::{Args, Subcommand};
use serde::Serialize;
use time::OffsetDateTime;

use super::secret::{ProtectionArgs, SecretArgs, protection, secret};
use crate::cli::output::{NOTHING, size_cell, time_cell};
use crate::cli::{CliError, Context, Tabular};
use installation::backup::{
    self, BackupError, CreateBackup, ItemKind, Manifest, Restore, VerifiedItem,
};
use installation::runtime_dir;
use vault::audit::{Pin, pins};

/// Arguments of `backup`.
#[derive(Args)]
pub struct BackupArgs {
    #[command(subcommand)]
    command: BackupCommand,
}

#[derive(Subcommand)]
enum BackupCommand {
    /// Back up everything but the disks into one encrypted file, online
    #[command(after_help = "Example:
  age-keygen -o /media/usb/backup.identity
  sealdisk backup create /backup/monday.age --recipient age1… --with-master-key
  sealdisk backup create /backup/monday.age --passphrase-file /etc/sealdisk/backup.passphrase

It has the vaults, the catalog (sets, identities, connections to remote vaults), the audit logs, the
keys that sign tokens and the TLS CA. The vaults' private keys are encrypted under their master
keys. These are included only --with-master-key, and then whoever opens the file has every key of
every vault. Archived segments of audit logs are included if they are in the state directory; others
are named. The file is a tar archive encrypted with age (age-encryption.org). For disks, see `disk
copy` and `disk export`.")]
    Create(CreateArgs),
    /// Verify that a backup is complete and intact; needs no installation
    #[command(after_help = "Example:
  sealdisk backup verify /backup/monday.age --identity-file /media/usb/backup.identity

It checks the archive, each database, each audit log up to its signed head, that each key's newest
version is there and every version that a disk needs, and that the master keys decrypt what is
stored under them. With --checkpoint, an earlier `audit export --checkpoints-only`, it also finds a
log that was replaced or rolled back. Segments that were archived outside of the state directory are
not in the backup: it names those that it needs; give them with --archive. Exit status 1 when
something is wrong.")]
    Verify(ReadArgs),
    /// Restore an installation into a state directory that is empty or does not exist
    #[command(after_help = "Example:
  sealdisk backup restore /backup/monday.age --identity-file /media/usb/backup.identity

docs/disaster-recovery.md has all steps of a recovery.")]
    Restore(RestoreArgs),
}

#[derive(Args)]
struct CreateArgs {
    /// The new file
    file: PathBuf,
    #[command(flatten)]
    protection: ProtectionArgs,
    /// Include the vaults' master keys: whoever opens the backup has every key. Without them, the
    /// backup does not help against the loss of a master key
    #[arg(long)]
    with_master_key: bool,
    /// Allow a backup in a build with `fips`, although age is outside of the validated module. Then
    /// store the file where a validated module encrypts it
    #[arg(long, env = "SEALDISK_ALLOW_NON_FIPS", value_parser = BoolishValueParser::new())]
    allow_non_fips: bool,
}

#[derive(Args)]
struct ReadArgs {
    /// The backup
    file: PathBuf,
    #[command(flatten)]
    secret: SecretArgs,
    /// An earlier export of audit logs to compare with
    #[arg(long, value_name = "EXPORT")]
    checkpoint: Option<PathBuf>,
    /// Verify these archived segments of the audit logs too, which are not in the backup
    #[arg(long, value_name = "FILE", num_args = 1..)]
    archive: Vec<PathBuf>,
    /// A directory for one database at a time, readable by this user only [default: the runtime
    /// directory]
    #[arg(long, value_name = "DIR")]
    work_dir: Option<PathBuf>,
}

#[derive(Args)]
struct RestoreArgs {
    /// The backup
    file: PathBuf,
    #[command(flatten)]
    secret: SecretArgs,
    /// An earlier export of audit logs to compare with
    #[arg(long, value_name = "EXPORT")]
    checkpoint: Option<PathBuf>,
    /// Verify these archived segments of the audit logs too, which are not in the backup
    #[arg(long, value_name = "FILE", num_args = 1..)]
    archive: Vec<PathBuf>,
}

/// A backup.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct BackupView {
    file: PathBuf,
    #[serde(with = "time::serde::rfc3339")]
    created: OffsetDateTime,
    installation: uuid::Uuid,
    program: String,
    master_keys: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    bytes: Option<u64>,
    items: usize,
    left_out: Vec<String>,
}

impl BackupView {
    fn new(file: &Path, manifest: Manifest, bytes: Option<u64>) -> Self {
        Self {
            file: file.into(),
            created: manifest.created,
            installation: manifest.installation,
            program: manifest.program,
            master_keys: manifest.master_keys,
            bytes,
            items: manifest.items.len(),
            left_out: manifest.left_out,
        }
    }
}

/// An entry of a backup.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ItemView {
    path: String,
    kind: ItemKind,
    bytes: u64,
    #[serde(with = "time::serde::rfc3339::option")]
    moment: Option<OffsetDateTime>,
    audit_records: Option<u64>,
    keys: usize,
}

impl From<VerifiedItem> for ItemView {
    fn from(verified: VerifiedItem) -> Self {
        let item = verified.item;
        Self {
            path: item.path,
            kind: item.kind,
            bytes: item.bytes,
            moment: item.moment,
            audit_records: verified.records,
            keys: item.keys.len(),
        }
    }
}

impl Tabular for ItemView {
    const COLUMNS: &'static [&'static str] = &["path", "size", "moment", "auditRecords", "keys"];

    fn cells(&self) -> Vec<String> {
        let records = self.audit_records.map(|n| n.to_string());
        let keys = match self.kind {
            ItemKind::Vault => self.keys.to_string(),
            _ => NOTHING.into(),
        };
        vec![
            self.path.clone(),
            size_cell(self.bytes),
            time_cell(self.moment),
            records.unwrap_or_else(|| NOTHING.into()),
            keys,
        ]
    }
}

pub fn run(context: &Context, args: BackupArgs) -> Result<(), CliError> {
    match args.command {
        BackupCommand::Create(args) => create(context, args),
        BackupCommand::Verify(args) => verify(context, &args),
        BackupCommand::Restore(args) => restore(context, &args),
    }
}

fn create(context: &Context, args: CreateArgs) -> Result<(), CliError> {
    let protection = protection(&args.protection)?;
    let installation = context.installation()?;
    let request = CreateBackup {
        path: &args.file,
        protection,
        master_keys: args.with_master_key,
        allow_non_fips: args.allow_non_fips,
    };
    let created = backup::create(&installation, &request)?;
    if args.with_master_key {
        context.output.note(
            "note: the vaults' master keys are in the backup: whoever opens it has every key of every \
             vault",
        );
    } else {
        context.output.note(
            "note: the vaults' master keys are not in the backup: without them nothing that the vaults' \
             keys wrap can be read again; keep copies of them, or give --with-master-key",
        );
    }
    let view = BackupView::new(&args.file, created.manifest, Some(created.bytes));
    context.output.show(&view)
}

fn verify(context: &Context, args: &ReadArgs) -> Result<(), CliError> {
    let secret = secret(&args.secret)?;
    let known = checkpoints(args.checkpoint.as_deref())?;
    let work = match &args.work_dir {
        Some(dir) => dir.clone(),
        None => runtime_dir(context.runtime_dir.as_deref()),
    };
    let verified = backup::verify(&args.file, &secret, &known, &args.archive, &work)?;
    for note in &verified.notes {
        context.output.note(&format!("note: {note}"));
    }
    let items: Vec<ItemView> = verified.items.into_iter().map(ItemView::from).collect();
    context.output.list(&items)?;
    match verified.findings.is_empty() {
        true => Ok(()),
        false => Err(BackupError::Bad {
            path: args.file.clone(),
            findings: verified.findings,
        }
        .into()),
    }
}

fn restore(context: &Context, args: &RestoreArgs) -> Result<(), CliError> {
    let secret = secret(&args.secret)?;
    let known = checkpoints(args.checkpoint.as_deref())?;
    let request = Restore {
        path: &args.file,
        secret: &secret,
        pins: &known,
        segments: &args.archive,
    };
    let restored = backup::restore(&request, &context.place()?)?;
    for note in restored.notes {
        context.output.note(&format!("note: {note}"));
    }
    let view = BackupView::new(&args.file, restored.verified.manifest, None);
    context.output.show(&view)
}

fn checkpoints(path: Option<&Path>) -> Result<Vec<Pin>, CliError> {
    let Some(path) = path else {
        return Ok(Vec::new());
    };
    let bad = |what: String| CliError::new("BadParameter", format!("{}: {what}", path.display()));
    let file = File::open(path).map_err(|e| bad(e.to_string()))?;
    pins(BufReader::new(file)).map_err(|e| bad(e.to_string()))
}

impl From<BackupError> for CliError {
    fn from(error: BackupError) -> Self {
        let code = match error {
            BackupError::Installation(error) => return error.into(),
            BackupError::Argument(_) => "BadParameter",
            BackupError::OutsideModule => "NotInFipsModule",
            BackupError::Io { .. } | BackupError::Database { .. } => "BackupFailed",
            BackupError::Key { .. } => "BackupKey",
            BackupError::Damaged { .. } | BackupError::Bad { .. } => "BackupDamaged",
            BackupError::NotEmpty { .. } => "StateDirectory",
        };
        Self::new(code, error.to_string())
    }
}
