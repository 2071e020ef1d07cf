//! How long an attach takes, for small and large disks, empty and full, of one layer and of many.
//!
//! A full disk is one whose maps say that every block is data: writing 15 TiB takes too long, and an
//! attach looks at maps and at the sizes of data files only.

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use keys::units::BLOCK_SIZE;
use serde_json::json;
use test_support::expect_success;
use volume::format::{self, HEADER_LEN, SECTOR_LEN, STATES_LEN};

use crate::backends::Place;
use crate::command::Attached;
use crate::layers::sealdisk;
use crate::report::Report;

const SIZES: [(&str, u64); 3] = [("1GiB", 1 << 30), ("1TiB", 1 << 40), ("15TiB", 15 << 40)];
const LAYERS: [u32; 3] = [1, 8, 16];
/// Attaches of each disk, after one that is not counted.
const ROUNDS: usize = 7;
/// Four blocks in state 1, data.
const DATA: u8 = 0b0101_0101;
/// The state of the first of four blocks, which is zeros.
const ZERO: u8 = 0b10;

pub fn measure(place: &Place, report: &mut Report) {
    for full in [false, true] {
        for layers in LAYERS {
            let times = SIZES.map(|(size, bytes)| {
                let name = format!("attach-{size}-{layers}-{full}");
                make(place, &name, size, layers);
                if full {
                    fill(&place.dir.join("state/disks").join(&name), bytes);
                }
                let time = median(place, &name);
                let written = if full { "full" } else { "empty" };
                println!("{size}, {layers} layers, {written}: {time:.1} ms");
                report.note(json!({ "growth": "attach", "unit": "ms", "layers": layers,
                    "series": format!("{size}, {written}"), "value": time }));
                time
            });
            println!("  the large one takes {:.2} x", times[2] / times[0]);
        }
    }
}

/// Makes a disk of so many layers.
pub fn make(place: &Place, name: &str, size: &str, layers: u32) {
    expect_success(sealdisk(place).args(["disk", "create", name, "--size", size]));
    for layer in 1..layers {
        touch(&place.dir.join("state/disks").join(name));
        let snapshot = format!("{name}-{layer}");
        let create = ["snapshot", "create", &snapshot, "--source", name];
        expect_success(sealdisk(place).args(create));
    }
}

/// Has the maps in a disk's directory that say nothing say of one block that it is zeros: a snapshot of a disk that was not
/// written to gives it no layer.
pub fn touch(directory: &Path) {
    let entries = fs::read_dir(directory).unwrap();
    let paths = entries.map(|entry| entry.unwrap().path());
    let is_map = |path: &PathBuf| path.extension().is_some_and(|extension| extension == "map");
    for path in paths.filter(is_map) {
        let map = File::options().read(true).write(true).open(&path).unwrap();
        let mut first = [0; SECTOR_LEN];
        map.read_exact_at(&mut first, HEADER_LEN as u64).unwrap();
        if first == [0; SECTOR_LEN] {
            let mut states = [0; STATES_LEN];
            states[0] = ZERO;
            map.write_all_at(&format::encode_sector(0, &states), HEADER_LEN as u64)
                .unwrap();
        }
    }
}

/// Has the maps in a disk's directory say that all blocks are data, but for those that say so already.
pub fn fill(directory: &Path, size: u64) {
    let sectors = format::sectors(size.div_ceil(BLOCK_SIZE));
    let entries = fs::read_dir(directory).unwrap();
    let paths = entries.map(|entry| entry.unwrap().path());
    let is_map = |path: &PathBuf| path.extension().is_some_and(|extension| extension == "map");
    for path in paths.filter(is_map) {
        let map = File::options().read(true).write(true).open(&path).unwrap();
        if map.metadata().unwrap().blocks() * 512 > sectors * SECTOR_LEN as u64 {
            continue;
        }
        let mut header = [0; HEADER_LEN];
        map.read_exact_at(&mut header, 0).unwrap();
        let mut map = BufWriter::with_capacity(2048 * SECTOR_LEN, map);
        map.write_all(&header).unwrap();
        for sector in 0..sectors {
            let sector = format::encode_sector(sector, &[DATA; STATES_LEN]);
            map.write_all(&sector).unwrap();
        }
        map.into_inner().unwrap().sync_all().unwrap();
    }
}

/// Milliseconds of the median attach, from its start until a guest has read the first block.
fn median(place: &Place, name: &str) -> f64 {
    let mut times: Vec<_> = (0..=ROUNDS).map(|_| attach(place, name)).skip(1).collect();
    times.sort_unstable();
    times[times.len() / 2].as_secs_f64() * 1e3
}

fn attach(place: &Place, name: &str) -> Duration {
    let attached = Attached::new(place, name, None);
    let took = attached.took.wall;
    attached.detach();
    took
}
