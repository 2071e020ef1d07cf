//! The subcommands of `audit`.

use clap::{Args, Subcommand};

use super::archive::{self, ArchiveArgs, StatusArgs};
use super::entry::EntryView;
use super::export::{ExportArgs, export};
use super::log::{Log, WhichArgs, logs};
use super::verify::{VerifyArgs, verify};
use crate::cli::{CliError, Context};
use vault::audit::{AuditError, Chain, Counter, Entry};

/// Arguments of `audit`.
#[derive(Args)]
pub struct AuditArgs {
    #[command(subcommand)]
    command: AuditCommand,
}

#[derive(Subcommand)]
enum AuditCommand {
    /// List what was done with which key, by whom and from where, allowed or why not
    #[command(after_help = "Example:
  sealdisk audit list --vault myvault --last 20
  sealdisk audit list -o json | jq 'select(.outcome == \"refused\")'

With -o json each record is a line.")]
    List(ListArgs),
    /// Look for records that were changed, removed, moved, inserted or cut off
    #[command(after_help = "Example:
  sealdisk audit verify --checkpoint /media/usb/2026-11-24.jsonl
  sealdisk audit verify --file export.jsonl --checkpoint 2026-11-24.jsonl

Only a checkpoint that was exported earlier and kept elsewhere shows that a whole log was put back to
an earlier state, or replaced by somebody who has its key. Exit status 1 when something is found, 3 when
nothing is but segments are missing that come before, or between, those that were given.")]
    Verify(VerifyArgs),
    /// Export logs as JSON lines, with their hashes and signatures, to be verified anywhere
    #[command(after_help = "Example:
  sealdisk audit export --output-file logs.jsonl
  sealdisk audit export --checkpoints-only > /media/usb/$(date -I).jsonl")]
    Export(ExportArgs),
    /// Move old records out of the logs into files that are verified with them
    #[command(after_help = "Example:
  sealdisk audit archive --output-dir /srv/audit --older-than 90
  sealdisk audit verify --archive /srv/audit/*.jsonl

Each log gets a file LOG-FIRST-LAST.jsonl, a segment, in the form of an export. The chain of hashes runs
through the segments into the log. Keep them all: `audit verify --archive` wants each.")]
    Archive(ArchiveArgs),
    /// Show how large the logs are, and whether there is room for them
    #[command(after_help = "Example:
  sealdisk audit status || mail -s 'audit logs' root

Exit status 3 when there is little room. With less than 8 MiB only what is essential is recorded and done.")]
    Status(StatusArgs),
}

#[derive(Args)]
struct ListArgs {
    #[command(flatten)]
    which: WhichArgs,
    /// Only records behind the one with this number
    #[arg(long, value_name = "SEQ", default_value_t = 0)]
    after: u64,
    /// Only the last so many records of each log
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
        let read = |chain: &Chain, db: &_| {
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
        };
        match self {
            Self::Vault(vault) => vault.read_audit(read),
            Self::Installation(log) => log.read(read),
        }
    }
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
