//! Two queues on two disks against one: does the work of a disk stay out of another one's way?

use std::thread;
use std::time::Duration;

use serde_json::json;

use crate::backends::{Backend, Kind, Place};
use crate::load::{Load, Pattern, Until};
use crate::machine::{cpus, pin};
use crate::report::Report;
use crate::{WARM_UP, start};

/// CPUs that two disks and the loads on them need, each one of its own.
const CPUS: usize = 4;

/// 4 KiB at depth 32 on one disk, then on both at once.
pub fn measure(place: &Place, limit: Duration, poll: Duration, report: &mut Report) {
    if cpus() < CPUS {
        println!(
            "two disks: not measured, {CPUS} CPUs are needed and {} are here",
            cpus()
        );
        report.note(json!({ "pattern": "two disks", "skipped": cpus() }));
        return;
    }
    let mut disks: Vec<Backend> = (0..2)
        .map(|i| start(Kind::Sealdisk, place, &format!("disk{i}"), i))
        .collect();
    for write in [false, true] {
        let pattern = Pattern {
            write,
            bytes: 4096,
            depth: 32,
            random: true,
        };
        let one = together(&mut disks[..1], &pattern, place.size, limit, poll);
        let two = together(&mut disks, &pattern, place.size, limit, poll);
        let name = if write {
            "4 KiB randwrite qd32"
        } else {
            "4 KiB randread qd32"
        };
        println!(
            "two disks: {name}: {two:.0} IOPS against {one:.0}: {:.2} x",
            two / one
        );
        report.note(json!({ "pattern": "two disks", "write": write, "one": one, "two": two }));
    }
}

/// IOPS of all disks, each with a load on a CPU of its own.
fn together(
    disks: &mut [Backend],
    pattern: &Pattern,
    size: u64,
    limit: Duration,
    poll: Duration,
) -> f64 {
    thread::scope(|scope| {
        let loads: Vec<_> = disks
            .iter_mut()
            .enumerate()
            .map(|(i, disk)| {
                scope.spawn(move || {
                    pin(2 + i);
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
