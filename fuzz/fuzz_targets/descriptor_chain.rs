//! A guest's descriptor table, indirect table and memory.
#![no_main]

use arbitrary::Arbitrary;
use dataplane::request::{
    Action, Chain, ChainError, ChainLimits, Descriptors, Disk, Memory, Scratch, Status, interpret,
    read_chain,
};
use keys::units::Sector;
use libfuzzer_sys::fuzz_target;
use virtio_queue::desc::{RawDescriptor, split::Descriptor};
use virtio_queue::mock::MockSplitQueue;
use virtio_queue::{Queue, QueueOwnedT};
use vm_memory::{Bytes, GuestAddress};
use volume::pipeline::{BlockRequest, RequestKind};
use xts::Cursor;

#[path = "../../crates/dataplane/src/request/tests/rules.rs"]
mod rules;

const QUEUE_SIZE: u16 = 16;
const INDIRECT: u64 = 0x2000;
const DATA: u64 = 0x10000;
const REGIONS: [(GuestAddress, usize); 4] = [
    (GuestAddress(0), 0x4000),
    (GuestAddress(DATA), 0x2000),
    // Touches the one before.
    (GuestAddress(DATA + 0x2000), 0x2000),
    (GuestAddress(0x20000), 0x1000),
];

#[derive(Debug, Arbitrary)]
enum Place {
    Header(u8),
    Data(u16),
    LastRegion(u16),
    IndirectTable(u8),
    Anywhere(u64),
}

#[derive(Debug, Arbitrary)]
enum Len {
    Header,
    Status,
    Sectors(u8),
    Short(u8),
    Any(u32),
}

#[derive(Debug, Arbitrary)]
struct Desc {
    place: Place,
    len: Len,
    /// The lowest four bits; NEXT, WRITE and INDIRECT are three of them.
    flags: u8,
    /// Else it is the one behind this.
    next: Option<u16>,
}

#[derive(Debug, Arbitrary)]
struct Input {
    head: u8,
    table: Vec<Desc>,
    indirect: Vec<Desc>,
    /// Type, of which the highest bit is the barrier flag of old, and sector.
    headers: [(u8, u64); 4],
    /// Discard and write zeroes segments, behind the headers.
    segments: [(u64, u32, u8); 2],
    capacity: u32,
    large_blocks: bool,
    read_only: bool,
    segments_offered: u8,
}

impl Desc {
    fn raw(&self, index: u16) -> RawDescriptor {
        let addr = match self.place {
            Place::Header(n) => DATA + u64::from(n % 6) * 16,
            Place::Data(at) => DATA + 96 + u64::from(at) % 0x3fa0,
            Place::LastRegion(at) => 0x20000 + u64::from(at) % 0x1100,
            Place::IndirectTable(at) => INDIRECT + u64::from(at),
            Place::Anywhere(at) => at,
        };
        let len = match self.len {
            Len::Header => 16,
            Len::Status => 1,
            Len::Sectors(n) => u32::from(n) * 512,
            Len::Short(n) => n.into(),
            Len::Any(n) => n,
        };
        let next = self.next.unwrap_or(index + 1);
        Descriptor::new(addr, len, (self.flags & 0xf).into(), next).into()
    }
}

fuzz_target!(|input: Input| {
    let memory = Memory::from_ranges(&REGIONS).unwrap();
    for (start, len) in &REGIONS[1..] {
        let content: Vec<u8> = (0..*len as u64)
            .map(|i| ((start.0 + i).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8)
            .collect();
        memory.write_slice(&content, *start).unwrap();
    }
    let mut at = DATA;
    let mut put = |low: u64, high: u64| {
        memory.write_obj(low.to_le(), GuestAddress(at)).unwrap();
        memory
            .write_obj(high.to_le(), GuestAddress(at + 8))
            .unwrap();
        at += 16;
    };
    for (kind, sector) in input.headers {
        put(u64::from(kind % 16) | u64::from(kind >> 7) << 31, sector);
    }
    for (sector, sectors, flags) in input.segments {
        put(sector, u64::from(sectors) | u64::from(flags % 4) << 32);
    }
    let ring = MockSplitQueue::new(&memory, QUEUE_SIZE);
    for (index, desc) in (0..QUEUE_SIZE).zip(&input.table) {
        ring.desc_table().store(index, desc.raw(index)).unwrap();
    }
    for (index, desc) in (0..128).zip(&input.indirect) {
        let at = INDIRECT + u64::from(index) * 16;
        memory.write_obj(desc.raw(index), GuestAddress(at)).unwrap();
    }
    let head = u16::from(input.head) % QUEUE_SIZE;
    ring.avail().ring().ref_at(0).unwrap().store(head.to_le());
    ring.avail().idx().store(1u16.to_le());

    let mut queue: Queue = ring.create_queue().unwrap();
    let Some(chain) = queue.iter(&memory).unwrap().next() else {
        return;
    };
    let limits = ChainLimits {
        segments: usize::from(input.segments_offered % 130),
        bytes: 0x4000,
    };
    let disk = Disk {
        capacity: Sector(input.capacity.into()),
        block_sectors: if input.large_blocks { 8 } else { 1 },
        read_only: input.read_only,
        serial: *b"0123456789abcdefghij",
        discard: true,
        most_zero_sectors: 1 << 21,
    };
    let descriptors: Vec<_> = chain.clone().collect();
    let walked = Descriptors::new(&memory, ring.desc_table_addr(), QUEUE_SIZE, head);
    let parts = |d: Descriptor| (d.addr(), d.len(), d.flags(), d.next());
    assert!(walked.map(parts).eq(descriptors.iter().copied().map(parts)));
    let mut scratch = Scratch::default();
    let result = read_chain(&memory, chain, limits, &mut scratch, Vec::new());
    rules::check(&memory, &descriptors, limits, &disk, result);
});
