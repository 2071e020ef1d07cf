//! Clones of an image, each with a data plane of its own, have one map of what they share.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;

use test_support::{Disk, expect_success};
use volume::format::{self, BLOCKS_PER_CHUNK, STATES_LEN};

use crate::supervise::is_qsd;

/// Chunks of the map of 64 KiB.
const CHUNKS: u64 = 32;
const CHUNK: u64 = BLOCKS_PER_CHUNK * 4096;
const SIZE: u64 = CHUNKS * CHUNK;

/// Has a map say that all blocks are zeros.
fn say_zeros(map: &Path) {
    let map = File::options().write(true).open(map).unwrap();
    for sector in 0..format::sectors(SIZE / 4096) {
        let raw = format::encode_sector(sector, &[0b1010_1010; STATES_LEN]);
        let at = format::sector_offset(sector);
        map.write_all_at(&raw, at).unwrap();
    }
}

/// KiB of the mappings of map files of a process: their share of memory, what is locked, and what is its own.
fn map_files(pid: u32) -> [u64; 3] {
    let smaps = fs::read_to_string(format!("/proc/{pid}/smaps")).unwrap();
    let mut is_map = false;
    let mut sums = [0; 3];
    for line in smaps.lines() {
        let (first, rest) = line.split_once(' ').unwrap();
        let fields = ["Pss:", "Locked:", "Private_Dirty:"];
        match fields.iter().position(|field| *field == first) {
            Some(field) if is_map => {
                let kib = rest.trim().trim_end_matches(" kB");
                sums[field] += kib.parse::<u64>().unwrap();
            }
            None if first.contains('-') => {
                is_map = rest.ends_with(".map") && !rest.contains("/dev/shm/")
            }
            _ => {}
        }
    }
    sums
}

#[test]
fn clones_of_an_image_have_its_map_in_memory_once() {
    if is_qsd() || !rustix::process::geteuid().is_root() {
        eprintln!("not tested: only root may lock as much, and see the memory of these processes");
        return;
    }
    let disk = Disk::new(SIZE);
    say_zeros(&disk.files("disk").map);
    expect_success(&mut disk.command(&["snapshot", "create", "image", "--source", "disk"]));
    let clones = ["one", "two", "three"].map(|name| {
        expect_success(&mut disk.command(&["disk", "create", name, "--source", "image"]));
        // More queues and buffers leave less of 8 MiB, which is what root may lock by default.
        let daemon = disk.attach_with(name, &["--num-queues", "2", "--memory", "1664KiB"]);
        let mut frontend = daemon.connect();
        for at in (0..SIZE).step_by(CHUNK as usize) {
            frontend.queues[0].arena.reset();
            assert_eq!(frontend.queues[0].read(at / 512, 512).unwrap(), [0; 512]);
        }
        (daemon, frontend)
    });
    let memory = clones
        .each_ref()
        .map(|(daemon, _)| map_files(daemon.data_plane()));
    let all = CHUNKS * 64;
    let shares: u64 = memory.iter().map(|[share, _, _]| share).sum();
    assert!(shares <= all + 64, "{memory:?}");
    for [_, locked, own] in memory {
        // What is locked counts by its share; rounded down for each mapping.
        assert!(locked > 0 && own == 0, "{memory:?}");
    }
    assert!(shares >= all * 9 / 10, "{memory:?}");
    // A write goes into the disk's own layer.
    let mut clones = clones;
    let (_, frontend) = &mut clones[0];
    frontend.queues[0].arena.reset();
    frontend.queues[0].write(8, &[7; 4096]).unwrap();
    for (number, (_, frontend)) in clones.iter_mut().enumerate() {
        frontend.queues[0].arena.reset();
        let expected = if number == 0 { 7 } else { 0 };
        assert_eq!(frontend.queues[0].read(8, 4096).unwrap(), [expected; 4096]);
    }
}
