//! Snapshots, clones, images and new DEKs under running guests.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, UNIX_EPOCH};

use serde_json::Value;
use test_support::clean::assert_clean_disk;
use test_support::rng::Rng;
use test_support::{Daemon, text};

use crate::backend::CustomerHost;
use crate::images;
use crate::qemu::{Disk, Firmware, Machine, Qemu};

const MIB: u64 = 1 << 20;

/// A disk whose being plugged in tells a guest to come to an end.
struct Signal(Daemon);

impl Signal {
    fn new(host: &CustomerHost) -> Self {
        host.ok(&["disk", "create", "signal", "--size", "1MiB"]);
        Self(host.attach("signal"))
    }

    /// Gives it to a guest, which ends well.
    fn end(&self, guest: Qemu) -> String {
        guest.hot_plug(self.0.socket());
        guest.finish()
    }
}

/// Waits for a round of the guest's load that ends after now.
fn one_more_round(guest: &mut Qemu) {
    let rounds = guest.console().matches("SEALDISK-STEP round").count();
    guest.wait_for(&format!("SEALDISK-STEP round {}", rounds + 1));
}

/// What a guest's script says of a range of its disk, in MiB.
fn checksum(device: &str, start: u32, length: u32) -> String {
    format!(
        "$(dd if={device} bs=1M skip={start} count={length} iflag=direct status=none | sha256sum)"
    )
}

/// Rounds of fio in the 32 MiB from 256 MiB on, each verified at once, and the last one of each
/// place once more at the end; and content that stays as it is, at 304 MiB.
const FIO_UNTIL_TOLD: &str = "
set -e
dmesg -c >/dev/null
dd if=/dev/urandom of=/dev/vda bs=1M seek=304 count=8 oflag=direct conv=notrunc status=none
sum=SUM
echo \"SEALDISK-STEP sum $sum\"
round() {
    case $(($1 % 4)) in 0) set -- $1 512 128k ;; 1) set -- $1 4k 1m ;; 2) set -- $1 20k 1m ;; 3) set -- $1 64k 2m ;; esac
    number=$1 bs=$2 size=$3
    shift 3
    fio --name=load --filename=/dev/vda --offset=$((256 + number % 16 * 2))m --size=$size --bs=$bs \\
        --rw=randwrite --ioengine=libaio --iodepth=8 --direct=1 --verify=crc32c --verify_fatal=1 \\
        --randseed=$((number + 1)) $LAST >/tmp/fio 2>&1 || { cat /tmp/fio; exit 1; }
}
n=0
until [ -b /dev/vdb ]; do
    round $n
    n=$((n + 1))
    echo \"SEALDISK-STEP round $n\"
done
[ $n -gt 8 ]
LAST=--verify_only
first=$((n > 16 ? n - 16 : 0))
while [ $first -lt $n ]; do
    round $first
    first=$((first + 1))
done
[ \"SUM\" = \"$sum\" ]
[ \"$(cat /sys/block/vda/size)\" = 786432 ]
! dmesg | grep -i error
";

/// In a guest that booted from the clone: what the first guest had written is there, and its own
/// file system works.
const USE_THE_CLONE: &str = "
set -e
echo \"SEALDISK-STEP sum SUM\"
grep -q 'known plaintext' /root/known-plaintext
mount -o remount,rw /
n=0
until [ -b /dev/vdb ]; do
    dd if=/dev/urandom of=/root/file bs=64k count=8 conv=fsync status=none
    sha256sum /root/file >/root/sums
    echo 3 >/proc/sys/vm/drop_caches
    sha256sum -c /root/sums >/dev/null
    n=$((n + 1))
    echo \"SEALDISK-STEP round $n\"
done
echo 3 >/proc/sys/vm/drop_caches
sha256sum -c /root/sums
";

#[test]
fn a_guest_under_fio_goes_through_every_change_of_layers() {
    let host = CustomerHost::new();
    let image = images::bootable_disk();
    let set = ["--disk-encryption-set", "customer-set"];
    let create = ["disk", "create", "data", "--source", text(&image)];
    host.ok(&[&create[..], &["--size", "320MiB"], &set].concat());
    let daemon = host.attach("data");
    let signal = Signal::new(&host);
    let job = FIO_UNTIL_TOLD.replace("SUM", &checksum("/dev/vda", 304, 8));
    let mut guest = Machine::new(Firmware::Direct(images::initramfs_with_fio()), &job)
        .memory_mib(768)
        .disk(Disk::vhost_user(daemon.socket()))
        .start();
    let sum = guest.wait_for("SEALDISK-STEP sum ");
    one_more_round(&mut guest);

    snapshot(&host, "first");
    one_more_round(&mut guest);
    clone_boots_and_is_flattened(&host, &signal, &sum);

    host.ok(&["disk", "rotate-dek", "data"]);
    one_more_round(&mut guest);
    let disk = host.wait_for_job("data");
    assert_eq!(disk["generation"], 2, "{disk}");
    assert_eq!(layers(&disk).len(), 1, "{disk}");
    host.ok(&["snapshot", "delete", "first", "--yes"]);

    // A layer that is merged into one that is frozen too, then into the disk's top layer.
    snapshot(&host, "second");
    one_more_round(&mut guest);
    snapshot(&host, "third");
    one_more_round(&mut guest);
    for (name, left) in [("second", 2), ("third", 1)] {
        host.ok(&["snapshot", "delete", name, "--yes"]);
        let disk = host.wait_for_job("data");
        assert_eq!(layers(&disk).len(), left, "{disk}");
        one_more_round(&mut guest);
    }

    snapshot(&host, "fourth");
    one_more_round(&mut guest);
    host.ok(&["disk", "flatten", "data"]);
    let disk = host.wait_for_job("data");
    assert_eq!(layers(&disk).len(), 1, "{disk}");
    assert_eq!(disk["sharedBytes"], 0, "{disk}");
    host.ok(&["snapshot", "delete", "fourth", "--yes"]);

    host.ok(&["disk", "resize", "data", "--size", "384MiB"]);
    one_more_round(&mut guest);
    signal.end(guest);
    daemon.stop();
    assert_clean_disk(|arguments| host.command(arguments), "data");
    assert!(host.text(&["snapshot", "list"]).lines().count() <= 1);
}

fn snapshot(host: &CustomerHost, name: &str) {
    host.ok(&["snapshot", "create", name, "--source", "data"]);
}

/// The layers that `disk show` has, bottom to top.
fn layers(disk: &Value) -> &[Value] {
    disk["layers"].as_array().map_or(&[], Vec::as_slice)
}

/// A second guest runs on a clone of the first one's snapshot while that becomes independent.
fn clone_boots_and_is_flattened(host: &CustomerHost, signal: &Signal, sum: &str) {
    host.ok(&["disk", "create", "clone", "--source", "first"]);
    let daemon = host.attach("clone");
    let job = USE_THE_CLONE.replace("SUM", &checksum("/dev/vda", 304, 8));
    let mut guest = Machine::new(Firmware::SeaBios, &job)
        .disk(Disk::vhost_user(daemon.socket()))
        .start();
    assert_eq!(guest.wait_for("SEALDISK-STEP sum "), sum);
    one_more_round(&mut guest);
    let refusal = host.refused(&["snapshot", "delete", "first", "--yes"]);
    assert!(refusal.contains("clone"), "{refusal}");
    host.ok(&["disk", "flatten", "clone"]);
    let clone = host.wait_for_job("clone");
    assert_eq!(layers(&clone).len(), 1, "{clone}");
    assert!(clone["source"].is_null(), "{clone}");
    one_more_round(&mut guest);
    signal.end(guest);
    daemon.stop();
    assert_clean_disk(|arguments| host.command(arguments), "clone");
}

/// Writes and remembers until it is told to look at everything; what is at 24 MiB stays.
const REMEMBER_UNTIL_TOLD: &str = "
set -e
dmesg -c >/dev/null
dd if=/dev/urandom of=/dev/vda bs=1M seek=24 count=32 oflag=direct conv=notrunc status=none
sum=SUM
echo \"SEALDISK-STEP sum $sum\"
mkdir /tmp/sums
n=0
until [ -b /dev/vdb ]; do
    place=$((n % 61))
    dd if=/dev/urandom of=/tmp/block bs=4k count=90 status=none
    dd if=/tmp/block of=/dev/vda bs=4k seek=$((place * 90 + 1)) oflag=direct conv=notrunc status=none
    sha256sum </tmp/block >/tmp/sums/$place
    n=$((n + 1))
    echo \"SEALDISK-STEP round $n\"
done
for place in $(ls /tmp/sums); do
    now=$(dd if=/dev/vda bs=4k skip=$((place * 90 + 1)) count=90 iflag=direct status=none | sha256sum)
    [ \"$now\" = \"$(cat /tmp/sums/$place)\" ] || { echo \"place $place differs\"; exit 1; }
done
[ \"SUM\" = \"$sum\" ]
! dmesg | grep -i error
";

#[test]
fn a_rotation_of_the_dek_outlives_ten_deaths_of_the_daemon() {
    let seed = std::env::var("SEALDISK_LAYERS_SEED")
        .ok()
        .and_then(|seed| seed.parse().ok())
        .unwrap_or_else(|| {
            let now = UNIX_EPOCH.elapsed();
            now.map_or(1, |now| u64::from(now.subsec_nanos()))
        });
    eprintln!("seed {seed}: SEALDISK_LAYERS_SEED repeats it");
    let mut rng = Rng::new(seed);
    let host = CustomerHost::new();
    host.create_disk("data", "64MiB", &[]);
    let mut daemon = host.attach("data");
    let signal = Signal::new(&host);
    let job = REMEMBER_UNTIL_TOLD.replace("SUM", &checksum("/dev/vda", 24, 32));
    let mut guest = Machine::new(Firmware::Direct(images::initramfs()), &job)
        .disk(Disk::VhostUser {
            socket: daemon.socket().to_owned(),
            device_options: String::new(),
            reconnect: true,
        })
        .start();
    guest.wait_for("SEALDISK-STEP sum ");

    for death in 1..=10 {
        let resumed = !host.json(&["disk", "show", "data"])["job"].is_null();
        let rate = rng.pick(&["8MiB", "32MiB", "1GiB"]);
        let delay = Duration::from_millis(rng.within(0..600));
        eprintln!("death {death}: {delay:?} into a rotation (resumed: {resumed}; else {rate}/s)");
        // Without --no-wait, one that comes after the death would do the rotation itself.
        let rotate = ["disk", "rotate-dek", "data", "--no-wait", "--rate", rate];
        let command = (!resumed).then(|| {
            let mut command = host.command(&rotate);
            let silent = command.stdout(Stdio::null()).stderr(Stdio::null());
            silent.spawn().expect("sealdisk can be started")
        });
        std::thread::sleep(delay);
        daemon.kill();
        if let Some(mut command) = command {
            command.wait().expect("sealdisk can be waited for");
        }
        daemon = host.reattach(daemon);
        one_more_round(&mut guest);
    }
    let mut disk = host.wait_for_job("data");
    if disk["generation"] == 1 {
        host.ok(&["disk", "rotate-dek", "data"]);
        disk = host.wait_for_job("data");
    }
    assert!(disk["generation"].as_u64() > Some(1), "{disk}");
    assert_eq!(layers(&disk).len(), 1, "{disk}");
    signal.end(guest);
    daemon.stop();
    // One that died before the header named its new layer has left files, and no damage.
    let check = host.command(&["disk", "check", "data"]).output();
    let check = check.expect("sealdisk can be started");
    assert!(matches!(check.status.code(), Some(0 | 3)), "{check:?}");
    host.ok(&["disk", "check", "data", "--repair"]);
    let left = files_of(&host.disk_dir("data"));
    assert_eq!(left.len(), 3, "header, data and map: {left:?}");
}

/// In a guest that booted from one of many disks on an image.
const BOOT_ONE_OF_MANY: &str = "
set -e
grep -q 'known plaintext' /root/known-plaintext
[ ! -e /root/mine ]
mount -o remount,rw /
echo mine >/root/mine
sync
";

#[test]
fn two_disks_on_one_image_boot_two_guests_and_its_data_is_stored_once() {
    boot_guests_of_one_image(2);
}

#[test]
#[ignore = "takes minutes: scripts/test --full"]
fn ten_disks_on_one_image_boot_ten_guests_and_its_data_is_stored_once() {
    boot_guests_of_one_image(10);
}

fn boot_guests_of_one_image(disks: u64) {
    let host = CustomerHost::new();
    let source = images::bootable_disk();
    let create = ["image", "create", "golden", "--source", text(&source)];
    host.ok(&[&create[..], &["--disk-encryption-set", "customer-set"]].concat());
    let image = host.json(&["image", "show", "golden"]);
    let image_bytes = image["usedBytes"].as_u64().unwrap();
    assert!(image_bytes > 32 * MIB, "{image}");

    for n in 0..disks {
        let name = format!("boot-{n}");
        host.create_set(&name);
        let create = ["disk", "create", &name, "--source", "golden"];
        host.ok(&[&create[..], &["--disk-encryption-set", &name]].concat());
        let daemon = host.attach(&name);
        Machine::new(Firmware::SeaBios, BOOT_ONE_OF_MANY)
            .memory_mib(256)
            .disk(Disk::vhost_user(daemon.socket()))
            .run();
        daemon.stop();
    }

    let image_data = image["layers"][0]["data"].as_str().unwrap();
    let image_data = fs::metadata(image_data).unwrap();
    assert_eq!(image_data.nlink(), disks + 1);
    for n in 0..disks {
        let name = format!("boot-{n}");
        let disk = host.json(&["disk", "show", &name]);
        let [beneath, top] = layers(&disk) else {
            panic!("two layers: {disk}");
        };
        let data = fs::metadata(beneath["data"].as_str().unwrap()).unwrap();
        assert_eq!(data.ino(), image_data.ino(), "{disk}");
        assert_eq!(beneath["diskEncryptionSetId"], "customer-set", "{disk}");
        assert_eq!(top["diskEncryptionSetId"], name, "{disk}");
        let [used, shared] =
            ["usedBytes", "sharedBytes"].map(|bytes| disk[bytes].as_u64().unwrap());
        assert!(shared + MIB > image_bytes, "{disk}");
        assert!(used - shared < 8 * MIB, "{disk}");
    }
    let stored = allocated_below(&host.state().join("disks"));
    assert!(
        stored < image_bytes + disks * 8 * MIB,
        "{stored} bytes are stored, {image_bytes} of them the image's"
    );
    let refusal = host.refused(&["image", "delete", "golden", "--yes"]);
    assert!(refusal.contains("boot-"), "{refusal}");
}

/// What the files below a folder take, each counted once however many names it has.
fn allocated_below(dir: &Path) -> u64 {
    let mut files = HashMap::new();
    for entry in fs::read_dir(dir).expect("the folder can be read") {
        let disk = entry.expect("the folder can be read").path();
        for file in files_of(&disk) {
            let metadata = fs::metadata(&file).expect("the file is there");
            files.insert(metadata.ino(), metadata.blocks() * 512);
        }
    }
    files.values().sum()
}

fn files_of(disk: &Path) -> Vec<PathBuf> {
    fs::read_dir(disk)
        .unwrap_or_else(|e| panic!("{}: {e}", disk.display()))
        .map(|entry| entry.expect("the folder can be read").path())
        .collect()
}

/// As long as a cipher block, so that each one that is decrypted rightly shows.
const LINE: &[u8; 16] = b"known plaintext\n";

/// The secret is the new DEK and, after it, the old one.
const OPEN_WITH_BOTH: &str = "
set -e
key=/sys/firmware/qemu_fw_cfg/by_name/opt/sealdisk/secret/raw
open() {
    dd if=$key of=/tmp/key bs=64 skip=$1 count=1 status=none
    cryptsetup open --type plain --cipher aes-xts-plain64 --key-size 512 --sector-size 4096 \\
        --key-file /tmp/key --readonly /dev/vda $2
}
lines() { tr '\\0' '\\n' </dev/mapper/$1 | grep -c -F 'known plaintext' || true; }
for name in new old; do
    open $([ $name = new ] && echo 0 || echo 1) $name
    echo \"SEALDISK-STEP $name $(lines $name)\"
    cryptsetup close $name
done
";

#[test]
fn after_a_rotation_nothing_of_the_disk_decrypts_under_the_old_dek() {
    const BLOCK: usize = 4096;
    const DISK: usize = 8 << 20;
    let host = CustomerHost::new();
    let plain = host.runtime().join("plain.raw");
    fs::write(&plain, LINE.repeat(DISK / LINE.len())).unwrap();
    host.import_disk("data", &plain);
    let old_dek = host.dek("data");
    let old_data = fs::read(host.ciphertext("data")).unwrap();
    let old_layer = host.top_layer("data");
    let old_wrapped = old_layer["envelope"]["wrapped"].as_str().unwrap();

    let daemon = host.attach("data");
    host.ok(&["disk", "rotate-dek", "data"]);
    host.wait_for_job("data");
    daemon.stop();

    // Neither the old key nor what it encrypted is there.
    let old_blocks: HashSet<&[u8]> = old_data.chunks_exact(BLOCK).take(DISK / BLOCK).collect();
    assert_eq!(old_blocks.len(), DISK / BLOCK);
    let files = files_of(&host.disk_dir("data"));
    assert_eq!(files.len(), 3, "header, data and map: {files:?}");
    for file in files {
        let content = fs::read(&file).unwrap();
        let old = content.chunks(BLOCK).find(|b| old_blocks.contains(b));
        assert!(old.is_none(), "old ciphertext in {}", file.display());
        let wrapped = old_wrapped.as_bytes();
        let old = content.windows(wrapped.len()).any(|w| w == wrapped);
        assert!(!old, "the old wrapped DEK is in {}", file.display());
    }
    let new_dek = host.dek("data");
    assert_ne!(new_dek, old_dek);

    let console = Machine::new(Firmware::Direct(images::initramfs()), OPEN_WITH_BOTH)
        .disk(Disk::File(host.ciphertext("data")))
        .secret(&[new_dek, old_dek].concat())
        .run();
    let lines = DISK / LINE.len();
    let said = |line: &str| console.lines().any(|l| l.trim_end() == line);
    assert!(said(&format!("SEALDISK-STEP new {lines}")), "{console}");
    assert!(said("SEALDISK-STEP old 0"), "{console}");
}
