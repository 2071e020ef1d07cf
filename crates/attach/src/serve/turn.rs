//! The turn of whoever changes an attached disk: one has it at a time.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

/// Where turns are had.
#[derive(Default)]
pub(crate) struct Turns {
    taken: Mutex<bool>,
    ended: Condvar,
}

/// A turn, which ends when it is dropped.
pub(crate) struct Turn(Arc<Turns>);

impl Turns {
    /// Waits for a turn.
    pub(crate) fn wait(self: &Arc<Self>) -> Turn {
        let free = self.ended.wait_while(self.taken(), |taken| *taken);
        *free.unwrap_or_else(PoisonError::into_inner) = true;
        Turn(self.clone())
    }

    /// A turn, if nobody has one.
    pub(crate) fn take(self: &Arc<Self>) -> Option<Turn> {
        let taken = std::mem::replace(&mut *self.taken(), true);
        (!taken).then(|| Turn(self.clone()))
    }

    fn taken(&self) -> MutexGuard<'_, bool> {
        // Nobody can panic who holds it.
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        *self.0.taken() = false;
        self.0.ended.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_has_the_turn_at_a_time() {
        let turns = Arc::new(Turns::default());
        let first = turns.wait();
        assert!(turns.take().is_none());
        let waiting = std::thread::spawn({
            let turns = turns.clone();
            move || drop(turns.wait())
        });
        assert!(turns.take().is_none());
        drop(first);
        waiting.join().unwrap();
        assert!(turns.take().is_some());
        assert!(turns.take().is_some(), "the one before has ended");
    }
}
