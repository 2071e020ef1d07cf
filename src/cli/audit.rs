//! `sealdisk audit`.

use std::fs::{File, OpenOptions};
use std::io::{self, BufReader, BufWriter, ErrorKind, Write};
use std::ops::RangeInclusive;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use serde::Serialize;

use super::audit_archive::{self, ArchiveArgs, StatusArgs};
use super::{CliError, Context, Tabular};
use installation::Installation;
use installation::catalog::VaultKind;
use vault::audit::{
    Archives, AuditError, AuditLog, Chain, Counter, Entry, Event, Pin, Report, export_start, pins,
    write_export,
};
use vault::{EmbeddedVault, VaultErrorCode};

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
#[group(multiple = false)]
pub(super) struct WhichArgs {
    /// Only the log of this key vault [default: all logs]
    #[arg(long, value_name = "NAME")]
    vault: Option<String>,
    /// Only the installation's own log: keys of disks handed out and destroyed, changes of sets
    #[arg(long)]
    installation: bool,
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

#[derive(Args)]
struct VerifyArgs {
    #[command(flatten)]
    which: WhichArgs,
    /// An earlier export to compare with; only its signed heads and checkpoints are looked at
    #[arg(long, value_name = "FILE")]
    checkpoint: Option<PathBuf>,
    /// Verify these exports and segments, instead of the logs themselves; it needs no installation
    #[arg(long, value_name = "FILE", num_args = 1.., conflicts_with_all = ["vault", "installation"])]
    file: Vec<PathBuf>,
    /// Verify these segments of the logs too, which were archived
    #[arg(long, value_name = "FILE", num_args = 1.., conflicts_with = "file")]
    archive: Vec<PathBuf>,
}

#[derive(Args)]
struct ExportArgs {
    #[command(flatten)]
    which: WhichArgs,
    /// A new file for the export [default: stdout]
    #[arg(long, value_name = "FILE")]
    output_file: Option<PathBuf>,
    /// Only the signed heads and checkpoints: what `audit verify --checkpoint` needs
    #[arg(long)]
    checkpoints_only: bool,
}

/// A log of this installation.
pub(super) enum Log {
    Vault(Box<EmbeddedVault>),
    Installation(Box<AuditLog>),
}

impl Log {
    /// What an export calls it.
    pub(super) fn name(&self) -> String {
        match self {
            Self::Vault(vault) => vault_log(vault.name()),
            Self::Installation(_) => INSTALLATION.into(),
        }
    }

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

    fn verify(&self, pins: &[Pin], archives: &mut Archives) -> Result<Report, AuditError> {
        let name = self.name();
        let verify = |chain: &Chain, db: &_| chain.verify_behind(db, &name, pins, archives);
        let (report, older) = match self {
            Self::Vault(vault) => (vault.read_audit(verify), vault.older()),
            Self::Installation(log) => (log.read(verify), log.older()),
        };
        let mut report = report?;
        report.finding = report.finding.or_else(|| older.cloned());
        Ok(report)
    }

    fn export(&self, records: bool, out: &mut dyn Write) -> Result<(), AuditError> {
        let name = self.name();
        match self {
            Self::Vault(vault) => {
                vault.read_audit(|chain, db| write_export(db, chain, &name, records, out))
            }
            Self::Installation(log) => {
                log.read(|chain, db| write_export(db, chain, &name, records, out))
            }
        }
    }
}

const INSTALLATION: &str = "installation";

fn vault_log(name: &str) -> String {
    format!("vault/{name}")
}

/// A record in a list.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct EntryView {
    #[serde(skip_serializing_if = "Option::is_none")]
    log: Option<String>,
    /// It is a counter that becomes a record later.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    counting: bool,
    #[serde(flatten)]
    entry: EntryFields,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct EntryFields {
    /// `None` for a counter.
    seq: Option<u64>,
    time: String,
    #[serde(flatten)]
    event: Event,
    outcome: &'static str,
}

impl EntryView {
    pub(super) fn new(log: Option<String>, entry: Entry) -> Self {
        Self {
            log,
            counting: false,
            entry: EntryFields {
                seq: Some(entry.seq),
                time: entry.time,
                outcome: match entry.event.code {
                    None => "allowed",
                    Some(_) => "refused",
                },
                event: entry.event,
            },
        }
    }

    fn counted(log: Option<String>, counter: Counter) -> Self {
        let entry = Entry {
            seq: 0,
            time: counter.last.clone().unwrap_or_default(),
            event: Event {
                detail: Some(counter.detail()),
                ..counter.event
            },
        };
        let mut view = Self::new(log, entry);
        (view.counting, view.entry.seq) = (true, None);
        view
    }
}

impl Tabular for EntryView {
    const COLUMNS: &'static [&'static str] = &[
        "log",
        "seq",
        "time",
        "caller",
        "origin",
        "operation",
        "key",
        "version",
        "disk",
        "outcome",
        "code",
        "detail",
    ];

    fn cells(&self) -> Vec<String> {
        let optional = |text: &Option<String>| text.clone().unwrap_or_else(|| "-".into());
        let (entry, event) = (&self.entry, &self.entry.event);
        vec![
            optional(&self.log),
            entry.seq.map_or_else(|| "-".into(), |seq| seq.to_string()),
            entry.time.clone(),
            event.caller.clone(),
            event.origin.clone(),
            event.operation.clone(),
            optional(&event.key),
            optional(&event.version),
            optional(&event.disk),
            entry.outcome.into(),
            optional(&event.code),
            optional(&event.detail),
        ]
    }
}

/// Records from the first to the last.
#[derive(Serialize)]
struct RecordsView {
    first: u64,
    last: u64,
}

impl From<RangeInclusive<u64>> for RecordsView {
    fn from(records: RangeInclusive<u64>) -> Self {
        Self {
            first: *records.start(),
            last: *records.end(),
        }
    }
}

/// What verification has found in one log.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ReportView {
    log: String,
    records: u64,
    /// Of these, those that were archived and are in no file that was given.
    archived: u64,
    /// Which of these are missing although other segments of the log were given.
    not_given: Vec<RecordsView>,
    signed: Option<String>,
    /// How many checkpoints that were kept elsewhere it was compared with.
    checkpoints: usize,
    intact: bool,
    first_bad_record: Option<u64>,
    finding: Option<String>,
}

impl From<Report> for ReportView {
    fn from(report: Report) -> Self {
        Self {
            log: report.name,
            records: report.records,
            archived: report.archived,
            not_given: report
                .not_given
                .into_iter()
                .map(RecordsView::from)
                .collect(),
            signed: report.head.map(|head| head.time),
            checkpoints: report.pins,
            intact: report.finding.is_none(),
            first_bad_record: report.finding.as_ref().map(|finding| finding.seq),
            finding: report.finding.map(|finding| finding.what),
        }
    }
}

impl ReportView {
    /// A log that cannot even be opened because it was tampered with.
    fn unreadable(log: String, what: String) -> Self {
        Self {
            log,
            records: 0,
            archived: 0,
            not_given: Vec::new(),
            signed: None,
            checkpoints: 0,
            intact: false,
            first_bad_record: None,
            finding: Some(what),
        }
    }
}

impl ReportView {
    /// The numbers of the records that were not given.
    fn missing(&self) -> Option<String> {
        let ranges = self.not_given.iter();
        let ranges: Vec<_> = ranges.map(|r| format!("{}-{}", r.first, r.last)).collect();
        (!ranges.is_empty()).then(|| ranges.join(", "))
    }
}

impl Tabular for ReportView {
    const COLUMNS: &'static [&'static str] = &[
        "log",
        "records",
        "archived",
        "notGiven",
        "signed",
        "checkpoints",
        "intact",
        "finding",
    ];

    fn cells(&self) -> Vec<String> {
        let optional = |text: &Option<String>| text.clone().unwrap_or_else(|| "-".into());
        vec![
            self.log.clone(),
            self.records.to_string(),
            self.archived.to_string(),
            self.missing().unwrap_or_else(|| "-".into()),
            optional(&self.signed),
            self.checkpoints.to_string(),
            self.intact.to_string(),
            optional(&self.finding),
        ]
    }
}

pub(super) fn run(context: &Context, args: AuditArgs) -> Result<(), CliError> {
    match args.command {
        AuditCommand::List(args) => {
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
        AuditCommand::Verify(args) => verify(context, &args),
        AuditCommand::Archive(args) => audit_archive::archive(context, &args),
        AuditCommand::Status(args) => audit_archive::status(context, &args),
        AuditCommand::Export(args) => {
            let installation = context.installation()?;
            let logs = logs(&installation, &args.which)?;
            let records = !args.checkpoints_only;
            match &args.output_file {
                Some(path) => {
                    let file = new_file(path)?;
                    export(logs, records, &mut BufWriter::new(&file))?;
                    file.sync_all().map_err(|e| AuditError::Write(e).into())
                }
                None => export(logs, records, &mut BufWriter::new(io::stdout().lock())),
            }
        }
    }
}

pub(super) type Logs = Vec<(String, Result<Log, CliError>)>;

/// The logs that are meant; one that cannot be opened is there with its error.
pub(super) fn logs(installation: &Installation, which: &WhichArgs) -> Result<Logs, CliError> {
    let mut logs = Logs::new();
    if let Some(name) = &which.vault {
        let name = name.to_ascii_lowercase();
        let vault = installation.vault(&name).map(|v| Log::Vault(v.into()));
        return Ok(vec![(vault_log(&name), vault.map_err(CliError::from))]);
    }
    if !which.installation {
        for vault in installation.catalog().vaults()? {
            // A vault elsewhere keeps its log there.
            if matches!(vault.record.kind, VaultKind::Https { .. }) {
                continue;
            }
            let name = vault.record.name;
            let vault = installation.vault(&name).map(|v| Log::Vault(v.into()));
            logs.push((vault_log(&name), vault.map_err(CliError::from)));
        }
    }
    let own = installation
        .audit_log()
        .map(|log| Log::Installation(log.into()));
    logs.push((INSTALLATION.into(), own.map_err(CliError::from)));
    Ok(logs)
}

fn export(logs: Logs, records: bool, out: &mut dyn Write) -> Result<(), CliError> {
    for (_, log) in logs {
        match log?.export(records, out) {
            // That nobody reads on is no failure.
            Err(AuditError::Write(e)) if e.kind() == ErrorKind::BrokenPipe => return Ok(()),
            other => other?,
        }
    }
    match out.flush() {
        Err(e) if e.kind() != ErrorKind::BrokenPipe => Err(AuditError::Write(e).into()),
        _ => Ok(()),
    }
}

fn verify(context: &Context, args: &VerifyArgs) -> Result<(), CliError> {
    let known = match &args.checkpoint {
        Some(path) => pins(BufReader::new(open(path)?)).map_err(|e| in_file(path, &e))?,
        None => Vec::new(),
    };
    let views: Vec<ReportView> = match args.file.as_slice() {
        [] => {
            let mut archives = read_archives(&args.archive, &known)?;
            let installation = context.installation()?;
            let mut views = Vec::new();
            for (name, log) in logs(&installation, &args.which)? {
                views.push(verify_log(name, log, &known, &mut archives)?);
            }
            // Of logs that were not meant, or that are not here.
            views.extend(archives.finish().into_iter().map(ReportView::from));
            views
        }
        files => {
            let archives = read_archives(files, &known)?;
            archives
                .finish()
                .into_iter()
                .map(ReportView::from)
                .collect()
        }
    };
    context.output.lines(&views)?;
    if args.checkpoint.is_some() && views.iter().all(|view| view.checkpoints == 0) {
        if views.iter().any(|view| view.archived > 0) {
            return Err(CliError::new(
                "BadParameter",
                "the checkpoints are of none of these logs, or of records that were archived; give \
                 the segments with --archive",
            ));
        }
        return Err(CliError::new(
            "BadParameter",
            "the checkpoints are of none of these logs; give the export that was made of them",
        ));
    }
    let whole = args.which.vault.is_none() && !args.which.installation;
    let unseen = |pin: &&Pin| !views.iter().any(|view| view.log == pin.log_name());
    if let Some(pin) = known.iter().find(unseen).filter(|_| whole) {
        return Err(CliError::new(
            AuditError::TAMPERED,
            format!(
                "the checkpoints are of the log {} too, which is not here: it was removed; if its key \
                 vault was purged, export checkpoints anew",
                pin.log_name()
            ),
        ));
    }
    let bad: Vec<&str> = views
        .iter()
        .filter(|view| !view.intact)
        .map(|view| view.log.as_str())
        .collect();
    if !bad.is_empty() {
        return Err(CliError::new(
            AuditError::TAMPERED,
            format!(
                "the audit log of {} was tampered with or damaged; compare it with earlier exports",
                bad.join(", ")
            ),
        ));
    }
    let missing = views.iter().find_map(|view| Some((view, view.missing()?)));
    missing.map_or(Ok(()), |(view, records)| {
        Err(CliError {
            status: 3,
            ..CliError::new(
                "AuditSegmentNotGiven",
                format!(
                    "records {records} of the audit log {} were archived, and are in no file that was \
                     given; nothing is wrong with what was looked at: give those segments too",
                    view.log
                ),
            )
        })
    })
}

/// Reads segments and exports, each log's in their order, in whatever order they are given.
fn read_archives(files: &[PathBuf], known: &[Pin]) -> Result<Archives, CliError> {
    let mut ordered = Vec::new();
    for path in files {
        let start = export_start(BufReader::new(open(path)?)).map_err(|e| in_file(path, &e))?;
        ordered.push((start, path));
    }
    ordered.sort();
    let mut archives = Archives::default();
    for (_, path) in ordered {
        archives
            .read(BufReader::new(open(path)?), known)
            .map_err(|e| in_file(path, &e))?;
    }
    Ok(archives)
}

fn verify_log(
    name: String,
    log: Result<Log, CliError>,
    known: &[Pin],
    archives: &mut Archives,
) -> Result<ReportView, CliError> {
    let tampered = VaultErrorCode::Tampered.as_str();
    match log {
        Ok(log) => Ok(log.verify(known, archives)?.into()),
        Err(e) if e.code == tampered || e.code == AuditError::TAMPERED => {
            Ok(ReportView::unreadable(name, e.message))
        }
        Err(e) => Err(e),
    }
}

fn open(path: &Path) -> Result<File, CliError> {
    File::open(path).map_err(|e| in_file(path, &e))
}

pub(super) fn in_file(path: &Path, what: &dyn std::fmt::Display) -> CliError {
    CliError::new("BadParameter", format!("{}: {what}", path.display()))
}

/// A file that must not be there yet, so that no earlier export is lost.
fn new_file(path: &Path) -> Result<File, CliError> {
    OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
        .map_err(|e| {
            let message = format!("cannot write the export {}: {e}", path.display());
            CliError::new("OutputError", message)
        })
}
