//! What the maps of an image take of memory, by how many of its clones are attached: each has a process of its own.

use std::fs;

use keys::units::BLOCK_SIZE;
use tempfile::TempDir;
use test_support::expect_success;
use volume::format::BLOCKS_PER_CHUNK;

use crate::attach::{fill, make};
use crate::backends::Place;
use crate::layers::sealdisk;
use crate::report::Report;

use super::Point;
use crate::command::Attached;

/// Its map has 64 MiB.
const SIZE: (&str, u64) = ("1TiB", 1 << 40);
const CLONES: u32 = 8;
const CHUNK: u64 = BLOCKS_PER_CHUNK * BLOCK_SIZE;

pub fn measure(place: &Place, report: &mut Report) {
    let dir = TempDir::new_in(place.dir).unwrap();
    let place = Place {
        dir: dir.path(),
        ..*place
    };
    make(&place, "origin", SIZE.0, 1);
    fill(&place.dir.join("state/disks/origin"), SIZE.1);
    let image = ["snapshot", "create", "image", "--source", "origin"];
    expect_success(sealdisk(&place).args(image));
    let mut attached = Vec::new();
    for count in 1..=CLONES {
        let name = format!("clone-{count}");
        expect_success(sealdisk(&place).args(["disk", "create", &name, "--source", "image"]));
        let mut clone = Attached::new(&place, &name, None);
        for at in (0..SIZE.1).step_by(CHUNK as usize) {
            let queue = &mut clone.frontend.queues[0];
            queue.arena.reset();
            queue.read(at / 512, 4096).unwrap();
        }
        attached.push(clone);
        let processes = attached.iter().flat_map(Attached::processes);
        let (all, maps) = processes
            .map(pss)
            .fold((0, 0), |a, b| (a.0 + b.0, a.1 + b.1));
        if !count.is_power_of_two() {
            continue;
        }
        for (series, kib) in [("all memory", all), ("of that, map files", maps)] {
            let what = "memory of clones that read all of an image of 1 TiB";
            let value = kib as f64 / 1024.0;
            let point = Point {
                what,
                unit: "MiB",
                series,
                axis: "clones",
                at: count,
                value,
            };
            point.note(report);
        }
    }
    for clone in attached {
        clone.detach();
    }
}

/// KiB that a process has for itself, and its share of what others have too; and how much of that is of map files.
fn pss(pid: u32) -> (u64, u64) {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps")).unwrap_or_default();
    let (mut all, mut maps, mut is_map) = (0, 0, false);
    for line in text.lines() {
        let Some(kib) = line.strip_prefix("Pss:") else {
            // A mapping begins with its addresses and ends with its file.
            if line.split_once(' ').is_some_and(|(at, _)| at.contains('-')) {
                is_map = line.ends_with(".map") && !line.contains("/dev/shm/");
            }
            continue;
        };
        let kib: u64 = kib.trim().trim_end_matches(" kB").parse().unwrap();
        all += kib;
        maps += if is_map { kib } else { 0 };
    }
    (all, maps)
}
