//! Flushes, write-through and discards, on a store that fails as it is told: what the guest is promised,
//! and what it costs.

// Clippy exempts only functions with #[test], and helpers of tests panic as tests do.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod logged_store;

use std::path::PathBuf;
use std::ptr::NonNull;
use std::sync::Arc;
use std::time::Duration;

use keys::units::ByteOffset;
use keys::{Dek, DekStack};
use logged_store::{Asked, LoggedStore, SharedMedium};
use uuid::Uuid;
use volume::pipeline::{
    BlockRequest, Finished, GuestBuffer, Pipeline, RequestError, RequestKind, Submission, Token,
};
use volume::{Content, FailedSync, Geometry, LayerMap, RuntimeMap, Volume, format};
use xts::{CipherStack, DataUnit, SharedSlice};

const BLOCK: u64 = 4096;
const BLOCKS: u64 = 5000;

/// A disk with queues, each driven by hand.
struct Rig {
    geometry: Geometry,
    medium: SharedMedium,
    runtime: RuntimeMap,
    runtime_path: PathBuf,
    volume: Arc<Volume>,
    queues: Vec<Pipeline<LoggedStore>>,
    deks: DekStack,
    next: u64,
}

impl Drop for Rig {
    fn drop(&mut self) {
        std::fs::remove_file(&self.runtime_path).unwrap();
    }
}

impl Rig {
    fn new(queues: usize) -> Self {
        let geometry = Geometry {
            disk: Uuid::new_v4(),
            layer: Uuid::new_v4(),
            size: BLOCKS * BLOCK,
            data_unit: DataUnit::B4096,
        };
        let medium = SharedMedium::new(&geometry);
        let runtime_path = PathBuf::from(format!("/dev/shm/sealdisk-flush-{}", Uuid::new_v4()));
        let (runtime, _) =
            RuntimeMap::open(&runtime_path, &geometry, Uuid::nil(), Uuid::nil()).unwrap();
        let volume = open(&geometry, &medium, &runtime);
        let mut rig = Self {
            geometry,
            medium,
            runtime,
            runtime_path,
            volume,
            queues: Vec::new(),
            deks: Dek::generate().unwrap().into(),
            next: 0,
        };
        rig.make_queues(queues);
        rig
    }

    fn make_queues(&mut self, count: usize) {
        self.queues = (0..count)
            .map(|_| {
                let ciphers = CipherStack::new(&self.deks, &[DataUnit::B4096]).unwrap();
                let store = LoggedStore::new(&self.medium);
                Pipeline::new(self.volume.clone(), store, ciphers).unwrap()
            })
            .collect();
    }

    /// The process dies, and another takes over the runtime map.
    fn restart(&mut self) {
        let queues = self.queues.len();
        self.queues.clear();
        let (runtime, _) =
            RuntimeMap::open(&self.runtime_path, &self.geometry, Uuid::nil(), Uuid::nil()).unwrap();
        self.runtime = runtime;
        self.volume = open(&self.geometry, &self.medium, &self.runtime);
        self.make_queues(queues);
    }

    fn submit(&mut self, queue: usize, kind: RequestKind, blocks: std::ops::Range<u64>) -> Token {
        self.next += 1;
        let (token, len) = (Token(self.next), (blocks.end - blocks.start) * BLOCK);
        let slices = match kind {
            RequestKind::Write { .. } | RequestKind::Read => {
                let bytes: &'static mut [u8] = vec![7; len as usize].leak();
                let start = NonNull::from(&mut *bytes).cast();
                // SAFETY: the bytes are never freed, and nobody else knows of them.
                vec![unsafe { SharedSlice::new(start, bytes.len()) }]
            }
            RequestKind::Zero { .. } | RequestKind::CopyUp { .. } | RequestKind::Flush => vec![],
        };
        let at = ByteOffset(blocks.start * BLOCK);
        let owner = None;
        let memory = GuestBuffer { slices, owner };
        let request = BlockRequest { kind, at, len };
        self.queues[queue].submit(Submission::new(token, request, memory));
        token
    }

    /// Carries a queue on; what is finished.
    fn poll(&mut self, queue: usize) -> Vec<(Token, Result<(), RequestError>)> {
        let mut finished = Vec::new();
        self.queues[queue].poll();
        self.queues[queue].take_finished(&mut finished);
        finished
            .into_iter()
            .map(Finished::take)
            .map(|(token, result, _)| (token, result))
            .collect()
    }

    /// Carries a queue on until nothing of it is under way.
    fn settle(&mut self, queue: usize) -> Vec<(Token, Result<(), RequestError>)> {
        let mut all = self.poll(queue);
        while !self.queues[queue].is_idle() {
            all.extend(self.poll(queue));
        }
        all
    }

    /// Does one thing alone.
    fn run(&mut self, kind: RequestKind, blocks: std::ops::Range<u64>) -> Result<(), RequestError> {
        let token = self.submit(0, kind, blocks);
        let mut done = self.settle(0);
        assert_eq!(done.len(), 1);
        let (found, result) = done.remove(0);
        assert_eq!(found, token);
        result
    }

    fn write(&mut self, blocks: std::ops::Range<u64>) -> Result<(), RequestError> {
        self.run(RequestKind::Write { durable: false }, blocks)
    }

    fn write_through(&mut self, blocks: std::ops::Range<u64>) -> Result<(), RequestError> {
        self.run(RequestKind::Write { durable: true }, blocks)
    }

    fn flush(&mut self) -> Result<(), RequestError> {
        self.run(RequestKind::Flush, 0..0)
    }
}

fn open(geometry: &Geometry, medium: &SharedMedium, runtime: &RuntimeMap) -> Arc<Volume> {
    let top = LayerMap::new(geometry.clone(), medium.clone());
    Arc::new(Volume::open_runtime(top, vec![], runtime).unwrap())
}

/// Fails what `which` names, the first time only, as Linux does with a sync.
fn fail_once(medium: &SharedMedium, which: Asked, number: i32) {
    let mut failed = false;
    medium.fail(move |asked| {
        (asked == which && !std::mem::replace(&mut failed, true)).then_some(number)
    });
}

#[test]
fn a_sync_that_failed_once_fails_every_later_flush() {
    for (which, file) in [
        (Asked::SyncData, FailedSync::Data),
        (Asked::SyncMap, FailedSync::Map),
    ] {
        for number in [libc::EIO, libc::ENOSPC] {
            let mut rig = Rig::new(2);
            rig.write(0..3).unwrap();
            fail_once(&rig.medium, which, number);
            let error = rig.flush().unwrap_err();
            assert!(
                matches!(error, RequestError::SyncFailed { .. }),
                "{error:?}"
            );
            // The first error stays, whatever space there may be again.
            assert!(!error.is_no_space());
            for _ in 0..3 {
                let error = rig.flush().unwrap_err();
                assert_eq!(error.failed_sync(), Some(file), "{which:?}: {error}");
            }
            // What is not promised to be durable goes on; what is, fails.
            rig.write(3..4).unwrap();
            rig.run(RequestKind::Read, 0..4).unwrap();
            let durable = [
                RequestKind::Write { durable: true },
                RequestKind::Zero {
                    release: true,
                    durable: true,
                },
            ];
            for kind in durable {
                let error = rig.run(kind, 1..2).unwrap_err();
                assert_eq!(error.failed_sync(), Some(file));
            }
            // In another queue as well.
            rig.submit(1, RequestKind::Flush, 0..0);
            let done = rig.settle(1);
            assert!(matches!(done[..], [(_, Err(RequestError::Lost(_)))]));
            assert_eq!(rig.volume.failed_sync(), Some(file));
        }
    }
}

#[test]
fn a_sync_that_failed_is_remembered_by_the_next_process_until_the_disk_was_checked() {
    let mut rig = Rig::new(1);
    rig.write(0..1).unwrap();
    rig.flush().unwrap();
    assert_eq!(rig.runtime.failed_sync().unwrap(), None);
    rig.write(3000..3001).unwrap();
    fail_once(&rig.medium, Asked::SyncMap, libc::EIO);
    rig.flush().unwrap_err();
    assert_eq!(rig.runtime.failed_sync().unwrap(), Some(FailedSync::Map));
    for _ in 0..2 {
        rig.restart();
        let error = rig.flush().unwrap_err();
        assert!(
            matches!(error, RequestError::Lost(FailedSync::Map)),
            "{error}"
        );
    }

    rig.runtime.forget_failed_sync().unwrap();
    rig.restart();
    rig.medium.take_log();
    rig.flush().unwrap();
    // The map file says already what it is to say, but maybe only in the page cache.
    let log = rig.medium.take_log();
    let written: usize = log.iter().map(map_bytes).sum();
    assert!(written >= 2 * 512, "{log:?}");
    rig.restart();
    rig.medium.take_log();
    rig.flush().unwrap();
    let log = rig.medium.take_log();
    assert_eq!(log.iter().map(map_bytes).sum::<usize>(), 0, "{log:?}");
}

fn map_bytes(asked: &Asked) -> usize {
    match asked {
        Asked::WriteMap { len, .. } => *len,
        _ => 0,
    }
}

#[test]
fn a_map_that_cannot_be_written_fails_its_flush_alone() {
    let mut rig = Rig::new(1);
    rig.write(0..1).unwrap();
    rig.medium
        .fail(|asked| (map_bytes(&asked) > 0).then_some(libc::ENOSPC));
    for _ in 0..2 {
        assert!(rig.flush().unwrap_err().is_no_space());
    }
    let error = rig.write_through(0..1).unwrap_err();
    assert!(error.is_no_space());
    rig.medium.fail(|_| None);
    rig.medium.take_log();
    rig.flush().unwrap();
    assert!(
        rig.medium
            .take_log()
            .iter()
            .any(|asked| map_bytes(asked) == 512)
    );
}

const DISCARD: RequestKind = RequestKind::Zero {
    release: true,
    durable: false,
};

fn count(log: &[Asked], is_meant: impl Fn(&Asked) -> bool) -> usize {
    log.iter().filter(|asked| is_meant(asked)).count()
}

#[test]
fn flushes_that_come_while_one_runs_share_the_next_whichever_queue_they_are_of() {
    let mut rig = Rig::new(4);
    rig.write(0..1).unwrap();
    rig.medium.take_log();
    rig.medium.set_free(false);
    rig.submit(0, RequestKind::Flush, 0..0);
    assert!(rig.poll(0).is_empty());
    let mut waiting = 1;
    for queue in 0..4 {
        for _ in 0..4 {
            rig.submit(queue, RequestKind::Flush, 0..0);
            waiting += 1;
        }
        assert!(rig.poll(queue).is_empty());
    }
    let mut turns = 0;
    while waiting > 0 {
        turns += 1;
        assert!(turns < 100);
        for queue in 0..4 {
            rig.queues[queue].store_mut().step();
            for (_, result) in rig.poll(queue) {
                result.unwrap();
                waiting -= 1;
            }
        }
    }
    let log = rig.medium.take_log();
    assert_eq!(count(&log, |a| *a == Asked::SyncData), 2, "{log:?}");
}

#[test]
fn a_queue_that_flushes_all_the_time_keeps_no_other_from_it() {
    let mut rig = Rig::new(2);
    rig.write(0..1).unwrap();
    rig.medium.set_free(false);
    rig.submit(0, RequestKind::Flush, 0..0);
    rig.poll(0);
    rig.submit(1, RequestKind::Flush, 0..0);
    let mut others = 0;
    loop {
        rig.queues[0].store_mut().step();
        let done = rig.poll(0).len();
        others += done;
        (0..done).for_each(|_| {
            rig.submit(0, RequestKind::Flush, 0..0);
        });
        // The busy one always has the first look.
        rig.poll(0);
        rig.queues[1].store_mut().step();
        if !rig.poll(1).is_empty() {
            break;
        }
        assert!(
            others < 3,
            "it still waits after {others} flushes of the other"
        );
    }
}

#[test]
fn a_durable_write_over_durable_data_is_one_operation() {
    let mut rig = Rig::new(1);
    let written = |at: u64, blocks: u64| Asked::WriteDurably {
        at: at * BLOCK,
        len: (blocks * BLOCK) as usize,
    };
    let log_of = |rig: &mut Rig, blocks: std::ops::Range<u64>| {
        rig.medium.take_log();
        rig.write_through(blocks).unwrap();
        rig.medium.take_log()
    };
    let with_flush = |log: &[Asked]| {
        assert!(
            matches!(log, [Asked::Write { .. }, Asked::SyncData, ..]),
            "{log:?}"
        );
        assert_eq!(log.last(), Some(&Asked::SyncMap), "{log:?}");
    };
    with_flush(&log_of(&mut rig, 10..14));
    assert_eq!(log_of(&mut rig, 11..13), [written(11, 2)]);
    // Written, but not flushed; and only in part.
    rig.write(14..15).unwrap();
    with_flush(&log_of(&mut rig, 14..15));
    with_flush(&log_of(&mut rig, 14..16));
    assert_eq!(log_of(&mut rig, 14..16), [written(14, 2)]);
    // Discarded in between, whether or not that is durable.
    rig.run(DISCARD, 12..13).unwrap();
    with_flush(&log_of(&mut rig, 11..13));
    // A process that died left a map of which nobody knows how much is durable.
    rig.restart();
    let log = log_of(&mut rig, 11..12);
    assert!(
        matches!(log[..], [Asked::Write { .. }, Asked::SyncData, ..]),
        "{log:?}"
    );
    assert_eq!(log_of(&mut rig, 11..12), [written(11, 1)]);
    // A large one is as many writes as before, and one sync.
    let log = log_of(&mut rig, 100..200);
    assert_eq!(count(&log, |a| matches!(a, Asked::SyncData)), 1);
    let log = log_of(&mut rig, 100..200);
    assert_eq!(count(&log, |a| matches!(a, Asked::WriteDurably { .. })), 0);
    assert_eq!(
        log.last(),
        Some(&Asked::SyncData),
        "no map changed: {log:?}"
    );
}

#[test]
fn a_durable_write_that_fails_is_a_failed_sync() {
    let mut rig = Rig::new(1);
    rig.write_through(0..1).unwrap();
    rig.medium
        .fail(|asked| matches!(asked, Asked::WriteDurably { .. }).then_some(libc::ENOSPC));
    // Nothing was written of it.
    assert!(rig.write_through(0..1).unwrap_err().is_no_space());
    rig.flush().unwrap();
    rig.medium
        .fail(|asked| matches!(asked, Asked::WriteDurably { .. }).then_some(libc::EIO));
    let error = rig.write_through(0..1).unwrap_err();
    assert_eq!(error.failed_sync(), Some(FailedSync::Data));
    rig.medium.fail(|_| None);
    rig.flush().unwrap_err();
    rig.write_through(0..1).unwrap_err();
    assert_eq!(rig.runtime.failed_sync().unwrap(), Some(FailedSync::Data));
}

/// The kernel tells of it once, and it has told the write.
#[test]
fn a_flush_waits_until_it_is_known_how_durable_writes_of_other_queues_ended() {
    for number in [0, libc::EIO] {
        let mut rig = Rig::new(2);
        rig.write_through(0..1).unwrap();
        rig.write(3000..3001).unwrap();
        rig.medium.take_log();
        rig.medium.set_free(false);
        if number != 0 {
            let which = Asked::WriteDurably { at: 0, len: 4096 };
            fail_once(&rig.medium, which, number);
        }
        rig.submit(0, RequestKind::Write { durable: true }, 0..1);
        // It has ended, and its queue has not looked yet.
        assert!(rig.queues[0].store_mut().step());
        rig.medium.set_free(true);
        rig.submit(1, RequestKind::Flush, 0..0);
        for _ in 0..10 {
            assert!(
                rig.poll(1).is_empty(),
                "nobody knows whether it may succeed"
            );
        }
        assert!(rig.queues[1].waits_for_others());
        // Nor whether the map may call data what was written.
        let log = rig.medium.take_log();
        assert_eq!(log.iter().map(map_bytes).sum::<usize>(), 0, "{log:?}");
        let written = rig.settle(0).pop().unwrap().1;
        let flushed = rig.settle(1).pop().unwrap().1;
        let failed = (number != 0).then_some(FailedSync::Data);
        for result in [written, flushed] {
            let found = result.err().and_then(|error| error.failed_sync());
            assert_eq!(found, failed);
        }
    }
}

#[test]
fn durable_writes_that_begin_later_keep_no_flush_from_its_end() {
    let mut rig = Rig::new(2);
    rig.write_through(0..2).unwrap();
    rig.medium.set_free(false);
    rig.submit(0, RequestKind::Write { durable: true }, 0..1);
    rig.submit(1, RequestKind::Flush, 0..0);
    let mut turns = 0;
    loop {
        // There is always one under way.
        rig.queues[0].store_mut().step();
        rig.submit(0, RequestKind::Write { durable: true }, 1..2);
        rig.poll(0);
        rig.queues[1].store_mut().step();
        if let Some((_, result)) = rig.poll(1).pop() {
            return result.unwrap();
        }
        turns += 1;
        assert!(turns < 20);
    }
}

/// What ended with a sync that failed, and is looked at with it, is not called durable either.
#[test]
fn a_failed_sync_counts_for_what_is_seen_to_end_with_it() {
    let mut rig = Rig::new(1);
    rig.write_through(0..2).unwrap();
    rig.medium.set_free(false);
    let which = Asked::WriteDurably {
        at: 4096,
        len: 4096,
    };
    fail_once(&rig.medium, which, libc::EIO);
    for block in 0..2 {
        rig.submit(0, RequestKind::Write { durable: true }, block..block + 1);
    }
    while rig.queues[0].store_mut().step() {}
    let done = rig.poll(0);
    assert_eq!(done.len(), 2);
    for (_, result) in done {
        assert_eq!(result.unwrap_err().failed_sync(), Some(FailedSync::Data));
    }
}

/// What the disk has of the map when a volume without a runtime map fails to sync it, and another one
/// comes after it.
#[test]
fn a_map_without_a_runtime_map_is_written_anew_after_a_sync_that_failed() {
    let mut rig = Rig::new(1);
    let open_private = |rig: &mut Rig| {
        let top = LayerMap::new(rig.geometry.clone(), rig.medium.clone());
        rig.queues.clear();
        rig.volume = Arc::new(Volume::open_private(top, vec![]).unwrap());
        rig.volume.map().load_all().unwrap();
        rig.volume.write_map_anew().unwrap();
        rig.make_queues(1);
    };
    open_private(&mut rig);
    rig.write(0..1).unwrap();
    fail_once(&rig.medium, Asked::SyncMap, libc::EIO);
    rig.flush().unwrap_err();
    // The page cache has the sector and shows it to whoever comes next; the disk does not have it.
    rig.medium.take_log();
    open_private(&mut rig);
    assert_eq!(rig.volume.map().run(0, 1).what, Content::Data);
    rig.write(4000..4001).unwrap();
    rig.flush().unwrap();
    let first = format::sector_offset(0);
    let log = rig.medium.take_log();
    let is_written = |asked: &Asked| matches!(asked, Asked::WriteMap { at, .. } if *at == first);
    assert_eq!(count(&log, is_written), 1, "{log:?}");
    assert_eq!(log.last(), Some(&Asked::SyncMap), "{log:?}");
}

#[test]
fn map_sectors_of_one_page_are_one_write() {
    let mut rig = Rig::new(1);
    rig.write(0..1).unwrap();
    rig.write(4999..5000).unwrap();
    rig.medium.take_log();
    rig.flush().unwrap();
    let log = rig.medium.take_log();
    let expected = Asked::WriteMap {
        at: 4096,
        len: 3 * 512,
    };
    assert_eq!(log, [Asked::SyncData, expected, Asked::SyncMap]);
}

fn punched(log: &[Asked]) -> u64 {
    let len = |asked: &Asked| match asked {
        Asked::Punch { len, .. } => *len,
        _ => 0,
    };
    log.iter().map(len).sum()
}

/// Everything written and durable.
fn full() -> Rig {
    let mut rig = Rig::new(2);
    rig.write(0..BLOCKS).unwrap();
    rig.flush().unwrap();
    rig.medium.take_log();
    rig
}

#[test]
fn discarded_space_is_given_back_by_itself_and_writes_no_map() {
    let mut rig = full();
    rig.run(DISCARD, 0..BLOCKS).unwrap();
    rig.settle(0);
    assert_eq!(punched(&rig.medium.take_log()), 0, "it is not durable yet");
    rig.submit(0, RequestKind::Flush, 0..0);
    let mut done = Vec::new();
    for _ in 0..50 {
        done.extend(rig.settle(0));
        rig.medium.pass(Duration::from_millis(1));
    }
    assert_eq!(done.len(), 1);
    let log = rig.medium.take_log();
    assert_eq!(punched(&log), BLOCKS * BLOCK, "{log:?}");
    assert_eq!(log.iter().map(map_bytes).sum::<usize>(), 3 * 512, "{log:?}");
    // Nor does a flush without a reason of its own.
    rig.flush().unwrap();
    let log = rig.medium.take_log();
    assert_eq!(log, [Asked::SyncData]);
    // One that writes the map anyway says what is free by now.
    rig.write(1..2).unwrap();
    rig.flush().unwrap();
    let log = rig.medium.take_log();
    assert_eq!(log.iter().map(map_bytes).sum::<usize>(), 3 * 512, "{log:?}");
}

#[test]
fn a_flush_costs_what_it_covers_however_much_waits_to_be_given_back() {
    let mut rig = full();
    let hole = |asked| matches!(asked, Asked::Punch { .. }).then_some(libc::EIO);
    rig.medium.fail(hole);
    rig.run(DISCARD, 0..BLOCKS - 1).unwrap();
    rig.flush().unwrap();
    rig.medium.take_log();
    for _ in 0..20 {
        rig.write(BLOCKS - 1..BLOCKS).unwrap();
        rig.flush().unwrap();
        rig.settle(0);
        let log = rig.medium.take_log();
        let (writes, holes) = (log.iter().map(map_bytes).sum::<usize>(), punched(&log));
        assert_eq!((writes, holes), (0, 0), "{log:?}");
    }
    // They are tried again when some time has passed, longer each time.
    for wait in [1, 2, 4] {
        rig.medium.pass(Duration::from_millis(wait * 1000 - 100));
        rig.settle(0);
        assert_eq!(punched(&rig.medium.take_log()), 0, "after {wait} s");
        rig.medium.pass(Duration::from_millis(100));
        rig.settle(0);
        assert!(punched(&rig.medium.take_log()) > 0, "after {wait} s");
    }
    rig.medium.fail(|_| None);
    rig.medium.pass(Duration::from_secs(60));
    for _ in 0..20 {
        rig.settle(0);
        rig.medium.pass(Duration::from_millis(1));
    }
    assert_eq!(punched(&rig.medium.take_log()), (BLOCKS - 1) * BLOCK);
}

#[test]
fn a_block_that_was_written_and_discarded_again_waits_for_a_flush_of_its_own() {
    let mut rig = full();
    rig.medium.set_free(false);
    rig.submit(0, DISCARD, 7..8);
    rig.submit(0, RequestKind::Flush, 0..0);
    rig.poll(0);
    // While that flush runs, which says zero of the block.
    rig.submit(1, RequestKind::Write { durable: false }, 7..8);
    rig.poll(1);
    rig.queues[1].store_mut().step();
    assert_eq!(rig.poll(1).len(), 1);
    rig.submit(1, DISCARD, 7..8);
    rig.medium.set_free(true);
    rig.settle(0);
    rig.settle(1);
    assert_eq!(punched(&rig.medium.take_log()), 0);
    // Another sector's discards do not keep it from its turn, nor do writes beside it.
    rig.submit(0, RequestKind::Flush, 0..0);
    rig.settle(0);
    rig.run(DISCARD, 4000..4001).unwrap();
    rig.run(RequestKind::Write { durable: false }, 8..9)
        .unwrap();
    rig.settle(0);
    assert_eq!(punched(&rig.medium.take_log()), BLOCK);
}

#[test]
fn discards_that_nobody_flushes_are_given_back_after_a_while() {
    let mut rig = full();
    rig.run(DISCARD, 0..10).unwrap();
    for _ in 0..4 {
        rig.medium.pass(Duration::from_secs(1));
        rig.settle(0);
    }
    assert_eq!(rig.medium.take_log(), []);
    assert!(rig.queues[0].idle_for().unwrap() <= Duration::from_secs(1));
    rig.medium.pass(Duration::from_secs(1));
    rig.settle(0);
    assert_eq!(punched(&rig.medium.take_log()), 10 * BLOCK);
    assert_eq!(rig.queues[0].idle_for(), None);
}

const SECTOR: u64 = format::BLOCKS_PER_SECTOR;

/// Fails writes to these blocks, which are inherited, while nothing is given back.
fn fail_writes(rig: &mut Rig, blocks: &[u64]) {
    rig.queues[0].stop_punching();
    rig.medium
        .fail(|asked| matches!(asked, Asked::Write { .. }).then_some(libc::ENOSPC));
    for block in blocks {
        rig.write(*block..block + 1).unwrap_err();
    }
    rig.medium.fail(|_| None);
    rig.medium.take_log();
}

#[test]
fn a_hole_that_fails_under_inherited_blocks_is_left_to_a_later_pass() {
    let mut rig = Rig::new(1);
    rig.write(4500..4501).unwrap();
    rig.flush().unwrap();
    fail_writes(&mut rig, &[5, SECTOR + 5]);
    let hole = |asked| matches!(asked, Asked::Punch { at, .. } if at < SECTOR * BLOCK);
    rig.medium
        .fail(move |asked| hole(asked).then_some(libc::ENOSPC));
    rig.queues[0].punch_on();
    // Not until it is idle, which it would never be if it went on with what fails.
    (0..40).for_each(|_| drop(rig.poll(0)));
    let log = rig.medium.take_log();
    assert_eq!(
        punched(&log),
        2 * SECTOR * BLOCK,
        "each sector once: {log:?}"
    );
    assert_eq!(rig.queues[0].idle_for(), Some(Duration::from_secs(1)));

    // Nor does it keep what is discarded meanwhile from being given back.
    rig.run(DISCARD, 4500..4501).unwrap();
    rig.flush().unwrap();
    rig.medium.take_log();
    rig.medium.pass(Duration::from_secs(1));
    (0..40).for_each(|_| drop(rig.poll(0)));
    let log = rig.medium.take_log();
    assert_eq!(punched(&log), (SECTOR + 1) * BLOCK, "{log:?}");

    rig.medium.fail(|_| None);
    rig.medium.pass(Duration::from_secs(60));
    rig.settle(0);
    assert_eq!(punched(&rig.medium.take_log()), SECTOR * BLOCK);
    rig.medium.pass(Duration::from_secs(60));
    rig.settle(0);
    assert_eq!(rig.queues[0].idle_for(), None);
}

#[test]
fn space_that_a_damaged_map_may_speak_of_is_left_alone() {
    let mut rig = Rig::new(1);
    rig.medium.damage_map(1);
    for block in [0, 2 * SECTOR] {
        rig.volume.map().find_strays(block..block + 1).unwrap();
    }
    rig.medium.take_map_reads();
    rig.queues[0].punch_on();
    (0..40).for_each(|_| drop(rig.poll(0)));
    let reads = rig.medium.take_map_reads();
    assert!(
        (1..=3).contains(&reads),
        "it is read for one sector: {reads}"
    );
    assert_eq!(rig.queues[0].idle_for(), None, "the turn is another's");
    rig.flush().unwrap();
    rig.medium.pass(Duration::from_secs(60));
    rig.settle(0);
    assert_eq!(rig.medium.take_map_reads(), 0);
    assert_eq!(punched(&rig.medium.take_log()), 0);
}

#[test]
fn a_map_that_cannot_be_read_is_asked_for_later() {
    let mut rig = Rig::new(1);
    for block in [0, 2 * SECTOR] {
        rig.volume.map().find_strays(block..block + 1).unwrap();
    }
    rig.medium.set_map_unreadable(true);
    rig.medium.take_map_reads();
    rig.queues[0].punch_on();
    (0..40).for_each(|_| drop(rig.poll(0)));
    assert_eq!(rig.medium.take_map_reads(), 1);
    assert_eq!(rig.queues[0].idle_for(), Some(Duration::from_secs(1)));
    rig.medium.set_map_unreadable(false);
    rig.medium.pass(Duration::from_secs(1));
    rig.settle(0);
    let log = rig.medium.take_log();
    assert_eq!(punched(&log), (BLOCKS - SECTOR) * BLOCK, "{log:?}");
}

#[test]
fn what_is_left_of_a_sector_stays_with_its_volume() {
    let mut rig = Rig::new(1);
    fail_writes(&mut rig, &[5]);
    rig.medium.set_free(false);
    rig.queues[0].punch_on();
    rig.poll(0);
    rig.queues[0].stop_punching();
    rig.medium.set_free(true);
    rig.settle(0);
    let first = punched(&rig.medium.take_log());
    assert!((1..SECTOR * BLOCK).contains(&first), "a part: {first}");

    // Nothing of its map is loaded.
    let other = Rig::new(0);
    rig.queues[0].set_volume(other.volume.clone());
    rig.settle(0);
    assert_eq!(punched(&rig.medium.take_log()), 0);
    rig.queues[0].set_volume(rig.volume.clone());
    rig.settle(0);
    assert_eq!(punched(&rig.medium.take_log()), SECTOR * BLOCK);
}

/// So that a queue which ends when nothing is under way hears of a sync that failed, which the kernel tells
/// nobody else.
#[test]
fn the_flush_of_discards_is_under_way_though_nobody_waits_for_it() {
    let mut rig = full();
    rig.run(DISCARD, 0..10).unwrap();
    rig.medium.set_free(false);
    rig.medium.pass(Duration::from_secs(5));
    rig.poll(0);
    rig.queues[0].stop_punching();
    assert!(!rig.queues[0].is_idle());
    fail_once(&rig.medium, Asked::SyncData, libc::EIO);
    rig.medium.set_free(true);
    rig.settle(0);
    assert_eq!(rig.volume.failed_sync(), Some(FailedSync::Data));
}
