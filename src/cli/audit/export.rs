//! `sealdisk audit export`.

use std::fs::{File, OpenOptions};
use std::io::{self, BufWriter, ErrorKind, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use clap::Args;

use super::log::{Log, Logs, WhichArgs, logs};
use crate::cli::{CliError, Context};
use vault::audit::{AuditError, write_export};

#[derive(Args)]
pub(super) struct ExportArgs {
    #[command(flatten)]
    which: WhichArgs,
    /// A new file for the export [default: stdout]
    #[arg(long, value_name = "FILE")]
    output_file: Option<PathBuf>,
    /// Only the signed heads and checkpoints: what `audit verify --checkpoint` needs
    #[arg(long)]
    checkpoints_only: bool,
}

impl Log {
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

pub(super) fn export(context: &Context, args: &ExportArgs) -> Result<(), CliError> {
    let installation = context.installation()?;
    let logs = logs(&installation, &args.which)?;
    let records = !args.checkpoints_only;
    match &args.output_file {
        Some(path) => {
            let file = new_file(path)?;
            write_logs(logs, records, &mut BufWriter::new(&file))?;
            file.sync_all().map_err(|e| AuditError::Write(e).into())
        }
        None => write_logs(logs, records, &mut BufWriter::new(io::stdout().lock())),
    }
}

fn write_logs(logs: Logs, records: bool, out: &mut dyn Write) -> Result<(), CliError> {
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
