//! Daemons and devices that come and go under a running guest.

use std::time::Duration;

use crate::backend::CustomerHost;
use crate::images;
use crate::qemu::{Disk, Firmware, Machine};

fn direct() -> Firmware {
    Firmware::Direct(images::initramfs())
}

/// The guest writes and reads back through two deaths of the daemon; what was completed before
/// one is there after it.
#[test]
fn a_guest_goes_on_after_kill_9_of_the_daemon() {
    let host = CustomerHost::new();
    host.create_disk("data", "256MiB", &[]);
    let mut daemon = host.attach("data");
    let job = "
set -e
n=0
while [ $n -lt 60 ]; do
    dd if=/dev/urandom of=/tmp/block bs=64k count=4 status=none
    dd if=/tmp/block of=/dev/vda bs=64k seek=$((n * 4)) oflag=direct conv=notrunc status=none
    sha256sum </tmp/block >>/tmp/sums
    [ $n != 5 ] || echo SEALDISK-STEP first
    [ $n != 30 ] || echo SEALDISK-STEP second
    usleep 20000
    n=$((n + 1))
done
n=0
while read -r sum; do
    now=$(dd if=/dev/vda bs=64k skip=$((n * 4)) count=4 iflag=direct status=none | sha256sum)
    [ \"$now\" = \"$sum\" ] || { echo \"block $n differs\"; exit 1; }
    n=$((n + 1))
done </tmp/sums
[ $n = 60 ]
";
    let mut guest = Machine::new(direct(), job)
        .disk(Disk::VhostUser {
            socket: daemon.socket().to_owned(),
            device_options: String::new(),
            reconnect: true,
        })
        .start();
    for step in ["SEALDISK-STEP first", "SEALDISK-STEP second"] {
        guest.wait_for(step);
        daemon.kill();
        std::thread::sleep(Duration::from_millis(300));
        daemon = host.reattach(daemon);
    }
    guest.finish();
    daemon.stop();
}

/// What a guest was told is written is there although nothing was flushed and daemon and guest
/// died together.
#[test]
fn completed_writes_outlive_the_daemon_without_a_flush() {
    let host = CustomerHost::new();
    host.create_disk("data", "64MiB", &[]);
    let mut daemon = host.attach("data");
    let job = "
set -e
yes 'completed and not flushed' | head -c 4194304 >/tmp/block
dd if=/tmp/block of=/dev/vda bs=64k seek=100 oflag=direct status=none
blkdiscard -o 0 -l 1048576 /dev/vda
echo SEALDISK-STEP written
sleep 600
";
    let mut guest = Machine::new(direct(), job)
        .disk(Disk::vhost_user(daemon.socket()))
        .start();
    guest.wait_for("SEALDISK-STEP written");
    daemon.kill();
    guest.kill();
    let daemon = host.reattach(daemon);
    let job = "
set -e
yes 'completed and not flushed' | head -c 4194304 >/tmp/block
dd if=/dev/vda of=/tmp/read bs=64k skip=100 count=64 status=none
cmp /tmp/block /tmp/read
";
    Machine::new(direct(), job)
        .disk(Disk::vhost_user(daemon.socket()))
        .run();
    daemon.stop();
}

/// The disk grows under a mounted file system, which then fills the new space.
#[test]
fn a_guest_sees_its_disk_grow_and_its_file_system_follows() {
    let host = CustomerHost::new();
    host.create_disk("data", "64MiB", &[]);
    let daemon = host.attach("data");
    let job = "
set -e
[ \"$(cat /sys/block/vda/size)\" = 131072 ]
mkfs.ext4 -q /dev/vda
mount /dev/vda /mnt
dd if=/dev/urandom of=/mnt/old bs=1M count=24 conv=fsync status=none
sha256sum /mnt/old >/tmp/sums
echo SEALDISK-STEP grow
n=0
until [ \"$(cat /sys/block/vda/size)\" = 524288 ]; do
    usleep 100000
    n=$((n + 1))
    [ $n -lt 600 ]
done
resize2fs /dev/vda
dd if=/dev/urandom of=/mnt/new bs=1M count=80 conv=fsync status=none
sha256sum /mnt/new >>/tmp/sums
echo 3 >/proc/sys/vm/drop_caches
sha256sum -c /tmp/sums
umount /mnt
e2fsck -fn /dev/vda
";
    let mut guest = Machine::new(direct(), job)
        .disk(Disk::vhost_user(daemon.socket()))
        .start();
    guest.wait_for("SEALDISK-STEP grow");
    host.ok(&["disk", "resize", "data", "--size", "256MiB"]);
    guest.finish();
    assert!(daemon.log().contains("was told of the disk's new size"));
    daemon.stop();
}

#[test]
fn a_disk_is_plugged_into_a_running_guest_and_out_again() {
    let host = CustomerHost::new();
    host.create_disk("first", "64MiB", &[]);
    host.create_disk("hot", "96MiB", &[]);
    let first = host.attach("first");
    let hot = host.attach_with("hot", &["--serial", "hot-serial"]);
    let job = "
set -e
echo SEALDISK-STEP plug
until [ -b /dev/vdb ]; do usleep 50000; done
[ \"$(cat /sys/block/vdb/size)\" = 196608 ]
[ \"$(cat /sys/block/vdb/serial)\" = hot-serial ]
mkfs.ext4 -q /dev/vdb
mount /dev/vdb /mnt
dd if=/dev/urandom of=/mnt/file bs=1M count=8 conv=fsync status=none
umount /mnt
e2fsck -fn /dev/vdb
echo SEALDISK-STEP unplug
while [ -b /dev/vdb ]; do usleep 50000; done
dd if=/dev/vda of=/dev/null bs=1M status=none
";
    let mut guest = Machine::new(direct(), job)
        .disk(Disk::vhost_user(first.socket()))
        .start();
    guest.wait_for("SEALDISK-STEP plug");
    guest.hot_plug(hot.socket());
    guest.wait_for("SEALDISK-STEP unplug");
    guest.unplug();
    guest.finish();
    // A daemon whose guest went away is there for the next one.
    Machine::new(direct(), "e2fsck -fn /dev/vda")
        .disk(Disk::vhost_user(hot.socket()))
        .run();
    hot.stop();
    first.stop();
}

/// QEMU asks for a queue for each vCPU unless told otherwise, and refuses a back-end with fewer.
#[test]
fn a_guest_with_four_vcpus_gets_its_queues_by_default() {
    let host = CustomerHost::new();
    host.create_disk("data", "64MiB", &[]);
    let daemon = host.attach("data");
    let job = "
set -e
[ \"$(nproc)\" = 4 ]
[ \"$(ls /sys/block/vda/mq | wc -l)\" = 4 ]
[ \"$(cat /sys/block/vda/queue/logical_block_size)\" = 512 ]
[ \"$(cat /sys/block/vda/queue/physical_block_size)\" = 4096 ]
for cpu in 0 1 2 3; do
    taskset -c $cpu dd if=/dev/urandom of=/dev/vda bs=64k count=32 seek=$((cpu * 32)) \\
        oflag=direct conv=notrunc status=none &
done
wait
for cpu in 3 2 1 0; do
    taskset -c $cpu dd if=/dev/vda bs=64k count=32 skip=$((cpu * 32)) iflag=direct status=none | sha256sum
done
";
    Machine::new(direct(), job)
        .disk(Disk::vhost_user(daemon.socket()))
        .vcpus(4)
        .run();
    daemon.stop();
}

#[test]
fn a_read_only_disk_is_read_only_in_the_guest() {
    let host = CustomerHost::new();
    host.create_disk("data", "64MiB", &[]);
    let daemon = host.attach_with("data", &["--read-only"]);
    let job = "
set -e
[ \"$(cat /sys/block/vda/ro)\" = 1 ]
dd if=/dev/vda of=/dev/null bs=1M status=none
blockdev --setrw /dev/vda
! dd if=/dev/urandom of=/dev/vda bs=4k count=1 oflag=direct status=none 2>/dev/null
[ -z \"$(tr -d '\\0' </dev/vda | head -c 1)\" ]
";
    Machine::new(direct(), job)
        .disk(Disk::vhost_user(daemon.socket()))
        .run();
    daemon.stop();
}

/// The vault decides: a disabled key stops the next attach, and enabled again it lets the disk
/// be read as it was.
#[test]
fn a_disabled_key_refuses_the_attach_and_enabling_it_brings_the_disk_back() {
    let host = CustomerHost::new();
    host.create_disk("data", "64MiB", &[]);
    let daemon = host.attach("data");
    Machine::new(direct(), "mkfs.ext4 -q /dev/vda")
        .disk(Disk::vhost_user(daemon.socket()))
        .run();
    // One writer only.
    let second = host.refused(&["attach", "data", "--socket-path", "/dev/shm/never-bound"]);
    assert!(second.contains("in use"), "{second}");
    daemon.stop();

    let enabled = |value: &str| {
        host.ok(&[
            "keyvault",
            "key",
            "set-attributes",
            "disk-key",
            "--vault-name",
            "customer",
            "--enabled",
            value,
        ]);
    };
    enabled("false");
    let error = host.refused(&["attach", "data", "--socket-path", "/dev/shm/never-bound"]);
    assert!(
        error.contains("disk-key") && error.contains("disabled"),
        "{error}"
    );
    enabled("true");
    let daemon = host.attach("data");
    Machine::new(direct(), "e2fsck -fn /dev/vda")
        .disk(Disk::vhost_user(daemon.socket()))
        .run();
    daemon.stop();
}
