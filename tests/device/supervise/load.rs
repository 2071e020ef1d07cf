//! Load that goes on while data planes die, with a model that knows what the guest was told.
//!
//! Buffers and sectors of a request are used again as soon as it comes back. So a request that is done again
//! after the guest was told of it shows: an old read writes into what is written by now, and an old write
//! over what was written since. One that is lost never comes back.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use test_support::PATIENCE;
use test_support::frontend::SECTOR;
use test_support::frontend::client::{NO_STATUS, kind, range_segment, request_header};
use test_support::frontend::device::{Frontend, Setup};
use test_support::frontend::queue::{Queue, Seg};
use test_support::rng::Rng;

/// Requests that each queue keeps in flight.
pub const DEPTH: usize = 32;
/// Queues under load.
pub const QUEUES: usize = 2;
/// Sectors of a place, which has one request at a time.
const PLACE: u64 = 128;
/// Bytes of the disk under load.
pub const DISK_BYTES: u64 = PLACE * (DEPTH * QUEUES * SECTOR) as u64;

/// A frontend with as many queues, and room for as many requests.
pub fn setup() -> Setup {
    Setup {
        queues: QUEUES as u32,
        queue_size: 256,
        ..Default::default()
    }
}

/// A part of the disk, and the memory of its requests.
struct Place {
    first: u64,
    /// What each sector holds; 0 is zeros.
    versions: Vec<u64>,
    header: u64,
    status: u64,
    data: u64,
    in_flight: Option<InFlight>,
}

struct InFlight {
    head: u16,
    kind: u32,
    at: u64,
    sectors: u64,
    version: u64,
    since: Instant,
}

/// What came of it.
#[derive(Debug, Default, Clone, Copy)]
pub struct Done {
    /// Requests.
    pub requests: u64,
    /// How long one took at most.
    pub longest: Duration,
}

/// The load of one queue.
struct Load {
    places: Vec<Place>,
    rng: Rng,
    version: u64,
    done: Done,
}

/// Loads all queues until `strike` returns. Every request comes back, once and without an error.
pub fn run(frontend: &mut Frontend, seed: u64, strike: impl FnOnce()) -> Done {
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let loads: Vec<_> = frontend
            .queues
            .iter_mut()
            .map(|queue| {
                let stop = &stop;
                scope.spawn(move || Load::new(queue, seed).run(queue, stop))
            })
            .collect();
        strike();
        stop.store(true, Ordering::Release);
        loads
            .into_iter()
            .map(|load| load.join().unwrap())
            .reduce(|one, other| Done {
                requests: one.requests + other.requests,
                longest: one.longest.max(other.longest),
            })
            .unwrap_or_default()
    })
}

/// The content of a sector in a version.
fn content(sector: u64, version: u64) -> [u8; SECTOR] {
    let mut bytes = [0; SECTOR];
    if version != 0 {
        Rng::new(sector << 40 ^ version).fill(&mut bytes);
    }
    bytes
}

impl Load {
    fn new(queue: &mut Queue, seed: u64) -> Self {
        queue.arena.reset();
        let index = u64::from(queue.index);
        let places = (0..DEPTH as u64).map(|place| Place {
            first: (index * DEPTH as u64 + place) * PLACE,
            versions: vec![0; PLACE as usize],
            header: queue.arena.alloc(16, 16),
            status: queue.arena.alloc(1, 1),
            data: queue.arena.alloc(PLACE * SECTOR as u64, 16),
            in_flight: None,
        });
        Self {
            places: places.collect(),
            rng: Rng::new(seed ^ index << 32),
            version: 0,
            done: Done::default(),
        }
    }

    fn run(mut self, queue: &mut Queue, stop: &AtomicBool) -> Done {
        self.fill(queue);
        let mut last = Instant::now();
        while self.places.iter().any(|place| place.in_flight.is_some()) {
            let stopping = stop.load(Ordering::Acquire);
            if let Some(used) = queue.next_within(Duration::from_millis(50)) {
                last = Instant::now();
                let at = self.take(queue, used.id);
                if !stopping {
                    self.submit(queue, at);
                }
            }
            assert!(last.elapsed() < PATIENCE, "requests are lost");
        }
        self.verify(queue);
        self.done
    }

    /// Has every place under way.
    fn fill(&mut self, queue: &mut Queue) {
        for at in 0..self.places.len() {
            self.submit(queue, at);
        }
    }

    fn submit(&mut self, queue: &mut Queue, at: usize) {
        let rng = &mut self.rng;
        let kind = match rng.within(0..100) {
            0..35 => kind::IN,
            35..42 => kind::FLUSH,
            42..50 => kind::DISCARD,
            50..56 => kind::WRITE_ZEROES,
            _ => kind::OUT,
        };
        let most = rng.pick(&[1, 1, 8, 8, 32, PLACE]);
        let (mut sectors, mut first) = (rng.within(1..most + 1), 0);
        if sectors < PLACE {
            first = rng.within(0..PLACE - sectors);
        }
        match kind {
            kind::FLUSH => (first, sectors) = (0, 0),
            // A discard may leave what is no whole block.
            kind::DISCARD => {
                first &= !7;
                sectors = sectors.next_multiple_of(8).min(PLACE - first);
            }
            _ => {}
        }
        self.version += 1;
        let version = match kind {
            kind::OUT => self.version,
            _ => 0,
        };
        let place = &mut self.places[at];
        let sector = place.first + first;
        let data = fill(queue, place, kind, (sector, sectors), version);
        let segs: Vec<_> = [Seg::out(place.header, 16)]
            .into_iter()
            .chain(data)
            .chain([Seg::into(place.status, 1)])
            .collect();
        let head = queue.submit(&segs);
        place.in_flight = Some(InFlight {
            head,
            kind,
            at: first,
            sectors,
            version,
            since: Instant::now(),
        });
    }

    /// Takes a request that came back; its place.
    fn take(&mut self, queue: &Queue, id: u32) -> usize {
        let is_its = |place: &Place| {
            let head = place.in_flight.as_ref().map(|request| request.head);
            head.map(u32::from) == Some(id)
        };
        let at = self.places.iter().position(is_its);
        let at = at.expect("what came back was not in flight");
        let place = &mut self.places[at];
        let request = place.in_flight.take().expect("a request");
        let status = queue.mem.read(place.status, 1)[0];
        assert_eq!(status, 0, "request {} at {}", request.kind, request.at);
        let range = request.at as usize..(request.at + request.sectors) as usize;
        match request.kind {
            kind::IN => place.check(queue, request.at, range.len()),
            kind::FLUSH => {}
            _ => place.versions[range].fill(request.version),
        }
        self.done.requests += 1;
        self.done.longest = self.done.longest.max(request.since.elapsed());
        at
    }

    /// Reads everything back.
    fn verify(&mut self, queue: &mut Queue) {
        for place in &self.places {
            let len = PLACE as usize * SECTOR;
            let segs = [
                Seg::out(place.header, 16),
                Seg::into(place.data, len as u32),
                Seg::into(place.status, 1),
            ];
            let header = request_header(kind::IN, place.first);
            queue.mem.write(place.header, &header);
            queue.mem.write(place.status, &[NO_STATUS]);
            let head = queue.submit(&segs);
            queue.wait_for(head);
            assert_eq!(queue.mem.read(place.status, 1)[0], 0);
            place.check(queue, 0, PLACE as usize);
        }
    }
}

impl Place {
    /// Holds what was read against what was written.
    fn check(&self, queue: &Queue, at: u64, sectors: usize) {
        let got = queue.mem.read(self.data, sectors * SECTOR);
        for (place, got) in (at..).zip(got.chunks(SECTOR)) {
            let version = self.versions[place as usize];
            let sector = self.first + place;
            assert!(
                got == content(sector, version),
                "sector {sector} is not what was written last (version {version}): {:02x?}",
                &got[..16]
            );
        }
    }
}

/// Writes header and data of a request; its data segments.
fn fill(
    queue: &Queue,
    place: &Place,
    kind: u32,
    (sector, sectors): (u64, u64),
    version: u64,
) -> Option<Seg> {
    let ranges = matches!(kind, kind::DISCARD | kind::WRITE_ZEROES);
    let at = if ranges { 0 } else { sector };
    queue.mem.write(place.header, &request_header(kind, at));
    queue.mem.write(place.status, &[NO_STATUS]);
    let len = (sectors as usize * SECTOR) as u32;
    match kind {
        kind::FLUSH => None,
        kind::IN => {
            // What is read must come from the disk, and not from the request before.
            queue.mem.fill(place.data, 0xa5, len as usize);
            Some(Seg::into(place.data, len))
        }
        kind::OUT => {
            let bytes: Vec<u8> = (sector..sector + sectors)
                .flat_map(|sector| content(sector, version))
                .collect();
            queue.mem.write(place.data, &bytes);
            Some(Seg::out(place.data, len))
        }
        _ => {
            let segment = range_segment(sector, sectors as u32, 0);
            queue.mem.write(place.data, &segment);
            Some(Seg::out(place.data, 16))
        }
    }
}
