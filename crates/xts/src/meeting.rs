//! How a thread gets help with a job that is on its stack: others may look at the job until the thread goes on, and
//! not a moment longer. Nobody waits who does not use it, and there is no lock.

use crate::sync::{AtomicBool, AtomicU32, Ordering, UnsafeCell, pause};

/// Where threads meet: one brings a job at a time, any number help.
pub(crate) struct Meeting<J> {
    /// A thread has brought a job, or is about to.
    taken: AtomicBool,
    /// The job may be looked at.
    open: AtomicBool,
    /// Threads that may be looking at it.
    inside: AtomicU32,
    /// Written by who has set `taken`, while it is not open and nobody is inside.
    job: UnsafeCell<Option<J>>,
}

// SAFETY: a job goes from the thread that brings it to those that help, which use it at the same time; `taken`, `open` and `inside` order
// that (checked by loom in `models`).
unsafe impl<J: Send + Sync> Sync for Meeting<J> {}

impl<J> Default for Meeting<J> {
    fn default() -> Self {
        Self {
            taken: AtomicBool::new(false),
            open: AtomicBool::new(false),
            inside: AtomicU32::new(0),
            job: UnsafeCell::new(None),
        }
    }
}

impl<J> Meeting<J> {
    /// Lets others help with `job` while `work` is done, after `wake`. When this returns nobody uses it any more.
    /// `false`, with nothing done, while another thread has a job here.
    pub(crate) fn share(&self, job: J, wake: impl FnOnce(), work: impl FnOnce(&J) -> bool) -> bool {
        if self.taken.swap(true, Ordering::Acquire) {
            return false;
        }
        // SAFETY: `taken` keeps other writers out; it is not open, and the last job's end has waited until nobody was inside.
        self.job.with_mut(|place| unsafe { *place = Some(job) });
        // Also when `work` panics.
        let end = End(self);
        // Sequentially consistent, as is what a helper does before it sleeps: one of the two sees the other.
        self.open.store(true, Ordering::SeqCst);
        wake();
        self.look(work);
        drop(end);
        true
    }

    /// Whether there is a job to help with.
    pub(crate) fn is_open(&self) -> bool {
        self.open.load(Ordering::SeqCst)
    }

    /// Helps with the job that there is; whether there was one, and something left of it, which `work` says.
    pub(crate) fn help(&self, work: impl FnOnce(&J) -> bool) -> bool {
        // Sequentially consistent, as in `End`: who brings the job sees this thread inside, or this thread sees that
        // it is closed.
        self.inside.fetch_add(1, Ordering::SeqCst);
        let leave = Leave(self);
        let helped = self.open.load(Ordering::SeqCst) && self.look(work);
        drop(leave);
        helped
    }

    fn look(&self, work: impl FnOnce(&J) -> bool) -> bool {
        // SAFETY: the caller has brought the job, or is inside while it is open; it stays as it is for both.
        self.job
            .with(|place| unsafe { &*place }.as_ref().is_some_and(work))
    }
}

/// Ends a job: closes, and waits for those who are inside.
struct End<'a, J>(&'a Meeting<J>);

impl<J> Drop for End<'_, J> {
    fn drop(&mut self) {
        let meeting = self.0;
        meeting.open.store(false, Ordering::SeqCst);
        let mut turn = 0;
        while meeting.inside.load(Ordering::SeqCst) != 0 {
            pause(turn);
            turn = turn.saturating_add(1);
        }
        // SAFETY: closed, and nobody inside: who comes now sees that. `taken` keeps other writers out.
        meeting.job.with_mut(|place| unsafe { *place = None });
        meeting.taken.store(false, Ordering::Release);
    }
}

/// Counts a helper out, also when it panics.
struct Leave<'a, J>(&'a Meeting<J>);

impl<J> Drop for Leave<'_, J> {
    fn drop(&mut self) {
        self.0.inside.fetch_sub(1, Ordering::Release);
    }
}
