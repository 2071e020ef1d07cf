//! A memfd that the daemon maps too.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU16, AtomicU64, Ordering};

use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

/// Where the frontend pretends to have guest address 0 mapped. Ring addresses travel as addresses
/// of the frontend (vhost-user, "SET_VRING_ADDR"); any number does that the table agrees with.
pub const USER_BASE: u64 = 0x7000_0000_0000;

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

    /// The host address of `len` bytes at guest address `gpa`, if it has all of them.
    pub(super) fn host(&self, gpa: u64, len: usize) -> Option<*mut u8> {
        let is_inside = gpa >= self.gpa && gpa - self.gpa + len as u64 <= self.size;
        // SAFETY: within the mapping, as just checked.
        is_inside.then(|| unsafe { self.map.as_ptr().add((gpa - self.gpa) as usize) })
    }

    /// The 16-bit word at the even address `gpa`, if it has that.
    pub(super) fn atomic(&self, gpa: u64) -> Option<&AtomicU16> {
        assert!(gpa.is_multiple_of(2));
        // SAFETY: aligned (regions are page-aligned), within the mapping, which lives as long as
        // self, and only accessed by atomics while it is a ring's index or part of a log.
        self.host(gpa, 2)
            .map(|host| unsafe { AtomicU16::from_ptr(host.cast()) })
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
