//! This daemon next to qemu-storage-daemon and fio, from a vhost-user frontend in user space.
//!
//! `scripts/bench` runs it and makes a table and a plot of what it writes. By hand:
//! `cargo bench --bench vhost_user -- run --help`. Nothing here fails by being slow.
//!
//! A backend's processes are on one CPU and the load is on another. All backends are served by the
//! same frontend with the same features (EVENT_IDX, INDIRECT_DESC). Rounds are interleaved: in each
//! round each pattern runs on each backend in turn, so that a machine that gets slower meanwhile
//! gets slower for all of them.

// Clippy exempts only functions with #[test], and this program has nobody to report an error to.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod attach;
mod backends;
mod fio;
mod flushes;
mod layers;
mod load;
mod machine;
mod report;
mod syscalls;
mod two_disks;

use std::fs::File;
use std::path::PathBuf;
use std::thread;
use std::time::Duration;

use clap::Parser;
use hdrhistogram::Histogram;
use serde_json::json;
use tempfile::TempDir;
use test_support::program;

use backends::{Backend, Kind, Place};
use load::{Load, Outcome, Pattern, Until};
use machine::{busy_time, cpu_time, pin};
use report::{Measured, Report};

/// How long each pattern runs before it is measured.
const WARM_UP: Duration = Duration::from_millis(250);

#[derive(Parser)]
enum Program {
    /// Measures
    Run(Options),
    /// Measures what changing a disk's layers costs
    Layers(LayerOptions),
    /// Measures how long attaching takes, whatever the size of the disk
    Attach(LayerOptions),
    /// Measures flushes, writes through, and the giving back of discarded space
    Flushes(LayerOptions),
}

#[derive(clap::Args)]
struct Options {
    /// Where the disks go (a new directory in it)
    #[arg(long, default_value = "/dev/shm")]
    dir: PathBuf,
    /// What the table calls that place
    #[arg(long, default_value = "tmpfs")]
    storage: String,
    /// Bytes of each disk, all of them written before anything is measured
    #[arg(long, default_value_t = 1 << 30)]
    size: u64,
    /// Seconds for each pattern, backend and round
    #[arg(long, default_value_t = 2.5)]
    seconds: f64,
    #[arg(long, default_value_t = 3)]
    rounds: u32,
    /// Only patterns whose name has this in it
    #[arg(long, default_value = "")]
    only: String,
    #[arg(
        long,
        value_enum,
        value_delimiter = ',',
        default_value = "sealdisk,qsd-raw,qsd-luks,fio"
    )]
    backends: Vec<Kind>,
    /// Microseconds that the guest looks at the used ring with more than one request in flight
    #[arg(long, default_value_t = 50)]
    guest_poll_us: u64,
    #[arg(long, default_value_t = 0)]
    backend_cpu: usize,
    #[arg(long, default_value_t = 1)]
    load_cpu: usize,
    /// Another program than the one of this build
    #[arg(long, default_value = program().as_os_str())]
    sealdisk: PathBuf,
    /// Where JSON lines go
    #[arg(long)]
    json: Option<PathBuf>,
    /// Also two queues on two disks against one
    #[arg(long)]
    two_disks: bool,
    /// Also the system calls of this daemon for each request, by strace
    #[arg(long)]
    syscalls: bool,
}

#[derive(clap::Args)]
struct LayerOptions {
    /// Where the disks go (a new directory in it)
    #[arg(long, default_value = "/dev/shm")]
    dir: PathBuf,
    /// Bytes of the disk, all of them written
    #[arg(long, default_value_t = 1 << 30)]
    size: u64,
    #[arg(long, default_value_t = 0)]
    backend_cpu: usize,
    /// Another program than the one of this build
    #[arg(long, default_value = program().as_os_str())]
    sealdisk: PathBuf,
}

/// What is measured by default.
fn patterns() -> Vec<(String, Pattern)> {
    let mut all = Vec::new();
    for (bytes, size, depths) in [
        (4096, "4 KiB", &[1, 8, 32][..]),
        (65536, "64 KiB", &[8]),
        (1 << 20, "1 MiB", &[8]),
    ] {
        for &depth in depths {
            for write in [false, true] {
                let random = bytes == 4096;
                let name = format!(
                    "{size} {}{} qd{depth}",
                    if random { "rand" } else { "" },
                    if write { "write" } else { "read" },
                );
                all.push((
                    name,
                    Pattern {
                        write,
                        bytes,
                        depth,
                        random,
                    },
                ));
            }
        }
    }
    all
}

fn main() {
    let arguments: Vec<_> = std::env::args().filter(|a| a != "--bench").collect();
    // `cargo bench` without arguments runs every benchmark; this one takes minutes and programs.
    if arguments.len() == 1 {
        println!("vhost_user: not measured by itself: scripts/bench, or `run` for its parts");
        return;
    }
    match Program::parse_from(arguments) {
        Program::Run(options) => run(&options),
        Program::Layers(options) => at_place(&options, layers::measure),
        Program::Attach(options) => at_place(&options, attach::measure),
        Program::Flushes(options) => at_place(&options, flushes::measure),
    }
}

fn at_place(options: &LayerOptions, measure: fn(&Place, usize)) {
    let dir = TempDir::new_in(&options.dir).unwrap();
    let runtime = TempDir::new_in("/dev/shm").unwrap();
    let place = Place {
        dir: dir.path(),
        runtime: runtime.path(),
        sealdisk: &options.sealdisk,
        size: options.size,
    };
    measure(&place, options.backend_cpu % machine::cpus());
}

fn run(options: &Options) {
    let cpus = machine::cpus();
    let (backend_cpu, load_cpu) = (options.backend_cpu % cpus, options.load_cpu % cpus);
    let dir = TempDir::new_in(&options.dir).unwrap();
    let runtime = TempDir::new_in("/dev/shm").unwrap();
    let place = Place {
        dir: dir.path(),
        runtime: runtime.path(),
        sealdisk: &options.sealdisk,
        size: options.size,
    };
    pin(load_cpu);
    let json = options.json.as_ref().map(|path| {
        File::options()
            .create(true)
            .append(true)
            .open(path)
            .unwrap()
    });
    let mut report = Report::new(json, options.storage.clone());
    report.note(json!({ "machine": machine::description(&options.sealdisk),
        "storage": options.storage, "size": options.size, "seconds": options.seconds,
        "rounds": options.rounds, "guest_poll_us": options.guest_poll_us }));

    // fio reads the file of qsd-raw, which is therefore always there.
    let served = [Kind::Sealdisk, Kind::QsdRaw, Kind::QsdLuks];
    let needed = |kind: &Kind| {
        options.backends.contains(kind)
            || (*kind == Kind::QsdRaw && options.backends.contains(&Kind::Fio))
    };
    let mut backends: Vec<(Kind, Backend)> = served
        .into_iter()
        .filter(needed)
        .map(|kind| (kind, start(kind, &place, kind.name(), backend_cpu)))
        .collect();
    let poll = Duration::from_micros(options.guest_poll_us);
    let limit = Duration::from_secs_f64(options.seconds);
    for round in 0..options.rounds {
        for (name, pattern) in chosen(options) {
            for &kind in &options.backends {
                let measured = match backends.iter_mut().find(|backend| backend.0 == kind) {
                    Some((_, backend)) => measure(backend, &pattern, options.size, limit, poll),
                    None => fio::measure(&backends::raw_file(&place), &pattern, limit, backend_cpu),
                };
                report.add(&name, &pattern, kind, round, &measured);
            }
        }
    }
    for (kind, backend) in &backends {
        let (cpu, seconds) = idle(backend);
        report.add_idle(*kind, cpu, seconds);
    }
    if options.syscalls
        && let Some((_, backend)) = backends.iter_mut().find(|b| b.0 == Kind::Sealdisk)
    {
        for (name, pattern) in chosen(options).filter(|(_, pattern)| pattern.bytes == 4096) {
            syscalls::measure(backend, (&name, &pattern), &place, poll, &mut report);
        }
    }
    drop(backends);
    if options.two_disks {
        two_disks::measure(&place, limit, poll, &mut report);
    }
}

/// The patterns that the options leave.
fn chosen(options: &Options) -> impl Iterator<Item = (String, Pattern)> {
    let is_meant = |name: &str| name.contains(&options.only);
    patterns()
        .into_iter()
        .filter(move |(name, _)| is_meant(name))
}

/// A backend whose disk is written in full.
fn start(kind: Kind, place: &Place, name: &str, cpu: usize) -> Backend {
    let mut backend = Backend::start(kind, place, name, cpu);
    let queue = &mut backend.frontend.queues[0];
    let fill = Pattern {
        write: true,
        bytes: 1 << 20,
        depth: 8,
        random: false,
    };
    let requests = place.size / u64::from(fill.bytes);
    Load::new(queue, fill, place.size, Duration::ZERO).run(Until::Requests(requests));
    backend
}

/// One pattern on one backend.
fn measure(
    backend: &mut Backend,
    pattern: &Pattern,
    disk: u64,
    limit: Duration,
    poll: Duration,
) -> Measured {
    let processes = backend.processes();
    let cpu = || processes.iter().map(|&pid| cpu_time(pid)).sum::<Duration>();
    let queue = &mut backend.frontend.queues[0];
    let mut load = Load::new(queue, *pattern, disk, poll);
    load.run(Until::Elapsed(WARM_UP));
    let before = (cpu(), busy_time(), own_time());
    let Outcome {
        requests,
        elapsed,
        latency,
    } = load.run(Until::Elapsed(limit));
    let cpu = cpu() - before.0;
    let others = (busy_time() - before.1).saturating_sub(cpu + (own_time() - before.2));
    let percentile = |p| us(&latency, p);
    Measured {
        requests,
        seconds: elapsed.as_secs_f64(),
        cpu_seconds: cpu.as_secs_f64(),
        p50_us: percentile(0.5),
        p99_us: percentile(0.99),
        p999_us: percentile(0.999),
        others: others.as_secs_f64() / elapsed.as_secs_f64(),
    }
}

fn us(latency: &Histogram<u64>, quantile: f64) -> f64 {
    latency.value_at_quantile(quantile) as f64 / 1e3
}

fn own_time() -> Duration {
    cpu_time(std::process::id())
}

/// CPU seconds that a backend uses that has nothing to do, and in how many seconds.
fn idle(backend: &Backend) -> (f64, f64) {
    let processes = backend.processes();
    let cpu = || processes.iter().map(|&pid| cpu_time(pid)).sum::<Duration>();
    thread::sleep(Duration::from_millis(100));
    let (before, start) = (cpu(), std::time::Instant::now());
    thread::sleep(Duration::from_secs(1));
    (
        (cpu() - before).as_secs_f64(),
        start.elapsed().as_secs_f64(),
    )
}
