//! The in-flight region that a frontend keeps for the next back-end (vhost-user, "Inflight I/O tracking").

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::FileExt;

use rustix::fs::{MemfdFlags, ftruncate, memfd_create};

use super::message::Message;

/// Bytes before the entries of a queue's part, and of each entry.
const HEADER: u64 = 16;
const ENTRY: u64 = 16;

/// Offsets in the part of a queue.
pub const VERSION: u64 = 8;
pub const DESC_NUM: u64 = 10;
pub const LAST_BATCH_HEAD: u64 = 12;
pub const USED_IDX: u64 = 14;

/// Offsets in an entry.
pub const INFLIGHT: u64 = 0;
pub const NEXT: u64 = 6;
pub const COUNTER: u64 = 8;

/// Such a region, as SET_INFLIGHT_FD describes it.
pub struct InflightRegion {
    pub file: File,
    pub size: u64,
    pub offset: u64,
    pub queues: u16,
    pub entries: u16,
}

impl InflightRegion {
    /// One of the frontend's own that nobody has used, in a file that can be made shorter.
    pub fn new(queues: u16, entries: u16) -> Self {
        let size = u64::from(queues) * part_len(entries);
        let file = memfd_create("in-flight", MemfdFlags::CLOEXEC).unwrap();
        ftruncate(&file, size).unwrap();
        Self {
            file: file.into(),
            size,
            offset: 0,
            queues,
            entries,
        }
    }

    /// What GET_INFLIGHT_FD answers.
    ///
    /// # Panics
    /// When it is something else.
    pub fn from_reply(reply: Message) -> Self {
        assert_eq!(reply.body.len(), 24, "a reply to GET_INFLIGHT_FD");
        let long = |at: usize| u64::from_le_bytes(reply.body[at..at + 8].try_into().unwrap());
        let short = |at: usize| u16::from_le_bytes(reply.body[at..at + 2].try_into().unwrap());
        let (size, offset, queues, entries) = (long(0), long(8), short(16), short(18));
        let [file] = <[_; 1]>::try_from(reply.fds).expect("one file");
        Self {
            file: file.into(),
            size,
            offset,
            queues,
            entries,
        }
    }

    /// The body of both messages.
    pub fn body_of(size: u64, offset: u64, queues: u16, entries: u16) -> Vec<u8> {
        let shape = u64::from(queues) | u64::from(entries) << 16;
        super::message::words(&[size, offset, shape])
    }

    /// The body that names this one.
    pub fn body(&self) -> Vec<u8> {
        Self::body_of(self.size, self.offset, self.queues, self.entries)
    }

    /// Its file.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    /// Where in the file the field `field` of a queue's part is.
    ///
    /// # Panics
    /// When the region is too small for its shape.
    pub fn field(&self, queue: u32, field: u64) -> u64 {
        // Each queue has an equal part, for at least as many entries as were asked for.
        let part = self.size / u64::from(self.queues);
        assert!(part >= part_len(self.entries), "a part of {part} bytes");
        self.offset + u64::from(queue) * part + field
    }

    /// The same of the entry of `head`.
    pub fn entry(&self, queue: u32, head: u16, field: u64) -> u64 {
        self.field(queue, HEADER + ENTRY * u64::from(head) + field)
    }

    /// Takes over what another one of the same shape has.
    pub fn copy_from(&self, other: &Self) {
        let mut bytes = vec![0; self.size as usize];
        other.file.read_exact_at(&mut bytes, other.offset).unwrap();
        self.file.write_all_at(&bytes, self.offset).unwrap();
    }

    /// Writes bytes at an offset of the file.
    pub fn write(&self, at: u64, bytes: &[u8]) {
        self.file.write_all_at(bytes, at).unwrap();
    }

    /// Whether the chain of a head is in flight.
    pub fn is_marked(&self, queue: u32, head: u16) -> bool {
        let mut mark = [0];
        let at = self.entry(queue, head, INFLIGHT);
        self.file.read_exact_at(&mut mark, at).unwrap();
        mark != [0]
    }

    /// Heads that are in flight.
    pub fn marked(&self, queue: u32) -> Vec<u16> {
        let heads = 0..self.entries;
        heads.filter(|head| self.is_marked(queue, *head)).collect()
    }
}

/// Bytes from the part of one queue to that of the next: as libvhost-user and DPDK have it.
fn part_len(entries: u16) -> u64 {
    (HEADER + ENTRY * u64::from(entries)).next_multiple_of(64)
}
