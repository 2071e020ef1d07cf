//! What a trim of nearly the whole disk does to random reads and writes: in what the guest keeps, at
//! once and when the space has been given back, and then on the whole disk, which is mostly a hole.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::backends::{Backend, Kind, Place, raw_file};
use crate::flushes::data_file;
use crate::machine::{cpus, pin};
use crate::pattern::{Pattern, Work};
use crate::report::{Measured, Report};
use crate::run::{closed_loop, start};

/// One part in so many is kept.
const KEPT_PART: u64 = 16;
/// Bytes of a discard, which every back-end takes.
const DISCARD: u64 = 16 << 20;
const DEPTH: u16 = 32;
/// How long each pattern runs, and how often; the median counts.
const LIMIT: Duration = Duration::from_secs(1);
const RUNS: usize = 3;
/// How long discarded space is waited for.
const MAX_WAIT: Duration = Duration::from_secs(120);

pub fn measure(place: &Place, cpu: usize, report: &mut Report) {
    pin((cpu + 1) % cpus());
    for kind in [Kind::Sealdisk, Kind::QsdRaw] {
        let mut backend = start(kind, place, kind.name(), cpu);
        let file = match kind {
            Kind::Sealdisk => data_file(place, kind.name()),
            _ => raw_file(place),
        };
        trim(&mut backend, kind, place, &file, report);
        drop(backend);
        // The next one needs the space.
        fs::remove_file(file).unwrap();
    }
}

fn trim(backend: &mut Backend, kind: Kind, place: &Place, file: &Path, report: &mut Report) {
    let kept = (place.size / KEPT_PART).next_multiple_of(DISCARD);
    let both = |backend: &mut Backend, bytes| {
        [Work::Read, Work::Write].map(|work| {
            let pattern = Pattern::small(work, DEPTH);
            (pattern, median(backend, &pattern, bytes))
        })
    };
    let (kept_before, whole_before) = (both(backend, kept), both(backend, place.size));
    let trimmed = discard(backend, kept, place.size);
    let mut compare = |part: &str,
                       before: &[(Pattern, Measured)],
                       after: &[(Pattern, Measured)]| {
        for ((pattern, before), (_, after)) in before.iter().zip(after) {
            let ratio = after.iops() / before.iops();
            println!(
                "{}: {:.1} GiB trimmed, {part}: {}: {:.0} IOPS before, {:.0} after, {ratio:.2} x",
                kind.name(),
                gib(place.size - kept),
                pattern.name(),
                before.iops(),
                after.iops(),
            );
            report.note(json!({
                "trim": part, "pattern": pattern.name(), "backend": kind.name(),
                "gib": gib(place.size - kept), "seconds": trimmed.as_secs_f64(),
                "before": before.iops(), "after": after.iops(),
                "p99_before": before.latency_at(0.99), "p99_after": after.latency_at(0.99),
            }));
        }
    };
    let at_once = both(backend, kept);
    compare("what is kept, at once", &kept_before, &at_once);
    let start = Instant::now();
    let is_free = || fs::metadata(file).unwrap().blocks() * 512 < kept + 2 * DISCARD;
    while !is_free() && start.elapsed() < MAX_WAIT {
        thread::sleep(Duration::from_millis(50));
    }
    let after = both(backend, kept);
    compare("what is kept, all space free", &kept_before, &after);
    let after = both(backend, place.size);
    compare("the whole disk", &whole_before, &after);
}

/// The run with the median of the rates.
fn median(backend: &mut Backend, pattern: &Pattern, bytes: u64) -> Measured {
    let mut runs: Vec<_> = (0..RUNS)
        .map(|_| closed_loop(backend, pattern, bytes, LIMIT, Duration::from_micros(50)))
        .collect();
    runs.sort_by(|a, b| a.iops().total_cmp(&b.iops()));
    runs.swap_remove(RUNS / 2)
}

/// Trims what is between two offsets, as a guest's `fstrim` does, and tells how long that took.
fn discard(backend: &mut Backend, from: u64, to: u64) -> Duration {
    let queue = &mut backend.frontend.queues[0];
    let start = Instant::now();
    for at in (from..to).step_by(DISCARD as usize) {
        queue.arena.reset();
        let sectors = DISCARD.min(to - at) / 512;
        queue.discard(&[(at / 512, sectors as u32, 0)]).unwrap();
    }
    start.elapsed()
}

fn gib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 30)
}
