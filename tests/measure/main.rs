//! A first measurement: one queue, one disk, through vhost-user as a guest would, without a guest.
//!
//! Not a test: nothing fails by being slow. Run it in a release build, on an otherwise idle machine:
//! `cargo test --release --test measure -- --ignored --nocapture`
//! (`SEALDISK_MEASURE_SECONDS` for each line; `SEALDISK_TEST_BACKEND=qsd` for qemu-storage-daemon
//! on a raw file, without encryption).

// Clippy exempts only functions with #[test], and helpers of tests panic as tests do.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "../support/frontend/mod.rs"]
mod frontend;

use std::time::{Duration, Instant};

use frontend::client::{NO_STATUS, kind, request_header};
use frontend::daemon::{AttachOptions, Backend, Daemon, Disk, stat};
use frontend::device::{Setup, feature};
use frontend::queue::{Queue, Seg};
use frontend::rng::Rng;

/// Bytes of the disk, all of them written before anything is measured.
const DISK_BYTES: u64 = 512 << 20;

/// One line of the table.
struct Pattern {
    name: &'static str,
    kind: u32,
    bytes: u32,
    depth: usize,
    random: bool,
}

/// What came of it.
struct Outcome {
    requests: u64,
    elapsed: Duration,
    cpu: Duration,
}

#[test]
#[ignore = "a measurement, for a release build on an idle machine"]
fn first_measurement() {
    let seconds = std::env::var("SEALDISK_MEASURE_SECONDS")
        .ok()
        .and_then(|s| s.parse().ok());
    let limit = Duration::from_secs(seconds.unwrap_or(5));
    let disk = Disk::new(DISK_BYTES);
    let daemon = disk.attach(&AttachOptions::default());
    let setup = Setup {
        queues: 1,
        ..Default::default()
    }
    .with(feature::EVENT_IDX);
    let mut frontend = daemon.connect_with(&setup);
    let queue = &mut frontend.queues[0];
    let chunk = Rng::new(1).bytes(4 << 20);
    for at in (0..DISK_BYTES).step_by(chunk.len()) {
        queue.write(at / 512, &chunk).unwrap();
    }
    queue.flush().unwrap();

    let pattern = |name, kind, bytes, depth, random| Pattern {
        name,
        kind,
        bytes,
        depth,
        random,
    };
    let patterns = [
        pattern("randread 4 KiB qd1", kind::IN, 4096, 1, true),
        pattern("randread 4 KiB qd32", kind::IN, 4096, 32, true),
        pattern("randwrite 4 KiB qd1", kind::OUT, 4096, 1, true),
        pattern("randwrite 4 KiB qd32", kind::OUT, 4096, 32, true),
        pattern("read 1 MiB qd8", kind::IN, 1 << 20, 8, false),
        pattern("write 1 MiB qd8", kind::OUT, 1 << 20, 8, false),
    ];
    let backend = Backend::chosen();
    println!(
        "{backend:?}: {:>22} {:>10} {:>10} {:>14}",
        "pattern", "IOPS", "MB/s", "CPU us per I/O"
    );
    for pattern in patterns {
        let outcome = measure(&daemon, queue, &pattern, limit);
        let seconds = outcome.elapsed.as_secs_f64();
        let iops = outcome.requests as f64 / seconds;
        println!(
            "{backend:?}: {:>22} {iops:>10.0} {:>10.1} {:>14.1}",
            pattern.name,
            iops * f64::from(pattern.bytes) / 1e6,
            outcome.cpu.as_secs_f64() * 1e6 / outcome.requests as f64,
        );
    }
}

/// Keeps `depth` requests in flight for `limit`.
fn measure(daemon: &Daemon, queue: &mut Queue, pattern: &Pattern, limit: Duration) -> Outcome {
    queue.arena.reset();
    let mut rng = Rng::new(2);
    let places = DISK_BYTES / u64::from(pattern.bytes);
    let mut next = 0;
    let mut place = move || {
        next = if pattern.random {
            rng.within(0..places)
        } else {
            (next + 1) % places
        };
        next * u64::from(pattern.bytes) / 512
    };
    let cpu_before = cpu_time(daemon.data_plane());
    let start = Instant::now();
    let mut slots: Vec<(u16, [Seg; 3])> = (0..pattern.depth)
        .map(|_| {
            let (header, status) = (queue.arena.alloc(16, 16), queue.arena.alloc(1, 1));
            let addr = queue.arena.alloc(u64::from(pattern.bytes), 4096);
            let writable = pattern.kind == kind::IN;
            let data = Seg {
                addr,
                len: pattern.bytes,
                writable,
            };
            let segs = [Seg::out(header, 16), data, Seg::into(status, 1)];
            (submit(queue, pattern.kind, place(), &segs), segs)
        })
        .collect();
    let mut requests = 0;
    while start.elapsed() < limit {
        let used = queue.next_used();
        let slot = slots
            .iter_mut()
            .find(|slot| u32::from(slot.0) == used.id)
            .unwrap();
        assert_eq!(queue.mem.read(slot.1[2].addr, 1), [0], "a request failed");
        requests += 1;
        slot.0 = submit(queue, pattern.kind, place(), &slot.1);
    }
    let elapsed = start.elapsed();
    let cpu = cpu_time(daemon.data_plane()) - cpu_before;
    while queue.in_flight() > 0 {
        queue.next_used();
    }
    Outcome {
        requests,
        elapsed,
        cpu,
    }
}

fn submit(queue: &mut Queue, kind: u32, sector: u64, segs: &[Seg; 3]) -> u16 {
    queue.mem.write(segs[0].addr, &request_header(kind, sector));
    queue.mem.write(segs[2].addr, &[NO_STATUS]);
    queue.submit(segs)
}

/// User and system time of a process so far, from /proc/PID/stat.
fn cpu_time(pid: u32) -> Duration {
    let fields = stat(pid).expect("the data plane runs");
    let ticks: u64 = fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap();
    let per_second = rustix::param::clock_ticks_per_second();
    Duration::from_secs_f64(ticks as f64 / per_second as f64)
}
