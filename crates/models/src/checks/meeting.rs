//! Help with a job of another thread.

use loom::cell::UnsafeCell;
use loom::sync::Arc;
use loom::sync::atomic::{AtomicU32, Ordering};
use loom::thread;

use super::check;
use crate::meeting::Meeting;

/// What a job's owner has on its stack.
struct Job {
    /// What is done by who comes first.
    next: AtomicU32,
    parts: [UnsafeCell<u32>; 2],
    is_there: std::sync::atomic::AtomicBool,
}

impl Job {
    fn work(&self) -> bool {
        let is_there = || self.is_there.load(Ordering::SeqCst);
        let mut any = false;
        loop {
            assert!(is_there(), "its owner has gone on");
            let Some(part) = self
                .parts
                .get(self.next.fetch_add(1, Ordering::Relaxed) as usize)
            else {
                return any;
            };
            // SAFETY: loom looks whether another thread is at it.
            part.with_mut(|part| unsafe { *part += 1 });
            any = true;
        }
    }
}

/// Jobs that wait for nobody who does not help.
fn bring(meeting: &Meeting<Arc<Job>>) {
    let job = Arc::new(Job {
        next: AtomicU32::new(0),
        parts: std::array::from_fn(|_| UnsafeCell::new(0)),
        is_there: true.into(),
    });
    if !meeting.share(job.clone(), || {}, |job| job.work()) {
        job.work();
    }
    job.is_there.store(false, Ordering::SeqCst);
    for part in &job.parts {
        // SAFETY: as above: nobody may be at it any more.
        part.with(|part| assert_eq!(unsafe { *part }, 1));
    }
}

/// Each part is done once; when its owner goes on nobody is at it, and what helpers did is seen.
pub fn helpers_use_a_job_only_while_it_is_there() {
    check(3, || {
        let meeting = std::rc::Rc::new(Meeting::<Arc<Job>>::default());
        let helper = thread::spawn({
            let meeting = meeting.clone();
            move || {
                meeting.help(|job| job.work());
                meeting.help(|job| job.work());
            }
        });
        let other = thread::spawn({
            let meeting = meeting.clone();
            move || bring(&meeting)
        });
        bring(&meeting);
        helper.join().unwrap();
        other.join().unwrap();
    });
}
