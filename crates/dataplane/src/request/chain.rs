//! Reading a descriptor chain: header, data and status of a request, wherever the guest cut them.

use std::ptr::NonNull;

use virtio_queue::desc::split::Descriptor;
use vm_memory::{GuestAddress, GuestMemoryBackend};

use keys::units::Sector;
use xts::{Cursor, SharedSlice};

use super::{ChainError, Memory};

/// Bytes of `struct virtio_blk_req` before the data (virtio 1.2 §5.2.6).
const HEADER_LEN: usize = 16;

/// What a chain may be at most; what the configuration space offers keeps below.
#[derive(Debug, Clone, Copy)]
pub struct ChainLimits {
    /// Data segments in a request; with header and status two descriptors more.
    pub segments: usize,
    /// Bytes of data.
    pub bytes: u64,
}

/// The header of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// What is asked for.
    pub kind: u32,
    /// Where it starts.
    pub sector: Sector,
}

/// A chain that was read and lies wholly in guest memory.
pub struct Chain {
    /// The header, read once.
    pub header: Header,
    /// The data, without header and status.
    pub data: Vec<SharedSlice>,
    /// Bytes of data that the device reads.
    pub readable: u64,
    /// Bytes of data that the device may write, before the status.
    pub writable: u64,
    /// Where the status goes: the last writable byte.
    pub status: GuestAddress,
}

/// Lists that are used again for each chain, so that reading one allocates nothing.
#[derive(Default)]
pub struct Scratch {
    readable: Vec<(GuestAddress, u32)>,
    /// The writable descriptors of the chain read last, without the status byte.
    pub writable: Vec<(GuestAddress, u32)>,
}

/// Reads a chain. `data` is an empty list to be used for [`Chain::data`].
///
/// # Errors
/// [`ChainError`]: the chain has to be returned to the guest as it is.
pub fn read_chain(
    memory: &Memory,
    chain: impl Iterator<Item = Descriptor>,
    limits: ChainLimits,
    scratch: &mut Scratch,
    mut data: Vec<SharedSlice>,
) -> Result<Chain, ChainError> {
    collect(chain, limits, scratch)?;
    let readable = total(&scratch.readable);
    if readable < HEADER_LEN as u64 {
        return Err(ChainError::NoHeader(readable));
    }
    let status = take_status(&mut scratch.writable)?;
    let writable = total(&scratch.writable);
    let bytes = readable - HEADER_LEN as u64 + writable;
    if bytes > limits.bytes {
        return Err(ChainError::TooLarge(bytes));
    }
    // Every byte is found in guest memory before the first one is read.
    locate(memory, &[(status, 1)], &mut data)?;
    data.clear();
    locate(memory, &scratch.readable, &mut data)?;
    let mut raw = [0; HEADER_LEN];
    Cursor::default().read(&data, &mut raw);
    drop_front(&mut data, HEADER_LEN);
    locate(memory, &scratch.writable, &mut data)?;
    Ok(Chain {
        header: header(&raw),
        data,
        readable: readable - 16,
        writable,
        status,
    })
}

/// Sorts the descriptors into readable and writable ones. The iterator ends alike at the end of a
/// chain and where the chain is broken; only the last descriptor's NEXT flag tells which it was.
fn collect(
    chain: impl Iterator<Item = Descriptor>,
    limits: ChainLimits,
    scratch: &mut Scratch,
) -> Result<(), ChainError> {
    scratch.readable.clear();
    scratch.writable.clear();
    let most = limits.segments + 2;
    let (mut count, mut promised) = (0, false);
    for descriptor in chain {
        count += 1;
        if count > most {
            return Err(ChainError::TooManyDescriptors { most });
        }
        promised = descriptor.has_next();
        let range = (descriptor.addr(), descriptor.len());
        match (descriptor.is_write_only(), scratch.writable.is_empty()) {
            (true, _) => scratch.writable.push(range),
            (false, true) => scratch.readable.push(range),
            (false, false) => return Err(ChainError::Order),
        }
    }
    if promised {
        Err(ChainError::Broken)
    } else {
        Ok(())
    }
}

/// Cuts the last byte off the writable ranges: the status (virtio 1.2 §5.2.6).
fn take_status(writable: &mut Vec<(GuestAddress, u32)>) -> Result<GuestAddress, ChainError> {
    while let Some((at, len)) = writable.last_mut() {
        if *len > 0 {
            *len -= 1;
            let status = at.0.checked_add(u64::from(*len)).map(GuestAddress);
            return status.ok_or(ChainError::OutsideMemory { at: *at, len: *len });
        }
        writable.pop();
    }
    Err(ChainError::NoStatus)
}

fn total(ranges: &[(GuestAddress, u32)]) -> u64 {
    ranges.iter().map(|(_, len)| u64::from(*len)).sum()
}

/// Appends the memory of all ranges; a range may go over several regions that touch.
fn locate(
    memory: &Memory,
    ranges: &[(GuestAddress, u32)],
    into: &mut Vec<SharedSlice>,
) -> Result<(), ChainError> {
    for (at, len) in ranges {
        let outside = ChainError::OutsideMemory { at: *at, len: *len };
        if *len == 0 {
            continue;
        }
        for slice in GuestMemoryBackend::get_slices(memory, *at, *len as usize) {
            let slice = slice.map_err(|_| outside)?;
            let guard = slice.ptr_guard_mut();
            let ptr = NonNull::new(guard.as_ptr()).ok_or(outside)?;
            // SAFETY: the slice lies in a mapped region of `memory`, which the request keeps alive
            // until it has completed, and nothing makes references into guest memory.
            into.push(unsafe { SharedSlice::new(ptr, slice.len()) });
        }
    }
    Ok(())
}

/// Removes the first `bytes` bytes of the list, which has at least as many.
fn drop_front(data: &mut Vec<SharedSlice>, bytes: usize) {
    let mut cursor = Cursor::default();
    cursor.advance(data, bytes);
    data.drain(..cursor.slice);
    if let Some(first) = data.first_mut() {
        *first = first.without(cursor.offset);
    }
}

fn header(raw: &[u8; HEADER_LEN]) -> Header {
    let (mut kind, mut sector) = ([0; 4], [0; 8]);
    kind.copy_from_slice(&raw[..4]);
    sector.copy_from_slice(&raw[8..]);
    Header {
        kind: u32::from_le_bytes(kind),
        sector: Sector(u64::from_le_bytes(sector)),
    }
}
