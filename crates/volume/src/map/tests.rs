//! The map against a plain array.

use std::cell::Cell;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use keys::units::BLOCK_SIZE;
use proptest::prelude::*;
use uuid::Uuid;
use xts::DataUnit;

use super::block_map::Becomes;
use super::load::LOADING;
use super::*;
use crate::format::{self, BLOCKS_PER_CHUNK, BLOCKS_PER_SECTOR, SECTORS_PER_CHUNK};
use crate::store::ReadAt;
use crate::{BlockState, Geometry, RuntimeMap};

/// The states of a map file that is never written to.
pub(super) struct Empty;

impl ReadAt for Empty {
    fn size(&self) -> std::io::Result<u64> {
        Ok(u64::MAX)
    }

    fn read_exact_at(&self, buffer: &mut [u8], _: u64) -> std::io::Result<()> {
        buffer.fill(0);
        Ok(())
    }
}

fn map(blocks: u64) -> BlockMap {
    let map = BlockMap::private(Arc::new(Empty), blocks).unwrap();
    map.load(0..map.blocks()).unwrap();
    map
}

#[derive(Debug, Clone)]
enum Change {
    Data(Range<u64>),
    Zero(Range<u64>, bool),
    Hide(Range<u64>),
    Released(Range<u64>),
}

fn range() -> impl Strategy<Value = Range<u64>> {
    (0u64..5000, 0u64..300).prop_map(|(start, len)| start..(start + len).min(5000))
}

fn change() -> impl Strategy<Value = Change> {
    prop_oneof![
        range().prop_map(Change::Data),
        (range(), any::<bool>()).prop_map(|(r, held)| Change::Zero(r, held)),
        range().prop_map(Change::Hide),
        range().prop_map(Change::Released),
    ]
}

type To = Box<dyn Fn(BlockState) -> BlockState>;

fn apply(map: &BlockMap, change: Change) -> (Range<u64>, To) {
    match change {
        Change::Data(range) => {
            map.set_data(range.clone());
            (range, Box::new(|_| BlockState::Data))
        }
        Change::Zero(range, held) => {
            let to = match held {
                true => BlockState::ZeroHeld,
                false => BlockState::Zero,
            };
            map.set_zero(range.clone(), to);
            let new = move |old| if old == BlockState::Data { to } else { old };
            (range, Box::new(new))
        }
        Change::Hide(range) => {
            map.hide(range.clone());
            let new = |old| match old {
                BlockState::Inherit => BlockState::Zero,
                old => old,
            };
            (range, Box::new(new))
        }
        Change::Released(range) => {
            map.set_released(range.clone());
            let new = |old| match old {
                BlockState::ZeroHeld => BlockState::Zero,
                old => old,
            };
            (range, Box::new(new))
        }
    }
}

#[test]
fn only_chunks_that_were_asked_for_are_loaded() {
    let map = BlockMap::private(Arc::new(Empty), 3 * BLOCKS_PER_CHUNK).unwrap();
    let second = BLOCKS_PER_CHUNK + 5;
    let run = map
        .run_in_chunk(second, u64::MAX - second)
        .unwrap()
        .unwrap();
    let blocks = BLOCKS_PER_CHUNK - 5;
    let what = Content::Inherited;
    assert_eq!(run, Run { what, blocks });
    let loaded = |chunk| map.is_loaded(chunk * SECTORS_PER_CHUNK);
    assert_eq!([loaded(0), loaded(1), loaded(2)], [false, true, false]);
    assert!(map.ensure(BLOCKS_PER_CHUNK - 1..BLOCKS_PER_CHUNK).unwrap());
    map.set_data(2..3);
    assert_eq!(map.data_blocks(), 1);
    map.words.flags()[2].store(LOADING, Ordering::Release);
    assert!(!map.ensure(0..3 * BLOCKS_PER_CHUNK).unwrap());
    map.forget_loaders();
    assert!(map.ensure(0..3 * BLOCKS_PER_CHUNK).unwrap());
}

/// A map that outlives the process: its file is copied where a kill would leave it, and opened as the next process
/// does.
#[test]
fn what_is_changed_when_a_process_dies_is_flushed_by_the_next() {
    let dir = tempfile::tempdir_in("/dev/shm").unwrap();
    let [path, left, flushing] = ["map", "left", "flushing"].map(|name| dir.path().join(name));
    let geometry = Geometry {
        disk: Uuid::from_u128(1),
        layer: Uuid::from_u128(2),
        size: 2 * BLOCKS_PER_CHUNK * BLOCK_SIZE,
        data_unit: DataUnit::B4096,
    };
    let open = |path: &Path| {
        let (runtime, _) = RuntimeMap::open(path, &geometry, Uuid::nil(), Uuid::nil()).unwrap();
        let (words, blocks) = (runtime.words(&geometry).unwrap(), geometry.blocks());
        let map = BlockMap::new(words, Arc::new(Empty), blocks, Arc::default()).unwrap();
        map.adopt_dirty(false);
        map
    };
    let dirty = |map: &BlockMap| {
        let mut sectors = Vec::new();
        map.take_dirty(&mut sectors, 0);
        sectors
    };
    let map = open(&path);
    map.load(0..map.blocks()).unwrap();
    // The last block of a sector and the first of the next, in two words.
    let blocks = BLOCKS_PER_SECTOR - 1..BLOCKS_PER_SECTOR + 1;
    let data = BlockState::Data.repeated();
    let changes = Cell::new(0);
    map.change(blocks.clone(), Becomes::Data, |word, mask| {
        changes.set(changes.get() + 1);
        // It was looked at whether anything changes. Then came the first word, and now comes the second.
        if changes.get() == 3 {
            std::fs::copy(&path, &left).unwrap();
        }
        (word & !mask) | (data & mask)
    });
    assert_eq!(dirty(&map), [0, 1]);
    // A kill that leaves a flush under way.
    std::fs::copy(&path, &flushing).unwrap();
    assert_eq!(dirty(&open(&flushing)), [0, 1]);
    map.end_flush(&[0, 1]);
    let next = open(&left);
    assert_eq!(next.get(blocks.start), BlockState::Data);
    assert_eq!(next.get(blocks.start + 1), BlockState::Inherit);
    assert_eq!(dirty(&next), [0, 1]);
    // What is done again changes what is left to do, and a map that is whole is not written again.
    next.set_data(blocks);
    assert_eq!(dirty(&next), [1]);
    next.end_flush(&[0, 1]);
    drop(next);
    assert_eq!(dirty(&open(&left)), [0u64; 0]);
    assert_eq!(dirty(&open(&path)), [0u64; 0]);
}

/// Another thread may have found the states as they are to be, and told its guest so.
#[test]
fn a_flush_takes_what_is_being_changed() {
    let map = map(3 * BLOCKS_PER_SECTOR);
    let blocks = BLOCKS_PER_SECTOR - 1..BLOCKS_PER_SECTOR + 1;
    let data = BlockState::Data.repeated();
    let dirty = || {
        let mut sectors = Vec::new();
        map.take_dirty(&mut sectors, 0);
        map.end_flush(&sectors);
        sectors
    };
    let changes = Cell::new(0);
    map.change(blocks, Becomes::Data, |word, mask| {
        changes.set(changes.get() + 1);
        // As above: now comes the second word.
        if changes.get() == 3 {
            assert_eq!(dirty(), [0, 1], "changed and noted, and not changed yet");
            assert_eq!(dirty(), [0, 1]);
        }
        (word & !mask) | (data & mask)
    });
    assert!(changes.get() >= 3);
    assert_eq!(dirty(), [1], "noted since");
    assert_eq!(dirty(), [0u64; 0]);
}

proptest! {
    #[test]
    fn agrees_with_a_plain_array(changes in prop::collection::vec(change(), 1..40), probe in 0u64..5000) {
        let map = map(5000);
        let mut model = vec![BlockState::Inherit; 5000];
        let mut dirty = std::collections::BTreeSet::new();
        let mut released = std::collections::BTreeSet::new();
        for change in changes {
            let releases = matches!(change, Change::Released(_));
            let (range, to) = apply(&map, change);
            for block in range {
                let new = to(model[block as usize]);
                if model[block as usize] != new {
                    let sectors = if releases { &mut released } else { &mut dirty };
                    sectors.insert(block / BLOCKS_PER_SECTOR);
                    model[block as usize] = new;
                }
            }
        }
        for block in 0..5000 {
            prop_assert_eq!(map.get(block), model[block as usize], "block {}", block);
        }
        let what = Content::of(model[probe as usize]);
        let same = |b: &&BlockState| Content::of(**b) == what;
        let blocks = model[probe as usize..].iter().take_while(same).count() as u64;
        prop_assert_eq!(map.run(probe, 5000), Run { what, blocks });
        let data = model.iter().filter(|b| **b == BlockState::Data).count();
        prop_assert_eq!(map.data_blocks(), data as u64);
        let (mut taken, mut expected) = (Vec::new(), dirty);
        map.take_dirty(&mut taken, 0);
        prop_assert_eq!(&taken, &expected.iter().copied().collect::<Vec<_>>());
        // What was only given back is written when there is an occasion.
        expected.extend(&released);
        map.take_dirty(&mut taken, 1000);
        taken.sort_unstable();
        taken.dedup();
        prop_assert_eq!(&taken, &expected.into_iter().collect::<Vec<_>>());

        let mut held = vec![];
        for sector in 0..format::sectors(5000) {
            let start = sector * BLOCKS_PER_SECTOR;
            let (mut from, end) = (start, (start + BLOCKS_PER_SECTOR).min(5000));
            while let Some(run) = map.held_run(from..end) {
                from = run.end;
                held.extend(run);
            }
        }
        let expected = (0..5000).filter(|b| model[*b as usize] == BlockState::ZeroHeld);
        prop_assert_eq!(held, expected.collect::<Vec<_>>());
    }
}
