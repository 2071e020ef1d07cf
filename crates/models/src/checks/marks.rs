//! Marks of blocks.

use std::ops::Range;
use std::rc::Rc;

use loom::cell::UnsafeCell;
use loom::thread;

use super::check;
use crate::marks::{BlockMark, BlockMarks, Wanted};

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
            self.change_marked(mark);
        }
    }

    fn change_marked(&self, mark: BlockMark) {
        for block in mark.blocks() {
            // SAFETY: loom looks whether another thread is at it.
            self.content[block as usize].with_mut(|content| unsafe { *content += 1 });
        }
        self.marks.release(mark);
    }

    /// Changes blocks, as many at a time as nobody else is at, until all are changed.
    fn change_all(&self, mut blocks: Range<u64>, mut wanted: Option<Wanted>) {
        while !blocks.is_empty() {
            match self.marks.want_alone(blocks.clone(), wanted.take()) {
                Ok(mark) => {
                    blocks.start = mark.blocks().end;
                    self.change_marked(mark);
                }
                Err(still) => {
                    wanted = Some(still);
                    thread::yield_now();
                }
            }
        }
    }

    /// Looks at blocks, if nobody changes them; whether it has.
    fn has_looked(&self, blocks: Range<u64>) -> bool {
        let Some(mark) = self.marks.try_shared(blocks) else {
            return false;
        };
        for block in mark.blocks() {
            // SAFETY: as above.
            self.content[block as usize].with(|content| unsafe { *content });
        }
        self.marks.release(mark);
        true
    }

    fn look(&self, blocks: Range<u64>) {
        self.has_looked(blocks);
    }

    /// Looks at blocks as soon as it may.
    fn look_in_the_end(&self, blocks: Range<u64>) {
        while !self.has_looked(blocks.clone()) {
            thread::yield_now();
        }
    }

    /// Whether nobody has a block or waits for one.
    fn all_are_free(&self) -> bool {
        let mark = self.marks.try_exclusive(0..3);
        let mark = mark.map(|mark| self.marks.release(mark));
        mark.is_some() && self.has_looked(0..3)
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

/// Who wants a block alone has it as soon as those that shared it before are gone, whoever comes meanwhile.
pub fn a_block_that_is_wanted_is_had_in_the_end() {
    check(3, || {
        let blocks = Blocks::new();
        let before = blocks.marks.try_shared(1..2).unwrap();
        let Err(wanted) = blocks.marks.want_alone(1..3, None) else {
            panic!("a block that is shared");
        };
        let others = [0..3, 1..2].map(|range| {
            let blocks = blocks.clone();
            thread::spawn(move || blocks.look(range))
        });
        blocks.marks.release(before);
        match blocks.marks.want_alone(1..3, Some(wanted)) {
            Ok(mark) => blocks.change_marked(mark),
            Err(_) => panic!("others have come first"),
        }
        others.into_iter().for_each(|other| other.join().unwrap());
        assert!(blocks.all_are_free(), "a block stays marked, or wanted");
    });
}

/// Two that want several blocks alone, and one that shares a block and is to share another: none waits for ever.
pub fn all_who_want_blocks_get_them() {
    check(1, || {
        let blocks = Blocks::new();
        let kept = blocks.marks.try_shared(0..1).unwrap();
        let others = [0..2, 1..3].map(|range| {
            let blocks = blocks.clone();
            thread::spawn(move || blocks.change_all(range, None))
        });
        // An operation ends whether or not the next one of its request can begin.
        blocks.look(1..2);
        blocks.marks.release(kept);
        blocks.look_in_the_end(1..2);
        others.into_iter().for_each(|other| other.join().unwrap());
        assert!(blocks.all_are_free(), "a block stays marked, or wanted");
        let changed = [1, 2, 1];
        for (content, changed) in blocks.content.iter().zip(changed) {
            // SAFETY: as above.
            content.with(|content| assert_eq!(unsafe { *content }, changed));
        }
    });
}

/// Who wants a block no more takes nothing from another who does, and keeps nobody out.
pub fn nobody_who_gives_up_keeps_others_out() {
    check(1, || {
        let blocks = Blocks::new();
        let kept = blocks.marks.try_shared(1..2).unwrap();
        let Err(wanted) = blocks.marks.want_alone(1..2, None) else {
            panic!("a block that is shared");
        };
        let changer = {
            let blocks = blocks.clone();
            thread::spawn(move || blocks.change_all(1..2, None))
        };
        let looker = {
            let blocks = blocks.clone();
            thread::spawn(move || blocks.look_in_the_end(0..2))
        };
        blocks.marks.want_no_more(wanted);
        blocks.marks.release(kept);
        changer.join().unwrap();
        looker.join().unwrap();
        assert!(blocks.all_are_free(), "a block stays marked, or wanted");
    });
}
