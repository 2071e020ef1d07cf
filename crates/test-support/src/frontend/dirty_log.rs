//! The bitmap in which guest memory is logged as written while the guest is migrated.

use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::region::Region;

/// Bytes of guest memory that a bit stands for (vhost-user, `VHOST_LOG_PAGE`).
pub const LOG_PAGE: u64 = 4096;

/// Bits that are taken at once.
const WORD: u64 = 16;

/// The dirty log of a frontend: one bit for each page of guest memory.
pub struct DirtyLog(Region);

impl DirtyLog {
    /// A log for all guest memory up to `end`, which nobody knows of yet.
    pub fn new(end: u64) -> Arc<Self> {
        let bytes = end.div_ceil(LOG_PAGE * 8).next_multiple_of(WORD / 8);
        Arc::new(Self(Region::new(0, bytes)))
    }

    /// Its bytes.
    pub(super) fn bytes(&self) -> u64 {
        self.0.size
    }

    /// The memfd behind it.
    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.0.fd()
    }

    /// Logs what the frontend's own side has written, as far as there are bits for it.
    pub(super) fn mark(&self, gpa: u64, len: u64) {
        for page in gpa / LOG_PAGE..(gpa + len).div_ceil(LOG_PAGE) {
            if let Some(word) = self.0.atomic(page / WORD * 2) {
                word.fetch_or(u16::to_le(1 << (page % WORD)), Ordering::SeqCst);
            }
        }
    }

    /// Pages that were written since the last call. What is written meanwhile is in this answer or in the next.
    pub fn take(&self) -> Vec<u64> {
        let mut pages = Vec::new();
        let words = (0..self.0.size)
            .step_by(2)
            .map_while(|at| self.0.atomic(at));
        for (word, first) in words.zip((0..).step_by(WORD as usize)) {
            if word.load(Ordering::Relaxed) != 0 {
                let found = u16::from_le(word.swap(0, Ordering::SeqCst));
                pages.extend(
                    (0..WORD)
                        .filter(|bit| found >> bit & 1 != 0)
                        .map(|bit| first + bit),
                );
            }
        }
        pages
    }
}
