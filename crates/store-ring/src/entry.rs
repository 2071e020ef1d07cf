//! Entries of rings, as words.

use crate::error::{RingError, Side};
use crate::layout::{BUFFER_LEN, DEPTH, Layout, SECTOR_LEN, SUBMISSION_WORDS};

/// One of a disk's files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target {
    /// The ciphertext of a layer, counted from the top down.
    Data(u8),
    /// The block map of the top layer.
    Map,
}

impl Target {
    /// The ciphertext of the layer that is written to.
    pub const TOP: Self = Self::Data(0);
}

/// A range of the shared memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Data {
    /// Where it begins.
    pub at: usize,
    /// Bytes of it.
    pub len: usize,
}

/// What is to be done. Offsets and lengths are bytes, in whole sectors ([`SECTOR_LEN`]).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    /// Fills the range.
    Read {
        /// The file.
        target: Target,
        /// Where in it.
        at: u64,
        /// Where the bytes go.
        data: Data,
    },
    /// Writes the range.
    Write {
        /// The file.
        target: Target,
        /// Where in it.
        at: u64,
        /// Where the bytes are.
        data: Data,
        /// It is durable when it completes.
        durable: bool,
    },
    /// Makes every write to the file that has completed before durable.
    Sync {
        /// The file.
        target: Target,
    },
    /// Gives the space of a range of the top layer's ciphertext back.
    Punch {
        /// Where in it.
        at: u64,
        /// Bytes.
        len: u64,
    },
}

const READ: u64 = 1;
const WRITE: u64 = 2;
const WRITE_DURABLY: u64 = 3;
const SYNC: u64 = 4;
const PUNCH: u64 = 5;

/// The map, where a layer's number stands otherwise.
const MAP: u64 = 0xffff;

/// The words of a submission.
pub(crate) fn encode(slot: u32, operation: &Operation) -> [u64; SUBMISSION_WORDS] {
    let head = |what: u64, target: Target| {
        let file = match target {
            Target::Data(layer) => u64::from(layer),
            Target::Map => MAP,
        };
        what | file << 8 | u64::from(slot) << 32
    };
    match *operation {
        Operation::Read { target, at, data } => {
            [head(READ, target), at, data.len as u64, data.at as u64]
        }
        Operation::Write {
            target,
            at,
            data,
            durable,
        } => {
            let what = if durable { WRITE_DURABLY } else { WRITE };
            [head(what, target), at, data.len as u64, data.at as u64]
        }
        Operation::Sync { target } => [head(SYNC, target), 0, 0, 0],
        Operation::Punch { at, len } => [head(PUNCH, Target::TOP), at, len, 0],
    }
}

/// What the words of a submission say, and its slot.
///
/// # Errors
/// [`RingError::Violation`]: they are none, or name what is not in the memory.
pub(crate) fn decode(
    words: [u64; SUBMISSION_WORDS],
    layout: Layout,
) -> Result<(u32, Operation), RingError> {
    let [head, at, len, place] = words;
    let slot = (head >> 32) as u32;
    if slot as usize >= DEPTH {
        return Err(violation("a submission has a slot that there is not"));
    }
    let target = match head >> 8 & 0xff_ffff {
        MAP => Target::Map,
        layer => match u8::try_from(layer) {
            Ok(layer) => Target::Data(layer),
            Err(_) => return Err(violation("a submission names no file")),
        },
    };
    let what = head & 0xff;
    if what == SYNC {
        return match (at, len, place) {
            (0, 0, 0) => Ok((slot, Operation::Sync { target })),
            _ => Err(violation("a sync has a range")),
        };
    }
    let is_whole = at.is_multiple_of(SECTOR_LEN) && len.is_multiple_of(SECTOR_LEN);
    if !is_whole || len == 0 || at.checked_add(len).is_none() {
        return Err(violation("a range is not in whole sectors, or too long"));
    }
    if what == PUNCH {
        return match (target, place) {
            (Target::TOP, 0) => Ok((slot, Operation::Punch { at, len })),
            _ => Err(violation("space of another file is given back")),
        };
    }
    let data = data(place, len, layout)?;
    let operation = match what {
        READ => Operation::Read { target, at, data },
        WRITE | WRITE_DURABLY => Operation::Write {
            target,
            at,
            data,
            durable: what == WRITE_DURABLY,
        },
        _ => return Err(violation("a submission is of no kind")),
    };
    Ok((slot, operation))
}

/// A range of the memory, if it lies where buffers are.
fn data(place: u64, len: u64, layout: Layout) -> Result<Data, RingError> {
    let buffers = layout.buffers();
    let range = usize::try_from(place).ok().zip(usize::try_from(len).ok());
    match range {
        Some((at, len))
            if len <= BUFFER_LEN
                && at >= buffers.start
                && at.checked_add(len).is_some_and(|end| end <= buffers.end) =>
        {
            Ok(Data { at, len })
        }
        _ => Err(violation("a buffer lies outside of the memory for buffers")),
    }
}

/// The word of a completion.
pub(crate) fn encode_completion(slot: u32, result: Result<(), i32>) -> u64 {
    let errno = match result {
        Ok(()) => 0,
        // Whoever looks at it refuses what is no number of an error.
        Err(errno) => errno.unsigned_abs(),
    };
    u64::from(slot) | u64::from(errno) << 32
}

/// Numbers of errors are less than this, as the kernel's are.
const MAX_ERRNO: u32 = 4096;

/// The slot of a completion, and how its operation ended.
///
/// # Errors
/// [`RingError::Violation`].
pub(crate) fn decode_completion(word: u64) -> Result<(u32, Result<(), i32>), RingError> {
    let broken = |what| RingError::Violation {
        by: Side::StoreProcess,
        what,
    };
    let (slot, errno) = (word as u32, (word >> 32) as u32);
    if slot as usize >= DEPTH {
        return Err(broken("a completion has a slot that there is not"));
    }
    match errno {
        0 => Ok((slot, Ok(()))),
        1..MAX_ERRNO => Ok((slot, Err(errno as i32))),
        _ => Err(broken("a completion has an error that there is not")),
    }
}

fn violation(what: &'static str) -> RingError {
    RingError::Violation {
        by: Side::DataPlane,
        what,
    }
}
