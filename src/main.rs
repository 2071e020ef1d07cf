//! The `sealdisk` command.

use std::process::ExitCode;

fn main() -> ExitCode {
    sealdisk::cli::main()
}
