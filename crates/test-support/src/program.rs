//! Where the program under test is.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::OnceLock;

/// The program `sealdisk` of this build.
///
/// Cargo and nextest name it in the environment of the tests of its package. A test that was started by hand
/// is in a folder beside it.
///
/// # Panics
/// When it is not built.
pub fn program() -> &'static Path {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    PROGRAM.get_or_init(|| {
        let named = ["CARGO_BIN_EXE_sealdisk", "NEXTEST_BIN_EXE_sealdisk"]
            .iter()
            .find_map(std::env::var_os);
        let program = named.map_or_else(beside_this_test, PathBuf::from);
        assert!(
            program.exists(),
            "{} is not there: cargo build",
            program.display()
        );
        program
    })
}

/// A test is in `deps`, a program in the folder above.
fn beside_this_test() -> PathBuf {
    let test = std::env::current_exe().unwrap();
    test.ancestors().nth(2).unwrap().join("sealdisk")
}

/// A directory of the build for files of tests, as Cargo's `CARGO_TARGET_TMPDIR`. Its file system has holes and
/// `O_DIRECT`, which a tmpfs may not have.
pub fn scratch() -> PathBuf {
    let scratch = program().ancestors().nth(2).unwrap().join("tmp");
    std::fs::create_dir_all(&scratch).unwrap();
    scratch
}

/// Runs a command that has to succeed.
///
/// # Panics
/// When it does not.
pub fn expect_success(command: &mut Command) -> Output {
    let output = command.stdin(Stdio::null()).output().unwrap();
    assert!(
        output.status.success(),
        "{command:?}: {}\n{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    output
}
