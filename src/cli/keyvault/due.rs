//! `sealdisk keyvault run-due`.

use crate::cli::{CliError, Context};
use installation::Installation;

pub(super) fn run_due(context: &Context, installation: &Installation) -> Result<(), CliError> {
    for name in installation.purge_due_vaults()? {
        context
            .output
            .note(&format!("purged the key vault '{name}'"));
    }
    let mut failed = Vec::new();
    for vault in installation.catalog().vaults()? {
        if vault.record.kind.is_remote() {
            continue;
        }
        let name = vault.record.name;
        // One vault that cannot be opened keeps none of the others waiting.
        let done = installation
            .vault(&name)
            .map_err(CliError::from)
            .and_then(|vault| {
                // A person, or a timer, asks for it: what has failed is tried again now.
                vault.end_pauses()?;
                Ok(vault.run_due()?)
            });
        match done {
            Ok(due) => {
                for line in &due.done {
                    context.output.note(&format!("{name}: {line}"));
                }
                let lines = due.failed.iter().map(|line| format!("{name}: {line}"));
                failed.extend(lines.map(|line| CliError::new("DueFailed", line)));
            }
            Err(e) => failed.push(e),
        }
    }
    let mut failed = failed.into_iter();
    let first = failed.next();
    for error in failed {
        context.output.note(&error.message);
    }
    first.map_or(Ok(()), Err)
}
