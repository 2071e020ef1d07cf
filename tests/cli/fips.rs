//! Which cryptographic module is in the program: what it says of it, and that there is no other.

use std::fs::{self, File};
use std::process::Command;
use std::thread;
use std::time::Duration;

use keys::{FIPS, crypto_module};
use rustix::process::{Pid, Signal, kill_process};
use test_support::{Host, program, text};

#[test]
fn the_version_names_the_module() {
    let said = Host::new().ok(&["--version"]);
    let said = String::from_utf8(said).unwrap();
    assert!(said.contains(&format!("({})", crypto_module())), "{said}");
    assert_eq!(
        said.contains("AWS-LC FIPS module, version "),
        FIPS,
        "{said}"
    );
}

#[test]
fn the_log_of_an_attach_names_the_module_and_the_engine() {
    let host = Host::new();
    let runtime = tempfile::tempdir_in("/dev/shm").unwrap();
    host.ok(&["disk", "create", "d", "--size", "1MiB"]);
    let (socket, log) = (host.path("socket"), host.path("log"));
    let mut daemon = host
        .command(&["attach", "d", "--socket-path", text(&socket), "-v"])
        .args(["--runtime-dir", text(runtime.path())])
        .stderr(File::create(&log).unwrap())
        .spawn()
        .unwrap();
    while !socket.exists() && daemon.try_wait().unwrap().is_none() {
        thread::sleep(Duration::from_millis(5));
    }
    kill_process(Pid::from_child(&daemon), Signal::TERM).unwrap();
    let ended = daemon.wait().unwrap();
    let log = fs::read_to_string(&log).unwrap();
    assert!(ended.success(), "{log}");
    // Both processes say it: the daemon, which has the vault's keys pass by, and the data plane.
    assert_eq!(log.matches(&crypto_module()).count(), 2, "{log}");
    let engine = match FIPS {
        true => "engine AWS-LC (FIPS module)",
        false => "by the engine ",
    };
    assert!(log.contains(engine), "{log}");
    assert_eq!(log.contains("(FIPS module)"), FIPS, "{log}");
}

/// The names in the program's symbol table, as they are written in the source.
fn symbols() -> String {
    let output = Command::new("nm")
        .args(["--defined-only", "--demangle", "--format=just-symbols"])
        .arg(program())
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// Whether something of a crate is among them: `aes::` is not that of `other_aes::`.
fn has_crate(symbols: &str, name: &str) -> bool {
    let path = format!("{name}::");
    symbols.match_indices(&path).any(|(at, _)| {
        let before = symbols[..at].chars().next_back();
        !before.is_some_and(|c| c.is_alphanumeric() || c == '_' || c == ':')
    })
}

/// The linker leaves out what nothing calls, so what is not in the table is not reachable.
#[test]
fn there_is_one_module_and_with_fips_no_other_cipher_for_disks_and_keys() {
    let symbols = symbols();
    let of = |prefix| symbols.lines().any(|line| line.starts_with(prefix));
    assert_eq!(of("aws_lc_fips_"), FIPS, "the validated module");
    assert_eq!(of("aws_lc_0_"), !FIPS, "AWS-LC as it is otherwise");
    for portable in ["aes", "xts_mode", "xts::portable"] {
        assert_eq!(has_crate(&symbols, portable), !FIPS, "{portable}");
    }
}
