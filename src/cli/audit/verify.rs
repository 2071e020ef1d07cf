//! `sealdisk audit verify`.

use std::fs::File;
use std::io::BufReader;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};

use clap::Args;
use serde::Serialize;

use super::log::{Log, WhichArgs, logs};
use crate::cli::files::in_file;
use crate::cli::{CliError, Context, Tabular};
use vault::VaultErrorCode;
use vault::audit::{Archives, AuditError, Pin, Report, export_start, pins};

#[derive(Args)]
pub(super) struct VerifyArgs {
    #[command(flatten)]
    which: WhichArgs,
    /// An earlier export to compare with; only its signed heads and checkpoints are used
    #[arg(long, value_name = "FILE")]
    checkpoint: Option<PathBuf>,
    /// Verify these exports and segments instead of the logs; needs no installation
    #[arg(long, value_name = "FILE", num_args = 1.., conflicts_with_all = ["vault", "installation"])]
    file: Vec<PathBuf>,
    /// Verify these archived segments of the logs too
    #[arg(long, value_name = "FILE", num_args = 1.., conflicts_with = "file")]
    archive: Vec<PathBuf>,
}

impl Log {
    fn verify(&self, pins: &[Pin], archives: &mut Archives) -> Result<Report, AuditError> {
        let name = self.name();
        let (report, older) = match self {
            Self::Vault(vault) => {
                let read =
                    vault.read_audit(|chain, db| chain.verify_behind(db, &name, pins, archives));
                (read, vault.older())
            }
            Self::Installation(log) => {
                let read = log.read(|chain, db| chain.verify_behind(db, &name, pins, archives));
                (read, log.older())
            }
        };
        let mut report = report?;
        report.finding = report.finding.or_else(|| older.cloned());
        Ok(report)
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

pub(super) fn verify(context: &Context, args: &VerifyArgs) -> Result<(), CliError> {
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
