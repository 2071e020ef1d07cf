//! A limit on how many operations are under way in one token, and a way out for those who wait for
//! one that hangs.
//!
//! A PKCS#11 function cannot be interrupted. So each operation runs in a thread of its own, and who
//! waits for it gives up after a while; the thread stays until the function returns. There are at
//! most [`WIDTH`] of them for a token, and when all of those hang, nobody waits any more. Other
//! tokens have other lanes.

use std::collections::BTreeMap;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

/// Operations that are under way in a token at most.
const WIDTH: usize = 8;

/// The operations of one token.
#[derive(Default)]
pub(super) struct Lane {
    state: Mutex<State>,
    left: Condvar,
}

#[derive(Default)]
struct State {
    next: u64,
    /// The operations under way; true for those that nobody waits for any more.
    inside: BTreeMap<u64, bool>,
}

/// The right to run an operation; given back when it is dropped.
pub(super) struct Place {
    lane: Arc<Lane>,
    number: u64,
}

impl Lane {
    /// Waits for a place until `deadline`; `None` when there is none, at once when every operation
    /// under way hangs.
    pub fn enter(self: &Arc<Self>, deadline: Instant) -> Option<Place> {
        let mut state = self.state();
        while state.inside.len() >= WIDTH {
            let now = Instant::now();
            if now >= deadline || state.inside.values().all(|hangs| *hangs) {
                return None;
            }
            let waited = self.left.wait_timeout(state, deadline - now);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        let number = state.next;
        state.next += 1;
        state.inside.insert(number, false);
        Some(Place {
            lane: Arc::clone(self),
            number,
        })
    }

    /// Nobody waits any more for the operation with that number.
    pub fn hangs(&self, number: u64) {
        if let Some(hangs) = self.state().inside.get_mut(&number) {
            *hangs = true;
            self.left.notify_all();
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Place {
    pub fn number(&self) -> u64 {
        self.number
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.lane.state().inside.remove(&self.number);
        self.lane.left.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_full_lane_is_waited_for_and_a_hanging_one_is_not() {
        let lane = Arc::new(Lane::default());
        let far = Instant::now() + Duration::from_secs(3600);
        let mut places: Vec<_> = (0..WIDTH).filter_map(|_| lane.enter(far)).collect();
        assert_eq!(places.len(), WIDTH);
        assert!(lane.enter(Instant::now()).is_none());
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| lane.enter(far).is_some());
            places.pop();
            assert!(waiting.join().unwrap());
        });
        let again = lane.enter(far).unwrap();
        for place in places.iter().chain([&again]) {
            lane.hangs(place.number());
        }
        assert!(lane.enter(far).is_none(), "it does not wait for an hour");
        drop(again);
        assert!(lane.enter(far).is_some());
    }
}
