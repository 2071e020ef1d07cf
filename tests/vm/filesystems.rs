//! Guests make file systems, write, reboot and check; what they wrote is on the host as
//! ciphertext that the guest's own cryptsetup opens.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use crate::backend::CustomerHost;
use crate::images;
use crate::qemu::{Disk, Firmware, Machine};

/// Makes an ext4 with files of many sizes, each fsync'd, and their checksums; ends without
/// unmounting, as a power cut would.
const WRITE_EXT4: &str = "
set -e
mkfs.ext4 -q -b 4096 -L data /dev/vda
mount /dev/vda /mnt
mkdir /mnt/files
for n in $(seq 1 40); do
    dd if=/dev/urandom of=/mnt/files/$n bs=$((n * 977)) count=7 conv=fsync status=none
done
dd if=/dev/urandom of=/mnt/files/large bs=1M count=24 conv=fsync status=none
cd /mnt/files && sha256sum * >/mnt/sums
fsync_file() { dd if=/dev/null of=$1 conv=notrunc,fsync oflag=append status=none; }
fsync_file /mnt/sums
sync
";

const CHECK_EXT4: &str = "
set -e
mount /dev/vda /mnt
cd /mnt/files
sha256sum --quiet -c /mnt/sums 2>/dev/null || sha256sum -c /mnt/sums
[ \"$(ls | wc -l)\" = 41 ]
cd /
umount /mnt
e2fsck -fn /dev/vda
";

fn direct() -> Firmware {
    Firmware::Direct(images::initramfs())
}

fn run_on_disk(host: &CustomerHost, name: &str, job: &str) -> String {
    let daemon = host.attach(name);
    let console = Machine::new(direct(), job)
        .disk(Disk::vhost_user(daemon.socket()))
        .run();
    daemon.stop();
    console
}

#[test]
fn ext4_survives_reboots_with_its_checksums() {
    let host = CustomerHost::new();
    host.create_disk("data", "512MiB", &[]);
    run_on_disk(&host, "data", WRITE_EXT4);
    run_on_disk(&host, "data", CHECK_EXT4);
}

/// The ciphertext file, as a second host without sealdisk would have it, and the DEK are all
/// that a guest's dm-crypt needs.
fn cryptsetup_opens(sector_size: &str) {
    let host = CustomerHost::new();
    host.create_disk("data", "256MiB", &["--sector-size", sector_size]);
    run_on_disk(&host, "data", WRITE_EXT4);
    assert_eq!(host.data_unit("data").to_string(), sector_size);

    let job = format!(
        "
set -e
key=/sys/firmware/qemu_fw_cfg/by_name/opt/sealdisk/secret/raw
cryptsetup open --type plain --cipher aes-xts-plain64 --key-size 512 \\
    --sector-size {sector_size} --key-file $key --readonly /dev/vda plain
mount -o ro,noload /dev/mapper/plain /mnt
cd /mnt/files
sha256sum -c /mnt/sums | tail -n 1
sha256sum -c /mnt/sums >/dev/null
[ \"$(ls | wc -l)\" = 41 ]
"
    );
    Machine::new(direct(), &job)
        .disk(Disk::File(host.ciphertext("data")))
        .secret(&host.dek("data"))
        .run();
}

#[test]
fn cryptsetup_opens_the_ciphertext_of_512_byte_data_units() {
    cryptsetup_opens("512");
}

#[test]
fn cryptsetup_opens_the_ciphertext_of_4096_byte_data_units() {
    cryptsetup_opens("4096");
}

/// Two mappings, one on top of the other, are all that it takes to read a disk that is encrypted twice.
#[test]
fn two_mappings_of_cryptsetup_open_what_is_encrypted_twice() {
    let host = CustomerHost::new();
    host.create_set_with_double_encryption("twice");
    host.create_disk("data", "256MiB", &[]);
    host.ok(&["disk", "update", "data", "--disk-encryption-set", "twice"]);
    run_on_disk(&host, "data", WRITE_EXT4);
    let (inner, outer) = host.double_dek("data");
    assert_eq!(inner, host.dek("data"), "as the customer unwraps it");

    let job = "
set -e
keys=/sys/firmware/qemu_fw_cfg/by_name/opt/sealdisk/secret/raw
head -c 64 $keys >/tmp/inner
tail -c 64 $keys >/tmp/outer
open() {
    cryptsetup open --type plain --cipher aes-xts-plain64 --key-size 512 \\
        --sector-size 4096 --key-file /tmp/$1 --readonly $2 $1
}
open outer /dev/vda
open inner /dev/mapper/outer
mount -o ro,noload /dev/mapper/inner /mnt
cd /mnt/files
sha256sum -c /mnt/sums | tail -n 1
sha256sum -c /mnt/sums >/dev/null
[ \"$(ls | wc -l)\" = 41 ]
";
    Machine::new(direct(), job)
        .disk(Disk::File(host.ciphertext("data")))
        .secret(&[inner, outer].concat())
        .run();
}

/// Random reads and writes of 512 bytes to 1 MiB by several jobs over a number of queues, each
/// block verified by fio.
fn fio_verifies(queues: u32, disk: &[&str]) {
    let host = CustomerHost::new();
    host.create_disk("data", "256MiB", disk);
    let daemon = host.attach_with("data", &["--num-queues", &queues.to_string()]);
    let job = "
set -e
[ \"$(ls /sys/block/vda/mq | wc -l)\" = QUEUES ]
common='--filename=/dev/vda --direct=1 --ioengine=libaio --verify=crc32c --verify_fatal=1
    --group_reporting --minimal --randseed=7'
sizes=512/25:4k/30:20k/15:64k/15:256k/10:1m/5
fio $common --name=write --rw=randwrite --bssplit=$sizes --iodepth=8 \\
    --numjobs=4 --size=12m --offset_increment=16m >/dev/null
fio $common --name=mixed --rw=randrw --bssplit=$sizes --iodepth=4 --offset=128m \\
    --numjobs=3 --size=8m --offset_increment=16m >/dev/null
fio $common --name=sync --rw=randwrite --bs=4k --iodepth=1 --fsync=4 --offset=200m \\
    --size=1m >/dev/null
";
    let job = job.replace("QUEUES", &queues.to_string());
    let options = format!("num-queues={queues}");
    Machine::new(Firmware::Direct(images::initramfs_with_fio()), &job)
        .vcpus(queues)
        .disk(Disk::vhost_user_with(daemon.socket(), &options))
        .memory_mib(768)
        .run();
    daemon.stop();
}

#[test]
fn fio_verifies_random_reads_and_writes_over_two_queues() {
    fio_verifies(2, &[]);
}

/// On tmpfs, where blocks are transformed in the mapped file.
#[test]
fn fio_verifies_random_reads_and_writes_over_four_queues_in_memory() {
    let dir = tempfile::TempDir::new_in("/dev/shm").unwrap();
    fio_verifies(4, &["--data-dir", dir.path().to_str().unwrap()]);
}

#[test]
fn xfs_btrfs_and_ntfs_are_made_filled_and_checked() {
    let host = CustomerHost::new();
    host.create_disk("data", "1GiB", &[]);
    let job = "
set -e
for kind in xfs btrfs ntfs; do
    blkdiscard /dev/vda
    case $kind in
        xfs) mkfs.xfs -q -f /dev/vda ;;
        btrfs) mkfs.btrfs -q -f /dev/vda ;;
        ntfs) mkfs.ntfs -q -f -F /dev/vda ;;
    esac
    mount_it() { case $kind in ntfs) ntfs-3g /dev/vda /mnt ;; *) modprobe $kind; mount -t $kind /dev/vda /mnt ;; esac; }
    [ $kind != ntfs ] || modprobe fuse
    mount_it
    cp -r /usr/sbin /mnt/copy
    (cd /mnt/copy && sha256sum * >/tmp/sums)
    umount /mnt
    echo 3 >/proc/sys/vm/drop_caches
    mount_it
    (cd /mnt/copy && sha256sum -c /tmp/sums >/dev/null)
    umount /mnt
    case $kind in
        xfs) xfs_repair -n /dev/vda >/dev/null 2>&1 ;;
        btrfs) btrfs check /dev/vda >/dev/null 2>&1 ;;
        ntfs) ntfsfix --no-action /dev/vda >/dev/null ;;
    esac
    echo \"$kind is fine\"
done
";
    let console = run_on_disk(&host, "data", job);
    for kind in ["xfs", "btrfs", "ntfs"] {
        assert!(console.contains(&format!("{kind} is fine")), "{console}");
    }
}

fn allocated(path: &Path) -> u64 {
    fs::metadata(path).expect("the file is there").blocks() * 512
}

#[test]
fn what_the_guest_discards_is_given_back_and_reads_as_zeros() {
    let host = CustomerHost::new();
    host.create_disk("data", "128MiB", &[]);
    let file = host.ciphertext("data");
    let job = "
set -e
mkfs.ext4 -q /dev/vda
mount /dev/vda /mnt
dd if=/dev/urandom of=/mnt/keep bs=1M count=8 conv=fsync status=none
dd if=/dev/urandom of=/mnt/gone bs=1M count=40 conv=fsync status=none
sha256sum /mnt/keep >/mnt/sums
sync
";
    run_on_disk(&host, "data", job);
    let full = allocated(&file);
    assert!(full > 48 << 20, "only {full} bytes are allocated");

    let job = "
set -e
mount /dev/vda /mnt
rm /mnt/gone
sync
fstrim -v /mnt
sha256sum -c /mnt/sums
umount /mnt
e2fsck -fn /dev/vda
";
    run_on_disk(&host, "data", job);
    let trimmed = allocated(&file);
    assert!(
        trimmed + (36 << 20) < full,
        "{full} bytes were allocated, {trimmed} still are"
    );

    let job = "
set -e
blkdiscard /dev/vda
dd if=/dev/null of=/dev/vda conv=notrunc,fsync status=none
[ -z \"$(tr -d '\\0' </dev/vda | head -c 1)\" ]
";
    run_on_disk(&host, "data", job);
    assert!(
        allocated(&file) < 1 << 20,
        "{} bytes remain",
        allocated(&file)
    );
    // Zeros are zeros after a restart too, by the map and not by decrypting holes.
    run_on_disk(
        &host,
        "data",
        "[ -z \"$(tr -d '\\0' </dev/vda | head -c 1)\" ]",
    );
}
