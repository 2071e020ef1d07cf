//! Marks of blocks.

use std::ops::Range;
use std::rc::Rc;

use loom::cell::UnsafeCell;
use loom::thread;

use super::check;
use crate::marks::BlockMarks;

/// Blocks with what marks are for. loom tells of an access that another may meet.
struct Blocks {
    marks: BlockMarks,
    content: [UnsafeCell<u64>; 3],
}

impl Blocks {
    /// loom has all its threads on one of the system's.
    fn new() -> Rc<Self> {
        Rc::new(Self {
            marks: BlockMarks::default(),
            content: std::array::from_fn(|_| UnsafeCell::new(0)),
        })
    }

    /// Changes blocks, if nobody else is at them.
    fn change(&self, blocks: Range<u64>) {
        if let Some(mark) = self.marks.try_exclusive(blocks) {
            for block in mark.blocks() {
                // SAFETY: loom looks whether another thread is at it.
                self.content[block as usize].with_mut(|content| unsafe { *content += 1 });
            }
            self.marks.release(mark);
        }
    }

    /// Looks at blocks, if nobody changes them.
    fn look(&self, blocks: Range<u64>) {
        if let Some(mark) = self.marks.try_shared(blocks) {
            for block in mark.blocks() {
                // SAFETY: as above.
                self.content[block as usize].with(|content| unsafe { *content });
            }
            self.marks.release(mark);
        }
    }

    fn all_are_free(&self) -> bool {
        let mark = self.marks.try_exclusive(0..3);
        let mark = mark.map(|mark| self.marks.release(mark));
        mark.is_some()
    }
}

/// Who has a block alone meets nobody there, and sees what was done before.
pub fn marks_exclude_each_other() {
    check(3, || {
        let blocks = Blocks::new();
        let others = [
            (0..2, Blocks::change as fn(&Blocks, Range<u64>)),
            (1..3, Blocks::look),
        ];
        let others = others.map(|(range, work)| {
            let blocks = blocks.clone();
            thread::spawn(move || work(&blocks, range))
        });
        // A part is given back before the rest.
        if let Some(mark) = blocks.marks.try_exclusive(1..3) {
            let mark = blocks.marks.narrow(mark, 2..3);
            // SAFETY: as above.
            blocks.content[2].with_mut(|content| unsafe { *content += 1 });
            blocks.marks.release(mark);
        }
        others.into_iter().for_each(|other| other.join().unwrap());
        assert!(blocks.all_are_free(), "a block stays marked");
    });
}

/// Marks that are not to be had leave none behind.
pub fn a_failed_mark_gives_all_back() {
    check(3, || {
        let blocks = Blocks::new();
        let kept = blocks.marks.try_shared(2..3).unwrap();
        let others = [Blocks::change, Blocks::look].map(|work| {
            let blocks = blocks.clone();
            thread::spawn(move || work(&blocks, 0..3))
        });
        blocks.look(0..1);
        others.into_iter().for_each(|other| other.join().unwrap());
        assert!(!blocks.all_are_free());
        blocks.marks.release(kept);
        assert!(blocks.all_are_free(), "a block stays marked");
    });
}
