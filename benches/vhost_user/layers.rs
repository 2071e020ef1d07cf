//! What changing a disk's layers costs: a new DEK for a disk in use against copying it with `dd`, how
//! much of its rate a guest keeps meanwhile, and how long it waits for a snapshot.

use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use serde_json::Value;
use test_support::expect_success;

use crate::backends::{Backend, Kind, Place, raw_file};
use crate::load::{Load, Until};
use crate::pattern::{Pattern, Work};
use crate::run::start;

/// The disk that a guest uses.
const DISK: &str = "rotated";
/// How long the guest is measured by itself.
const ALONE: Duration = Duration::from_secs(3);
/// Snapshots that are made under a load.
const SNAPSHOTS: u32 = 10;
/// Bytes of the large disk.
const LARGE: &str = "1TiB";

pub fn measure(place: &Place, backend_cpu: usize) {
    let copy = plain_copy(place);
    println!("dd, {} MiB: {copy:.0} MiB/s", place.size >> 20);
    let mut backend = start(Kind::Sealdisk, place, DISK, backend_cpu);
    let idle = rotate(place);
    println!(
        "rotate-dek, guest idle: {idle:.0} MiB/s, {:.2} x of dd",
        idle / copy
    );
    let large_reads = Pattern {
        work: Work::Read,
        bytes: 1 << 20,
        depth: 4,
        random: false,
    };
    for pattern in [
        Pattern::small(Work::Write, 8),
        Pattern::small(Work::Read, 8),
        large_reads,
    ] {
        let name = pattern.name();
        let alone = rate(&mut backend, place, &pattern, || thread::sleep(ALONE)).0;
        let mut rotated = 0.0;
        let meanwhile = rate(&mut backend, place, &pattern, || rotated = rotate(place)).0;
        println!(
            "rotate-dek under {name}: {rotated:.0} MiB/s, {:.2} x of dd; the guest keeps {:.2} of \
             its {alone:.0} IOPS",
            rotated / copy,
            meanwhile / alone
        );
    }
    let writes = Pattern::small(Work::Write, 1);
    let mut commands = Vec::new();
    let (_, latency) = rate(&mut backend, place, &writes, || {
        for i in 0..SNAPSHOTS {
            thread::sleep(Duration::from_millis(200));
            let name = format!("snapshot{i}");
            commands.push(timed(
                place,
                &["snapshot", "create", &name, "--source", DISK],
            ));
        }
    });
    println!(
        "{SNAPSHOTS} snapshots under 4 KiB randwrite qd1: a request took {:.1} ms at most, the \
         command {:.1} ms",
        latency.max() as f64 / 1e6,
        worst(&commands)
    );
    drop(backend);
    large(place);
}

/// A snapshot of a large disk, and clones of an image of it.
fn large(place: &Place) {
    let disk = ["disk", "create", "large", "--size", LARGE];
    expect_success(sealdisk(place).args(disk));
    let snapshot = timed(
        place,
        &["snapshot", "create", "large0", "--source", "large"],
    );
    expect_success(sealdisk(place).args(["image", "create", "large-image", "--source", "large"]));
    let clones: Vec<_> = (0..SNAPSHOTS)
        .map(|i| {
            let name = format!("clone{i}");
            timed(place, &["disk", "create", &name, "--source", "large-image"])
        })
        .collect();
    println!(
        "snapshot of a disk of {LARGE}: {:.1} ms; a clone of an image of it: {:.1} ms at most",
        snapshot.as_secs_f64() * 1e3,
        worst(&clones)
    );
}

fn worst(times: &[Duration]) -> f64 {
    times.iter().max().map_or(0.0, |t| t.as_secs_f64() * 1e3)
}

pub fn sealdisk(place: &Place) -> Command {
    let mut command = Command::new(place.sealdisk);
    command.env("SEALDISK_STATE_DIR", place.dir.join("state"));
    command.env("SEALDISK_RUNTIME_DIR", place.runtime);
    command
}

fn timed(place: &Place, arguments: &[&str]) -> Duration {
    let start = Instant::now();
    expect_success(sealdisk(place).args(arguments));
    start.elapsed()
}

/// MiB/s of a plain copy of as many bytes as the disk has, durable in the end.
fn plain_copy(place: &Place) -> f64 {
    let (from, to) = (raw_file(place), place.dir.join("copy"));
    let dd = |input: &str, output: &str, flags: &[&str]| {
        let mut dd = Command::new("dd");
        dd.args(["bs=4M", "status=none", input, output]).args(flags);
        let start = Instant::now();
        expect_success(&mut dd);
        start.elapsed()
    };
    let (input, output) = (
        format!("if={}", from.display()),
        format!("of={}", to.display()),
    );
    let count = format!("count={}", place.size >> 22);
    let made = format!("of={}", from.display());
    dd(
        "if=/dev/urandom",
        &made,
        &[&count, "iflag=fullblock", "conv=fsync"],
    );
    // tmpfs knows no O_DIRECT.
    let direct: &[&str] = match place.dir.starts_with("/dev/shm") {
        true => &["conv=fsync"],
        false => &["iflag=direct", "oflag=direct", "conv=fsync"],
    };
    let time = dd(&input, &output, direct);
    std::fs::remove_file(to).unwrap();
    mib(place.size) / time.as_secs_f64()
}

fn mib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

/// Gives the disk a new DEK, waits until the old one is gone, and tells MiB/s.
fn rotate(place: &Place) -> f64 {
    let start = Instant::now();
    expect_success(sealdisk(place).args(["disk", "rotate-dek", DISK]));
    loop {
        let shown = expect_success(sealdisk(place).args(["disk", "show", DISK, "-o", "json"]));
        let shown: Value = serde_json::from_slice(&shown.stdout).unwrap();
        if shown["job"].is_null() {
            return mib(place.size) / start.elapsed().as_secs_f64();
        }
        thread::sleep(Duration::from_millis(50));
    }
}

/// IOPS of a guest while something else is done, and its latencies.
fn rate(
    backend: &mut Backend,
    place: &Place,
    pattern: &Pattern,
    meanwhile: impl FnOnce(),
) -> (f64, Histogram<u64>) {
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        let queue = &mut backend.frontend.queues[0];
        let done = &done;
        let load = scope.spawn(move || {
            let mut load = Load::new(queue, *pattern, place.size, Duration::ZERO);
            let (mut requests, mut latency, start) = (0, None, Instant::now());
            while !done.load(Ordering::Relaxed) {
                let outcome = load.run(Until::Elapsed(Duration::from_millis(100)));
                requests += outcome.requests;
                match &mut latency {
                    None => latency = Some(outcome.latency),
                    Some(all) => all.add(&outcome.latency).unwrap(),
                }
            }
            (requests as f64 / start.elapsed().as_secs_f64(), latency)
        });
        meanwhile();
        done.store(true, Ordering::Relaxed);
        let (iops, latency) = load.join().unwrap();
        (iops, latency.expect("it ran"))
    })
}
