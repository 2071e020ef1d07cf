//! Durable writes.

use std::sync::Arc;

use loom::sync::atomic::{AtomicBool, Ordering};
use loom::thread;

use super::check;
use crate::durable_writes::DurableWrites;

/// A write that began before a flush asked is known to have ended when the flush goes on, with how it ended.
pub fn a_flush_knows_how_durable_writes_before_it_ended() {
    check(3, || {
        let writes = Arc::new(DurableWrites::default());
        let began: Arc<[AtomicBool; 2]> = Arc::default();
        let failed: Arc<[AtomicBool; 2]> = Arc::default();
        let writers = [0, 1].map(|writer: usize| {
            let (writes, began, failed) = (writes.clone(), began.clone(), failed.clone());
            thread::spawn(move || {
                let write = writes.begin();
                began[writer].store(true, Ordering::Release);
                failed[writer].store(true, Ordering::Relaxed);
                drop(write);
            })
        });
        for _ in 0..2 {
            let before = [0, 1].map(|writer: usize| began[writer].load(Ordering::Acquire));
            let Some(begun) = writes.begun() else {
                thread::yield_now();
                continue;
            };
            while !writes.have_ended(&begun) {
                thread::yield_now();
            }
            for writer in [0, 1].into_iter().filter(|writer| before[*writer]) {
                let known = failed[writer].load(Ordering::Relaxed);
                assert!(
                    known,
                    "write {writer} is under way, or it is not seen how it ended"
                );
            }
        }
        writers
            .into_iter()
            .for_each(|writer| writer.join().unwrap());
        let begun = writes.begun().expect("nothing is under way");
        assert!(writes.have_ended(&begun));
    });
}
