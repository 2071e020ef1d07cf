//! What a chain asks for, checked against the disk.

use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_ID_BYTES, VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_OK, VIRTIO_BLK_S_UNSUPP,
    VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN,
    VIRTIO_BLK_T_OUT, VIRTIO_BLK_T_WRITE_ZEROES, VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP,
};

use keys::units::{ByteOffset, SECTOR_SIZE, Sector};
use volume::pipeline::{BlockRequest, RequestKind};
use xts::Cursor;

use super::Chain;

/// Bytes of `struct virtio_blk_discard_write_zeroes`.
const SEGMENT_LEN: usize = 16;

/// The barrier flag of a request's type in virtio before 1.0 (`VIRTIO_BLK_T_BARRIER`). It is not
/// offered, so a driver may not rely on it; SLOF sets it in each request all the same. It is ignored,
/// as QEMU's back-ends do.
const BARRIER: u32 = 1 << 31;

/// The other name of a flush in virtio 0.9.5 (Appendix D): the same as `VIRTIO_BLK_T_FLUSH`.
const FLUSH_OUT: u32 = VIRTIO_BLK_T_FLUSH | VIRTIO_BLK_T_OUT;

/// The status byte of a request (virtio 1.2 §5.2.6).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    /// Done.
    Ok,
    /// Failed, or the request was not acceptable.
    IoError,
    /// Not a request that this device serves.
    Unsupported,
}

impl Status {
    /// The byte that the guest sees.
    pub fn byte(self) -> u8 {
        (match self {
            Self::Ok => VIRTIO_BLK_S_OK,
            Self::IoError => VIRTIO_BLK_S_IOERR,
            Self::Unsupported => VIRTIO_BLK_S_UNSUPP,
        }) as u8
    }
}

/// What of the disk a request is checked against.
#[derive(Debug, Clone)]
pub struct Disk {
    /// Sectors of the disk.
    pub capacity: Sector,
    /// Sectors of a logical block, 1 or 8: requests begin and end with one.
    pub block_sectors: u64,
    /// Whether writes are refused.
    pub read_only: bool,
    /// Whether discards are served; without them, zeros keep their space.
    pub discard: bool,
    /// What `VIRTIO_BLK_T_GET_ID` answers, padded with zeros.
    pub serial: [u8; VIRTIO_BLK_ID_BYTES as usize],
    /// The most sectors of one discard or write-zeroes segment.
    pub most_zero_sectors: u32,
}

/// What is to be done with a chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Have the pipeline do it.
    Submit(BlockRequest),
    /// It is answered already, with `written` bytes of data before the status.
    Answer {
        /// How it ended.
        status: Status,
        /// Bytes of data that were written to the guest.
        written: u32,
    },
}

/// Finds out what `chain` asks for. `durable` says whether writes have to be durable before they
/// are completed.
pub fn interpret(chain: &Chain, disk: &Disk, durable: bool) -> Action {
    let (readable, writable) = (chain.readable, chain.writable);
    match chain.header.kind & !BARRIER {
        VIRTIO_BLK_T_IN if readable == 0 => transfer(chain, disk, RequestKind::Read, writable),
        VIRTIO_BLK_T_OUT if writable == 0 && !disk.read_only => {
            transfer(chain, disk, RequestKind::Write { durable }, readable)
        }
        VIRTIO_BLK_T_FLUSH | FLUSH_OUT if readable == 0 && writable == 0 => {
            Action::Submit(BlockRequest::FLUSH)
        }
        VIRTIO_BLK_T_GET_ID if readable == 0 => {
            let len = disk.serial.len().min(writable as usize);
            Cursor::default().write(&chain.data, &disk.serial[..len]);
            Action::Answer {
                status: Status::Ok,
                written: len as u32,
            }
        }
        VIRTIO_BLK_T_DISCARD if !disk.discard && !disk.read_only => refuse(Status::Unsupported),
        VIRTIO_BLK_T_DISCARD if writable == 0 && !disk.read_only => {
            zero(chain, disk, durable, true)
        }
        VIRTIO_BLK_T_WRITE_ZEROES if writable == 0 && !disk.read_only => {
            zero(chain, disk, durable, false)
        }
        VIRTIO_BLK_T_IN
        | VIRTIO_BLK_T_OUT
        | VIRTIO_BLK_T_FLUSH
        | FLUSH_OUT
        | VIRTIO_BLK_T_GET_ID
        | VIRTIO_BLK_T_DISCARD
        | VIRTIO_BLK_T_WRITE_ZEROES => refuse(Status::IoError),
        _ => refuse(Status::Unsupported),
    }
}

fn refuse(status: Status) -> Action {
    Action::Answer { status, written: 0 }
}

fn transfer(chain: &Chain, disk: &Disk, kind: RequestKind, len: u64) -> Action {
    let sectors = len / SECTOR_SIZE;
    match range(chain.header.sector, sectors, disk) {
        Some(at) if len.is_multiple_of(SECTOR_SIZE) => {
            Action::Submit(BlockRequest { kind, at, len })
        }
        _ => refuse(Status::IoError),
    }
}

/// Discard and write zeroes carry one segment: that is what the configuration space offers. More of
/// them are well-formed, and nothing that is served here; any other length is no segment at all.
fn zero(chain: &Chain, disk: &Disk, durable: bool, discard: bool) -> Action {
    const ONE: u64 = SEGMENT_LEN as u64;
    match chain.readable {
        ONE => {}
        more if more > ONE && more.is_multiple_of(ONE) => return refuse(Status::Unsupported),
        _ => return refuse(Status::IoError),
    }
    let mut segment = [0; SEGMENT_LEN];
    Cursor::default().read(&chain.data, &mut segment);
    let (mut sector, mut sectors, mut flags) = ([0; 8], [0; 4], [0; 4]);
    sector.copy_from_slice(&segment[..8]);
    sectors.copy_from_slice(&segment[8..12]);
    flags.copy_from_slice(&segment[12..]);
    let (sectors, flags) = (u32::from_le_bytes(sectors), u32::from_le_bytes(flags));
    let unmap = flags & VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP != 0;
    // §5.2.6.2: unknown flags, and UNMAP on a discard, are not supported.
    if flags & !VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP != 0 || (discard && unmap) {
        return refuse(Status::Unsupported);
    }
    let start = Sector(u64::from_le_bytes(sector));
    match range(start, u64::from(sectors), disk) {
        Some(at) if sectors <= disk.most_zero_sectors => {
            let kind = RequestKind::Zero {
                release: disk.discard && (discard || unmap),
                durable,
            };
            Action::Submit(BlockRequest {
                kind,
                at,
                len: u64::from(sectors) * SECTOR_SIZE,
            })
        }
        _ => refuse(Status::IoError),
    }
}

/// Where `sectors` sectors from `start` on begin, if they are whole blocks and all on the disk.
fn range(start: Sector, sectors: u64, disk: &Disk) -> Option<ByteOffset> {
    let end = start.0.checked_add(sectors)?;
    let is_whole = |at: u64| at.is_multiple_of(disk.block_sectors);
    // Lazily: only behind this check can the product not overflow.
    (end <= disk.capacity.0 && is_whole(start.0) && is_whole(end))
        .then(|| ByteOffset(start.0 * SECTOR_SIZE))
}
