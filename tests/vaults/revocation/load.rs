//! A guest that never rests: writes of all shapes, reads that are compared with what it wrote, and
//! write-zeroes, as many at once as it has slots.

use std::time::{Duration, Instant};

use test_support::frontend::client::{Status, kind, range_segment, request_header};
use test_support::frontend::queue::{Queue, Seg};
use test_support::rng::Rng;

/// Bytes of the disk that a slot has for itself.
const AREA: usize = 256 << 10;
/// Requests at once.
const SLOTS: usize = 12;

/// The load on one queue, on an area of the disk of its own.
pub struct Load {
    rng: Rng,
    /// First byte on the disk.
    base: u64,
    /// What the area must hold: what was completed, and nothing of what failed.
    content: Vec<u8>,
    slots: Vec<Slot>,
    pub stats: Stats,
    stopped: bool,
}

struct Slot {
    header: u64,
    status: u64,
    data: u64,
    running: Option<Running>,
}

struct Running {
    head: u16,
    what: What,
    /// Byte in the area of the load.
    at: usize,
    len: usize,
}

enum What {
    Read,
    Write(Vec<u8>),
    Zero,
}

/// What came of the requests.
#[derive(Clone, Copy, Debug)]
pub struct Stats {
    pub done: u64,
    pub failed: u64,
    /// When the last one succeeded.
    pub last_success: Instant,
}

impl Load {
    /// Bytes of the disk that a load takes.
    pub const LEN: u64 = (AREA * SLOTS) as u64;

    /// Starts as soon as it is run, on a queue that has nothing in flight.
    pub fn new(queue: &mut Queue, base: u64, seed: u64) -> Self {
        queue.arena.reset();
        let slots = (0..SLOTS)
            .map(|_| Slot {
                header: queue.arena.alloc(16, 16),
                status: queue.arena.alloc(1, 1),
                data: queue.arena.alloc(AREA as u64, 16),
                running: None,
            })
            .collect();
        Self {
            rng: Rng::new(seed),
            base,
            content: vec![0; Self::LEN as usize],
            slots,
            stats: Stats {
                done: 0,
                failed: 0,
                last_success: Instant::now(),
            },
            stopped: false,
        }
    }

    /// Takes what came back and submits anew, once around.
    pub fn turn(&mut self, queue: &mut Queue) {
        while let Some(used) = queue.poll() {
            self.completed(queue, used.id as u16);
        }
        for index in 0..SLOTS {
            if !self.stopped && self.slots[index].running.is_none() {
                self.submit(queue, index);
            }
        }
    }

    /// Runs until `enough` says so; whether it did, within `limit`.
    pub fn run_until(
        &mut self,
        queue: &mut Queue,
        limit: Duration,
        enough: impl Fn(&Stats) -> bool,
    ) -> bool {
        let end = Instant::now() + limit;
        while Instant::now() < end {
            self.turn(queue);
            if enough(&self.stats) {
                return true;
            }
            std::thread::sleep(Duration::from_micros(200));
        }
        false
    }

    /// Submits nothing new and waits for what is in flight.
    pub fn finish(&mut self, queue: &mut Queue) {
        self.stopped = true;
        while self.slots.iter().any(|slot| slot.running.is_some()) {
            let used = queue.next_used();
            self.completed(queue, used.id as u16);
        }
        self.stopped = false;
    }

    /// Requests that the device has, in the ring or taken.
    pub fn in_flight(&self) -> usize {
        self.slots.iter().filter(|s| s.running.is_some()).count()
    }

    /// Reads everything back: it is what was completed.
    pub fn verify(&self, queue: &mut Queue) {
        assert_eq!(self.in_flight(), 0);
        for (n, expected) in self.content.chunks(AREA).enumerate() {
            let sector = (self.base + (n * AREA) as u64) / 512;
            let found = queue.read(sector, AREA).unwrap();
            let differs = found.iter().zip(expected).position(|(a, b)| a != b);
            assert_eq!(differs, None, "area {n} is not what was completed");
        }
    }

    fn submit(&mut self, queue: &mut Queue, index: usize) {
        let rng = &mut self.rng;
        let len = 512 * rng.pick(&[1, 1, 3, 8, 8, 9, 64, 128, 200]);
        let at = index * AREA + 512 * rng.within(0..((AREA - len) / 512) as u64) as usize;
        let what = match rng.within(0..10) {
            0..3 => What::Read,
            3 => What::Zero,
            _ => What::Write(rng.bytes(len)),
        };
        let slot = &mut self.slots[index];
        let sector = (self.base + at as u64) / 512;
        let (kind, seg) = match &what {
            What::Read => (kind::IN, Seg::into(slot.data, len as u32)),
            What::Write(bytes) => {
                queue.mem.write(slot.data, bytes);
                (kind::OUT, Seg::out(slot.data, len as u32))
            }
            What::Zero => {
                let range = range_segment(sector, (len / 512) as u32, 0);
                queue.mem.write(slot.data, &range);
                (kind::WRITE_ZEROES, Seg::out(slot.data, 16))
            }
        };
        let header_sector = if kind == kind::WRITE_ZEROES {
            0
        } else {
            sector
        };
        queue
            .mem
            .write(slot.header, &request_header(kind, header_sector));
        queue.mem.write(slot.status, &[0xee]);
        let (header, status) = (Seg::out(slot.header, 16), Seg::into(slot.status, 1));
        let head = queue.chain(&[header, seg, status]);
        slot.running = Some(Running {
            head,
            what,
            at,
            len,
        });
        queue.push(head);
        queue.kick_if_wanted(1);
    }

    fn completed(&mut self, queue: &Queue, head: u16) {
        let is = |slot: &&mut Slot| slot.running.as_ref().is_some_and(|r| r.head == head);
        let slot = self.slots.iter_mut().find(is).expect("a request of ours");
        let running = slot.running.take().unwrap();
        match Status::from(queue.mem.read(slot.status, 1)[0]) {
            Status::Ok => {
                self.stats.done += 1;
                self.stats.last_success = Instant::now();
                let range = &mut self.content[running.at..running.at + running.len];
                match running.what {
                    What::Read => {
                        let found = queue.mem.read(slot.data, running.len);
                        assert!(found == range, "a read is not what was written");
                    }
                    What::Write(bytes) => range.copy_from_slice(&bytes),
                    What::Zero => range.fill(0),
                }
            }
            Status::IoErr => self.stats.failed += 1,
            other => panic!("a request came back with {other:?}"),
        }
    }
}
