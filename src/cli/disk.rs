//! `sealdisk disk`.

use clap::{Args, Subcommand};
use serde::Serialize;

use super::{CliError, Context, Tabular};

/// Arguments of `disk`.
#[derive(Args)]
pub struct DiskArgs {
    #[command(subcommand)]
    command: DiskCommand,
}

#[derive(Subcommand)]
enum DiskCommand {
    /// List the disks
    #[command(after_help = "Example:\n  sealdisk disk list -o json")]
    List,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct DiskView {
    name: String,
    unique_id: String,
    disk_size_bytes: u64,
}

impl Tabular for DiskView {
    const COLUMNS: &'static [&'static str] = &["name", "uniqueId", "diskSizeBytes"];

    fn cells(&self) -> Vec<String> {
        vec![
            self.name.clone(),
            self.unique_id.clone(),
            self.disk_size_bytes.to_string(),
        ]
    }
}

pub(super) fn run(context: &Context, args: DiskArgs) -> Result<(), CliError> {
    match args.command {
        DiskCommand::List => {
            let disks = context.installation()?.catalog().disks()?;
            let views: Vec<DiskView> = disks
                .into_iter()
                .map(|disk| DiskView {
                    name: disk.record.name,
                    unique_id: disk.record.id.to_string(),
                    disk_size_bytes: disk.record.size,
                })
                .collect();
            context.output.list(&views)
        }
    }
}
