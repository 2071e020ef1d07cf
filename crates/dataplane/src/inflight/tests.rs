//! The in-flight region at every moment at which the process can be killed, and regions that lie.

use std::cell::Cell;
use std::collections::{BTreeSet, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;

use proptest::prelude::*;
use vm_memory::Bytes;

use super::*;

/// Entries of the ring: few, so that heads come again soon.
const SIZE: u16 = 8;

thread_local! {
    /// Stores until the process is killed.
    static STORES: Cell<Option<u32>> = const { Cell::new(None) };
}

/// What a killed process unwinds with.
struct Killed;

/// Each store to a ring or a region is one: the process may be killed right before it.
pub(super) fn crash_point() {
    match STORES.get() {
        Some(0) => {
            STORES.set(None);
            resume_unwind(Box::new(Killed));
        }
        Some(left) => STORES.set(Some(left - 1)),
        None => {}
    }
}

/// Runs `work` until its end, or until it is killed after some stores. Whether it came to its end.
fn kill_after(stores: u32, work: impl FnOnce()) -> bool {
    STORES.set(Some(stores));
    let ended = catch_unwind(AssertUnwindSafe(work));
    STORES.set(None);
    match ended {
        Ok(()) => true,
        Err(killed) if killed.is::<Killed>() => false,
        Err(panic) => resume_unwind(panic),
    }
}

/// Both rings as they are in guest memory, and what the driver knows.
struct Guest {
    avail: Vec<u16>,
    avail_idx: u16,
    used: Vec<u16>,
    used_idx: u16,
    /// The used index up to which the driver has looked.
    seen: u16,
    free: VecDeque<u16>,
    /// Heads that were made available and are not returned.
    waiting: BTreeSet<u16>,
}

impl Guest {
    /// Rings whose indexes begin at `start`, as after a migration.
    fn new(start: u16) -> Self {
        Self {
            avail: vec![0; usize::from(SIZE)],
            avail_idx: start,
            used: vec![0; usize::from(SIZE)],
            used_idx: start,
            seen: start,
            free: (0..SIZE).collect(),
            waiting: BTreeSet::new(),
        }
    }

    fn submit(&mut self) {
        if let Some(head) = self.free.pop_front() {
            self.avail[usize::from(self.avail_idx % SIZE)] = head;
            self.avail_idx = self.avail_idx.wrapping_add(1);
            assert!(self.waiting.insert(head));
        }
    }

    fn look(&mut self) {
        while self.seen != self.used_idx {
            let head = self.used[usize::from(self.seen % SIZE)];
            assert!(self.waiting.remove(&head), "{head} was returned twice");
            self.free.push_back(head);
            self.seen = self.seen.wrapping_add(1);
        }
    }

    /// As `virtio_queue::Queue::add_used`: the entry, then the index.
    fn add_used(&mut self, head: u16) {
        crash_point();
        self.used[usize::from(self.used_idx % SIZE)] = head;
        crash_point();
        self.used_idx = self.used_idx.wrapping_add(1);
    }
}

/// A process that serves the ring, with what it forgets when it is killed.
struct Device {
    inflight: InflightQueue,
    next_avail: u16,
    again: VecDeque<u16>,
    taken: Vec<u16>,
}

impl Device {
    fn start(region: &Arc<InflightRegion>, guest: &Guest, base: u16) -> Self {
        let mut inflight = InflightQueue::of(region, 1).unwrap();
        let resumed = inflight.begin(SIZE, guest.used_idx, base).unwrap();
        Self {
            inflight,
            next_avail: resumed.next_avail,
            again: resumed.again.into(),
            taken: Vec::new(),
        }
    }

    fn take(&mut self, guest: &Guest) {
        if let Some(head) = self.again.pop_front() {
            self.taken.push(head);
        } else if self.next_avail != guest.avail_idx {
            let head = guest.avail[usize::from(self.next_avail % SIZE)];
            self.next_avail = self.next_avail.wrapping_add(1);
            self.inflight.take(head);
            self.taken.push(head);
        }
    }

    fn give_back(&mut self, guest: &mut Guest, which: usize) {
        if self.taken.is_empty() {
            return;
        }
        let head = self.taken.swap_remove(which % self.taken.len());
        self.inflight.begin_return(head);
        guest.add_used(head);
        self.inflight.end_return(head, guest.used_idx);
    }
}

#[derive(Debug, Clone)]
enum Step {
    Submit,
    Look,
    Take,
    Return(usize),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        2 => Just(Step::Submit),
        1 => Just(Step::Look),
        2 => Just(Step::Take),
        2 => any::<usize>().prop_map(Step::Return),
    ]
}

fn run(device: &mut Device, guest: &mut Guest, steps: &[Step]) {
    for step in steps {
        match step {
            Step::Submit => guest.submit(),
            Step::Look => guest.look(),
            Step::Take => device.take(guest),
            Step::Return(which) => device.give_back(guest, *which),
        }
    }
}

/// What the driver waits for is what the next process does, each once, the oldest first.
fn check(region: &Arc<InflightRegion>, guest: &mut Guest, order: &[u16]) {
    guest.look();
    let device = Device::start(region, guest, 0xdead);
    let ahead = guest.avail_idx.wrapping_sub(device.next_avail);
    assert!(
        ahead <= SIZE,
        "{} of {}",
        device.next_avail,
        guest.avail_idx
    );
    let mut does: Vec<u16> = device.again.iter().copied().collect();
    let again: Vec<_> = order.iter().filter(|head| does.contains(head)).collect();
    assert!(again.into_iter().eq(does.iter()), "{does:?} of {order:?}");
    let mut index = device.next_avail;
    while index != guest.avail_idx {
        does.push(guest.avail[usize::from(index % SIZE)]);
        index = index.wrapping_add(1);
    }
    let unique: BTreeSet<u16> = does.iter().copied().collect();
    assert_eq!(unique.len(), does.len(), "done twice: {does:?}");
    assert_eq!(unique, guest.waiting);
}

proptest! {
    #[test]
    fn nothing_is_lost_or_done_twice_wherever_it_is_killed(
        start in any::<u16>(),
        lives in prop::collection::vec((prop::collection::vec(step(), 1..40), 0u32..60), 1..8),
    ) {
        let region = Arc::new(InflightRegion::create(2, SIZE).unwrap());
        let mut guest = Guest::new(start);
        let mut begun = false;
        for (steps, stores) in lives {
            // Only a region that nobody has used needs to be told where the ring is.
            let base = if begun { 0xbeef } else { start };
            let mut order = Vec::new();
            kill_after(stores, || {
                let mut device = Device::start(&region, &guest, base);
                for step in steps {
                    run(&mut device, &mut guest, std::slice::from_ref(&step));
                }
            });
            // A region whose first use was not complete still is one that nobody has used.
            begun = begun || region.part(1).load::<u16>(8, std::sync::atomic::Ordering::Relaxed).unwrap() == 1;
            if begun {
                order.extend(by_counter(&region));
                check(&region, &mut guest, &order);
            }
        }
    }
}

/// All heads, in the order in which they were taken last.
fn by_counter(region: &InflightRegion) -> Vec<u16> {
    let counter = |head: u16| -> u64 {
        let at = 24 + 16 * usize::from(head);
        region
            .part(1)
            .load(at, std::sync::atomic::Ordering::Relaxed)
            .unwrap()
    };
    let mut heads: Vec<u16> = (0..SIZE).collect();
    heads.sort_by_key(|head| counter(*head));
    heads
}

/// A region with the bytes of `fields` at their offsets.
fn made_up(fields: &[(usize, &[u8])]) -> Arc<InflightRegion> {
    let region = InflightRegion::create(2, SIZE).unwrap();
    for (at, bytes) in [(8, [1u8, 0, SIZE as u8, 0].as_slice())]
        .iter()
        .chain(fields)
    {
        region.part(1).write_slice(bytes, *at).unwrap();
    }
    Arc::new(region)
}

fn begin(fields: &[(usize, &[u8])], size: u16, used: u16) -> Result<Resumed, InflightError> {
    InflightQueue::of(&made_up(fields), 1)
        .unwrap()
        .begin(size, used, 7)
}

/// The offset of a field of the entry of `head`.
fn entry(head: usize, field: usize) -> usize {
    16 + 16 * head + field
}

#[test]
fn a_region_that_nobody_has_used_goes_on_where_the_frontend_says() {
    let region = Arc::new(InflightRegion::create(2, SIZE).unwrap());
    let mut queue = InflightQueue::of(&region, 1).unwrap();
    let fresh = queue.begin(SIZE, 1000, 1003).unwrap();
    assert_eq!(
        fresh,
        Resumed {
            next_avail: 1003,
            again: Vec::new(),
            goes_on: false
        }
    );
    // Head 0 is what a region full of zeros names as the last batch.
    queue.take(0);
    let resumed = InflightQueue::of(&region, 1)
        .unwrap()
        .begin(SIZE, 1000, 7)
        .unwrap();
    assert_eq!(resumed.again, [0]);
    assert_eq!(resumed.next_avail, 1001);
    queue.forget();
    let anew = InflightQueue::of(&region, 1)
        .unwrap()
        .begin(SIZE, 0, 0)
        .unwrap();
    assert_eq!((anew.next_avail, anew.goes_on), (0, false));
}

#[test]
fn a_batch_of_another_back_end_is_settled_as_a_whole() {
    let fields: [(usize, &[u8]); 8] = [
        (12, &[5, 0]),   // the last of the batch
        (14, &[100, 0]), // complete up to 100
        (entry(5, 0), &[1]),
        (entry(5, 6), &[2, 0]), // before it, 2
        (entry(2, 0), &[1]),
        (entry(2, 6), &[6, 0]), // before that, one of an older batch
        (entry(6, 0), &[1]),
        (entry(6, 8), &[9]),
    ];
    let resumed = begin(&fields, SIZE, 102).unwrap();
    assert_eq!(resumed.again, [6]);
    assert_eq!(resumed.next_avail, 103);
}

#[test]
fn what_was_taken_first_is_done_first() {
    let fields: [(usize, &[u8]); 6] = [
        (entry(1, 0), &[1]),
        (entry(1, 8), &[30]),
        (entry(4, 0), &[1]),
        (entry(4, 8), &[10]),
        (entry(6, 0), &[1]),
        (entry(6, 8), &[20]),
    ];
    assert_eq!(begin(&fields, SIZE, 0).unwrap().again, [4, 6, 1]);
}

#[test]
fn a_region_that_lies_is_refused() {
    let marked: (usize, &[u8]) = (entry(3, 0), &[1]);
    let version = begin(&[(8, &[2])], SIZE, 0);
    assert!(
        matches!(version, Err(InflightError::Version(2))),
        "{version:?}"
    );
    let entries = begin(&[(10, &[4])], SIZE, 0);
    assert!(
        matches!(entries, Err(InflightError::Entries { region: 4, .. })),
        "{entries:?}"
    );
    let large = begin(&[], 2 * SIZE, 0);
    assert!(
        matches!(large, Err(InflightError::Entries { queue: 16, .. })),
        "{large:?}"
    );
    let beyond = begin(&[marked], 2, 0);
    assert!(matches!(beyond, Err(InflightError::Head(3))), "{beyond:?}");
    let last = begin(&[marked, (12, &[SIZE as u8])], SIZE, 1);
    assert!(matches!(last, Err(InflightError::Head(SIZE))), "{last:?}");
    let next = begin(&[marked, (entry(0, 6), &[0xff, 0xff])], SIZE, 2);
    assert!(matches!(next, Err(InflightError::Head(0xffff))), "{next:?}");
    let ring = begin(&[marked], SIZE, 9);
    assert!(
        matches!(ring, Err(InflightError::UsedIndex { region: 0, ring: 9 })),
        "{ring:?}"
    );
    // A list that goes round ends with the batch, and a counter at its end does not overflow.
    let round = begin(&[marked, (entry(3, 8), &[0xff; 8])], SIZE, 4).unwrap();
    assert_eq!(round.again, [3]);
    let region = made_up(&[marked, (entry(3, 8), &[0xff; 8])]);
    let mut queue = InflightQueue::of(&region, 1).unwrap();
    queue.begin(SIZE, 0, 0).unwrap();
    queue.take(1);
}

/// A ring that was reset has nothing to do with what was before, as long as nothing is in flight.
#[test]
fn an_index_that_jumps_while_nothing_is_in_flight_is_the_rings() {
    let resumed = begin(&[(14, &[200, 0])], SIZE, 0).unwrap();
    assert_eq!((resumed.next_avail, resumed.again.len()), (0, 0));
}

#[test]
fn a_file_that_is_too_short_is_refused() {
    let file = tempfile::tempfile().unwrap();
    file.set_len(InflightRegion::len_of(2, SIZE) - 1).unwrap();
    let short = InflightRegion::map(file.try_clone().unwrap(), 0, 2, SIZE);
    assert!(
        matches!(short, Err(InflightError::TooShort { .. })),
        "{short:?}"
    );
    file.set_len(InflightRegion::len_of(2, SIZE)).unwrap();
    assert!(InflightRegion::map(file.try_clone().unwrap(), 0, 2, SIZE).is_ok());
    let behind = InflightRegion::map(file.try_clone().unwrap(), u64::MAX, 2, SIZE);
    assert!(
        matches!(behind, Err(InflightError::TooShort { .. })),
        "{behind:?}"
    );
    let none = InflightRegion::map(file, 0, 0, SIZE);
    assert!(
        matches!(none, Err(InflightError::TooShort { .. })),
        "{none:?}"
    );
}

/// Other back-ends have the parts at these offsets too.
#[test]
fn parts_begin_at_multiples_of_64() {
    assert_eq!(InflightRegion::len_of(1, 8), 192);
    assert_eq!(InflightRegion::len_of(3, 128), 3 * 2112);
    let region = Arc::new(InflightRegion::create(2, SIZE).unwrap());
    assert!(InflightQueue::of(&region, 2).is_none());
    let mut queue = InflightQueue::of(&region, 1).unwrap();
    queue.begin(SIZE, 3, 3).unwrap();
    queue.take(7);
    let mut bytes = vec![0; 384];
    use std::os::unix::fs::FileExt;
    region.file().unwrap().read_exact_at(&mut bytes, 0).unwrap();
    assert!(bytes[..192].iter().all(|byte| *byte == 0));
    assert_eq!(bytes[192 + 8..192 + 16], [1, 0, 8, 0, 0, 0, 3, 0]);
    assert_eq!(bytes[192 + 16 + 16 * 7], 1);
}
