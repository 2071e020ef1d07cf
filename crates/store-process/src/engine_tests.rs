//! Lanes of one data plane after another, on a back-end that does what it is told.

use std::sync::{Mutex, MutexGuard};

use store_ring::{
    ClientLane, Completion, LaneBells, LaneMemory, Layout, Operation, RingError, Target,
};

use super::*;

const LAYOUT: Layout = Layout {
    lanes: 2,
    small: 1,
    chunks: 0,
};

/// Operations that wait until the test lets them end.
#[derive(Default)]
struct Held {
    begun: Vec<(Token, Operation)>,
    ended: Vec<(Token, Outcome)>,
}

#[derive(Clone)]
struct Slow(Arc<Mutex<Held>>, Alarm);

impl Slow {
    fn new() -> Self {
        Self(Arc::default(), Alarm::new().unwrap())
    }

    fn held(&self) -> MutexGuard<'_, Held> {
        self.0.lock().unwrap()
    }

    /// Waits until so many have begun.
    fn await_begun(&self, count: usize) {
        while self.held().begun.len() < count {
            std::thread::yield_now();
        }
    }

    fn end_all(&self) {
        let mut held = self.held();
        let begun = std::mem::take(&mut held.begun);
        held.ended
            .extend(begun.iter().map(|(token, _)| (*token, Ok(()))));
        self.1.ring();
    }
}

impl Backend for Slow {
    fn begin(&mut self, token: Token, operation: Operation, _: Option<Bytes>) {
        self.held().begun.push((token, operation));
    }

    fn ended(&mut self, into: &mut Vec<(Token, Outcome)>) {
        quiet(self.1.as_fd());
        into.append(&mut self.held().ended);
    }

    fn woken_by(&self) -> BorrowedFd<'_> {
        self.1.as_fd()
    }
}

/// The lanes of a data plane, and the other ends of them.
fn lanes() -> (Vec<ClientLane>, Vec<ServerLane>) {
    let file = LaneMemory::make(LAYOUT).unwrap();
    let [ours, theirs] = [0, 1].map(|_| LaneMemory::map(&file, LAYOUT).unwrap());
    let made = (0..LAYOUT.lanes).map(|number| {
        let bells = LaneBells::make().unwrap();
        let client = ClientLane::new(ours.clone(), number, bells.try_clone().unwrap());
        let server = ServerLane::new(theirs.clone(), number, bells);
        (client.unwrap(), server.unwrap())
    });
    made.unzip()
}

fn sync(lane: &mut ClientLane, slot: u32) {
    let target = Target::TOP;
    lane.submit(slot, &Operation::Sync { target });
    lane.publish().unwrap();
}

/// Waits for the end of an operation.
fn await_end(lane: &mut ClientLane) -> Completion {
    loop {
        if let Some(completion) = lane.next_completion().unwrap() {
            return completion;
        }
        if lane.may_sleep() {
            wait_for(&[lane.woken_by()]).unwrap();
            quiet(lane.woken_by());
        }
        lane.awake();
    }
}

fn run<B: Backend>(engine: Engine<B>) -> std::thread::JoinHandle<Result<(), StoreProcessError>> {
    std::thread::spawn(move || engine.run())
}

#[test]
fn each_lane_gets_its_own_ends_and_the_thread_ends_when_it_is_alone() {
    let slow = Slow::new();
    let (engine, handle) = Engine::new(slow.clone()).unwrap();
    let thread = run(engine);
    let (mut clients, servers) = lanes();
    handle.serve(servers).unwrap();
    assert!(handle.waits_since().is_none());
    for round in 0..20 {
        sync(&mut clients[0], round);
        sync(&mut clients[1], round + 100);
        slow.await_begun(2);
        while handle.waits_since().is_none() {
            std::thread::yield_now();
        }
        slow.end_all();
        assert_eq!(await_end(&mut clients[0]).slot, round);
        assert_eq!(await_end(&mut clients[1]).slot, round + 100);
    }
    let count = handle.with_backend(|slow| slow.held().begun.len()).unwrap();
    assert_eq!(count, 0);
    handle.end();
    thread.join().unwrap().unwrap();
}

#[test]
fn another_data_plane_is_served_when_nothing_of_the_last_one_is_under_way() {
    let slow = Slow::new();
    let (engine, handle) = Engine::new(slow.clone()).unwrap();
    let thread = run(engine);
    let (mut old, servers) = lanes();
    handle.serve(servers).unwrap();
    sync(&mut old[0], 1);
    slow.await_begun(1);
    let (mut new, servers) = lanes();
    handle.serve(servers).unwrap();
    // What the old one submits now is not taken any more, and what the new one does waits.
    sync(&mut old[1], 2);
    sync(&mut new[0], 3);
    assert!(!handle.drain(Duration::from_millis(20)));
    // That was not meant: a drained data plane is not served either.
    let (mut newest, servers) = lanes();
    handle.serve(servers).unwrap();
    sync(&mut newest[0], 4);
    std::thread::sleep(Duration::from_millis(20));
    assert_eq!(slow.held().begun.len(), 1, "it waits for the first");
    slow.end_all();
    slow.await_begun(1);
    slow.end_all();
    assert_eq!(await_end(&mut newest[0]).slot, 4);
    assert_eq!(await_end(&mut old[0]).slot, 1);
    assert!(old[1].next_completion().unwrap().is_none());
    assert!(new[0].next_completion().unwrap().is_none());
    assert!(handle.drain(Duration::from_secs(60)));
    handle.end();
    thread.join().unwrap().unwrap();
}

#[test]
fn who_breaks_the_rules_ends_it() {
    let (engine, handle) = Engine::new(Slow::new()).unwrap();
    let thread = run(engine);
    let (mut clients, servers) = lanes();
    handle.serve(servers).unwrap();
    // The same slot twice.
    sync(&mut clients[0], 9);
    sync(&mut clients[0], 9);
    let ended = thread.join().unwrap();
    assert!(matches!(
        ended,
        Err(StoreProcessError::Ring(RingError::Violation { .. }))
    ));
    assert!(handle.with_backend(|_| ()).is_err());
}
