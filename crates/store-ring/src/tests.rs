//! Both sides of a lane, honest and not.

use std::fs::File;
use std::os::fd::BorrowedFd;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use proptest::prelude::*;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use test_support::rng::Rng;

use crate::entry::{decode, decode_completion, encode, encode_completion};
use crate::layout::{COMPLETED, COMPLETIONS, SUBMISSIONS, SUBMITTED};
use crate::*;

const LAYOUT: Layout = Layout {
    lanes: 2,
    small: 3,
    chunks: 2,
};

/// Both sides of lane 1, each with a mapping of its own.
struct Pair {
    client: ClientLane,
    server: ServerLane,
    file: File,
}

/// Where lane 1 begins.
const LANE: u64 = 12 << 10;

impl Pair {
    fn new() -> Self {
        let file = LaneMemory::make(LAYOUT).unwrap();
        let bells = LaneBells::make().unwrap();
        let [ours, theirs] = [0, 1].map(|_| LaneMemory::map(&file, LAYOUT).unwrap());
        Self {
            client: ClientLane::new(ours, 1, bells.try_clone().unwrap()).unwrap(),
            server: ServerLane::new(theirs, 1, bells).unwrap(),
            file,
        }
    }

    /// As somebody does who has the memory and does not keep to the rules.
    fn poke(&self, at: usize, word: u64) {
        let bytes = word.to_ne_bytes();
        self.file.write_all_at(&bytes, LANE + at as u64).unwrap();
    }

    fn sync(&mut self, slot: u32) {
        let target = Target::TOP;
        self.client.submit(slot, &Operation::Sync { target });
        self.client.publish().unwrap();
    }
}

fn is_violation<T>(result: Result<T, RingError>, side: Side) -> bool {
    matches!(result, Err(RingError::Violation { by, .. }) if by == side)
}

/// Whether an eventfd was written to since the last look.
fn rang(fd: BorrowedFd<'_>) -> bool {
    rustix::io::read(fd, &mut [0; 8]).is_ok()
}

#[test]
fn an_operation_goes_over_and_its_end_comes_back() {
    let mut pair = Pair::new();
    let lent = pair.client.memory().clone().lend_small(4096).unwrap();
    let data = pair.client.memory().data_of(lent.start().as_ptr(), 512);
    let operation = Operation::Write {
        target: Target::Data(3),
        at: 1 << 40,
        data: data.unwrap(),
        durable: true,
    };
    // SAFETY: the bytes are lent, and nobody else is at them.
    unsafe { lent.start().as_ptr().write_bytes(7, 512) };
    for round in 0..3 * DEPTH as u32 {
        let slot = round % DEPTH as u32;
        pair.client.submit(slot, &operation);
        assert_eq!(pair.server.take().unwrap(), None, "it was not published");
        pair.client.publish().unwrap();
        assert_eq!((pair.client.under_way(), pair.client.queued()), (1, 0));
        let taken = pair.server.take().unwrap().unwrap();
        assert_eq!(taken, Taken { slot, operation });
        assert_eq!(pair.server.under_way(), 1);
        let there = pair.server.memory().address_of(data.unwrap());
        // SAFETY: as above.
        let bytes = unsafe { std::slice::from_raw_parts(there.as_ptr(), 512) };
        assert_eq!(bytes, [7; 512]);
        let result = if round % 2 == 0 { Ok(()) } else { Err(28) };
        assert!(pair.server.complete(slot, result));
        assert!(!pair.server.complete(slot, result), "it has ended");
        assert!(!pair.client.has_completed());
        pair.server.publish().unwrap();
        assert!(pair.client.has_completed());
        let completion = pair.client.next_completion().unwrap();
        assert_eq!(completion, Some(Completion { slot, result }));
        assert_eq!(pair.client.next_completion().unwrap(), None);
        assert_eq!((pair.client.under_way(), pair.server.under_way()), (0, 0));
    }
}

#[test]
fn who_sleeps_is_woken_once_and_who_does_not_is_left_alone() {
    let mut pair = Pair::new();
    pair.sync(0);
    assert!(!rang(pair.server.woken_by()), "it does not sleep");
    assert!(!pair.server.may_sleep(), "there is something to do");
    let slot = pair.server.take().unwrap().unwrap().slot;
    assert!(pair.server.may_sleep());
    pair.sync(1);
    pair.sync(2);
    assert!(rang(pair.server.woken_by()));
    assert!(!rang(pair.server.woken_by()), "once");
    pair.server.awake();
    assert!(pair.client.may_sleep());
    pair.server.complete(slot, Ok(()));
    pair.server.publish().unwrap();
    assert!(rang(pair.client.woken_by()));
    assert!(!pair.client.may_sleep());
    pair.client.next_completion().unwrap().unwrap();
    assert!(pair.client.may_sleep());
    // It was woken by something else meanwhile.
    pair.client.awake();
    let slot = pair.server.take().unwrap().unwrap().slot;
    pair.server.complete(slot, Ok(()));
    pair.server.publish().unwrap();
    assert!(!rang(pair.client.woken_by()));
}

#[test]
fn all_slots_can_be_in_use() {
    let mut pair = Pair::new();
    for round in 0..3 {
        (0..DEPTH as u32).for_each(|slot| pair.sync(slot));
        let mut taken = Vec::new();
        while let Some(Taken { slot, .. }) = pair.server.take().unwrap() {
            taken.push(slot);
        }
        assert_eq!(taken.len(), DEPTH);
        taken.rotate_left(round * 7);
        for slot in &taken {
            assert!(pair.server.complete(*slot, Ok(())));
        }
        pair.server.publish().unwrap();
        for slot in taken {
            let completion = pair.client.next_completion().unwrap().unwrap();
            assert_eq!(completion.slot, slot);
        }
    }
}

#[test]
fn a_hostile_data_plane_is_found() {
    type Breach = fn(&mut Pair);
    let breaches: [(&str, Breach); 7] = [
        ("a count that is far ahead", |pair| {
            pair.poke(SUBMITTED, DEPTH as u64 + 1);
        }),
        ("a count that goes back", |pair| {
            pair.sync(0);
            pair.server.take().unwrap();
            pair.poke(SUBMITTED, 0);
        }),
        ("an entry of zeros", |pair| pair.poke(SUBMITTED, 1)),
        ("a slot that there is not", |pair| {
            pair.poke(SUBMISSIONS, 4 | 256 << 32);
            pair.poke(SUBMITTED, 1);
        }),
        ("a slot that is in use", |pair| {
            pair.sync(5);
            pair.server.take().unwrap();
            pair.poke(SUBMISSIONS + 32, 4 | 5 << 32);
            pair.poke(SUBMITTED, 2);
        }),
        ("a buffer among the rings", |pair| {
            let read = [1, 0, 512, LANE];
            for (index, word) in read.into_iter().enumerate() {
                pair.poke(SUBMISSIONS + index * 8, word);
            }
            pair.poke(SUBMITTED, 1);
        }),
        ("a buffer behind the end", |pair| {
            let read = [1, 0, 1024, LAYOUT.bytes() as u64 - 512];
            for (index, word) in read.into_iter().enumerate() {
                pair.poke(SUBMISSIONS + index * 8, word);
            }
            pair.poke(SUBMITTED, 1);
        }),
    ];
    for (what, breach) in breaches {
        let mut pair = Pair::new();
        breach(&mut pair);
        let taken = pair.server.take();
        assert!(is_violation(taken, Side::DataPlane), "{what}");
    }
}

#[test]
fn a_hostile_store_process_is_found() {
    type Breach = fn(&mut Pair);
    let breaches: [(&str, Breach); 5] = [
        ("what was never submitted has completed", |pair| {
            pair.poke(COMPLETED, 1);
        }),
        ("more than was submitted has completed", |pair| {
            pair.sync(0);
            pair.poke(COMPLETED, 2);
        }),
        ("a count that goes back", |pair| {
            pair.sync(0);
            pair.poke(COMPLETED, u64::MAX);
        }),
        ("a slot that there is not", |pair| {
            pair.sync(0);
            pair.poke(COMPLETIONS, DEPTH as u64);
            pair.poke(COMPLETED, 1);
        }),
        ("an error that there is not", |pair| {
            pair.sync(0);
            pair.poke(COMPLETIONS, 4096 << 32);
            pair.poke(COMPLETED, 1);
        }),
    ];
    for (what, breach) in breaches {
        let mut pair = Pair::new();
        breach(&mut pair);
        let next = pair.client.next_completion();
        assert!(is_violation(next, Side::StoreProcess), "{what}");
    }
}

#[test]
fn memory_that_could_get_shorter_or_is_another_is_refused() {
    let file = LaneMemory::make(LAYOUT).unwrap();
    let other = Layout {
        chunks: 1,
        ..LAYOUT
    };
    let refused = LaneMemory::map(&file, other).err();
    assert!(matches!(refused, Some(RingError::Memory { .. })));
    let flags = rustix::fs::MemfdFlags::ALLOW_SEALING;
    let plain = File::from(rustix::fs::memfd_create("unsealed", flags).unwrap());
    plain.set_len(LAYOUT.bytes() as u64).unwrap();
    let refused = LaneMemory::map(&plain, LAYOUT).err();
    assert!(matches!(refused, Some(RingError::Memory { .. })));
    assert!(file.set_len(0).is_err());
    let memory = LaneMemory::map(&file, LAYOUT).unwrap();
    let bells = LaneBells::make().unwrap();
    assert!(ServerLane::new(memory, LAYOUT.lanes, bells).is_err());
}

#[test]
fn parts_are_lent_to_one_owner_each_and_are_zeros() {
    let memory = LaneMemory::map(&LaneMemory::make(LAYOUT).unwrap(), LAYOUT).unwrap();
    for _ in 0..2 {
        let mut lent: Vec<Lent> = Vec::new();
        lent.extend(std::iter::from_fn(|| memory.lend_small(SMALL_LEN)));
        assert_eq!(lent.len(), 3);
        lent.extend(std::iter::from_fn(|| memory.lend_chunk()));
        assert_eq!(lent.len(), 5);
        let mut ranges = Vec::new();
        for part in &lent {
            let (start, len) = (part.start().as_ptr(), part.bytes());
            let data = memory.data_of(start, len).unwrap();
            assert!(LAYOUT.buffers().contains(&data.at));
            assert_eq!(memory.address_of(data).as_ptr(), start);
            ranges.push(data.at..data.at + len);
            // SAFETY: it is lent, and nobody else is at it.
            let bytes = unsafe { std::slice::from_raw_parts_mut(start, len) };
            assert!(bytes.iter().all(|byte| *byte == 0));
            bytes.fill(0xee);
        }
        ranges.sort_by_key(|range| range.start);
        assert!(ranges.windows(2).all(|pair| pair[0].end <= pair[1].start));
        assert!(
            memory
                .data_of(lent[0].start().as_ptr(), usize::MAX)
                .is_none()
        );
    }
    let foreign = [0u8; 8];
    assert!(memory.data_of(foreign.as_ptr(), 8).is_none());
}

#[test]
fn many_places_are_lent_by_many_threads() {
    let layout = Layout {
        lanes: 1,
        small: 150,
        chunks: 0,
    };
    let memory = LaneMemory::map(&LaneMemory::make(layout).unwrap(), layout).unwrap();
    let threads = (0..4).map(|_| {
        let memory = memory.clone();
        std::thread::spawn(move || {
            for round in 0..50 {
                let lent: Vec<_> = (0..round % 40)
                    .map_while(|_| memory.lend_small(0))
                    .collect();
                let mut starts: Vec<_> = lent.iter().map(|part| part.start().addr()).collect();
                starts.dedup();
                assert_eq!(starts.len(), lent.len());
            }
        })
    });
    let threads: Vec<_> = threads.collect();
    threads.into_iter().for_each(|one| one.join().unwrap());
    let all: Vec<_> = std::iter::from_fn(|| memory.lend_small(0)).collect();
    assert_eq!(all.len(), 150);
}

/// A server that does what it is told on a disk in memory, in any order, and sleeps when there is nothing to do.
fn serve(mut lane: ServerLane, stop: &AtomicBool, seed: u64) {
    let mut rng = Rng::new(seed);
    let mut disk = vec![0u8; 1 << 20];
    let mut waiting: Vec<Taken> = Vec::new();
    loop {
        lane.awake();
        while let Some(taken) = lane.take().unwrap() {
            waiting.push(taken);
        }
        let some = rng.within(0..waiting.len() as u64 + 1);
        for _ in 0..some {
            let index = rng.within(0..waiting.len() as u64) as usize;
            let Taken { slot, operation } = waiting.swap_remove(index);
            let slice = |data: Data| {
                let start = lane.memory().address_of(data);
                // SAFETY: the client is not at the bytes of an operation before it has ended.
                unsafe { std::slice::from_raw_parts_mut(start.as_ptr(), data.len) }
            };
            match operation {
                Operation::Read { at, data, .. } => {
                    slice(data).copy_from_slice(&disk[at as usize..][..data.len]);
                }
                Operation::Write { at, data, .. } => {
                    disk[at as usize..][..data.len].copy_from_slice(slice(data));
                }
                Operation::Punch { at, len } => disk[at as usize..][..len as usize].fill(0),
                Operation::Sync { .. } => {}
            }
            assert!(lane.complete(slot, Ok(())));
        }
        lane.publish().unwrap();
        if waiting.is_empty() && lane.may_sleep() {
            if stop.load(Ordering::SeqCst) {
                return;
            }
            wait(lane.woken_by());
        }
    }
}

/// Waits for an eventfd; a wake-up that is lost ends the test.
fn wait(fd: BorrowedFd<'_>) {
    let patience = Timespec {
        tv_sec: 60,
        tv_nsec: 0,
    };
    let mut watched = [PollFd::new(&fd, PollFlags::IN)];
    let ready = poll(&mut watched, Some(&patience)).unwrap();
    assert_eq!(ready, 1, "a wake-up was lost");
    assert!(rang(fd));
}

#[test]
fn both_sides_at_once_lose_nothing() {
    for seed in 0..u64::from(test_support::times("SEALDISK_RING_SEEDS", 8)) {
        let pair = Pair::new();
        let stop = Arc::new(AtomicBool::new(false));
        let server = std::thread::spawn({
            let stop = stop.clone();
            move || serve(pair.server, &stop, seed)
        });
        ask(pair.client, &stop, seed + 1000);
        server.join().unwrap();
    }
}

/// Writes and reads at random, and compares with a model.
fn ask(mut lane: ClientLane, stop: &AtomicBool, seed: u64) {
    const PLACE: usize = 8 << 10;
    println!("seed {seed}");
    let mut rng = Rng::new(seed);
    let memory = lane.memory().clone();
    let lent = memory.lend_small(SMALL_LEN).unwrap();
    // Each slot has a part of the memory, and a part of the disk.
    let slots = SMALL_LEN / PLACE;
    let data = |slot: usize| {
        let start = lent.start().as_ptr().wrapping_add(slot * PLACE);
        memory.data_of(start, PLACE).unwrap()
    };
    let bytes = |slot: usize| {
        let start = memory.address_of(data(slot));
        // SAFETY: nothing is under way in that slot, so only this thread is at its bytes.
        unsafe { std::slice::from_raw_parts_mut(start.as_ptr(), PLACE) }
    };
    let mut model = vec![0u8; slots];
    let mut under_way: Vec<Option<bool>> = vec![None; slots];
    for _ in 0..4000 {
        let slot = rng.within(0..slots as u64) as usize;
        if under_way[slot].is_none() && rng.one_in(2) {
            let (target, at) = (Target::TOP, (slot * PLACE) as u64);
            let is_read = rng.one_in(2);
            let operation = if is_read {
                bytes(slot).fill(0xaa);
                Operation::Read {
                    target,
                    at,
                    data: data(slot),
                }
            } else {
                model[slot] = rng.within(0..256) as u8;
                bytes(slot).fill(model[slot]);
                Operation::Write {
                    target,
                    at,
                    data: data(slot),
                    durable: false,
                }
            };
            lane.submit(slot as u32, &operation);
            under_way[slot] = Some(is_read);
        }
        if rng.one_in(3) {
            lane.publish().unwrap();
        }
        if rng.one_in(8) {
            lane.publish().unwrap();
            if lane.under_way() > 0 && lane.may_sleep() {
                wait(lane.woken_by());
            }
            lane.awake();
        }
        while let Some(Completion { slot, result }) = lane.next_completion().unwrap() {
            assert_eq!(result, Ok(()));
            let slot = slot as usize;
            if under_way[slot].take().expect("it was under way") {
                assert!(bytes(slot).iter().all(|byte| *byte == model[slot]));
            }
        }
    }
    lane.publish().unwrap();
    while lane.under_way() > 0 {
        if lane.may_sleep() {
            wait(lane.woken_by());
        }
        lane.awake();
        while let Some(Completion { slot, .. }) = lane.next_completion().unwrap() {
            assert!(under_way[slot as usize].take().is_some());
        }
    }
    // There will be no more, which a server that sleeps is to see.
    stop.store(true, Ordering::SeqCst);
    let target = Target::TOP;
    lane.submit(0, &Operation::Sync { target });
    lane.publish().unwrap();
}

fn target() -> impl Strategy<Value = Target> {
    prop_oneof![any::<u8>().prop_map(Target::Data), Just(Target::Map)]
}

fn data() -> impl Strategy<Value = Data> {
    let buffers = LAYOUT.buffers();
    let sectors = BUFFER_LEN / 512;
    (buffers.start..buffers.end - BUFFER_LEN, 1..=sectors).prop_map(|(at, sectors)| Data {
        at,
        len: sectors * 512,
    })
}

fn operation() -> impl Strategy<Value = Operation> {
    let at = || (0u64..1 << 46).prop_map(|at| at / 512 * 512);
    prop_oneof![
        (target(), at(), data()).prop_map(|(target, at, data)| Operation::Read {
            target,
            at,
            data
        }),
        (target(), at(), data(), any::<bool>()).prop_map(|(target, at, data, durable)| {
            Operation::Write {
                target,
                at,
                data,
                durable,
            }
        }),
        target().prop_map(|target| Operation::Sync { target }),
        (at(), 1u64..1 << 20).prop_map(|(at, len)| Operation::Punch { at, len: len * 512 }),
    ]
}

proptest! {
    #[test]
    fn an_operation_is_read_as_it_was_written(slot in 0..DEPTH as u32, operation in operation()) {
        let read = decode(encode(slot, &operation), LAYOUT).unwrap();
        prop_assert_eq!(read, (slot, operation));
    }

    /// Words at random, and words that are nearly right.
    #[test]
    fn what_is_taken_lies_within_the_memory(
        words in any::<[u64; 4]>(),
        operation in operation(),
        flips in proptest::collection::vec((0..4usize, 0..64u32), 0..4),
        is_random in any::<bool>(),
    ) {
        let mut words = if is_random { words } else { encode(7, &operation) };
        for (word, bit) in flips {
            words[word] ^= 1 << bit;
        }
        let Ok((slot, operation)) = decode(words, LAYOUT) else {
            return Ok(());
        };
        prop_assert!((slot as usize) < DEPTH);
        match operation {
            Operation::Read { at, data, .. } | Operation::Write { at, data, .. } => {
                prop_assert!(data.at >= LAYOUT.buffers().start);
                prop_assert!(data.at + data.len <= LAYOUT.bytes());
                prop_assert!(data.len > 0 && data.len <= BUFFER_LEN);
                prop_assert!(at % 512 == 0 && at.checked_add(data.len as u64).is_some());
            }
            Operation::Punch { at, len } => {
                prop_assert!(at % 512 == 0 && len % 512 == 0 && len > 0);
                prop_assert!(at.checked_add(len).is_some());
            }
            Operation::Sync { .. } => {}
        }
        // Nothing is said in two ways.
        prop_assert_eq!(encode(slot, &operation), words);
    }

    #[test]
    fn a_completion_is_read_as_it_was_written(slot in 0..DEPTH as u32, errno in 0..4096i32, word in any::<u64>()) {
        let result = if errno == 0 { Ok(()) } else { Err(errno) };
        let read = decode_completion(encode_completion(slot, result)).unwrap();
        prop_assert_eq!(read, (slot, result));
        if let Ok((slot, result)) = decode_completion(word) {
            prop_assert_eq!(encode_completion(slot, result), word);
        }
    }

    #[test]
    fn parts_of_a_layout_follow_each_other(lanes in 0u16..300, small in 0u16..300, chunks in 0u16..300) {
        let layout = Layout { lanes, small, chunks };
        let mut end = 0;
        for lane in 0..lanes {
            let at = layout.lane(lane).unwrap();
            prop_assert!(at >= end && at % 4096 == 0);
            end = at + COMPLETIONS + DEPTH * 8;
        }
        prop_assert!(layout.lane(lanes).is_none());
        prop_assert!(layout.buffers().start >= end);
        for number in 0..small {
            let at = layout.small_at(number);
            prop_assert!(at >= end && at % BUFFER_LEN == 0);
            end = at + SMALL_LEN;
        }
        for number in 0..chunks {
            let at = layout.chunk_at(number);
            prop_assert!(at >= end && at % CHUNK_LEN == 0);
            end = at + CHUNK_LEN;
        }
        prop_assert!(layout.bytes() >= end && layout.buffers().end == layout.bytes());
    }
}
