//! Guest memory: memfds that the daemon maps too.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU16, AtomicU64, Ordering};

use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

/// Where the frontend pretends to have guest address 0 mapped. Ring addresses travel as addresses
/// of the frontend (vhost-user, "SET_VRING_ADDR"); any number does that the table agrees with.
pub const USER_BASE: u64 = 0x7000_0000_0000;

const MIB: u64 = 1 << 20;

/// A piece of guest memory.
pub struct Region {
    /// Its guest-physical address.
    pub gpa: u64,
    /// Its bytes.
    pub size: u64,
    fd: OwnedFd,
    map: NonNull<u8>,
    next: AtomicU64,
}

impl Region {
    /// `size` bytes of zeros at guest address `gpa`.
    pub fn new(gpa: u64, size: u64) -> Self {
        Self::mapped(gpa, size, MapFlags::SHARED)
    }

    /// The same, mapped for this process alone, as QEMU does with `share=off`.
    pub fn private(gpa: u64, size: u64) -> Self {
        Self::mapped(gpa, size, MapFlags::PRIVATE)
    }

    fn mapped(gpa: u64, size: u64, flags: MapFlags) -> Self {
        let fd = memfd_create("guest-memory", MemfdFlags::CLOEXEC).unwrap();
        ftruncate(&fd, size).unwrap();
        // SAFETY: a new mapping at an address that the kernel chooses; nothing else is
        // mapped there. It is unmapped in drop only.
        let map = unsafe {
            mmap(
                std::ptr::null_mut(),
                size as usize,
                ProtFlags::READ | ProtFlags::WRITE,
                flags,
                &fd,
                0,
            )
        };
        let map = NonNull::new(map.unwrap().cast()).unwrap();
        Self {
            gpa,
            size,
            fd,
            map,
            next: AtomicU64::new(0),
        }
    }

    /// Where the frontend pretends to have it mapped.
    pub fn user(&self) -> u64 {
        USER_BASE + self.gpa
    }

    /// One past its last guest address.
    pub fn end(&self) -> u64 {
        self.gpa + self.size
    }

    /// The memfd behind it.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// Allocates `len` bytes that nobody else has, for good.
    pub fn alloc(&self, len: u64, align: u64) -> u64 {
        let start = self
            .next
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |next| {
                let end = next.next_multiple_of(align) + len;
                (end <= self.size).then_some(end)
            })
            .expect("guest memory of the test is used up");
        self.gpa + start.next_multiple_of(align)
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        // SAFETY: the mapping made in `new`, of this size; no reference into it outlives self.
        unsafe { munmap(self.map.as_ptr().cast(), self.size as usize) }.unwrap();
    }
}

// SAFETY: the pointer is to shared memory that lives as long as the region and is only accessed
// by copies and atomics through raw pointers, as memory that another process writes must be.
unsafe impl Send for Region {}
// SAFETY: as above.
unsafe impl Sync for Region {}

/// All of a guest's memory.
pub struct GuestMemory {
    regions: Vec<Region>,
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
        }
    }

    /// Its regions, in the order in which they are announced.
    pub fn regions(&self) -> &[Region] {
        &self.regions
    }

    /// `len` bytes of the first region for good.
    pub fn alloc(&self, len: u64, align: u64) -> u64 {
        self.regions[0].alloc(len, align)
    }

    /// The host address of `len` bytes at `gpa`, which must be in one region.
    fn host(&self, gpa: u64, len: usize) -> *mut u8 {
        let region = self
            .regions
            .iter()
            .find(|r| gpa >= r.gpa && gpa - r.gpa + len as u64 <= r.size)
            .unwrap_or_else(|| panic!("the test's own access at {gpa:#x}+{len} is out of memory"));
        // SAFETY: within the region's mapping, as just checked.
        unsafe { region.map.as_ptr().add((gpa - region.gpa) as usize) }
    }

    /// Copies `bytes` to `gpa`.
    pub fn write(&self, gpa: u64, bytes: &[u8]) {
        let host = self.host(gpa, bytes.len());
        // SAFETY: `host` is valid for that many bytes and no Rust reference points there.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), host, bytes.len()) }
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
    }

    /// The 16-bit word at the even address `gpa`, for the indices of a ring.
    pub fn atomic(&self, gpa: u64) -> &AtomicU16 {
        assert!(gpa.is_multiple_of(2));
        // SAFETY: aligned (regions are page-aligned), within the mapping, which lives as long as
        // self, and only accessed by atomics while it is a ring's index.
        unsafe { AtomicU16::from_ptr(self.host(gpa, 2).cast()) }
    }
}
