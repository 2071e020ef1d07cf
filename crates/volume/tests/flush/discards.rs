//! Space that is given back: when, at which cost, and what a failure leaves.

use std::time::Duration;

use super::logged_store::Asked;
use super::rig::*;
use volume::pipeline::RequestKind;
use volume::{FailedSync, format};

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

/// Storage is full when their space is needed most.
#[test]
fn discards_whose_flush_fails_are_flushed_again_after_a_while() {
    let mut rig = full();
    rig.run(DISCARD, 0..10).unwrap();
    rig.medium
        .fail(|asked| (map_bytes(&asked) > 0).then_some(libc::ENOSPC));
    let after = Duration::from_secs(5);
    for _ in 0..3 {
        rig.medium.pass(after);
        rig.settle(0);
        let log = rig.medium.take_log();
        assert_eq!(count(&log, |a| map_bytes(a) > 0), 1, "{log:?}");
        assert_eq!(punched(&log), 0, "it is not durable");
        assert_eq!(rig.queues[0].idle_for(), Some(after));
    }
    rig.medium.fail(|_| None);
    rig.medium.pass(after);
    rig.settle(0);
    assert_eq!(punched(&rig.medium.take_log()), 10 * BLOCK);
    assert_eq!(rig.queues[0].idle_for(), None);
    // After a failed sync no flush can succeed, and none is begun.
    rig.run(DISCARD, 10..20).unwrap();
    fail_once(&rig.medium, Asked::SyncData, libc::EIO);
    rig.medium.pass(after);
    rig.settle(0);
    assert_eq!(rig.volume.failed_sync(), Some(FailedSync::Data));
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
