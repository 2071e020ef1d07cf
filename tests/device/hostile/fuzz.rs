//! Random rings for a while: structured enough to reach deep, and repeatable from the seed.

use std::time::{Duration, Instant};

use test_support::frontend::client::{kind, range_segment, request_header};
use test_support::frontend::device::{Frontend, Setup, feature};
use test_support::frontend::queue::{Desc, INDIRECT, NEXT, WRITE};
use test_support::rng::Rng;

use super::{KEPT, MIB, Victim};

/// How long, unless `SEALDISK_FUZZ_SECONDS` says otherwise.
const SECONDS: u64 = 10;

#[test]
fn random_rings() {
    let seconds = variable("SEALDISK_FUZZ_SECONDS").unwrap_or(SECONDS);
    let seed = variable("SEALDISK_FUZZ_SEED").unwrap_or(0x5ea1_d15c);
    eprintln!("seed {seed}: SEALDISK_FUZZ_SEED repeats it, SEALDISK_FUZZ_SECONDS prolongs it");
    let victim = Victim::new();
    let end = Instant::now() + Duration::from_secs(seconds);
    let mut rng = Rng::new(seed);
    let mut chains = 0u64;
    let mut round = 0;
    while Instant::now() < end {
        let mut setup = Setup {
            queue_size: rng.pick(&[4, 16, 128, 256]),
            ..Default::default()
        };
        if rng.one_in(2) {
            setup = setup.with(feature::EVENT_IDX);
        }
        let mut frontend = victim.connect_with(&setup);
        let calm = rng.one_in(2);
        for _ in 0..40 {
            chains += round_of_chains(&mut frontend, &mut rng, calm);
        }
        let neighbour = &mut frontend.queues[1];
        assert_eq!(neighbour.write(KEPT, &[1; 4096]), Ok(()));
        assert_eq!(neighbour.read(KEPT, 4096).map(drop), Ok(()));
        if rng.one_in(2) {
            // Stops it first; the other half just leaves.
            frontend.stop_queue(0).unwrap();
            frontend.queues[1].assert_serves(KEPT, round);
        }
        drop(frontend);
        let case = format!("round {round} of seed {seed}, calm: {calm}");
        if calm {
            victim.assert_unharmed(&case);
        } else {
            victim.assert_serving(&case);
            victim.connect().queues[0]
                .write(0, &victim.content)
                .unwrap();
        }
        round += 1;
    }
    eprintln!("{chains} chains in {round} rounds");
    assert!(chains > 0);
}

fn variable(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

/// Fills the descriptor table and some indirect tables, makes heads available, and kicks.
///
/// A calm guest has the device write into memory that no header or segment is in, so that it is
/// known where on the disk requests may write: above what is kept. Otherwise a request may be made
/// of anything that an earlier one read, and the guest rewrites descriptors under the device.
fn round_of_chains(frontend: &mut Frontend, rng: &mut Rng, calm: bool) -> u64 {
    let size = frontend.queues[0].size;
    let memory_end = frontend.mem.regions()[1].end();
    let high_end = frontend.mem.regions()[2].end();
    let queue = &mut frontend.queues[0];
    queue.arena.reset();
    let area = queue.arena.alloc(MIB, 4096);
    let tables = queue.arena.alloc(65536, 4096);
    for i in 0..64 {
        let sector = rng.pick(&[KEPT, KEPT + 3, 32_760, 32_767, 32_768, u64::MAX, 1 << 55]);
        let kinds = [
            kind::IN,
            kind::OUT,
            kind::FLUSH,
            kind::GET_ID,
            kind::DISCARD,
            13,
            2,
            99,
        ];
        let mut header = request_header(rng.pick(&kinds), sector);
        if calm {
            // The reserved field. Read as a segment of a discard, a header is beyond the disk then;
            // else type 13 and sector KEPT would say: KEPT sectors from sector 13 on.
            header[4] = 1;
        }
        queue.mem.write(area + i * 16, &header);
        let sectors = rng.pick(&[0, 1, 8, 100, u32::MAX]);
        let segment = range_segment(sector, sectors, rng.pick(&[0, 0, 1, 2]));
        queue.mem.write(area + 4096 + i * 16, &segment);
    }
    let sink = queue.arena.alloc(MIB, 4096);
    let desc = |rng: &mut Rng, entries: u16, position: u16| {
        let flags = rng.pick(&[
            0,
            NEXT,
            NEXT,
            NEXT,
            WRITE,
            WRITE,
            WRITE | NEXT,
            WRITE | NEXT,
        ]) | if rng.one_in(12) { INDIRECT } else { 0 }
            | if rng.one_in(64) { rng.next() as u16 } else { 0 };
        let addr = match rng.within(0..16) {
            0 => rng.next() | 1 << 40,
            1 if flags & WRITE != 0 => high_end - rng.within(0..1024),
            1 => memory_end - rng.within(0..1024),
            _ if calm && flags & WRITE != 0 => sink + rng.within(0..900_000),
            2..6 => area + rng.within(0..64) * 16,
            6 => area + 4096 + rng.within(0..64) * 16,
            7 => tables + rng.within(0..64) * 256,
            _ => area + 8192 + rng.within(0..900_000),
        };
        let len = match rng.within(0..12) {
            0 => rng.next() as u32,
            1 => 0,
            2..4 => 1,
            4..7 => 16,
            7 => 16 * rng.within(1..20) as u32,
            _ => 512 * rng.within(1..64) as u32,
        };
        // Mostly forward, so that chains get long.
        let next = if rng.one_in(16) {
            rng.next() as u16
        } else {
            (position + rng.within(1..4) as u16) % entries
        };
        // Not so long that it reaches out of the sink.
        let len = if calm { len.min(65536) } else { len };
        Desc {
            addr,
            len,
            flags,
            next,
        }
    };
    for i in 0..size {
        let desc = desc(rng, size, i);
        queue.write_desc(i, desc);
    }
    for i in 0..64u16 * 16 {
        let desc = desc(rng, 16, i % 16);
        queue.mem.write(tables + 16 * u64::from(i), &desc.bytes());
    }
    // Some correct beginnings, or little would be executed.
    for i in (0..size.saturating_sub(3)).step_by(8) {
        let chain = |addr, len, flags, next| Desc {
            addr,
            len,
            flags,
            next,
        };
        let header = area + rng.within(0..64) * 16;
        queue.write_desc(i, chain(header, 16, NEXT, i + 1));
        let flags = NEXT | rng.pick(&[0, WRITE]);
        let data = match calm && flags & WRITE != 0 {
            true => sink + 77,
            false => rng.pick(&[area + 4096, area + 8192, area + 20_001]),
        };
        queue.write_desc(
            i + 1,
            chain(data, rng.pick(&[16, 512, 4096, 65536]), flags, i + 2),
        );
        queue.write_desc(i + 2, chain(area + 1_000_000 + u64::from(i), 1, WRITE, 0));
    }
    let heads = rng.within(1..u64::from(size) + 1) as u16;
    // Never more than the ring holds, or it would be broken by that alone.
    let used = queue.used_idx();
    let room = size.saturating_sub(queue.avail_idx.wrapping_sub(used));
    for _ in 0..heads.min(room) {
        let head = if rng.one_in(100) {
            rng.next() as u16
        } else {
            rng.within(0..size.into()) as u16
        };
        queue.push(head);
    }
    queue.kick.signal();
    // While the device is at it, the guest goes on writing.
    if !calm && rng.one_in(2) {
        for _ in 0..50 {
            let i = rng.within(0..size.into()) as u16;
            let desc = desc(rng, size, i);
            queue.write_desc(i, desc);
        }
    }
    u64::from(heads.min(room))
}
