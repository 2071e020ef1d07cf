//! A catalog of one disk and one of many.
//!
//! The many are made in this process, by what `disk create` calls: with a key for each, wrapped and unwrapped, and
//! all files. A process for each would take ten times as long.

use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::Instant;

use disks::import::Cancel;
use disks::{CreateRequest, DEFAULT_SECTOR_SIZE, create};
use installation::Installation;
use tempfile::TempDir;

use crate::backends::Place;
use crate::report::Report;

use super::Point;
use crate::command::{Attached, Took, median, run};

const ROUNDS: usize = 5;
/// They wait for the disk more than for a CPU.
const MAKERS: u32 = 8;

/// Measures each operation in both, in turn.
pub fn measure(many: u32, place: &Place, report: &mut Report) {
    let counts = [1, many];
    let installations = counts.map(|count| {
        let dir = TempDir::new_in(place.dir).unwrap();
        let runtime = TempDir::new_in(place.runtime).unwrap();
        let here = Place {
            dir: dir.path(),
            runtime: runtime.path(),
            ..*place
        };
        make(&here, count);
        (count, dir, runtime)
    });
    let mut took: Vec<(u32, &'static str, Vec<Took>)> = Vec::new();
    for round in 0..=ROUNDS {
        for (count, dir, runtime) in &installations {
            let place = Place {
                dir: dir.path(),
                runtime: runtime.path(),
                ..*place
            };
            for (what, one) in operations(&place, round) {
                match took.iter_mut().find(|(c, w, _)| c == count && *w == what) {
                    Some((_, _, all)) => all.push(one),
                    // The first round is not counted.
                    None => took.push((*count, what, Vec::new())),
                }
            }
        }
    }
    for (count, what, all) in &took {
        let mut note = |unit, series: &str, value| {
            let point = Point {
                what: &format!("{what}, by disks"),
                unit,
                series,
                axis: "disks",
                at: *count,
                value,
            };
            point.note(report);
        };
        note("ms", "time", median(all.iter().map(|took| took.wall)));
        if all.iter().all(|took| took.cpu.is_some()) {
            note(
                "ms",
                "CPU time",
                median(all.iter().filter_map(|took| took.cpu)),
            );
        }
    }
}

/// What is measured of a catalog. The disk in the middle of the names is looked at.
fn operations(place: &Place, round: usize) -> Vec<(&'static str, Took)> {
    let disk = name(0);
    let (snapshot, new) = (format!("snapshot-{round}"), format!("new-{round}"));
    let mut took = vec![
        ("disk list", run(place, &["disk", "list"])),
        ("disk show", run(place, &["disk", "show", &disk])),
        (
            "disk create",
            run(place, &["disk", "create", &new, "--size", "1GiB"]),
        ),
        (
            "snapshot create",
            run(place, &["snapshot", "create", &snapshot, "--source", &new]),
        ),
        ("disk check", run(place, &["disk", "check", &disk])),
    ];
    let attached = Attached::new(place, &disk, None);
    took.push(("attach", attached.took));
    took.push(("detach", attached.detach()));
    took
}

fn name(number: u32) -> String {
    format!("disk-{number:05}")
}

fn make(place: &Place, count: u32) {
    let start = Instant::now();
    let next = AtomicU32::new(1);
    let state = &place.dir.join("state");
    // The first one makes what an installation has.
    create_one(&Installation::open(state).unwrap(), 0);
    let unlimited = ["--operations-limit", "10000000"];
    run(
        place,
        &[&["keyvault", "update", "platform"], &unlimited[..]].concat(),
    );
    thread::scope(|scope| {
        for _ in 0..MAKERS {
            scope.spawn(|| {
                let installation = Installation::open(state).unwrap();
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= count {
                        break;
                    }
                    create_one(&installation, number);
                    if number.is_multiple_of(1000) {
                        println!(
                            "  {number} disks after {:.0} s",
                            start.elapsed().as_secs_f64()
                        );
                    }
                }
            });
        }
    });
    println!(
        "{count} disks were made in {:.1} s",
        start.elapsed().as_secs_f64()
    );
}

fn create_one(installation: &Installation, number: u32) {
    let request = CreateRequest {
        name: name(number),
        size: Some(1 << 30),
        source: None,
        disk_encryption_set: None,
        sector_size: DEFAULT_SECTOR_SIZE,
        logical_sector_size: None,
        data_dir: None,
    };
    create(installation, &request, &Cancel::default(), |_| |_| ()).unwrap();
}
