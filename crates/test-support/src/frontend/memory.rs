//! Guest memory: memfds that the daemon maps too.

use std::sync::atomic::AtomicU16;
use std::sync::{Arc, OnceLock};

use super::dirty_log::DirtyLog;
pub use super::region::{Region, USER_BASE};

const MIB: u64 = 1 << 20;

/// All of a guest's memory.
pub struct GuestMemory {
    regions: Vec<Region>,
    /// Where this side logs what it writes.
    log: OnceLock<Arc<DirtyLog>>,
}

impl Default for GuestMemory {
    fn default() -> Self {
        Self::new()
    }
}

impl GuestMemory {
    /// The memory that most tests use: two regions that touch (as a hot-plugged DIMM does) and,
    /// after a hole, a third one above 4 GiB.
    pub fn new() -> Self {
        Self::of(&[
            (0, 256 * MIB),
            (256 * MIB, 16 * MIB),
            (4096 * MIB, 16 * MIB),
        ])
    }

    /// Memory of the given (guest address, bytes).
    pub fn of(regions: &[(u64, u64)]) -> Self {
        Self {
            regions: regions
                .iter()
                .map(|&(gpa, size)| Region::new(gpa, size))
                .collect(),
            log: OnceLock::new(),
        }
    }

    /// Has [`GuestMemory::write`] and [`GuestMemory::fill`] log what they write, for good, as a VMM does for the
    /// guest's processors.
    pub fn log_own_writes(&self, log: &Arc<DirtyLog>) {
        assert!(self.log.set(log.clone()).is_ok(), "there is a log already");
    }

    fn log_write(&self, gpa: u64, len: usize) {
        if let Some(log) = self.log.get() {
            log.mark(gpa, len as u64);
        }
    }

    /// Its regions, in the order in which they are announced.
    pub fn regions(&self) -> &[Region] {
        &self.regions
    }

    /// One past its last guest address.
    pub fn end(&self) -> u64 {
        self.regions.iter().map(Region::end).max().unwrap_or(0)
    }

    /// `len` bytes of the first region for good.
    pub fn alloc(&self, len: u64, align: u64) -> u64 {
        self.regions[0].alloc(len, align)
    }

    /// The host address of `len` bytes at `gpa`, which must be in one region.
    fn host(&self, gpa: u64, len: usize) -> *mut u8 {
        let host = self.regions.iter().find_map(|r| r.host(gpa, len));
        host.unwrap_or_else(|| panic!("the test's own access at {gpa:#x}+{len} is out of memory"))
    }

    /// Copies `bytes` to `gpa`.
    pub fn write(&self, gpa: u64, bytes: &[u8]) {
        let host = self.host(gpa, bytes.len());
        // SAFETY: `host` is valid for that many bytes and no Rust reference points there.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), host, bytes.len()) }
        self.log_write(gpa, bytes.len());
    }

    /// Copies `bytes.len()` bytes from `gpa`.
    pub fn read_into(&self, gpa: u64, bytes: &mut [u8]) {
        let host = self.host(gpa, bytes.len());
        // SAFETY: `host` is valid for that many bytes and no Rust reference points there.
        unsafe { std::ptr::copy_nonoverlapping(host, bytes.as_mut_ptr(), bytes.len()) }
    }

    /// `len` bytes from `gpa`.
    pub fn read(&self, gpa: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.read_into(gpa, &mut bytes);
        bytes
    }

    /// Sets `len` bytes at `gpa` to `byte`.
    pub fn fill(&self, gpa: u64, byte: u8, len: usize) {
        let host = self.host(gpa, len);
        // SAFETY: `host` is valid for that many bytes and no Rust reference points there.
        unsafe { std::ptr::write_bytes(host, byte, len) }
        self.log_write(gpa, len);
    }

    /// The 16-bit word at the even address `gpa`, for the indices of a ring.
    pub fn atomic(&self, gpa: u64) -> &AtomicU16 {
        let word = self.regions.iter().find_map(|r| r.atomic(gpa));
        word.unwrap_or_else(|| panic!("the test's own access at {gpa:#x} is out of memory"))
    }
}
