//! Chains as a hostile guest writes them, on the mock of the driver's side of a split virtqueue.

mod actions;
mod chains;
mod properties;
mod rules;

use virtio_bindings::virtio_ring::{VRING_DESC_F_INDIRECT, VRING_DESC_F_NEXT, VRING_DESC_F_WRITE};
use virtio_queue::desc::RawDescriptor;
use virtio_queue::desc::split::Descriptor;
use virtio_queue::mock::MockSplitQueue;
use virtio_queue::{DescriptorChain, Queue, QueueOwnedT};
use vm_memory::{Bytes, GuestAddress};

use super::*;
use keys::units::{ByteOffset, Sector};
use volume::pipeline::{BlockRequest, RequestKind};
use xts::Cursor;

const NEXT: u16 = VRING_DESC_F_NEXT as u16;
const WRITE: u16 = VRING_DESC_F_WRITE as u16;
const INDIRECT: u16 = VRING_DESC_F_INDIRECT as u16;

const QUEUE_SIZE: u16 = 16;
/// In the region of the rings.
const TABLE: u64 = 0x8000;
/// A region that another one follows without a gap.
const DATA: u64 = 0x10_0000;
const REGION_LEN: u64 = 0x4000;
/// Where the first region at `DATA` ends and the second begins.
const BORDER: u64 = DATA + REGION_LEN;
/// The end of both: nothing is there.
const END: u64 = BORDER + REGION_LEN;

const LIMITS: ChainLimits = ChainLimits {
    segments: 14,
    bytes: 0x6000,
};

/// Flags and all, as it is in guest memory.
type Desc = (u64, u32, u16, u16);

/// A guest whose memory has other bytes at each place.
struct Guest {
    memory: Memory,
}

impl Guest {
    fn new() -> Self {
        let ranges = [
            (GuestAddress(0), 0x1_0000),
            (GuestAddress(DATA), REGION_LEN as usize),
            (GuestAddress(BORDER), REGION_LEN as usize),
        ];
        let guest = Self {
            memory: Memory::from_ranges(&ranges).unwrap(),
        };
        let content: Vec<u8> = (0..2 * REGION_LEN)
            .map(|i| (i.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8)
            .collect();
        guest.put(DATA, &content);
        guest
    }

    fn put(&self, at: u64, bytes: &[u8]) {
        self.memory.write_slice(bytes, GuestAddress(at)).unwrap();
    }

    fn get(&self, at: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.memory
            .read_slice(&mut bytes, GuestAddress(at))
            .unwrap();
        bytes
    }

    fn put_header(&self, at: u64, kind: u32, sector: u64) {
        self.put(at, &header_bytes(kind, sector));
    }

    fn put_table(&self, at: u64, table: &[Desc]) {
        for (entry, desc) in (at..).step_by(16).zip(table) {
            self.memory
                .write_obj(raw(desc), GuestAddress(entry))
                .unwrap();
        }
    }

    /// The chain that begins at `head` of a descriptor table.
    fn chain(&self, table: &[Desc], head: u16) -> DescriptorChain<&Memory> {
        let ring = MockSplitQueue::new(&self.memory, QUEUE_SIZE);
        for (index, desc) in (0..QUEUE_SIZE).zip(table) {
            ring.desc_table().store(index, raw(desc)).unwrap();
        }
        ring.avail().ring().ref_at(0).unwrap().store(head.to_le());
        ring.avail().idx().store(1u16.to_le());
        let mut queue: Queue = ring.create_queue().unwrap();
        queue.iter(&self.memory).unwrap().next().unwrap()
    }

    fn read(&self, table: &[Desc]) -> Result<Chain, ChainError> {
        self.read_with(table, LIMITS)
    }

    fn read_with(&self, table: &[Desc], limits: ChainLimits) -> Result<Chain, ChainError> {
        let mut scratch = Scratch::default();
        read_chain(
            &self.memory,
            self.chain(table, 0),
            limits,
            &mut scratch,
            Vec::new(),
        )
    }

    fn error(&self, table: &[Desc]) -> ChainError {
        match self.read(table) {
            Ok(_) => panic!("{table:x?} was accepted"),
            Err(error) => error,
        }
    }
}

fn parts(descriptor: Descriptor) -> Desc {
    (
        descriptor.addr().0,
        descriptor.len(),
        descriptor.flags(),
        descriptor.next(),
    )
}

fn raw(&(addr, len, flags, next): &Desc) -> RawDescriptor {
    Descriptor::new(addr, len, flags, next).into()
}

/// Links the parts in order: readable ones, then writable ones.
fn linked(readable: &[(u64, u32)], writable: &[(u64, u32)]) -> Vec<Desc> {
    let count = readable.len() + writable.len();
    let readable = readable.iter().map(|part| (part, 0));
    let writable = writable.iter().map(|part| (part, WRITE));
    let link = |(index, (&(addr, len), flags)): (usize, (&(u64, u32), u16))| {
        let next = if index + 1 < count { NEXT } else { 0 };
        (addr, len, flags | next, index as u16 + 1)
    };
    readable.chain(writable).enumerate().map(link).collect()
}

fn header_bytes(kind: u32, sector: u64) -> Vec<u8> {
    let reserved = [0xee; 4];
    [
        &kind.to_le_bytes(),
        &reserved,
        sector.to_le_bytes().as_slice(),
    ]
    .concat()
}

/// All bytes of a chain's data.
fn data(chain: &Chain) -> Vec<u8> {
    let mut bytes = vec![0; chain.data.iter().map(|s| s.len()).sum()];
    Cursor::default().read(&chain.data, &mut bytes);
    bytes
}
