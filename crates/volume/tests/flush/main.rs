//! Flushes, write-through and discards, on a store that fails as it is told: what the guest is promised,
//! and what it costs.

// Clippy exempts only functions with #[test], and helpers of tests panic as tests do.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod discards;
mod logged_store;
mod rig;

use std::sync::Arc;

use logged_store::Asked;
use volume::pipeline::{RequestError, RequestKind};
use volume::{Content, FailedSync, LayerMap, Volume, format};

use rig::*;

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

/// As when its ring has failed. Another queue's flush would find nothing to write.
#[test]
fn a_flush_that_is_given_up_is_done_by_the_next() {
    for steps in 0..3 {
        let mut rig = Rig::new(2);
        rig.write(0..1).unwrap();
        rig.medium.set_free(false);
        rig.submit(0, RequestKind::Flush, 0..0);
        assert!(rig.poll(0).is_empty());
        for _ in 0..steps {
            assert!(rig.queues[0].store_mut().step());
            assert!(rig.poll(0).is_empty());
        }
        drop(rig.queues.remove(0));
        rig.medium.set_free(true);
        rig.medium.take_log();
        rig.flush().unwrap();
        let at = format::sector_offset(0);
        let expected = Asked::WriteMap { at, len: 512 };
        let log = rig.medium.take_log();
        assert_eq!(log, [Asked::SyncData, expected, Asked::SyncMap]);
    }
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
        rig.volume.map().load(0..rig.volume.map().blocks()).unwrap();
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
