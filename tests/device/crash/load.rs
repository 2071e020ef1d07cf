//! Load with a model that knows, for every sector, what was completed and what was in flight.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use test_support::frontend::SECTOR;
use test_support::frontend::client::{NO_STATUS, kind, range_segment, request_header};
use test_support::frontend::device::{Frontend, Setup, feature};
use test_support::frontend::queue::{Queue, Seg};
use test_support::rng::Rng;
use test_support::{Daemon, PATIENCE};

/// Bytes of the disk under load.
pub const DISK_BYTES: u64 = 32 << 20;
/// Sectors of it.
const SECTORS: u64 = DISK_BYTES / SECTOR as u64;
/// Queues under load.
const QUEUES: u64 = 3;
/// Requests that each queue keeps in flight.
const DEPTH: usize = 32;
/// The largest request.
const LARGEST: u64 = 1 << 20;
/// The largest of every other slot.
const LARGEST_OF_SMALL: u64 = LARGEST / 8;
/// Sectors at the beginning that belong to the queues in turn, one by one, so that several queues
/// write into the same block.
const SHARED: u64 = 2048;

/// What requests there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mix {
    /// Writes, reads and flushes.
    Writes,
    /// Discards and write-zeroes too.
    All,
}

/// How the device is set up in a round: by turns with event indices and indirect tables, and without write-back.
pub fn setup(round: u32) -> Setup {
    let setup = Setup {
        queues: QUEUES as u32,
        ..Default::default()
    };
    match round % 3 {
        0 => setup,
        1 => Setup {
            indirect: true,
            ..setup.with(feature::EVENT_IDX)
        },
        _ => setup.without(feature::FLUSH),
    }
}

/// What a sector holds: a version, of which the content follows. 0 is zeros.
#[derive(Clone, Copy, Default)]
struct Sector {
    /// The last one that was completed.
    completed: u64,
    /// One that is in flight.
    pending: Option<u64>,
}

impl Sector {
    /// Says what is wrong with what was found.
    fn explain(&self, sector: u64, got: &[u8]) -> u64 {
        let (mut old, mut new) = (vec![0; SECTOR], vec![0; SECTOR]);
        content(sector, self.completed, &mut old);
        content(sector, self.pending.unwrap_or(self.completed), &mut new);
        let torn = (0..SECTOR).all(|i| got[i] == old[i] || got[i] == new[i]);
        let what = match (torn, got.iter().all(|&byte| byte == 0)) {
            (true, _) => "a mixture of both",
            (false, true) => "zeros",
            (false, false) => "something else",
        };
        panic!(
            "sector {sector}: neither version {}, which was completed, nor {:?}, which was in \
             flight, but {what}: {:02x?}…",
            self.completed,
            self.pending,
            &got[..16]
        );
    }
}

/// The content of a sector in a version.
fn content(sector: u64, version: u64, bytes: &mut [u8]) {
    if version == 0 {
        return bytes.fill(0);
    }
    let first = Rng::new(sector << 32 ^ version).next();
    for (word, i) in bytes.chunks_exact_mut(8).zip(0u64..) {
        let value = first.wrapping_add(i.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        word.copy_from_slice(&value.to_le_bytes());
    }
}

/// The queue that a sector belongs to.
fn owner(sector: u64) -> usize {
    let queue = if sector < SHARED {
        sector % QUEUES
    } else {
        ((sector - SHARED) * QUEUES / (SECTORS - SHARED)).min(QUEUES - 1)
    };
    queue as usize
}

/// A request in flight.
struct InFlight {
    /// How many the queue's load had submitted by then.
    number: u64,
    kind: u32,
    sector: u64,
    sectors: u64,
}

/// The memory of one request.
struct Slot {
    header: u64,
    status: u64,
    /// An indirect table.
    table: u64,
    data: u64,
    /// Sectors that `data` has room for.
    room: u64,
    in_flight: Option<(u16, InFlight)>,
    /// First sector and sectors of what was completed last.
    last: Option<(u64, u64)>,
}

impl Slot {
    fn new(queue: &mut Queue, place: usize) -> Self {
        let room = match place % 2 {
            0 => LARGEST,
            _ => LARGEST_OF_SMALL,
        };
        Self {
            header: queue.arena.alloc(16, 16),
            status: queue.arena.alloc(1, 1),
            table: queue.arena.alloc(4 * 16, 16),
            data: queue.arena.alloc(room + 1, 1),
            room: room / SECTOR as u64,
            in_flight: None,
            last: None,
        }
    }
}

/// How far a queue's load is.
#[derive(Default)]
struct Counts {
    submitted: AtomicU64,
    /// All requests before this one have come back.
    oldest: AtomicU64,
}

/// What a load that has failed is said to be at: nobody waits for it.
const FAILED: u64 = u64::MAX;

/// How far the loads are, for whoever lets their back-end die.
pub struct Progress(Vec<Counts>);

impl Progress {
    /// Waits until all requests that are in flight now have come back. Whether the loads go on: not when one has found
    /// something wrong.
    pub fn await_those_in_flight(&self) -> bool {
        let end = Instant::now() + PATIENCE;
        for (counts, queue) in self.0.iter().zip(0..) {
            let last = counts.submitted.load(Ordering::Acquire);
            loop {
                let oldest = counts.oldest.load(Ordering::Acquire);
                if oldest > last {
                    break;
                }
                assert!(
                    Instant::now() < end,
                    "queue {queue}: request {oldest} of {last} does not come back"
                );
                std::thread::sleep(Duration::from_millis(1));
            }
        }
        let oldest = |counts: &Counts| counts.oldest.load(Ordering::Acquire);
        self.0.iter().all(|counts| oldest(counts) != FAILED)
    }
}

/// Keeps nobody waiting for a load that panics.
struct FailedIfPanicking<'a>(&'a Counts);

impl Drop for FailedIfPanicking<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.oldest.store(FAILED, Ordering::Release);
        }
    }
}

/// What becomes of requests in flight when a load ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ending {
    /// Their device is gone: only those count that have come back.
    Abandons,
    /// All of them come back.
    Drains,
}

/// Has the loads end, also when whoever drops it panics.
pub struct Stop<'a>(pub &'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Release);
    }
}

/// What one queue knows about its sectors.
struct Model {
    queue: usize,
    sectors: Vec<Sector>,
    version: u64,
    submitted: u64,
    completed: u64,
}

/// The whole disk's model, through all rounds.
pub struct World {
    models: Vec<Model>,
}

impl World {
    /// A disk that was never written.
    pub fn new() -> Self {
        let model = |queue| Model {
            queue,
            sectors: vec![Sector::default(); SECTORS as usize],
            version: 0,
            submitted: 0,
            completed: 0,
        };
        Self {
            models: (0..QUEUES as usize).map(model).collect(),
        }
    }

    /// Requests that were completed so far.
    pub fn completed(&self) -> u64 {
        self.models.iter().map(|model| model.completed).sum()
    }

    /// Loads all queues until `strike` returns, and takes what was completed by then. Returns how
    /// many requests that were.
    pub fn run(&mut self, frontend: Frontend, mix: Mix, seed: u64, strike: impl FnOnce()) -> u64 {
        let Frontend { conn, queues, .. } = frontend;
        let done = self.load(queues, mix, seed, Ending::Abandons, |_| strike());
        drop(conn);
        done
    }

    /// Loads all queues while `deaths` lets their back-end die and come back. In the end all requests come back.
    /// Returns how many there were.
    pub fn run_across(
        &mut self,
        queues: Vec<Queue>,
        mix: Mix,
        seed: u64,
        deaths: impl FnOnce(&Progress),
    ) -> u64 {
        self.load(queues, mix, seed, Ending::Drains, deaths)
    }

    fn load(
        &mut self,
        queues: Vec<Queue>,
        mix: Mix,
        seed: u64,
        ending: Ending,
        strike: impl FnOnce(&Progress),
    ) -> u64 {
        let before = self.completed();
        let stop = &AtomicBool::new(false);
        let progress = &Progress(queues.iter().map(|_| Counts::default()).collect());
        std::thread::scope(|scope| {
            let _stop = Stop(stop);
            let queues = queues.into_iter().zip(&progress.0);
            for (model, (mut queue, counts)) in self.models.iter_mut().zip(queues) {
                let mut rng = Rng::new(seed ^ u64::from(queue.index) << 40);
                scope.spawn(move || {
                    let _failed = FailedIfPanicking(counts);
                    let mut slots: Vec<Slot> =
                        (0..DEPTH).map(|n| Slot::new(&mut queue, n)).collect();
                    while !stop.load(Ordering::Acquire) {
                        model.turn(&mut queue, &mut slots, mix, &mut rng, counts);
                    }
                    model.end(&mut queue, &mut slots, ending);
                });
            }
            strike(progress);
        });
        self.completed() - before
    }

    /// Reads every sector and holds it against the model; what was in flight is known then.
    pub fn verify(&mut self, daemon: &Daemon) {
        let mut frontend = daemon.connect();
        let queue = &mut frontend.queues[0];
        let mut wanted = vec![0; SECTOR];
        for start in (0..SECTORS).step_by((LARGEST / SECTOR as u64) as usize) {
            let got = queue
                .read(start, LARGEST as usize)
                .expect("a read after the restart");
            for (sector, got) in (start..).zip(got.chunks(SECTOR)) {
                let state = &mut self.models[owner(sector)].sectors[sector as usize];
                let mut versions = [Some(state.completed), state.pending].into_iter().flatten();
                let found = versions.find(|&version| {
                    content(sector, version, &mut wanted);
                    got == wanted
                });
                let found = found.unwrap_or_else(|| state.explain(sector, got));
                *state = Sector {
                    completed: found,
                    pending: None,
                };
            }
        }
    }
}

impl Model {
    /// Fills the queue up and takes one request that comes back, if one does soon.
    fn turn(
        &mut self,
        queue: &mut Queue,
        slots: &mut [Slot],
        mix: Mix,
        rng: &mut Rng,
        counts: &Counts,
    ) {
        for slot in slots.iter_mut().filter(|slot| slot.in_flight.is_none()) {
            self.submit(queue, slot, mix, rng);
        }
        let in_flight = slots.iter().filter_map(|slot| slot.in_flight.as_ref());
        let oldest = in_flight.map(|(_, request)| request.number).min();
        let oldest = oldest.unwrap_or(self.submitted + 1);
        counts.submitted.store(self.submitted, Ordering::Release);
        counts.oldest.store(oldest, Ordering::Release);
        if let Some(used) = queue.next_within(Duration::from_millis(20)) {
            self.take(queue, slots, used.id);
        }
    }

    /// Takes what has come back and, unless the device is gone, what still does.
    fn end(&mut self, queue: &mut Queue, slots: &mut [Slot], ending: Ending) {
        // Completed before the end, whether or not the call still came.
        while let Some(used) = queue.poll() {
            self.take(queue, slots, used.id);
        }
        while ending == Ending::Drains && queue.in_flight() > 0 {
            let used = queue.next_used();
            self.take(queue, slots, used.id);
        }
    }

    /// Submits one random request, if it finds a place where nothing is in flight.
    fn submit(&mut self, queue: &mut Queue, slot: &mut Slot, mix: Mix, rng: &mut Rng) {
        let kind = match (rng.within(0..100), mix) {
            (0..15, _) => kind::IN,
            (15..18, _) => kind::FLUSH,
            (18..26, Mix::All) => kind::DISCARD,
            (26..36, Mix::All) => kind::WRITE_ZEROES,
            _ => kind::OUT,
        };
        let (sector, sectors) = match (kind, slot.last) {
            (kind::FLUSH, _) => (0, 0),
            // At once where something was completed last, so that it shows if that is done once more.
            (kind::IN | kind::OUT | kind::WRITE_ZEROES, Some(last)) if rng.one_in(2) => last,
            _ => self.place(kind, slot.room, rng),
        };
        let range = sector as usize..(sector + sectors) as usize;
        let own = range.clone().all(|at| owner(at as u64) == self.queue);
        if !own
            || self.sectors[range.clone()]
                .iter()
                .any(|at| at.pending.is_some())
        {
            return;
        }
        self.version += 1;
        let version = match kind {
            kind::DISCARD | kind::WRITE_ZEROES => 0,
            _ => self.version * QUEUES + self.queue as u64,
        };
        let data = fill(queue, slot, kind, sector, sectors, version, rng);
        // A read is in flight too: no write may change under it what it must find.
        if kind != kind::FLUSH {
            for at in &mut self.sectors[range] {
                at.pending = Some(if kind == kind::IN {
                    at.completed
                } else {
                    version
                });
            }
        }
        let mut segs = vec![Seg::out(slot.header, 16)];
        segs.extend(data);
        segs.push(Seg::into(slot.status, 1));
        let head = match queue.indirect && !rng.one_in(4) {
            true => queue.indirect_chain(slot.table, &segs),
            false => queue.direct_chain(&segs),
        };
        queue.push(head);
        queue.kick_if_wanted(1);
        self.submitted += 1;
        let request = InFlight {
            number: self.submitted,
            kind,
            sector,
            sectors,
        };
        slot.in_flight = Some((head, request));
    }

    /// A random range: many small ones, some large, and in the shared area single sectors.
    fn place(&self, kind: u32, room: u64, rng: &mut Rng) -> (u64, u64) {
        if kind != kind::DISCARD && rng.one_in(3) {
            let sector = rng.within(0..SHARED / QUEUES) * QUEUES + self.queue as u64;
            return (sector.min(SHARED - 1), 1);
        }
        let each = (SECTORS - SHARED) / QUEUES;
        let start = SHARED + each * self.queue as u64;
        let most = rng
            .pick(&[1, 7, 8, 16, 64, 256, LARGEST / SECTOR as u64])
            .min(room);
        let sectors = rng.within(1..most + 1);
        let sector = start + rng.within(0..each - sectors);
        // A discard may leave what isn't a whole block.
        match kind {
            kind::DISCARD => (sector & !7, sectors.next_multiple_of(8)),
            _ => (sector, sectors),
        }
    }

    /// Takes a request that came back.
    fn take(&mut self, queue: &Queue, slots: &mut [Slot], id: u32) {
        let slot = slots
            .iter_mut()
            .find(|slot| matches!(&slot.in_flight, Some((head, _)) if u32::from(*head) == id))
            .expect("a request in flight");
        let (_, request) = slot.in_flight.take().unwrap();
        slot.last = (request.sectors > 0).then_some((request.sector, request.sectors));
        let status = queue.mem.read(slot.status, 1)[0];
        assert_eq!(status, 0, "request {} at {}", request.kind, request.sector);
        self.completed += 1;
        if request.kind == kind::IN {
            self.check(queue, slot, &request);
        }
        let range = request.sector as usize..(request.sector + request.sectors) as usize;
        for at in &mut self.sectors[range] {
            at.completed = at.pending.take().expect("a sector in flight");
        }
    }

    /// Holds what was read against the model.
    fn check(&self, queue: &Queue, slot: &Slot, request: &InFlight) {
        let got = queue.mem.read(slot.data, request.sectors as usize * SECTOR);
        let mut wanted = vec![0; SECTOR];
        for (sector, got) in (request.sector..).zip(got.chunks(SECTOR)) {
            let version = self.sectors[sector as usize].completed;
            content(sector, version, &mut wanted);
            assert!(
                got == wanted,
                "a read under load: sector {sector} isn't version {version}"
            );
        }
    }
}

/// Writes header and data of a request and returns its data segments, cut at random.
fn fill(
    queue: &Queue,
    slot: &Slot,
    kind: u32,
    sector: u64,
    sectors: u64,
    version: u64,
    rng: &mut Rng,
) -> Vec<Seg> {
    let ranges = matches!(kind, kind::DISCARD | kind::WRITE_ZEROES);
    let at = if ranges { 0 } else { sector };
    queue.mem.write(slot.header, &request_header(kind, at));
    queue.mem.write(slot.status, &[NO_STATUS]);
    if ranges {
        let unmap = u32::from(kind == kind::WRITE_ZEROES && rng.one_in(2));
        queue
            .mem
            .write(slot.data, &range_segment(sector, sectors as u32, unmap));
        return vec![Seg::out(slot.data, 16)];
    }
    if kind == kind::OUT {
        let mut bytes = [0; SECTOR];
        for (i, at) in (sector..sector + sectors).enumerate() {
            content(at, version, &mut bytes);
            queue.mem.write(slot.data + (i * SECTOR) as u64, &bytes);
        }
    }
    let len = (sectors as usize * SECTOR) as u32;
    let writable = kind == kind::IN;
    if writable {
        // What a write has left here is not what the read is to find.
        queue.mem.fill(slot.data, NO_STATUS, len as usize);
    }
    let seg = |from: u32, to: u32| Seg {
        addr: slot.data + u64::from(from),
        len: to - from,
        writable,
    };
    match len {
        0 => vec![],
        _ if rng.one_in(3) => {
            let cut = rng.within(1..u64::from(len)) as u32;
            vec![seg(0, cut), seg(cut, len)]
        }
        _ => vec![seg(0, len)],
    }
}
