//! The driver of a well-behaved guest, fast enough not to be what is measured.
//!
//! Every request has its chain for good: a header, one buffer and a status, behind one indirect
//! table where the device takes those. So a request costs a few stores. What was completed in the
//! meantime is submitted again as one batch with at most one kick, and a kick only if the device
//! asked for it (virtio 1.2 §2.7.10.1). While more than one request is in flight the driver looks
//! at the used ring for a moment without asking for a call, as a guest does that handles several
//! completions with one interrupt; then, and at depth 1 at once, it asks for one and sleeps.

use std::hint::spin_loop;
use std::sync::atomic::{Ordering, fence};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use test_support::PATIENCE;
use test_support::frontend::client::{NO_STATUS, kind, request_header};
use test_support::frontend::queue::{Desc, INDIRECT, NEXT, Queue, WRITE};
use test_support::rng::Rng;

/// What the load is.
#[derive(Clone, Copy, Debug)]
pub struct Pattern {
    pub write: bool,
    /// Bytes of a request.
    pub bytes: u32,
    /// Requests in flight.
    pub depth: u16,
    pub random: bool,
}

/// When it ends.
#[derive(Clone, Copy)]
pub enum Until {
    Elapsed(Duration),
    Requests(u64),
}

/// What came of it.
pub struct Outcome {
    pub requests: u64,
    pub elapsed: Duration,
    /// From the kick to the entry being seen, in nanoseconds.
    pub latency: Histogram<u64>,
}

/// One request that is submitted again and again.
struct Slot {
    header: u64,
    status: u64,
    submitted: Instant,
}

/// The load on one queue.
pub struct Load<'a> {
    queue: &'a mut Queue,
    pattern: Pattern,
    /// How long to look at the used ring before sleeping.
    poll: Duration,
    slots: Vec<Slot>,
    /// Descriptors of the ring's table that each request has.
    stride: u16,
    /// Requests that wait for the next batch.
    ready: Vec<u16>,
    rng: Rng,
    places: u64,
    next: u64,
}

impl<'a> Load<'a> {
    /// Writes the chains of all requests, on a queue with nothing in flight.
    pub fn new(queue: &'a mut Queue, pattern: Pattern, disk: u64, poll: Duration) -> Self {
        assert_eq!(queue.in_flight(), 0);
        queue.arena.reset();
        let stride = if queue.indirect { 1 } else { 3 };
        assert!(pattern.depth * stride <= queue.size);
        let slots = (0..pattern.depth)
            .map(|i| prepare(queue, i * stride, &pattern))
            .collect();
        Self {
            queue,
            pattern,
            poll: if pattern.depth > 1 {
                poll
            } else {
                Duration::ZERO
            },
            slots,
            stride,
            ready: (0..pattern.depth).collect(),
            rng: Rng::new(2),
            places: disk / u64::from(pattern.bytes),
            next: 0,
        }
    }

    /// Keeps the requests in flight until the end, and then waits for all of them.
    pub fn run(&mut self, until: Until) -> Outcome {
        let mut latency = Histogram::new_with_bounds(1, PATIENCE.as_nanos() as u64, 3).unwrap();
        let (mut submitted, mut requests) = (0, 0);
        let start = Instant::now();
        let mut now = start;
        let mut counted = None;
        loop {
            let more = match until {
                Until::Elapsed(limit) => now - start < limit,
                Until::Requests(limit) => submitted < limit,
            };
            if more {
                submitted += self.submit(now);
            } else {
                // What is still under way is waited for and not counted.
                counted.get_or_insert((requests, now - start));
                if self.ready.len() == self.slots.len() {
                    break;
                }
            }
            self.wait();
            now = Instant::now();
            requests += self.complete(now, &mut latency);
        }
        let (mut counted, mut elapsed) = counted.unwrap();
        if let Until::Requests(_) = until {
            (counted, elapsed) = (requests, now - start);
        }
        Outcome {
            requests: counted,
            elapsed,
            latency,
        }
    }

    /// Makes all waiting requests available at once, and kicks if the device wants it.
    fn submit(&mut self, now: Instant) -> u64 {
        let queue = &mut *self.queue;
        let added = self.ready.len() as u16;
        for &i in &self.ready {
            let place = if self.pattern.random {
                self.rng.within(0..self.places)
            } else {
                self.next = (self.next + 1) % self.places;
                self.next
            };
            let slot = &mut self.slots[usize::from(i)];
            let kind = if self.pattern.write {
                kind::OUT
            } else {
                kind::IN
            };
            let sector = place * u64::from(self.pattern.bytes) / 512;
            queue.mem.write(slot.header, &request_header(kind, sector));
            queue.mem.write(slot.status, &[NO_STATUS]);
            slot.submitted = now;
            let entry = u64::from(queue.avail_idx % queue.size);
            let at = queue.avail + 4 + 2 * entry;
            queue
                .mem
                .atomic(at)
                .store(i * self.stride, Ordering::Relaxed);
            queue.avail_idx = queue.avail_idx.wrapping_add(1);
        }
        self.ready.clear();
        queue.set_avail_idx(queue.avail_idx);
        queue.kick_if_wanted(added);
        u64::from(added)
    }

    /// Waits until something is used.
    fn wait(&mut self) {
        let queue = &mut *self.queue;
        let is_used = |queue: &Queue| queue.used_idx() != queue.seen;
        if !self.poll.is_zero() {
            let start = Instant::now();
            while start.elapsed() < self.poll {
                for _ in 0..16 {
                    if is_used(queue) {
                        return;
                    }
                    spin_loop();
                }
            }
        }
        queue.set_used_event(queue.seen);
        fence(Ordering::SeqCst);
        while !is_used(queue) {
            assert!(queue.call.wait(PATIENCE), "a request is never completed");
            queue.call.take();
        }
    }

    /// Takes all used entries.
    fn complete(&mut self, now: Instant, latency: &mut Histogram<u64>) -> u64 {
        let queue = &mut *self.queue;
        let used = queue.used_idx();
        let mut taken = 0;
        while queue.seen != used {
            let at = queue.used + 4 + 8 * u64::from(queue.seen % queue.size);
            let mut id = [0; 4];
            queue.mem.read_into(at, &mut id);
            let i = u32::from_le_bytes(id) as u16 / self.stride;
            let slot = &self.slots[usize::from(i)];
            let mut status = [0; 1];
            queue.mem.read_into(slot.status, &mut status);
            assert_eq!(status, [0], "a request failed");
            latency.saturating_record((now - slot.submitted).as_nanos() as u64);
            self.ready.push(i);
            queue.seen = queue.seen.wrapping_add(1);
            taken += 1;
        }
        taken
    }
}

/// Writes the chain of a request whose first descriptor is `head`, and random data to its buffer.
fn prepare(queue: &mut Queue, head: u16, pattern: &Pattern) -> Slot {
    let (header, status) = (queue.arena.alloc(16, 16), queue.arena.alloc(1, 1));
    let data = queue.arena.alloc(u64::from(pattern.bytes), 4096);
    let noise = Rng::new(u64::from(head)).bytes(pattern.bytes as usize);
    queue.mem.write(data, &noise);
    let writable = if pattern.write { 0 } else { WRITE };
    let chain = [
        (header, 16, NEXT),
        (data, pattern.bytes, NEXT | writable),
        (status, 1, WRITE),
    ];
    let table = queue.arena.alloc(16 * chain.len() as u64, 16);
    let first = if queue.indirect { 0 } else { head };
    for (i, (addr, len, flags)) in (first..).zip(chain) {
        let next = if flags & NEXT != 0 { i + 1 } else { 0 };
        let desc = Desc {
            addr,
            len,
            flags,
            next,
        };
        match queue.indirect {
            true => queue.mem.write(table + 16 * u64::from(i), &desc.bytes()),
            false => queue.write_desc(i, desc),
        }
    }
    if queue.indirect {
        let len = 16 * chain.len() as u32;
        queue.write_desc(
            head,
            Desc {
                addr: table,
                len,
                flags: INDIRECT,
                next: 0,
            },
        );
    }
    Slot {
        header,
        status,
        submitted: Instant::now(),
    }
}
