//! What every store that is waited on keeps to, whatever is beneath it.

// Each user has its own part of this module.
#![allow(dead_code)]

use std::collections::BTreeMap;
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use test_support::rng::Rng;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};
use volume::store::{
    BufferPool, IoBuffer, StoreCompletion, StoreFile, StoreOp, Tag, Wait, WaitingStore, WatchId,
};

/// Bytes of the data file of the top layer.
pub const LEN: u64 = 4 << 20;
const BLOCK: u64 = 4096;

/// A store of empty files, with buffers that it takes.
pub struct Subject<S: WaitingStore> {
    pub store: S,
    pub pool: BufferPool,
    /// Other files, which are empty too.
    pub others: S::Files,
    /// What has to be done elsewhere when they are swapped.
    pub swapping: Box<dyn FnOnce()>,
}

/// Goes through all of it.
pub fn keeps_to_the_contract<S: WaitingStore>(make: impl Fn() -> Subject<S>) {
    a_wait_ends_when_its_time_is_over(make());
    a_watch_is_told_of_each_write_until_it_ends(make());
    a_count_from_before_is_told(make());
    what_was_written_is_read(make(), 0x5eed);
    as_many_can_be_under_way_as_there_is_room_for(make());
    a_completion_and_an_event_end_the_same_wait(make());
    files_are_swapped(make());
    a_store_can_be_dropped_with_operations_under_way(make());
}

fn a_wait_ends_when_its_time_is_over<S: WaitingStore>(mut subject: Subject<S>) {
    let store = &mut subject.store;
    assert!(!store.is_busy() && !store.has_news() && store.has_room());
    let begun = Instant::now();
    store.enter(Wait::No).unwrap();
    // It may be told of nothing sooner.
    for _ in 0..100 {
        if begun.elapsed() >= Duration::from_millis(5) {
            break;
        }
        store.enter(Wait::AtMost(Duration::from_millis(5))).unwrap();
    }
    assert!(begun.elapsed() >= Duration::from_millis(5));
    assert!(!store.has_news());
}

fn a_watch_is_told_of_each_write_until_it_ends<S: WaitingStore>(mut subject: Subject<S>) {
    let store = &mut subject.store;
    let (first, second) = (eventfd(0), eventfd(0));
    store.watch(WatchId(0), first.as_raw_fd()).unwrap();
    store.watch(WatchId(9), second.as_raw_fd()).unwrap();
    for _ in 0..3 {
        first.write(1).unwrap();
        assert_eq!(next_event(store), WatchId(0));
        second.write(1).unwrap();
        assert_eq!(next_event(store), WatchId(9));
    }
    store.unwatch(WatchId(0));
    first.write(1).unwrap();
    second.write(1).unwrap();
    assert_eq!(next_event(store), WatchId(9));
    // Another descriptor in its place.
    let third = eventfd(0);
    store.watch(WatchId(9), third.as_raw_fd()).unwrap();
    store.enter(Wait::No).unwrap();
    store.take_events(&mut Vec::new());
    second.write(1).unwrap();
    third.write(1).unwrap();
    assert_eq!(next_event(store), WatchId(9));
    let mut events = Vec::new();
    store.enter(Wait::AtMost(Duration::from_millis(5))).unwrap();
    store.take_events(&mut events);
    assert!(events.is_empty(), "{events:?} is not watched");
}

fn a_count_from_before_is_told<S: WaitingStore>(mut subject: Subject<S>) {
    let fd = eventfd(3);
    subject.store.watch(WatchId(1), fd.as_raw_fd()).unwrap();
    assert_eq!(next_event(&mut subject.store), WatchId(1));
}

fn what_was_written_is_read<S: WaitingStore>(mut subject: Subject<S>, seed: u64) {
    println!("seed {seed}");
    let (mut rng, blocks) = (Rng::new(seed), LEN / BLOCK);
    let mut model = BTreeMap::new();
    for round in 0..40 {
        // No two of a round touch each other.
        let mut free: Vec<u64> = (0..blocks / 8).collect();
        let mut reads = BTreeMap::new();
        let mut under_way = 0;
        for number in 0..1 + rng.within(0..24) as u32 {
            if !subject.store.has_room() {
                break;
            }
            let Some(mut buffer) = subject.pool.take() else {
                break;
            };
            let place = free.swap_remove(rng.within(0..free.len() as u64) as usize);
            let (at, len) = (place * 8 * BLOCK, (1 + rng.within(0..8)) * BLOCK);
            let byte = (1 + rng.within(0..255)) as u8;
            let op = match rng.within(0..4) {
                0 | 1 => {
                    buffer.as_mut_slice()[..len as usize].fill(byte);
                    model.extend((0..len / BLOCK).map(|i| (at / BLOCK + i, byte)));
                    let durable = subject.store.writes_durably() && rng.within(0..2) == 0;
                    write(at, len as usize, durable, buffer)
                }
                2 => {
                    reads.insert(number, at / BLOCK);
                    read(at, len as usize, buffer)
                }
                _ => {
                    subject.pool.put(buffer);
                    let (first, end) = (at / BLOCK, (at + len) / BLOCK);
                    model.retain(|block, _| !(first..end).contains(block));
                    // It is what a discarded block reads as, wherever holes can be made.
                    StoreOp::Punch { at, len }
                }
            };
            subject.store.submit(Tag(number), op);
            under_way += 1;
        }
        if subject.store.has_room() && round % 4 == 0 {
            let file = StoreFile::TOP;
            subject.store.submit(Tag(1000), StoreOp::Sync { file });
            under_way += 1;
        }
        for done in finish(&mut subject.store, under_way) {
            done.result.unwrap();
            let Some(buffer) = done.buffer else { continue };
            if let Some(first) = reads.remove(&done.tag.0) {
                let expected = *model.get(&first).unwrap_or(&0);
                let found = &buffer.as_slice()[..BLOCK as usize];
                assert!(found.iter().all(|byte| *byte == expected), "block {first}");
            }
            subject.pool.put(buffer);
        }
        assert!(reads.is_empty() && !subject.store.is_busy());
    }
}

fn as_many_can_be_under_way_as_there_is_room_for<S: WaitingStore>(mut subject: Subject<S>) {
    for _ in 0..3 {
        let mut count = 0;
        while subject.store.has_room() && count < 10_000 {
            let file = StoreFile::TOP;
            subject.store.submit(Tag(count), StoreOp::Sync { file });
            count += 1;
        }
        assert!(count >= 8 && subject.store.is_busy());
        let mut tags: Vec<_> = finish(&mut subject.store, count as usize)
            .into_iter()
            .map(|done| done.result.map(|()| done.tag.0).unwrap())
            .collect();
        tags.sort_unstable();
        assert!(tags.into_iter().eq(0..count), "each completes once");
    }
}

fn a_completion_and_an_event_end_the_same_wait<S: WaitingStore>(mut subject: Subject<S>) {
    let fd = eventfd(0);
    subject.store.watch(WatchId(4), fd.as_raw_fd()).unwrap();
    for round in 0..20 {
        let file = StoreFile::Map;
        subject.store.submit(Tag(round), StoreOp::Sync { file });
        let writer = fd.try_clone().unwrap();
        let other = std::thread::spawn(move || writer.write(1).unwrap());
        let (mut done, mut events) = (Vec::new(), Vec::new());
        while done.is_empty() || events.is_empty() {
            subject.store.enter(Wait::Forever).unwrap();
            subject.store.reap(&mut done);
            subject.store.take_events(&mut events);
        }
        other.join().unwrap();
        assert_eq!((done.len(), done[0].tag), (1, Tag(round)));
        assert!(events.iter().all(|event| *event == WatchId(4)));
    }
}

fn files_are_swapped<S: WaitingStore>(subject: Subject<S>) {
    let Subject {
        mut store,
        mut pool,
        others,
        swapping,
    } = subject;
    let mut buffer = pool.take().unwrap();
    buffer.as_mut_slice().fill(7);
    store.submit(Tag(0), write(0, BLOCK as usize, false, buffer));
    let written = finish(&mut store, 1).pop().unwrap();
    written.result.unwrap();
    swapping();
    store.swap_files(others).unwrap();
    store.submit(Tag(1), read(0, BLOCK as usize, written.buffer.unwrap()));
    let done = finish(&mut store, 1).pop().unwrap();
    done.result.unwrap();
    let buffer = done.buffer.unwrap();
    assert!(
        buffer.as_slice()[..BLOCK as usize]
            .iter()
            .all(|byte| *byte == 0)
    );
    pool.put(buffer);
}

fn a_store_can_be_dropped_with_operations_under_way<S: WaitingStore>(mut subject: Subject<S>) {
    let fd = eventfd(0);
    subject.store.watch(WatchId(2), fd.as_raw_fd()).unwrap();
    for number in 0..3 {
        if let Some(buffer) = subject.pool.take() {
            let at = u64::from(number) * BLOCK;
            let op = read(at, BLOCK as usize, buffer);
            subject.store.submit(Tag(number), op);
        }
    }
    drop(subject.store);
}

fn eventfd(count: u64) -> EventFd {
    let fd = EventFd::new(EFD_NONBLOCK).unwrap();
    if count > 0 {
        fd.write(count).unwrap();
    }
    fd
}

fn read(at: u64, len: usize, buffer: IoBuffer) -> StoreOp {
    StoreOp::Read {
        file: StoreFile::TOP,
        at,
        len,
        buffer,
    }
}

fn write(at: u64, len: usize, durable: bool, buffer: IoBuffer) -> StoreOp {
    StoreOp::Write {
        file: StoreFile::TOP,
        at,
        len,
        durable,
        buffer,
    }
}

/// Waits for the next event, which is to be the only one.
fn next_event<S: WaitingStore>(store: &mut S) -> WatchId {
    let mut events = Vec::new();
    while events.is_empty() {
        store.enter(Wait::Forever).unwrap();
        store.take_events(&mut events);
    }
    assert_eq!(events.len(), 1, "{events:?}");
    events[0]
}

/// Waits until so many operations have completed.
fn finish<S: WaitingStore>(store: &mut S, count: usize) -> Vec<StoreCompletion> {
    let mut done = Vec::new();
    while done.len() < count {
        store.enter(Wait::Forever).unwrap();
        store.reap(&mut done);
    }
    assert_eq!(done.len(), count);
    done
}
