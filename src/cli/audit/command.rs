//! The subcommands of `audit`.

use clap::{Args, Subcommand};

use super::archive::{self, ArchiveArgs, StatusArgs};
use super::entry::EntryView;
use super::export::{ExportArgs, export};
use super::log::{Log, WhichArgs, logs};
use super::verify::{VerifyArgs, verify};
use crate::cli::{CliError, Context};
use vault::Connection;
use vault::audit::{AuditError, Chain, Counter, Entry};

/// Arguments of `audit`.
#[derive(Args)]
pub struct AuditArgs {
    #[command(subcommand)]
    command: AuditCommand,
}

#[derive(Subcommand)]
enum AuditCommand {
    /// List audit records: who used which key, from where, and whether it was allowed
    #[command(after_help = "Example:
  sealdisk audit list --vault myvault --last 20
  sealdisk audit list -o json | jq 'select(.outcome == \"refused\")'

With -o json each record is a line.")]
    List(ListArgs),
    /// Verify that no record was changed, removed, moved, inserted or cut off
    #[command(after_help = "Example:
  sealdisk audit verify --checkpoint /media/usb/2026-11-24.jsonl
  sealdisk audit verify --file export.jsonl --checkpoint 2026-11-24.jsonl

Only an earlier export, kept on another machine, shows that a whole log was rolled back, or replaced
by somebody who has its key. Exit status: 0 intact; 1 tampered with or damaged; 3 intact, but
archived segments before or between the given ones are missing.")]
    Verify(VerifyArgs),
    /// Export logs as JSON lines with hashes and signatures, to verify them on any machine
    #[command(after_help = "Example:
  sealdisk audit export --output-file logs.jsonl
  sealdisk audit export --checkpoints-only > /media/usb/$(date -I).jsonl")]
    Export(ExportArgs),
    /// Move old records from the logs into segment files
    #[command(after_help = "Example:
  sealdisk audit archive --output-dir /srv/audit --older-than 90
  sealdisk audit verify --archive /srv/audit/*.jsonl

Each log gets a file LOG-FIRST-LAST.jsonl, a segment, in the form of an export. The chain of hashes runs
through the segments into the log. Keep all segments: `audit verify --archive` needs each.")]
    Archive(ArchiveArgs),
    /// Show the size of the logs and the free space
    #[command(after_help = "Example:
  sealdisk audit status || mail -s 'audit logs' root

Exit status 3 when space is low. With less than 8 MiB free, only essential operations are recorded
and done.")]
    Status(StatusArgs),
}

#[derive(Args)]
struct ListArgs {
    #[command(flatten)]
    which: WhichArgs,
    /// Only records after this number
    #[arg(long, value_name = "SEQ", default_value_t = 0)]
    after: u64,
    /// Only the last N records of each log
    #[arg(long, value_name = "N")]
    last: Option<u64>,
}

impl Log {
    /// Records, and the counters that are not recorded yet.
    fn entries(
        &self,
        after: u64,
        last: Option<u64>,
    ) -> Result<(Vec<Entry>, Vec<Counter>), AuditError> {
        match self {
            Self::Vault(vault) => vault.read_audit(|chain, db| read(chain, db, after, last)),
            Self::Installation(log) => log.read(|chain, db| read(chain, db, after, last)),
        }
    }
}

fn read(
    chain: &Chain,
    db: &Connection,
    after: u64,
    last: Option<u64>,
) -> Result<(Vec<Entry>, Vec<Counter>), AuditError> {
    let after = match last {
        Some(last) => after.max(chain.last(db)?.saturating_sub(last)),
        None => after,
    };
    let mut entries = Vec::new();
    chain.for_each(db, after, |entry| {
        entries.push(entry);
        Ok::<_, AuditError>(())
    })?;
    let mut counters = chain.counters(db)?;
    counters.retain(|counter| counter.count > 0);
    Ok((entries, counters))
}

pub fn run(context: &Context, args: AuditArgs) -> Result<(), CliError> {
    match args.command {
        AuditCommand::List(args) => list(context, &args),
        AuditCommand::Verify(args) => verify(context, &args),
        AuditCommand::Archive(args) => archive::archive(context, &args),
        AuditCommand::Status(args) => archive::status(context, &args),
        AuditCommand::Export(args) => export(context, &args),
    }
}

fn list(context: &Context, args: &ListArgs) -> Result<(), CliError> {
    let installation = context.installation()?;
    let mut views = Vec::new();
    for (_, log) in logs(&installation, &args.which)? {
        let log = log?;
        let (entries, counters) = log.entries(args.after, args.last)?;
        let name = || Some(log.name());
        views.extend(
            entries
                .into_iter()
                .map(|entry| EntryView::new(name(), entry)),
        );
        let counted = counters.into_iter().map(|c| EntryView::counted(name(), c));
        views.extend(counted);
    }
    context.output.lines(&views)
}
