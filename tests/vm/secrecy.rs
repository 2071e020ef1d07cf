//! What the host must never hold: the guest's plaintext and the DEK.

use std::fs;
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::{STANDARD_NO_PAD, URL_SAFE_NO_PAD};
use rustix::process::Signal;
use test_support::{Daemon, contains, content_of, files_below, text};

use crate::backend::CustomerHost;
use crate::images;
use crate::qemu::{Disk, Firmware, Machine};

/// Written by the guest over and over: one tweak's worth of it that reached the disk in the
/// clear would show.
const MARKER: &str = "plaintext-marker-of-the-guest-0123456789";

const WRITE_MARKER: &str = "
set -e
mkfs.ext4 -q /dev/vda
mount /dev/vda /mnt
yes plaintext-marker-of-the-guest-0123456789 | head -c 16777216 >/mnt/marker
sync
yes plaintext-marker-of-the-guest-0123456789 | dd of=/dev/vda bs=1M count=4 seek=200 iflag=fullblock conv=fsync status=none
echo SEALDISK-STEP written
sleep 600
";

#[test]
fn plaintext_and_dek_are_nowhere_on_the_host() {
    let host = CustomerHost::new();
    host.create_disk("secret", "256MiB", &[]);
    let daemon = host.attach("secret");
    let mut guest = Machine::new(Firmware::Direct(images::initramfs()), WRITE_MARKER)
        .disk(Disk::vhost_user(daemon.socket()))
        .start();
    guest.wait_for("SEALDISK-STEP written");

    let needles = needles(&host.dek("secret"));
    // While the disk is attached and the guest runs, and after both ended.
    search(&host, &daemon, &needles);
    guest.kill();
    search(&host, &daemon, &needles);
    let log = daemon.log();
    daemon.stop();
    assert!(
        log.is_ascii() || !log.is_empty(),
        "the daemon logged nothing"
    );
    for file in files_below(&host.state()) {
        assert_clean(
            &file,
            &fs::read(&file).expect("a file of the state"),
            &needles,
        );
    }

    // The search finds what is there: the same needles in what the key's holder may see.
    let plain = host.runtime().join("plain");
    let file = text(&plain);
    host.ok(&["disk", "decrypt", "secret", "--output-file", file]);
    let plain = fs::read(plain).expect("the decrypted disk");
    assert!(contains(&plain, MARKER.as_bytes()));
}

/// The marker, and the DEK and its halves in each form that a log or a file could have them.
fn needles(dek: &[u8]) -> Vec<(String, Vec<u8>)> {
    let mut needles = vec![(
        "the guest's plaintext".to_owned(),
        MARKER.as_bytes().to_vec(),
    )];
    for (part, key) in [("first half", &dek[..32]), ("second half", &dek[32..])] {
        let hex: String = key.iter().map(|b| format!("{b:02x}")).collect();
        let decimal: Vec<String> = key.iter().map(ToString::to_string).collect();
        let forms = [
            ("raw", key.to_vec()),
            ("hexadecimal", hex.clone().into_bytes()),
            ("HEXADECIMAL", hex.to_uppercase().into_bytes()),
            // Not the last characters, which depend on what follows.
            ("base64", STANDARD_NO_PAD.encode(&key[..30]).into_bytes()),
            ("base64url", URL_SAFE_NO_PAD.encode(&key[..30]).into_bytes()),
            ("a debug print", decimal.join(", ").into_bytes()),
        ];
        needles.extend(forms.map(|(form, bytes)| (format!("the DEK's {part}, {form}"), bytes)));
    }
    needles
}

fn search(host: &CustomerHost, daemon: &Daemon, needles: &[(String, Vec<u8>)]) {
    for dir in [&host.state(), host.runtime(), daemon.dir()] {
        for file in files_below(dir) {
            assert_clean(&file, &content_of(&file), needles);
        }
    }
    let processes = daemon.processes();
    assert!(processes.len() >= 2, "attach and the data plane");
    for process in processes {
        for name in ["cmdline", "environ"] {
            let path = PathBuf::from(format!("/proc/{process}/{name}"));
            let content = fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
            assert_clean(&path, &content, needles);
        }
    }
}

fn assert_clean(path: &Path, content: &[u8], needles: &[(String, Vec<u8>)]) {
    for (what, needle) in needles {
        assert!(
            !contains(content, needle),
            "{what} is in {}",
            path.display()
        );
    }
}

#[test]
fn a_crash_leaves_no_core_dump() {
    let host = CustomerHost::new();
    host.create_disk("secret", "64MiB", &[]);
    // Both dump core by default. (SEGV needs a real fault: Rust's handler swallows a sent one.)
    for signal in [Signal::ABORT, Signal::QUIT] {
        let mut daemon = host.attach("secret");
        let processes = daemon.processes();
        for process in &processes {
            let limits = fs::read_to_string(format!("/proc/{process}/limits"));
            let limits = limits.expect("limits can be read");
            let core = limits.lines().find(|l| l.starts_with("Max core file size"));
            let core: Vec<&str> = core.expect("a limit").split_whitespace().collect();
            assert_eq!(core[4..6], ["0", "0"], "process {process}");
        }
        daemon.signal_all(&processes, signal);
        let status = daemon.wait();
        assert!(!status.success());
        let left: Vec<PathBuf> = files_below(daemon.dir())
            .into_iter()
            .filter(|p| {
                p.file_name()
                    .is_some_and(|n| n.to_string_lossy().contains("core"))
            })
            .collect();
        assert!(left.is_empty(), "{left:?}");
        // Every process of it is gone, so the lock is too: the next round attaches again.
    }
}
