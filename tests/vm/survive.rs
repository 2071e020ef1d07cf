//! A guest under load whose back-end dies and comes back, again and again: it sees a stall, and nothing else.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::thread;
use std::time::{Duration, Instant};

use test_support::rng::Rng;
use test_support::{Daemon, PATIENCE, await_end, deaths, kill};

use crate::backend::CustomerHost;
use crate::images;
use crate::qemu::{Disk, Firmware, Machine, Qemu};

/// Two jobs write and verify at depth 32, each on its own CPU and so in a queue of its own, in sizes from 512 bytes, with
/// flushes; one discards and writes; one reads much at a time, so that requests pile up. Round after round, until a second
/// disk is plugged in. What the kernel calls an error comes to the console at once.
///
/// fio's times of completions are right, those of flushes are not (3.33).
pub const LOAD: &str = r#"
set -e
dmesg -c >/dev/null
echo 5 >/proc/sys/kernel/printk
[ "$(ls /sys/block/vda/mq | wc -l)" = 2 ]
echo SEALDISK-STEP started
n=0
until [ -b /dev/vdb ]; do
    verify="--rw=randwrite --verify=crc32c --verify_fatal=1 --fsync=24 --size=12m
        --bssplit=512/15:1536/5:4k/40:16k/20:64k/15:256k/5"
    fio --filename=/dev/vda --direct=1 --ioengine=libaio --iodepth=32 --randseed=$n --exitall_on_error=1 \
        --output-format=json --output=/tmp/fio \
        --name=first $verify --offset=0 --cpus_allowed=0 \
        --name=second $verify --offset=32m --cpus_allowed=1 \
        --name=discards --rw=trimwrite --bsrange=4k-64k --offset=64m --size=6m \
        --name=reads --rw=randread --bs=1m --offset=0 --size=64m --io_size=288m \
        >/tmp/said 2>&1 || { cat /tmp/said /tmp/fio; exit 1; }
    n=$((n + 1))
    awk -v n=$n '/_ns" :/ { clat = /clat_ns/ } clat && /"max" :/ { if ($3 + 0 > m) m = $3 + 0 }
        END { printf "SEALDISK-ROUND %d, longest stall %d ms\n", n, m / 1000000 }' /tmp/fio
done
! dmesg | grep -i -e error -e 'not a head'
"#;

/// How a back-end ends.
#[derive(Clone, Copy, Debug)]
enum End {
    KillBoth,
    KillAttach,
    Sigterm,
}

impl End {
    fn of(self, daemon: &mut Daemon, data_plane: u32) {
        match self {
            Self::KillBoth => {
                // Known already, so that it dies at once.
                kill(data_plane);
                daemon.kill();
            }
            Self::KillAttach => {
                kill(daemon.pid());
                daemon.wait();
                await_end(data_plane);
            }
            Self::Sigterm => {
                let status = daemon.terminate();
                let log = daemon.log();
                assert!(status.success(), "after SIGTERM: {status}\n{log}");
            }
        }
    }
}

/// Waits for a moment at which several requests are in flight, but not for ever: the guest has pauses.
fn await_load(region: &File) {
    // Of two queues with 128 entries, as libvhost-user and DPDK have it.
    const PART: usize = 2112;
    let end = Instant::now() + Duration::from_secs(4);
    let mut content = vec![0; 2 * PART];
    while Instant::now() < end {
        region
            .read_exact_at(&mut content, 0)
            .expect("the region is read");
        let marks = content
            .chunks(PART)
            .flat_map(|part| part[16..].chunks_exact(16));
        if marks.filter(|entry| entry[0] != 0).count() > 3 {
            return;
        }
    }
}

/// The in-flight region, which QEMU keeps.
fn region_of(guest: &Qemu) -> File {
    let descriptors = format!("/proc/{}/fd", guest.pid());
    let mut open = fs::read_dir(descriptors).expect("QEMU runs").flatten();
    let region = open.find(|fd| {
        fs::read_link(fd.path()).is_ok_and(|file| file.to_string_lossy().contains("inflight"))
    });
    File::open(region.expect("QEMU has the in-flight region").path()).expect("it can be opened")
}

/// How many requests were in flight whenever a queue went on.
fn in_flight(daemon: &Daemon) -> Vec<u32> {
    let log = daemon.log();
    let went_on = log.lines().filter(|line| line.contains("goes on, with"));
    let count = |line: &str| line.split_whitespace().rev().nth(3)?.parse().ok();
    went_on.filter_map(count).collect()
}

/// Waits until both queues have gone on once more than `before`.
fn await_queues(guest: &Qemu, daemon: &Daemon, before: usize) {
    let end = Instant::now() + PATIENCE;
    while in_flight(daemon).len() < before + 2 {
        assert_unharmed(guest, daemon);
        assert!(
            Instant::now() < end,
            "QEMU does not come back\n{}",
            daemon.log()
        );
        thread::sleep(Duration::from_millis(10));
    }
}

/// That the guest has met no error, and goes on.
pub fn assert_unharmed(guest: &Qemu, daemon: &Daemon) {
    let console = guest.console();
    for sign in ["SEALDISK-EXIT", "I/O error", "not a head"] {
        assert!(
            !console.contains(sign),
            "{sign}\n{console}\n{}",
            daemon.log()
        );
    }
}

/// A guest under load.
fn start(daemon: &Daemon, reconnect: bool) -> Qemu {
    let mut guest = Machine::new(Firmware::Direct(images::initramfs_with_fio()), LOAD)
        .disk(Disk::VhostUser {
            socket: daemon.socket().to_owned(),
            device_options: "num-queues=2".to_owned(),
            reconnect,
        })
        .start();
    guest.wait_for("SEALDISK-STEP started");
    guest
}

/// Verifies to the end what the guest has written, and prints how long it had to wait.
fn finish(guest: Qemu, daemon: Daemon) {
    guest.plug_sign();
    let console = guest.finish();
    let rounds = console
        .lines()
        .filter(|line| line.starts_with("SEALDISK-ROUND"));
    rounds.for_each(|round| eprintln!("{}", round.trim()));
    let in_flight = in_flight(&daemon);
    eprintln!("requests in flight at the deaths: {in_flight:?}");
    assert!(
        in_flight.iter().any(|count| *count > 1),
        "no load to speak of"
    );
    daemon.stop();
}

#[test]
fn a_guest_outlives_deaths_of_its_back_end_without_an_error() {
    let host = CustomerHost::new();
    host.create_disk("data", "128MiB", &[]);
    let mut daemon = host.attach("data");
    let guest = start(&daemon, true);
    let region = region_of(&guest);
    let mut rng = Rng::new(1);
    for death in 0..3 * deaths(5) {
        thread::sleep(Duration::from_millis(rng.within(100..900)));
        assert_unharmed(&guest, &daemon);
        let before = in_flight(&daemon).len();
        let data_plane = daemon.data_plane();
        await_load(&region);
        [End::KillBoth, End::KillAttach, End::Sigterm][death as usize % 3]
            .of(&mut daemon, data_plane);
        daemon = host.reattach(daemon);
        await_queues(&guest, &daemon, before);
    }
    finish(guest, daemon);
}

/// QEMU is not told to connect again, and need not: the attach process keeps the connection.
#[test]
fn a_guest_does_not_notice_deaths_of_the_data_plane() {
    let host = CustomerHost::new();
    host.create_disk("data", "128MiB", &[]);
    let daemon = host.attach("data");
    let guest = start(&daemon, false);
    let region = region_of(&guest);
    let mut rng = Rng::new(2);
    for _ in 0..4 * deaths(5) {
        thread::sleep(Duration::from_millis(rng.within(100..500)));
        assert_unharmed(&guest, &daemon);
        let before = in_flight(&daemon).len();
        let data_plane = daemon.data_plane();
        await_load(&region);
        kill(data_plane);
        await_queues(&guest, &daemon, before);
    }
    finish(guest, daemon);
}
