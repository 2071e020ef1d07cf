//! The command line: the Azure CLI's nouns and options, one line on stderr for every refusal.

use std::process::ExitCode;

/// Parses the arguments and runs one command.
pub fn main() -> ExitCode {
    ExitCode::SUCCESS
}
