//! Two queues on two disks against one: does the work of a disk stay out of another one's way?

use std::thread;
use std::time::Duration;

use serde_json::json;

use crate::backends::{Backend, Kind, Place};
use crate::load::{Load, Until};
use crate::machine::{cpus, pin};
use crate::pattern::{Pattern, Work};
use crate::report::Report;
use crate::run::{WARM_UP, start};

/// 4 KiB at depth 32 on one disk, then on both at once, where each back-end and each load has a CPU
/// of its own. With fewer CPUs it is 1 MiB at depth 8: such a load needs next to no CPU time, so that
/// each one shares the other disk's CPU; and it sleeps at once, not to take any for looking.
pub fn measure(place: &Place, limit: Duration, poll: Duration, report: &mut Report) {
    if cpus() < 2 {
        println!("two disks: not measured, two CPUs are needed");
        report.note(json!({ "pattern": "two disks", "skipped": cpus() }));
        return;
    }
    let crossed = cpus() < 4;
    let (bytes, depth, poll) = if crossed {
        (1 << 20, 8, Duration::ZERO)
    } else {
        (4096, 32, poll)
    };
    let load_cpu = |i: usize| if crossed { 1 - i } else { 2 + i };
    let mut disks: Vec<Backend> = (0..2)
        .map(|i| start(Kind::Sealdisk, place, &format!("disk{i}"), i))
        .collect();
    for work in [Work::Read, Work::Write] {
        let pattern = Pattern {
            work,
            bytes,
            depth,
            random: !crossed,
        };
        let one = together(&mut disks[..1], &pattern, place.size, limit, poll, load_cpu);
        let two = together(&mut disks, &pattern, place.size, limit, poll, load_cpu);
        let name = pattern.name();
        println!(
            "two disks: {name}: {two:.0} IOPS against {one:.0}: {:.2} x",
            two / one
        );
        report.note(json!({ "pattern": "two disks", "name": name, "one": one, "two": two }));
    }
}

/// IOPS of all disks, each with a load of its own.
fn together(
    disks: &mut [Backend],
    pattern: &Pattern,
    size: u64,
    limit: Duration,
    poll: Duration,
    load_cpu: impl Fn(usize) -> usize + Sync,
) -> f64 {
    thread::scope(|scope| {
        let loads: Vec<_> = disks
            .iter_mut()
            .enumerate()
            .map(|(i, disk)| {
                let load_cpu = &load_cpu;
                scope.spawn(move || {
                    pin(load_cpu(i));
                    let mut load = Load::new(&mut disk.frontend.queues[0], *pattern, size, poll);
                    load.run(Until::Elapsed(WARM_UP));
                    let outcome = load.run(Until::Elapsed(limit));
                    outcome.requests as f64 / outcome.elapsed.as_secs_f64()
                })
            })
            .collect();
        loads.into_iter().map(|load| load.join().unwrap()).sum()
    })
}
