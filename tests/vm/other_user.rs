//! A VMM that runs as another user than the daemon, as libvirt starts it.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;

use crate::backend::CustomerHost;
use crate::images;
use crate::qemu::{Disk, Firmware, Machine};

/// The user and the group nobody: libvirt-qemu has no other rights.
const NOBODY: u32 = 65534;

#[test]
fn a_guest_of_another_user_boots_from_a_socket_of_its_group() {
    if !rustix::process::geteuid().is_root() {
        return eprintln!("only root can be somebody else");
    }
    let host = CustomerHost::new();
    host.import_disk("boot", &images::bootable_disk());
    let group = NOBODY.to_string();
    let daemon = host.attach_with("boot", &["--socket-group", &group]);
    // The test's own directory is the only thing in the way; /run/sealdisk is made passable.
    fs::set_permissions(daemon.dir(), Permissions::from_mode(0o711)).expect("it is the test's");
    let console = Machine::new(Firmware::SeaBios, "cat /root/known-plaintext")
        .disk(Disk::vhost_user(daemon.socket()))
        .user(NOBODY, NOBODY)
        .run();
    assert!(
        console.contains("SEALDISK-UP firmware=bios root=/dev/vda3"),
        "{console}"
    );
    daemon.stop();
}

/// A disk of 4096-byte sectors is one in the guest too, with a GPT where such a disk has it.
#[test]
fn a_guest_sees_the_logical_sectors_of_a_4kn_disk() {
    let host = CustomerHost::new();
    host.create_disk("data", "64MiB", &["--logical-sector-size", "4096"]);
    let daemon = host.attach("data");
    let job = "
set -e
for name in queue/logical_block_size queue/physical_block_size size; do
    echo $name $(cat /sys/block/vda/$name)
done
dd if=/dev/urandom of=/tmp/data bs=4096 count=256 2>&1
dd if=/tmp/data of=/dev/vda bs=4096 seek=10 oflag=direct conv=notrunc 2>&1
dd if=/dev/vda of=/tmp/back bs=4096 skip=10 count=256 iflag=direct 2>&1
sha256sum </tmp/data
sha256sum </tmp/back
";
    let console = Machine::new(Firmware::Direct(images::initramfs()), job)
        .disk(Disk::vhost_user(daemon.socket()))
        .run();
    for wanted in [
        "logical_block_size 4096",
        "physical_block_size 4096",
        "size 131072",
    ] {
        assert!(console.contains(wanted), "{console}");
    }
    let sums: Vec<_> = console
        .lines()
        .filter(|line| line.trim_end().ends_with("  -"))
        .collect();
    assert!(sums.len() == 2 && sums[0] == sums[1], "{console}");
    daemon.stop();
}
