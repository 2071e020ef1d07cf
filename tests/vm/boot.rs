//! A Linux with GRUB boots from an encrypted disk.

use crate::backend::CustomerHost;
use crate::images;
use crate::qemu::{Disk, Firmware, Machine};

/// First boot: writes a file, remembers its checksum, reboots. Second boot, through firmware and
/// boot loader again: checks it.
const WRITE_REBOOT_CHECK: &str = "
set -e
if [ ! -e /root/sums ]; then
    mount -o remount,rw /
    dd if=/dev/urandom of=/root/file bs=64k count=64 conv=fsync status=none
    sha256sum /root/file >/root/sums
    sync
    reboot -f
    sleep 60
fi
sha256sum -c /root/sums
";

fn boots(firmware: Firmware, name: &str, device_options: &str) {
    let host = CustomerHost::new();
    host.import_disk("boot", &images::bootable_disk());
    let daemon = host.attach("boot");
    let mut guest = Machine::new(firmware, WRITE_REBOOT_CHECK)
        .disk(Disk::vhost_user_with(daemon.socket(), device_options))
        .start();
    for _ in 0..2 {
        let up = guest.wait_for("SEALDISK-UP ");
        assert!(
            up.contains(&format!("firmware={name} root=/dev/vda3")),
            "{up}"
        );
    }
    let console = guest.finish();
    assert!(console.contains("/root/file: OK"), "{console}");
    daemon.stop();

    let daemon = host.attach("boot");
    let check = "mount -o ro /dev/vda3 /mnt && e2fsck -fn /dev/vda3 && cd /mnt && sed 's:/root:root:' root/sums | sha256sum -c";
    Machine::new(Firmware::Direct(images::initramfs()), check)
        .disk(Disk::vhost_user(daemon.socket()))
        .run();
    daemon.stop();
}

#[test]
fn grub_boots_through_seabios_from_a_transitional_device() {
    boots(Firmware::SeaBios, "bios", "");
}

#[test]
#[ignore = "takes minutes with all four: scripts/test --full"]
fn grub_boots_through_seabios_from_a_virtio_1_device() {
    boots(Firmware::SeaBios, "bios", "disable-legacy=on");
}

#[test]
#[ignore = "takes minutes with all four: scripts/test --full"]
fn grub_boots_through_ovmf_from_a_transitional_device() {
    boots(Firmware::Ovmf, "efi", "");
}

#[test]
fn grub_boots_through_ovmf_from_a_virtio_1_device() {
    boots(Firmware::Ovmf, "efi", "disable-legacy=on");
}

const DEBIAN: &str = "
set -e
state=$(systemctl is-system-running)
echo \"state: $state\"
if [ \"$state\" != running ]; then
    systemctl --failed --no-pager
    exit 1
fi
if [ ! -e /root/sums ]; then
    dd if=/dev/urandom of=/root/file bs=64k count=128 conv=fsync status=none
    find /usr/bin /usr/sbin -type f -exec sha256sum {} + >/root/usr-sums
    sha256sum /root/file >/root/sums
    fio --name=verify --filename=/root/fio --size=16M --bs=4k --rw=randwrite --verify=crc32c \\
        --direct=1 --ioengine=libaio --iodepth=8 --minimal >/dev/null
    rm /root/fio
    fstrim -v /
    sync
    systemctl reboot
    sleep 300
fi
sha256sum -c /root/sums
sha256sum --quiet -c /root/usr-sums
";

fn debian(firmware: Firmware, name: &str) {
    let host = CustomerHost::new();
    host.import_disk("debian", &images::debian_disk());
    let daemon = host.attach("debian");
    let mut guest = Machine::new(firmware, DEBIAN)
        .memory_mib(1024)
        .disk(Disk::vhost_user(daemon.socket()))
        .start();
    for _ in 0..2 {
        let up = guest.wait_for("SEALDISK-UP ");
        assert!(
            up.contains(&format!("firmware={name} root=/dev/vda3")),
            "{up}"
        );
    }
    guest.finish();
    daemon.stop();

    let daemon = host.attach("debian");
    Machine::new(
        Firmware::Direct(images::initramfs()),
        "e2fsck -fn /dev/vda3",
    )
    .disk(Disk::vhost_user(daemon.socket()))
    .run();
    daemon.stop();
}

#[test]
#[ignore = "takes minutes: scripts/test --full runs it"]
fn a_whole_debian_boots_through_seabios() {
    debian(Firmware::SeaBios, "bios");
}

#[test]
#[ignore = "takes minutes: scripts/test --full runs it"]
fn a_whole_debian_boots_through_ovmf() {
    debian(Firmware::Ovmf, "efi");
}
