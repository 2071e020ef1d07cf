//! What a guest writes, and where on its disk it works.

use std::rc::Rc;

/// What a guest wrote into a sector: a stamp that fills it, 0 for zeros.
pub type Stamp = u64;

/// Given for content that no guest ever wrote.
pub const GARBAGE: Stamp = u64::MAX;

/// The word `i` of a sector that was stamped: with the sector's number, so that content in the wrong
/// place is seen as well.
fn word(i: usize, sector: u64, stamp: Stamp) -> u64 {
    match stamp {
        0 => 0,
        _ => stamp ^ (sector << 32) ^ ((i as u64) << 56),
    }
}

/// A sector's content for a stamp.
pub fn fill(bytes: &mut [u8], sector: u64, stamp: Stamp) {
    for (i, into) in bytes.as_chunks_mut::<8>().0.iter_mut().enumerate() {
        *into = word(i, sector, stamp).to_le_bytes();
    }
}

/// The stamp of a sector's content.
pub fn stamp_of(bytes: &[u8], sector: u64) -> Stamp {
    let words = bytes.as_chunks::<8>().0;
    let first = u64::from_le_bytes(words[0]);
    let stamp = match first {
        0 => 0,
        _ => first ^ (sector << 32),
    };
    let all = words.iter().enumerate();
    let same = all
        .map(|(i, found)| u64::from_le_bytes(*found) ^ word(i, sector, stamp))
        .fold(0, |all, difference| all | difference);
    if same == 0 { stamp } else { GARBAGE }
}

/// The sectors that guests use: some ranges of the disk, in rising order.
#[derive(Clone)]
pub struct Windows(Rc<[(u64, u64)]>);

impl Windows {
    pub fn new(ranges: &[(u64, u64)]) -> Self {
        Self(ranges.into())
    }

    /// How many sectors there are.
    pub fn sectors(&self) -> usize {
        self.0.iter().map(|(_, len)| *len as usize).sum()
    }

    /// Which of them, counted from 0, a sector is.
    pub fn index(&self, sector: u64) -> usize {
        let found = self.find(sector);
        found.unwrap_or_else(|| panic!("sector {sector} is in no window"))
    }

    /// As [`Windows::index`] for any sector.
    pub fn find(&self, sector: u64) -> Option<usize> {
        let mut before = 0;
        for (start, len) in self.0.iter() {
            if (*start..start + len).contains(&sector) {
                return Some(before + (sector - start) as usize);
            }
            before += *len as usize;
        }
        None
    }

    /// The sector that [`Windows::index`] gives this number.
    pub fn sector(&self, index: usize) -> u64 {
        let mut left = index as u64;
        for (start, len) in self.0.iter() {
            if left < *len {
                return start + left;
            }
            left -= len;
        }
        panic!("there is no sector {index}");
    }

    /// How many windows there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Start and length of the part of a window that a disk of `size` bytes has.
    pub fn present(&self, window: usize, size: u64) -> (u64, u64) {
        let (start, len) = self.0[window];
        (start, len.min((size / 512).saturating_sub(start)))
    }
}
