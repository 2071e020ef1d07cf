//! Whose turn it is to flush.

use std::sync::{Arc, Mutex};
use std::task::{Wake, Waker};

use loom::sync::Notify;
use loom::sync::atomic::{AtomicBool, Ordering};
use loom::thread;

use super::check;
use crate::flushes::Flushes;

/// A flush that serves who waits for its number began after what that one did before it asked.
pub fn a_flush_covers_what_came_before_it_was_asked_for() {
    check(3, || {
        let flushes = Arc::new(Flushes::default());
        let change = Arc::new(AtomicBool::new(false));
        // Of flush 1, 2, … whether it saw the change.
        let saw: Arc<Mutex<Vec<bool>>> = Arc::default();
        let flush = {
            let (flushes, change, saw) = (flushes.clone(), change.clone(), saw.clone());
            move || {
                if let Some(turn) = flushes.try_begin() {
                    let mut all = saw.lock().unwrap();
                    let number = turn.number().get() as usize;
                    // Flushes come one after the other, and each succeeds here.
                    assert_eq!(all.len() + 1, number);
                    all.push(change.load(Ordering::Relaxed));
                    drop(all);
                    turn.succeed();
                }
            }
        };
        let other = thread::spawn({
            let flush = flush.clone();
            move || {
                flush();
                flush();
            }
        });
        change.store(true, Ordering::Relaxed);
        let covering = flushes.covering();
        flush();
        if flushes.is_done(covering) {
            let saw = saw.lock().unwrap();
            let number = covering.get() as usize;
            assert!(saw[number - 1], "{covering:?} came before: {saw:?}");
        }
        other.join().unwrap();
    });
}

/// Wakes a thread that waits.
struct Call(Notify);

impl Wake for Call {
    fn wake(self: Arc<Self>) {
        self.0.notify();
    }
}

/// A queue that sleeps for the end of a flush is woken by it: loom tells of a thread that waits for ever.
pub fn no_wake_up_is_lost() {
    check(3, || {
        let flushes = Arc::new(Flushes::default());
        let queues = [0, 1].map(|place: usize| {
            let flushes = flushes.clone();
            let call = Arc::new(Call(Notify::new()));
            assert!(flushes.register(place, &Waker::from(call.clone())));
            thread::spawn(move || {
                let number = flushes.covering();
                while !flushes.is_done(number) {
                    match flushes.try_begin() {
                        Some(turn) => turn.succeed(),
                        None if flushes.sleep(place, number) => call.0.wait(),
                        None => thread::yield_now(),
                    }
                }
            })
        });
        queues.into_iter().for_each(|queue| queue.join().unwrap());
    });
}
