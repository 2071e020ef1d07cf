//! A split virtqueue as its driver sees it (virtio 1.2 §2.7), every byte in the test's hands.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};
use std::time::{Duration, Instant};

use super::eventfd::EventFd;
use super::memory::GuestMemory;
use crate::PATIENCE;

/// The chain goes on at `next`.
pub const NEXT: u16 = 1;
/// The device writes this buffer.
pub const WRITE: u16 = 2;
/// The buffer is a table of descriptors.
pub const INDIRECT: u16 = 4;

/// A buffer of a chain.
#[derive(Clone, Copy, Debug)]
pub struct Seg {
    pub addr: u64,
    pub len: u32,
    pub writable: bool,
}

impl Seg {
    /// A buffer that the device reads.
    pub fn out(addr: u64, len: u32) -> Self {
        Self {
            addr,
            len,
            writable: false,
        }
    }

    /// A buffer that the device writes.
    pub fn into(addr: u64, len: u32) -> Self {
        Self {
            addr,
            len,
            writable: true,
        }
    }
}

/// A descriptor as it lies in memory.
#[derive(Clone, Copy, Debug)]
pub struct Desc {
    pub addr: u64,
    pub len: u32,
    pub flags: u16,
    pub next: u16,
}

impl Desc {
    /// Its 16 bytes.
    pub fn bytes(&self) -> [u8; 16] {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&self.addr.to_le_bytes());
        bytes[8..12].copy_from_slice(&self.len.to_le_bytes());
        bytes[12..14].copy_from_slice(&self.flags.to_le_bytes());
        bytes[14..].copy_from_slice(&self.next.to_le_bytes());
        bytes
    }
}

/// An entry of the used ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Used {
    /// The head of the chain that was given back.
    pub id: u32,
    /// How many bytes the device says that it wrote.
    pub len: u32,
}

/// Memory of one queue's own, handed out and taken back as a whole.
pub struct Arena {
    base: u64,
    len: u64,
    next: u64,
}

impl Arena {
    /// `len` bytes, until the next reset.
    pub fn alloc(&mut self, len: u64, align: u64) -> u64 {
        let start = self.next.next_multiple_of(align);
        assert!(
            start + len <= self.len,
            "the queue's arena is too small for this test"
        );
        self.next = start + len;
        self.base + start
    }

    /// Takes everything back. Nothing may be in flight.
    pub fn reset(&mut self) {
        self.next = 0;
    }
}

/// Bytes of a queue's arena.
const ARENA: u64 = 24 << 20;

/// What a VMM knows of a queue: where its rings are, and what signals it.
pub struct Vring {
    pub index: u32,
    pub size: u16,
    pub desc: u64,
    pub avail: u64,
    pub used: u64,
    pub kick: EventFd,
    pub call: EventFd,
    pub err: EventFd,
}

/// One queue: its rings, its file descriptors, and what its driver remembers.
pub struct Queue {
    pub mem: Arc<GuestMemory>,
    pub index: u32,
    pub size: u16,
    pub desc: u64,
    pub avail: u64,
    pub used: u64,
    pub kick: EventFd,
    pub call: EventFd,
    pub err: EventFd,
    pub arena: Arena,
    /// EVENT_IDX was negotiated.
    pub event_idx: bool,
    /// Chains go through indirect tables.
    pub indirect: bool,
    /// The available index that the device is told to start at.
    pub base: u16,
    /// The driver's next available index.
    pub avail_idx: u16,
    /// The used index up to which the driver has looked.
    pub seen: u16,
    free: Vec<u16>,
    taken: HashMap<u32, Vec<u16>>,
    done: HashMap<u32, Used>,
}

impl Queue {
    /// Rings of `size` entries in memory of their own, each on pages of its own.
    pub fn new(mem: &Arc<GuestMemory>, index: u32, size: u16) -> Self {
        let entries = u64::from(size);
        Self {
            index,
            size,
            desc: mem.alloc(16 * entries, 4096),
            avail: mem.alloc(6 + 2 * entries, 4096),
            used: mem.alloc(6 + 8 * entries, 4096),
            kick: EventFd::new(),
            call: EventFd::new(),
            err: EventFd::new(),
            arena: Arena {
                base: mem.alloc(ARENA, 4096),
                len: ARENA,
                next: 0,
            },
            event_idx: false,
            indirect: false,
            base: 0,
            avail_idx: 0,
            seen: 0,
            free: (0..size).rev().collect(),
            taken: HashMap::new(),
            done: HashMap::new(),
            mem: mem.clone(),
        }
    }

    /// Empties the rings and forgets what is in flight, as a driver does after a reset. The next
    /// request is entry `start`.
    pub fn reset(&mut self, start: u16) {
        let entries = usize::from(self.size);
        self.mem.fill(self.desc, 0, 16 * entries);
        self.mem.fill(self.avail, 0, 6 + 2 * entries);
        self.mem.fill(self.used, 0, 6 + 8 * entries);
        self.base = start;
        self.avail_idx = start;
        self.seen = start;
        self.set_avail_idx(start);
        self.mem
            .atomic(self.used + 2)
            .store(start, Ordering::Release);
        self.free = (0..self.size).rev().collect();
        self.taken.clear();
        self.done.clear();
        self.arena.reset();
        self.kick.take();
        self.call.take();
        self.err.take();
        self.want_call();
    }

    /// What its VMM knows of it.
    pub fn vring(&self) -> Vring {
        Vring {
            index: self.index,
            size: self.size,
            desc: self.desc,
            avail: self.avail,
            used: self.used,
            kick: self.kick.duplicate(),
            call: self.call.duplicate(),
            err: self.err.duplicate(),
        }
    }

    /// How many chains the device holds.
    pub fn in_flight(&self) -> usize {
        self.taken.len()
    }

    // What a guest can write.

    /// Writes descriptor `index` of the queue's own table.
    pub fn write_desc(&self, index: u16, desc: Desc) {
        self.mem
            .write(self.desc + 16 * u64::from(index), &desc.bytes());
    }

    /// Writes `head` to the ring and makes it available, without a kick.
    pub fn push(&mut self, head: u16) {
        let slot = u64::from(self.avail_idx % self.size);
        self.mem
            .atomic(self.avail + 4 + 2 * slot)
            .store(head, Ordering::Relaxed);
        self.avail_idx = self.avail_idx.wrapping_add(1);
        self.set_avail_idx(self.avail_idx);
    }

    /// Sets the available index, to anything.
    pub fn set_avail_idx(&self, index: u16) {
        self.mem
            .atomic(self.avail + 2)
            .store(index, Ordering::Release);
    }

    /// Sets `avail.flags`: 1 asks for no interrupts (without EVENT_IDX).
    pub fn set_avail_flags(&self, flags: u16) {
        self.mem.atomic(self.avail).store(flags, Ordering::Release);
    }

    /// Sets `used_event`: the device shall call when it passes that index (§2.7.7.1).
    pub fn set_used_event(&self, index: u16) {
        let at = self.avail + 4 + 2 * u64::from(self.size);
        self.mem.atomic(at).store(index, Ordering::Release);
    }

    // What a device writes.

    /// The used index.
    pub fn used_idx(&self) -> u16 {
        self.mem.atomic(self.used + 2).load(Ordering::Acquire)
    }

    /// `used.flags`: 1 asks for no kicks (without EVENT_IDX).
    pub fn used_flags(&self) -> u16 {
        self.mem.atomic(self.used).load(Ordering::Acquire)
    }

    /// `avail_event`: the device wants a kick when the driver passes that index.
    pub fn avail_event(&self) -> u16 {
        let at = self.used + 4 + 8 * u64::from(self.size);
        self.mem.atomic(at).load(Ordering::Acquire)
    }

    // What a driver does.

    /// Writes a chain into free descriptors (or an indirect table) and returns its head.
    pub fn chain(&mut self, segs: &[Seg]) -> u16 {
        if self.indirect {
            let table = self.arena.alloc(16 * segs.len() as u64, 16);
            return self.indirect_chain(table, segs);
        }
        self.direct_chain(segs)
    }

    /// Writes a chain into free descriptors and returns its head.
    pub fn direct_chain(&mut self, segs: &[Seg]) -> u16 {
        let chain: Vec<Desc> = descs(segs).collect();
        self.own_chain(&chain)
    }

    /// Writes a chain into a table at `table`, which has room for it, and returns its head.
    pub fn indirect_chain(&mut self, table: u64, segs: &[Seg]) -> u16 {
        for (desc, at) in descs(segs).zip((table..).step_by(16)) {
            self.mem.write(at, &desc.bytes());
        }
        self.own_chain(&[Desc {
            addr: table,
            len: 16 * segs.len() as u32,
            flags: INDIRECT,
            next: 0,
        }])
    }

    /// Puts descriptors into free places of the table, links those with NEXT, and takes them.
    fn own_chain(&mut self, descs: &[Desc]) -> u16 {
        assert!(
            self.free.len() >= descs.len(),
            "the queue has too few free descriptors"
        );
        let places: Vec<u16> = self.free.split_off(self.free.len() - descs.len());
        for (i, desc) in descs.iter().enumerate() {
            let next = if desc.flags & NEXT != 0 {
                places[i + 1]
            } else {
                desc.next
            };
            self.write_desc(places[i], Desc { next, ..*desc });
        }
        let head = places[0];
        self.taken.insert(u32::from(head), places);
        head
    }

    /// Has the next chains begin among the last `count` descriptors, while these are free.
    pub fn use_last(&mut self, count: u16) {
        let first = self.size - count;
        self.free
            .sort_unstable_by_key(|place| (*place >= first, std::cmp::Reverse(*place)));
    }

    /// Takes `count` descriptors and returns them, for a test that writes them itself. The first
    /// is the head.
    pub fn take(&mut self, count: usize) -> Vec<u16> {
        let places: Vec<u16> = self.free.split_off(self.free.len() - count);
        self.taken.insert(u32::from(places[0]), places.clone());
        places
    }

    /// Expects `head` to be used although no chain of ours begins there.
    pub fn expect(&mut self, head: u16) {
        self.taken.entry(u32::from(head)).or_default();
    }

    /// Makes a chain available and kicks if the device wants it.
    pub fn submit(&mut self, segs: &[Seg]) -> u16 {
        let head = self.chain(segs);
        self.push(head);
        self.kick_if_wanted(1);
        head
    }

    /// Kicks, unless the device asked not to after the last `added` entries (§2.7.10.1).
    pub fn kick_if_wanted(&self, added: u16) {
        fence(Ordering::SeqCst);
        let wanted = if self.event_idx {
            let event = self.avail_event();
            let old = self.avail_idx.wrapping_sub(added);
            self.avail_idx.wrapping_sub(event).wrapping_sub(1) < self.avail_idx.wrapping_sub(old)
        } else {
            self.used_flags() & 1 == 0
        };
        if wanted {
            self.kick.signal();
        }
    }

    /// Asks for a call at the next used entry.
    fn want_call(&self) {
        if self.event_idx {
            self.set_used_event(self.seen);
            fence(Ordering::SeqCst);
        }
    }

    /// The next used entry, if there is one.
    pub fn poll(&mut self) -> Option<Used> {
        if self.used_idx() == self.seen {
            return None;
        }
        let at = self.used + 4 + 8 * u64::from(self.seen % self.size);
        let entry = self.mem.read(at, 8);
        let word = |at: usize| u32::from_le_bytes(entry[at..at + 4].try_into().unwrap());
        let used = Used {
            id: word(0),
            len: word(4),
        };
        self.seen = self.seen.wrapping_add(1);
        self.want_call();
        let places = self.taken.remove(&used.id);
        let places = places.unwrap_or_else(|| panic!("{used:?} was not in flight"));
        self.free.extend(places);
        Some(used)
    }

    /// The next used entry within `limit`, woken by the call fd. The call may come a moment later
    /// than the entry, so that only after `PATIENCE` it counts as lost.
    ///
    /// # Panics
    /// When the entry is there but no call in all that time: a lost interrupt.
    pub fn next_within(&mut self, limit: Duration) -> Option<Used> {
        let end = Instant::now() + limit;
        loop {
            if let Some(used) = self.poll() {
                return Some(used);
            }
            let left = end.saturating_duration_since(Instant::now());
            if !self.call.wait(left) {
                let lost = limit >= PATIENCE && self.used_idx() != self.seen;
                assert!(
                    !lost,
                    "queue {}: an entry was used without a call",
                    self.index
                );
                return self.poll();
            }
            self.call.take();
        }
    }

    /// The next used entry.
    pub fn next_used(&mut self) -> Used {
        self.next_within(PATIENCE).unwrap_or_else(|| {
            panic!(
                "queue {}: nothing used in {PATIENCE:?} (available {}, used {}, {} in flight)",
                self.index,
                self.avail_idx,
                self.seen,
                self.taken.len()
            )
        })
    }

    /// Waits for the chain with this head, and keeps what else comes for its own turn.
    pub fn wait_for(&mut self, head: u16) -> Used {
        loop {
            if let Some(used) = self.done.remove(&u32::from(head)) {
                return used;
            }
            let used = self.next_used();
            self.done.insert(used.id, used);
        }
    }
}

/// The descriptors of a chain, in places that follow each other from 0 on.
fn descs(segs: &[Seg]) -> impl Iterator<Item = Desc> + '_ {
    segs.iter().zip(1u16..).map(|(seg, next)| {
        let last = usize::from(next) == segs.len();
        let direction = if seg.writable { WRITE } else { 0 };
        Desc {
            addr: seg.addr,
            len: seg.len,
            flags: direction | if last { 0 } else { NEXT },
            next: if last { 0 } else { next },
        }
    })
}
