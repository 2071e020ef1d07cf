//! `sealdisk audit archive` and `status`.

use std::path::{Path, PathBuf};

use clap::Args;
use serde::Serialize;
use time::OffsetDateTime;

use super::log::{Log, WhichArgs, logs};
use crate::cli::files::in_file;
use crate::cli::output::size_cell;
use crate::cli::{CliError, Context, Tabular};
use installation::Installation;
use vault::Connection;
use vault::audit::{Archived, AuditError, AuditRecord, Chain, Space};

/// Arguments of `audit archive`.
#[derive(Args)]
pub(super) struct ArchiveArgs {
    #[command(flatten)]
    which: WhichArgs,
    /// An existing directory for the files
    #[arg(long, value_name = "DIR")]
    output_dir: PathBuf,
    /// Keep the records of the last DAYS days in the logs
    #[arg(long, value_name = "DAYS", default_value_t = 0)]
    older_than: u32,
}

/// Arguments of `audit status`.
#[derive(Args)]
pub(super) struct StatusArgs {
    #[command(flatten)]
    which: WhichArgs,
}

impl Log {
    fn archive(
        &self,
        installation: &Installation,
        dir: &Path,
        before: OffsetDateTime,
    ) -> Result<Option<Archived>, AuditError> {
        let (name, operator) = (self.name(), installation.operator());
        match self {
            Self::Vault(vault) => vault.archive_audit(&operator, &name, dir, before),
            Self::Installation(log) => {
                let record = AuditRecord::new(operator.object_id, &operator.origin, "AuditArchive");
                log.archive(&name, dir, before, record)
            }
        }
    }

    /// How the log is; `None` where its room is that of a server.
    fn status(&self, installation: &Installation) -> Result<Option<StatusView>, CliError> {
        let own = installation.state_dir().join("audit.db");
        let (path, reserve) = match self {
            Self::Vault(vault) => (vault.database(), vault.reserve_size()),
            Self::Installation(log) => (Some(own.as_path()), log.reserve_size()),
        };
        let Some(path) = path else {
            return Ok(None);
        };
        let (last, archived, counting) = match self {
            Self::Vault(vault) => vault.read_audit(count),
            Self::Installation(log) => log.read(count),
        }?;
        let wal = path.with_extension("db-wal");
        let size = |path: &Path| path.metadata().map_or(0, |metadata| metadata.len());
        let space = Space::at(path).map_err(|e| in_file(path, &e))?;
        Ok(Some(StatusView {
            log: self.name(),
            records: last - archived,
            archived,
            counting,
            bytes: size(path) + size(&wal),
            available_bytes: space.available,
            reserve_bytes: reserve,
            low: space.is_low(),
            space,
        }))
    }
}

/// The number of the last record, and of the last one that was archived, and how many counters have counted something.
fn count(chain: &Chain, db: &Connection) -> Result<(u64, u64, usize), AuditError> {
    let open = chain.counters(db)?.iter().filter(|c| c.count > 0).count();
    Ok((chain.last(db)?, chain.archived(db)?, open))
}

/// How a log is.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct StatusView {
    log: String,
    /// Records in the log.
    records: u64,
    /// Records that were archived.
    archived: u64,
    /// Counters whose number is not recorded yet.
    counting: usize,
    /// Of the database that has the log, and whatever else.
    bytes: u64,
    /// On its file system.
    available_bytes: u64,
    /// 0 when it was given up.
    reserve_bytes: u64,
    low: bool,
    #[serde(skip)]
    space: Space,
}

impl Tabular for StatusView {
    const COLUMNS: &'static [&'static str] = &[
        "log",
        "records",
        "archived",
        "counting",
        "size",
        "available",
        "reserve",
        "low",
    ];

    fn cells(&self) -> Vec<String> {
        vec![
            self.log.clone(),
            self.records.to_string(),
            self.archived.to_string(),
            self.counting.to_string(),
            size_cell(self.bytes),
            size_cell(self.available_bytes),
            size_cell(self.reserve_bytes),
            self.low.to_string(),
        ]
    }
}

/// What was archived.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ArchivedView {
    log: String,
    first: u64,
    last: u64,
    file: PathBuf,
}

impl Tabular for ArchivedView {
    const COLUMNS: &'static [&'static str] = &["log", "first", "last", "file"];

    fn cells(&self) -> Vec<String> {
        vec![
            self.log.clone(),
            self.first.to_string(),
            self.last.to_string(),
            self.file.display().to_string(),
        ]
    }
}

/// Moves old records out of the logs.
pub(super) fn archive(context: &Context, args: &ArchiveArgs) -> Result<(), CliError> {
    let installation = context.installation()?;
    let dir = args
        .output_dir
        .canonicalize()
        .map_err(|e| in_file(&args.output_dir, &e))?;
    let before = OffsetDateTime::now_utc() - time::Duration::days(args.older_than.into());
    let mut views = Vec::new();
    for (log, opened) in logs(&installation, &args.which)? {
        if let Some(archived) = opened?.archive(&installation, &dir, before)? {
            views.push(ArchivedView {
                log,
                first: archived.segment.first,
                last: archived.segment.last,
                file: archived.file,
            });
        }
    }
    context.output.lines(&views)
}

/// Shows how the logs are.
pub(super) fn status(context: &Context, args: &StatusArgs) -> Result<(), CliError> {
    let installation = context.installation()?;
    let mut views = Vec::new();
    for (_, log) in logs(&installation, &args.which)? {
        views.extend(log?.status(&installation)?);
    }
    context.output.lines(&views)?;
    let Some(low) = views.iter().find(|view| view.low) else {
        return Ok(());
    };
    Err(CliError {
        status: 3,
        ..CliError::new(
            "AuditSpaceLow",
            format!(
                "there are {} MiB left for the log {}{}: make room, or archive records with \
                 `sealdisk audit archive`",
                low.available_bytes >> 20,
                low.log,
                low.space.consequence()
            ),
        )
    })
}
