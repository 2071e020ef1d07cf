//! The driver of a well-behaved guest, fast enough not to be what is measured.
//!
//! Every request has its chains for good: a header, one buffer and a status, behind one indirect
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

use crate::pattern::{Pattern, READS_OF_TEN, Work};

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
    /// From when a request was made to when its end was seen, in nanoseconds.
    pub latency: Histogram<u64>,
}

/// One chain that is made available again and again.
struct Chain {
    header: u64,
    status: u64,
    kind: u32,
}

/// One request, of one or two chains.
struct Slot {
    /// Those of a mixed load read and write, those of a writer write and flush.
    chains: Vec<Chain>,
    /// Which of them is next, or in flight.
    chain: usize,
    /// When the request began, or was due.
    start: Instant,
}

/// The load on one queue.
pub struct Load<'a> {
    queue: &'a mut Queue,
    pattern: Pattern,
    /// How long to look at the used ring before sleeping.
    poll: Duration,
    slots: Vec<Slot>,
    /// Descriptors of the ring's table that each chain has.
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
        let kinds: &[u32] = match pattern.work {
            Work::Read => &[kind::IN],
            Work::Write => &[kind::OUT],
            Work::Mixed => &[kind::IN, kind::OUT],
            Work::Synced => &[kind::OUT, kind::FLUSH],
        };
        assert!(pattern.depth * kinds.len() as u16 * stride <= queue.size);
        let slots = (0..pattern.depth)
            .map(|i| prepare(queue, i, stride, kinds, pattern.bytes))
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
        let mut latency = histogram();
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
        // A writer whose flush was not submitted any more begins anew.
        self.slots.iter_mut().for_each(|slot| slot.chain = 0);
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

    /// Makes a request available whenever one is due, so many in a second at equal distances, for as
    /// long as the limit says, and waits for all of them. The latency counts from when a request was
    /// due: also for one for which no slot was free then.
    pub fn run_at(&mut self, rate: f64, limit: Duration) -> Outcome {
        let total = (rate * limit.as_secs_f64()).ceil() as u64;
        let due = |request: u64| Duration::from_secs_f64(request as f64 / rate);
        let mut latency = histogram();
        let (mut submitted, mut requests) = (0, 0);
        let start = Instant::now();
        let mut last = start;
        while requests < total {
            let now = Instant::now();
            let mut added = 0;
            while submitted < total && due(submitted) <= now - start {
                let Some(i) = self.ready.pop() else { break };
                self.put(i, start + due(submitted));
                (submitted, added) = (submitted + 1, added + 1);
            }
            if added > 0 {
                self.publish(added);
            }
            if self.is_used() {
                last = Instant::now();
                requests += self.complete(last, &mut latency);
            } else if self.ready.len() < self.slots.len() {
                assert!(now - last < PATIENCE, "a request is never completed");
            } else {
                last = now;
            }
            spin_loop();
        }
        Outcome {
            requests,
            elapsed: last - start,
            latency,
        }
    }

    /// Makes all waiting requests available at once, and kicks if the device wants it. How many
    /// requests began.
    fn submit(&mut self, now: Instant) -> u64 {
        let (mut ready, mut began) = (std::mem::take(&mut self.ready), 0);
        let added = ready.len() as u16;
        for i in ready.drain(..) {
            began += u64::from(self.put(i, now));
        }
        self.ready = ready;
        self.publish(added);
        began
    }

    /// Writes the next chain of a request to the avail ring, and whether that is its first.
    fn put(&mut self, i: u16, start: Instant) -> bool {
        let slot = &mut self.slots[usize::from(i)];
        if self.pattern.work == Work::Mixed {
            slot.chain = usize::from(self.rng.within(0..10) >= READS_OF_TEN);
        }
        let chain = &slot.chains[slot.chain];
        let queue = &mut *self.queue;
        let begins = chain.kind != kind::FLUSH;
        if begins {
            let place = if self.pattern.random {
                self.rng.within(0..self.places)
            } else {
                self.next = (self.next + 1) % self.places;
                self.next
            };
            let sector = place * u64::from(self.pattern.bytes) / 512;
            queue
                .mem
                .write(chain.header, &request_header(chain.kind, sector));
            slot.start = start;
        }
        queue.mem.write(chain.status, &[NO_STATUS]);
        let head = (i * slot.chains.len() as u16 + slot.chain as u16) * self.stride;
        let entry = u64::from(queue.avail_idx % queue.size);
        let at = queue.avail + 4 + 2 * entry;
        queue.mem.atomic(at).store(head, Ordering::Relaxed);
        queue.avail_idx = queue.avail_idx.wrapping_add(1);
        begins
    }

    fn publish(&mut self, added: u16) {
        self.queue.set_avail_idx(self.queue.avail_idx);
        self.queue.kick_if_wanted(added);
    }

    fn is_used(&self) -> bool {
        self.queue.used_idx() != self.queue.seen
    }

    /// Waits until something is used.
    fn wait(&mut self) {
        if !self.poll.is_zero() {
            let start = Instant::now();
            while start.elapsed() < self.poll {
                for _ in 0..16 {
                    if self.is_used() {
                        return;
                    }
                    spin_loop();
                }
            }
        }
        self.queue.set_used_event(self.queue.seen);
        fence(Ordering::SeqCst);
        while !self.is_used() {
            let call = &self.queue.call;
            assert!(call.wait(PATIENCE), "a request is never completed");
            call.take();
        }
    }

    /// Takes all used entries. How many requests are done.
    fn complete(&mut self, now: Instant, latency: &mut Histogram<u64>) -> u64 {
        let queue = &mut *self.queue;
        let used = queue.used_idx();
        let mut done = 0;
        while queue.seen != used {
            let at = queue.used + 4 + 8 * u64::from(queue.seen % queue.size);
            let mut id = [0; 4];
            queue.mem.read_into(at, &mut id);
            let chain = u32::from_le_bytes(id) as usize / usize::from(self.stride);
            let i = chain / self.slots[0].chains.len();
            let slot = &mut self.slots[i];
            let mut status = [0; 1];
            queue
                .mem
                .read_into(slot.chains[slot.chain].status, &mut status);
            assert_eq!(status, [0], "a request failed");
            let is_written = self.pattern.work == Work::Synced && slot.chain == 0;
            slot.chain = usize::from(is_written);
            if !is_written {
                latency.saturating_record((now - slot.start).as_nanos() as u64);
                done += 1;
            }
            self.ready.push(i as u16);
            queue.seen = queue.seen.wrapping_add(1);
        }
        done
    }
}

impl Drop for Load<'_> {
    /// Who uses the queue next may wait for a call at once.
    fn drop(&mut self) {
        self.queue.set_used_event(self.queue.seen);
    }
}

fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, PATIENCE.as_nanos() as u64, 3).unwrap()
}

/// Writes the chains of the request `i`, one for each kind, and random data to their buffer.
fn prepare(queue: &mut Queue, i: u16, stride: u16, kinds: &[u32], bytes: u32) -> Slot {
    let data = queue.arena.alloc(u64::from(bytes), 4096);
    let noise = Rng::new(u64::from(i)).bytes(bytes as usize);
    queue.mem.write(data, &noise);
    let first = i * kinds.len() as u16;
    let chains = (first..)
        .zip(kinds)
        .map(|(chain, &kind)| prepare_chain(queue, chain * stride, kind, (data, bytes)))
        .collect();
    Slot {
        chains,
        chain: 0,
        start: Instant::now(),
    }
}

/// Writes the chain whose first descriptor is `head`.
fn prepare_chain(queue: &mut Queue, head: u16, kind: u32, (data, bytes): (u64, u32)) -> Chain {
    let (header, status) = (queue.arena.alloc(16, 16), queue.arena.alloc(1, 1));
    queue.mem.write(header, &request_header(kind, 0));
    let mut buffers = vec![(header, 16, NEXT)];
    match kind {
        kind::IN => buffers.push((data, bytes, NEXT | WRITE)),
        kind::OUT => buffers.push((data, bytes, NEXT)),
        _ => {}
    }
    buffers.push((status, 1, WRITE));
    let len = 16 * buffers.len() as u32;
    let table = queue.arena.alloc(u64::from(len), 16);
    let first = if queue.indirect { 0 } else { head };
    for (i, (addr, len, flags)) in (first..).zip(buffers) {
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
        let desc = Desc {
            addr: table,
            len,
            flags: INDIRECT,
            next: 0,
        };
        queue.write_desc(head, desc);
    }
    Chain {
        header,
        status,
        kind,
    }
}
