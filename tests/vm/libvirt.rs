//! The domain of docs/howto/libvirt.md under a real libvirtd, whose QEMU runs as a user of its own.

use std::path::Path;
use std::process::{Command, Stdio};

use test_support::program;

/// libvirt.sh says what happens to the guest. Each thing that it waits for has a limit.
#[test]
#[ignore = "needs libvirt: scripts/test --full runs it"]
fn a_guest_of_libvirt_outlives_what_happens_to_its_back_end() {
    if !rustix::process::geteuid().is_root() {
        return eprintln!("a system's libvirtd is root's");
    }
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/vm/libvirt.sh");
    let output = Command::new(script)
        .arg(program())
        .stdin(Stdio::null())
        .output()
        .expect("libvirt.sh can be started");
    let text = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success() && text.ends_with("all passed\n"),
        "{text}\n{errors}"
    );
    eprintln!("{text}");
}
