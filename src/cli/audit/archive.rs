//! `sealdisk audit archive` and `status`.

use std::path::{Path, PathBuf};

use clap::Args;
use serde::Serialize;
use time::OffsetDateTime;

use super::log::{Log, WhichArgs, logs};
use crate::cli::files::in_file;
use crate::cli::output::{optional_size_cell, size_cell};
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

    fn status(&self, installation: &Installation) -> Result<StatusView, CliError> {
        let counted = match self {
            Self::Vault(vault) => vault.read_audit(|chain, db| Counted::of(chain, db)),
            Self::Installation(log) => log.read(|chain, db| Counted::of(chain, db)),
        }?;
        let own = installation.state_dir().join("audit.db");
        let is_on_server = installation.place().catalog.server().is_some();
        let (path, reserve) = match self {
            Self::Vault(vault) => (vault.database(), vault.reserve_size()),
            Self::Installation(_) if is_on_server => (None, 0),
            Self::Installation(log) => (Some(own.as_path()), log.reserve_size()),
        };
        let in_database = counted.bytes;
        let room = path.map(|path| Room::of(path, reserve)).transpose()?;
        Ok(StatusView {
            log: self.name(),
            records: counted.last - counted.archived,
            archived: counted.archived,
            counting: counted.counting,
            bytes: room.as_ref().map_or(in_database, |room| room.bytes),
            available_bytes: room.as_ref().map(|room| room.space.available),
            reserve_bytes: room.as_ref().map(|room| room.reserve),
            low: room.as_ref().is_some_and(|room| room.space.is_low()),
            space: room.map(|room| room.space),
        })
    }
}

/// What is in the database of a log.
struct Counted {
    /// The number of the last record.
    last: u64,
    /// That of the last one that was archived.
    archived: u64,
    /// How many counters have counted something.
    counting: usize,
    bytes: u64,
}

impl Counted {
    fn of(chain: &Chain, db: &Connection) -> Result<Self, AuditError> {
        let open = chain.counters(db)?;
        Ok(Self {
            last: chain.last(db)?,
            archived: chain.archived(db)?,
            counting: open.iter().filter(|counter| counter.count > 0).count(),
            bytes: db.size()?,
        })
    }
}

/// The room of a log in a file.
struct Room {
    bytes: u64,
    reserve: u64,
    space: Space,
}

impl Room {
    fn of(path: &Path, reserve: u64) -> Result<Self, CliError> {
        let wal = path.with_extension("db-wal");
        let size = |path: &Path| path.metadata().map_or(0, |metadata| metadata.len());
        Ok(Self {
            bytes: size(path) + size(&wal),
            reserve,
            space: Space::at(path).map_err(|e| in_file(path, &e))?,
        })
    }
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
    /// On its file system; that of a server is not known here.
    available_bytes: Option<u64>,
    /// 0 when it was given up; a log on a server has none.
    reserve_bytes: Option<u64>,
    low: bool,
    #[serde(skip)]
    space: Option<Space>,
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
            optional_size_cell(self.available_bytes),
            optional_size_cell(self.reserve_bytes),
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
        views.push(log?.status(&installation)?);
    }
    context.output.lines(&views)?;
    let low = views.iter().filter(|view| view.low);
    let mut low = low.filter_map(|view| Some((view, view.space?)));
    let Some((low, space)) = low.next() else {
        return Ok(());
    };
    Err(CliError {
        status: 3,
        ..CliError::new(
            "AuditSpaceLow",
            format!(
                "there are {} MiB left for the log {}{}: make room, or archive records with \
                 `sealdisk audit archive`",
                space.available >> 20,
                low.log,
                space.consequence()
            ),
        )
    })
}
