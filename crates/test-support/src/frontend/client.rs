//! The requests of a well-behaved virtio-blk driver (virtio 1.2 §5.2.6).

use super::SECTOR;
use super::queue::{Queue, Seg, Used};

/// Request types.
pub mod kind {
    pub const IN: u32 = 0;
    pub const OUT: u32 = 1;
    pub const FLUSH: u32 = 4;
    pub const GET_ID: u32 = 8;
    pub const DISCARD: u32 = 11;
    pub const WRITE_ZEROES: u32 = 13;
}

/// UNMAP, the one flag of a discard or write-zeroes segment.
pub const UNMAP: u32 = 1;

/// The status byte of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    Ok,
    IoErr,
    Unsupp,
    /// The device wrote no status, or one that the standard doesn't know.
    Other(u8),
}

impl From<u8> for Status {
    fn from(byte: u8) -> Self {
        match byte {
            0 => Self::Ok,
            1 => Self::IoErr,
            2 => Self::Unsupp,
            other => Self::Other(other),
        }
    }
}

/// What the status byte holds before the device writes it.
pub const NO_STATUS: u8 = 0xee;

/// A request that the device holds.
#[derive(Clone, Copy, Debug)]
pub struct Pending {
    pub head: u16,
    pub header: u64,
    pub status: u64,
}

/// A request that came back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Completion {
    pub status: Status,
    /// `used.len`.
    pub len: u32,
}

/// The 16 bytes of a request header.
pub fn request_header(kind: u32, sector: u64) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[..4].copy_from_slice(&kind.to_le_bytes());
    bytes[8..].copy_from_slice(&sector.to_le_bytes());
    bytes
}

/// The 16 bytes of a discard or write-zeroes segment.
pub fn range_segment(sector: u64, sectors: u32, flags: u32) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&sector.to_le_bytes());
    bytes[8..12].copy_from_slice(&sectors.to_le_bytes());
    bytes[12..].copy_from_slice(&flags.to_le_bytes());
    bytes
}

impl Queue {
    /// Submits a request with the given data segments.
    pub fn request(&mut self, kind: u32, sector: u64, data: &[Seg]) -> Pending {
        let pending = self.prepare(kind, sector, data);
        self.push(pending.head);
        self.kick_if_wanted(1);
        pending
    }

    /// Writes a request's chain, without making it available.
    pub fn prepare(&mut self, kind: u32, sector: u64, data: &[Seg]) -> Pending {
        let header = self.arena.alloc(16, 16);
        let status = self.arena.alloc(1, 1);
        self.mem.write(header, &request_header(kind, sector));
        self.mem.write(status, &[NO_STATUS]);
        let mut segs = vec![Seg::out(header, 16)];
        segs.extend_from_slice(data);
        segs.push(Seg::into(status, 1));
        Pending {
            head: self.chain(&segs),
            header,
            status,
        }
    }

    /// Waits for a request.
    pub fn complete(&mut self, pending: Pending) -> Completion {
        let used = self.wait_for(pending.head);
        self.completion(pending, used)
    }

    /// What came of a request whose used entry is there.
    pub fn completion(&self, pending: Pending, used: Used) -> Completion {
        let status = Status::from(self.mem.read(pending.status, 1)[0]);
        Completion {
            status,
            len: used.len,
        }
    }

    /// A request with data segments, from submission to completion. Only when nothing else is in
    /// flight: it takes the whole arena.
    fn sync(&mut self, kind: u32, sector: u64, data: &[Seg]) -> Completion {
        let pending = self.request(kind, sector, data);
        self.complete(pending)
    }

    fn fresh_arena(&mut self) {
        assert_eq!(
            self.in_flight(),
            0,
            "a synchronous call with requests in flight"
        );
        self.arena.reset();
    }

    /// `len` bytes from `sector` on, into one buffer.
    pub fn read(&mut self, sector: u64, len: usize) -> Result<Vec<u8>, Status> {
        self.read_split(sector, &[len])
    }

    /// Bytes from `sector` on, into buffers of the given lengths that lie apart and unaligned.
    ///
    /// # Panics
    /// When the used length isn't the bytes and the status, or the device wrote outside them.
    pub fn read_split(&mut self, sector: u64, lens: &[usize]) -> Result<Vec<u8>, Status> {
        self.fresh_arena();
        let segs = self.scatter(lens, true);
        let done = self.sync(kind::IN, sector, &segs);
        let gap_ok = segs.iter().all(|seg| {
            self.mem.read(seg.addr - 1, 1) == [GAP]
                && self.mem.read(seg.addr + u64::from(seg.len), 1) == [GAP]
        });
        assert!(gap_ok, "the device wrote outside of the buffers of a read");
        if done.status != Status::Ok {
            return Err(done.status);
        }
        let total: usize = lens.iter().sum();
        assert_eq!(done.len as usize, total + 1, "used length of a read");
        Ok(segs
            .iter()
            .flat_map(|seg| self.mem.read(seg.addr, seg.len as usize))
            .collect())
    }

    /// Writes `data` at `sector` from one buffer.
    pub fn write(&mut self, sector: u64, data: &[u8]) -> Result<(), Status> {
        self.write_split(sector, data, &[data.len()])
    }

    /// Writes `data` at `sector` from buffers of the given lengths, as `read_split`.
    pub fn write_split(&mut self, sector: u64, data: &[u8], lens: &[usize]) -> Result<(), Status> {
        self.fresh_arena();
        let segs = self.scatter(lens, false);
        let mut rest = data;
        for seg in &segs {
            let (now, later) = rest.split_at(seg.len as usize);
            self.mem.write(seg.addr, now);
            rest = later;
        }
        assert!(rest.is_empty());
        let done = self.sync(kind::OUT, sector, &segs);
        one_byte(done)
    }

    /// Submits a write of `data` at `sector`, whose end is still to come.
    pub fn begin_write(&mut self, sector: u64, data: &[u8]) -> Pending {
        let at = self.arena.alloc(data.len() as u64, 512);
        self.mem.write(at, data);
        self.request(kind::OUT, sector, &[Seg::out(at, data.len() as u32)])
    }

    /// Buffers of the given lengths, no two of them together, with a guard byte on either side.
    fn scatter(&mut self, lens: &[usize], writable: bool) -> Vec<Seg> {
        lens.iter()
            .map(|&len| {
                let around = self.arena.alloc(len as u64 + 2, 1);
                self.mem.fill(around, GAP, len + 2);
                Seg {
                    addr: around + 1,
                    len: len as u32,
                    writable,
                }
            })
            .collect()
    }

    /// Makes all writes that were completed durable.
    pub fn flush(&mut self) -> Result<(), Status> {
        self.fresh_arena();
        one_byte(self.sync(kind::FLUSH, 0, &[]))
    }

    /// A discard of the given (sector, sectors, flags).
    pub fn discard(&mut self, ranges: &[(u64, u32, u32)]) -> Result<(), Status> {
        self.ranges(kind::DISCARD, ranges)
    }

    /// A write-zeroes of the given (sector, sectors, flags).
    pub fn write_zeroes(&mut self, ranges: &[(u64, u32, u32)]) -> Result<(), Status> {
        self.ranges(kind::WRITE_ZEROES, ranges)
    }

    fn ranges(&mut self, kind: u32, ranges: &[(u64, u32, u32)]) -> Result<(), Status> {
        self.fresh_arena();
        let bytes: Vec<u8> = ranges
            .iter()
            .flat_map(|&(at, n, flags)| range_segment(at, n, flags))
            .collect();
        let at = self.arena.alloc(bytes.len() as u64, 8);
        self.mem.write(at, &bytes);
        one_byte(self.sync(kind, 0, &[Seg::out(at, bytes.len() as u32)]))
    }

    /// The disk's serial: 20 bytes, padded with zeros.
    pub fn get_id(&mut self) -> Result<[u8; 20], Status> {
        self.fresh_arena();
        let at = self.arena.alloc(20, 1);
        let done = self.sync(kind::GET_ID, 0, &[Seg::into(at, 20)]);
        match done.status {
            Status::Ok => {
                assert_eq!(done.len, 21, "used length of GET_ID");
                Ok(self.mem.read(at, 20).try_into().unwrap())
            }
            other => Err(other),
        }
    }

    /// A small write and its read-back at `sector`: the queue serves.
    pub fn assert_serves(&mut self, sector: u64, seed: u64) {
        let data = crate::rng::Rng::new(seed).bytes(8 * SECTOR);
        assert_eq!(
            self.write(sector, &data),
            Ok(()),
            "a write of a well-behaved driver"
        );
        let back = self.read(sector, data.len());
        assert!(
            back.as_ref() == Ok(&data),
            "a read of a well-behaved driver: not what it wrote"
        );
    }
}

/// What lies around the buffers of a request.
const GAP: u8 = 0xa5;

/// The outcome of a request of which the device writes the status only.
fn one_byte(done: Completion) -> Result<(), Status> {
    match done.status {
        Status::Ok => {
            assert_eq!(
                done.len, 1,
                "used length of a request without data for the driver"
            );
            Ok(())
        }
        other => Err(other),
    }
}
