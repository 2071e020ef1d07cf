//! A key that is taken away from a command that has unwrapped it: the command lets go of it, whatever it waits for.

use std::fs::{self, File};
use std::io::Read;
use std::process::{Child, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use test_support::{Host, PATIENCE, noise, one_line, text};
use vault::AttributeChange;

const MIB: usize = 1 << 20;
const SIZE: usize = 32 * MIB;

/// A disk `d` under a customer's key, and its content.
fn with_disk() -> (Host, Vec<u8>) {
    let host = Host::that_attaches();
    host.encryption_set("des1", &["get", "wrapKey", "unwrapKey"]);
    let mut content = vec![0; SIZE];
    noise(&mut content);
    let raw = host.path("raw");
    fs::write(&raw, &content).unwrap();
    let create = ["disk", "create", "d", "--disk-encryption-set", "des1"];
    host.ok(&[&create[..], &["--source", text(&raw)]].concat());
    (host, content)
}

fn enable(host: &Host, enabled: bool) {
    host.set_key(&AttributeChange {
        enabled: Some(enabled),
        ..AttributeChange::default()
    });
}

/// That a command ends by itself, since its key is disabled.
fn assert_refused(mut child: Child, what: &str) {
    let deadline = Instant::now() + PATIENCE;
    while child.try_wait().unwrap().is_none() {
        if Instant::now() > deadline {
            child.kill().unwrap();
            panic!("{what} goes on without its key: {:?}", child.wait());
        }
        thread::sleep(Duration::from_millis(20));
    }
    // What it has given nobody is to be taken for its output.
    drop(child.stdout.take());
    let line = one_line(&child.wait_with_output().unwrap());
    assert!(line.contains("disabled"), "{what}: {line}");
}

fn spawn(host: &Host, words: &[&str]) -> Child {
    let mut command = host.command(words);
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    command.spawn().unwrap()
}

#[test]
fn a_reader_that_takes_nothing_keeps_no_plaintext_coming() {
    let (host, content) = with_disk();
    let fifo = host.path("fifo");
    rustix::fs::mknodat(
        rustix::fs::CWD,
        &fifo,
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR,
        0,
    )
    .unwrap();
    for to in [text(&fifo), "-"] {
        let mut child = spawn(&host, &["disk", "decrypt", "d", "--output-file", to]);
        let mut reader: Box<dyn Read> = match child.stdout.take().filter(|_| to == "-") {
            Some(stdout) => Box::new(stdout),
            None => Box::new(File::open(&fifo).unwrap()),
        };
        let mut got = vec![0; MIB];
        reader.read_exact(&mut got).unwrap();
        enable(&host, false);
        assert_refused(child, to);
        reader.read_to_end(&mut got).unwrap();
        assert!(got.len() < SIZE && content.starts_with(&got), "{to}");
        enable(&host, true);
    }
}

#[test]
fn a_vault_that_is_away_stops_no_reader() {
    let (host, content) = with_disk();
    let decrypt = ["disk", "decrypt", "d", "--output-file", "-"];
    let mut child = spawn(&host, &decrypt);
    let mut reader = child.stdout.take().unwrap();
    let mut got = vec![0; MIB];
    reader.read_exact(&mut got).unwrap();
    let (vaults, away) = (host.state().join("vaults"), host.path("away"));
    fs::rename(&vaults, &away).unwrap();
    // The vault is asked at least once meanwhile.
    thread::sleep(Duration::from_secs(7));
    reader.read_to_end(&mut got).unwrap();
    assert!(got == content);
    assert!(child.wait_with_output().unwrap().status.success());
    let _ = fs::remove_dir_all(&vaults);
    fs::rename(&away, &vaults).unwrap();
    assert!(host.ok(&decrypt) == content);
}
