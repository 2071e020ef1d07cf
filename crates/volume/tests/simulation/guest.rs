//! What a random guest asks for.

use std::ops::Range;

use keys::units::ByteOffset;
use volume::pipeline::{BlockRequest, GuestBuffer, RequestKind, Token};
use xts::SharedSlice;

use super::content::Windows;
use super::model::FlushPoint;
use super::rng::Rng;
use super::world::Options;

/// Blocks that a crowded guest uses.
const CROWD: u64 = 7;

/// A request that is under way.
pub struct Request {
    pub token: Token,
    pub kind: RequestKind,
    pub sectors: Range<u64>,
    /// The guest's memory.
    pub memory: Vec<u8>,
    /// What a flush covers.
    pub point: FlushPoint,
    /// What the pipeline is asked for.
    pub asked: BlockRequest,
    /// It came after somebody was told that a sync has failed.
    pub after_failure: bool,
    /// Failures of the device before it came.
    pub errors: u64,
}

pub fn kind(rng: &mut Rng, options: &Options) -> RequestKind {
    if options.crowded {
        return match rng.below(8) {
            0..3 => RequestKind::Write { durable: false },
            3..6 => RequestKind::Zero {
                release: true,
                durable: false,
            },
            _ => RequestKind::Flush,
        };
    }
    let durable = rng.one_in(8);
    match rng.below(16) {
        0..7 => RequestKind::Write { durable },
        7..10 => RequestKind::Read,
        10..13 => RequestKind::Zero {
            release: rng.one_in(2),
            durable,
        },
        _ => RequestKind::Flush,
    }
}

/// Sectors of a disk of `size` bytes, from one to 1 MiB of them.
pub fn range(rng: &mut Rng, options: &Options, windows: &Windows, size: u64) -> Range<u64> {
    if options.crowded {
        let first = rng.below(CROWD) * 16;
        return first..first + if rng.one_in(16) { 3 } else { 8 };
    }
    let window = rng.below(windows.len() as u64) as usize;
    let (start, len) = windows.present(window, size);
    let most = match rng.one_in(30) {
        true => 2048,
        false => [1, 8, 8, 24, 160][rng.below(5) as usize],
    };
    let mut first = start + rng.below(len);
    if rng.one_in(2) {
        first = (first / 8 * 8).max(start);
    }
    let last = (first + 1 + rng.below(most)).min(start + len);
    first..last
}

/// What a request for sectors asks for.
pub fn request(kind: RequestKind, sectors: &Range<u64>) -> BlockRequest {
    let at = ByteOffset(sectors.start * 512);
    let len = (sectors.end - sectors.start) * 512;
    BlockRequest { kind, at, len }
}

/// Memory of a request, which its pipeline need not keep.
pub fn memory(slices: Vec<SharedSlice>) -> GuestBuffer {
    let owner = None;
    GuestBuffer { slices, owner }
}
