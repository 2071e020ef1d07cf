//! Every pattern on every back-end, in interleaved rounds.

use std::thread;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::backends::{Backend, Kind, Place, raw_file};
use crate::fixed_rate::{Measurement, Peaks};
use crate::load::{Load, Outcome, Until};
use crate::machine::{busy_time, cpu_time, cpus, pin};
use crate::pattern::{Pattern, Work, all};
use crate::report::{Cell, Measured, Report, quantiles};
use crate::{Options, bare_cipher, chain, fio, machine, syscalls, two_disks};

/// How long each pattern runs before it is measured.
pub const WARM_UP: Duration = Duration::from_millis(250);

pub fn measure(options: &Options, place: &Place, backend_cpu: usize, report: &mut Report) {
    pin(options.load_cpu % cpus());
    report.note(
        json!({ "seconds": options.seconds, "rounds": options.rounds,
        "guest_poll_us": options.guest_poll_us }),
    );
    let patterns = || {
        let is_meant = |pattern: &Pattern| pattern.name().contains(&options.only);
        all().into_iter().filter(is_meant)
    };
    let mut backends = start_all(&options.backends, place, backend_cpu);
    let poll = Duration::from_micros(options.guest_poll_us);
    let limit = Duration::from_secs_f64(options.seconds);
    let sector = machine::sector(place.dir);
    let mut peaks = Peaks::default();
    let cells = (0..options.rounds).flat_map(|round| patterns().map(move |p| (round, p)));
    for (round, pattern) in cells {
        // Who comes first has the worst of it, so each round begins with another.
        for kind in rotated(&options.backends, round) {
            let measured = match backends.iter_mut().find(|backend| backend.0 == kind) {
                // Writes would take it apart.
                Some(_) if kind == Kind::Layers8 && !pattern.only_reads() => continue,
                Some((_, backend)) => closed_loop(backend, &pattern, place.size, limit, poll),
                None if kind == Kind::Cipher => match bare_cipher::of(&pattern) {
                    Some(cipher) => cipher.measure(limit, backend_cpu),
                    None => continue,
                },
                None if pattern.bytes < sector => continue,
                None => fio::measure(&raw_file(place), &pattern, limit, backend_cpu),
            };
            peaks.add(kind, &pattern, measured.iops());
            report.add(&Cell::new(&pattern, kind, round), &measured);
        }
    }
    if options.fixed_rate {
        let measurement = Measurement {
            place,
            limit,
            rounds: options.rounds,
        };
        measurement.run(&mut backends, &peaks, report);
    }
    for (kind, backend) in &backends {
        let (cpu, seconds) = idle(backend);
        report.add_idle(*kind, cpu, seconds);
    }
    if options.syscalls
        && let Some((_, backend)) = backends.iter_mut().find(|b| b.0 == Kind::Sealdisk)
    {
        for pattern in patterns().filter(|pattern| {
            pattern.bytes == 4096 && matches!(pattern.work, Work::Read | Work::Write)
        }) {
            syscalls::measure(backend, &pattern, place, poll, report);
        }
    }
    drop(backends);
    if options.two_disks {
        two_disks::measure(place, limit, poll, report);
    }
}

/// The back-ends in their order, beginning with another in each round: of three rounds, a third further on each time.
fn rotated(kinds: &[Kind], round: u32) -> impl Iterator<Item = Kind> {
    let first = round as usize * kinds.len().div_ceil(3) % kinds.len().max(1);
    let (before, from) = kinds.split_at(first);
    from.iter().chain(before).copied()
}

fn start_all(kinds: &[Kind], place: &Place, cpu: usize) -> Vec<(Kind, Backend)> {
    let mut served: Vec<Kind> = kinds.iter().copied().filter(|k| k.is_served()).collect();
    // fio reads the file of qsd-raw, which is therefore always there.
    if kinds.contains(&Kind::Fio) && !kinds.contains(&Kind::QsdRaw) {
        served.push(Kind::QsdRaw);
    }
    served
        .into_iter()
        .map(|kind| (kind, start(kind, place, kind.name(), cpu)))
        .collect()
}

/// A backend whose disk is written in full.
pub fn start(kind: Kind, place: &Place, name: &str, cpu: usize) -> Backend {
    let mut backend = Backend::start(kind, place, name, cpu);
    let queue = &mut backend.frontend.queues[0];
    let requests = place.size / u64::from(Pattern::FILL.bytes);
    Load::new(queue, Pattern::FILL, place.size, Duration::ZERO).run(Until::Requests(requests));
    if kind == Kind::Layers8 {
        chain::grow(&mut backend, place, name);
    }
    backend
}

/// One pattern on so many bytes of one backend.
pub fn closed_loop(
    backend: &mut Backend,
    pattern: &Pattern,
    bytes: u64,
    limit: Duration,
    poll: Duration,
) -> Measured {
    let processes = backend.processes();
    let mut load = Load::new(&mut backend.frontend.queues[0], *pattern, bytes, poll);
    load.run(Until::Elapsed(WARM_UP));
    timed(&processes, || load.run(Until::Elapsed(limit)))
}

/// What a load does, and what it costs these processes.
pub fn timed(processes: &[u32], load: impl FnOnce() -> Outcome) -> Measured {
    let cpu = || processes.iter().map(|&pid| cpu_time(pid)).sum::<Duration>();
    let before = (cpu(), busy_time(), own_time());
    let Outcome {
        requests,
        elapsed,
        latency,
    } = load();
    let cpu = cpu() - before.0;
    let others = (busy_time() - before.1).saturating_sub(cpu + (own_time() - before.2));
    Measured {
        requests,
        seconds: elapsed.as_secs_f64(),
        cpu_seconds: cpu.as_secs_f64(),
        latency: quantiles(&latency),
        others: others.as_secs_f64() / elapsed.as_secs_f64(),
    }
}

fn own_time() -> Duration {
    cpu_time(std::process::id())
}

/// CPU seconds that a backend uses that has nothing to do, and in how many seconds.
fn idle(backend: &Backend) -> (f64, f64) {
    let processes = backend.processes();
    let cpu = || processes.iter().map(|&pid| cpu_time(pid)).sum::<Duration>();
    thread::sleep(Duration::from_millis(100));
    let (before, start) = (cpu(), Instant::now());
    thread::sleep(Duration::from_secs(1));
    (
        (cpu() - before).as_secs_f64(),
        start.elapsed().as_secs_f64(),
    )
}
