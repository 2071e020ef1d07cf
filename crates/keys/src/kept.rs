//! Keys that wait, in memory that cannot be read without mapping it.
//!
//! Whoever supervises a data plane keeps its DEKs for the next one. They lie in memory of
//! `memfd_secret(2)`, which the kernel takes out of its own address space too, and which is mapped here only
//! while it is written or read: at any other time no address of this process leads to them. Where the kernel
//! has none of that they lie in [`LockedBytes`], as all other copies.

use std::ffi::c_void;
use std::io;
use std::os::fd::{AsFd, FromRawFd, OwnedFd};
use std::ptr::{self, NonNull};

use rustix::fs::ftruncate;
use rustix::io::Errno;
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};
use zeroize::Zeroize;

use super::call_stack::with_wiped_call_stack;
use super::{Dek, DekStack, KeyError, LockedBytes};

/// The DEKs of a stack of layers. Dropping it zeroes them.
pub struct KeptDeks {
    layers: usize,
    memory: Memory,
}

enum Memory {
    Secret { file: OwnedFd, len: usize },
    Locked(LockedBytes),
}

impl KeptDeks {
    /// Copies of the DEKs.
    ///
    /// # Errors
    /// [`KeyError::Lock`] when there is no memory that they may be in.
    pub fn new(deks: &DekStack) -> Result<Self, KeyError> {
        let len = deks.iter().map(Dek::sent_len).sum();
        let memory = match secret_memory(len) {
            Ok(file) => Memory::Secret { file, len },
            Err(error) => {
                note_missing(&error);
                Memory::Locked(LockedBytes::zeroed(len)?)
            }
        };
        let mut this = Self {
            layers: deks.layers(),
            memory,
        };
        with_wiped_call_stack(|| this.with(|mut bytes| deks.send(&mut bytes)))??;
        Ok(this)
    }

    /// The DEKs, for as long as it takes to hand them out.
    ///
    /// # Errors
    /// [`KeyError::Lock`].
    pub fn deks(&mut self) -> Result<DekStack, KeyError> {
        let layers = self.layers;
        with_wiped_call_stack(|| self.with(|bytes| DekStack::receive(&mut &*bytes, layers)))?
    }

    fn with<T>(&mut self, work: impl FnOnce(&mut [u8]) -> T) -> Result<T, KeyError> {
        match &mut self.memory {
            Memory::Secret { file, len } => Ok(work(Mapping::of(file, *len)?.bytes())),
            Memory::Locked(bytes) => Ok(work(bytes.as_mut_slice())),
        }
    }
}

impl Drop for KeptDeks {
    fn drop(&mut self) {
        // Memory that cannot be mapped is out of everybody's reach, and the kernel zeroes it when its file is
        // closed.
        let _ = self.with(<[u8]>::zeroize);
    }
}

/// A file of `memfd_secret(2)`. What is in it can be reached through a mapping only.
fn secret_memory(len: usize) -> io::Result<OwnedFd> {
    // SAFETY: the call takes one flag, and no memory of this process.
    let number = unsafe { libc::syscall(libc::SYS_memfd_secret, libc::O_CLOEXEC) };
    let number = i32::try_from(number).map_err(io::Error::other)?;
    if number < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made it, and nobody else knows the number.
    let file = unsafe { OwnedFd::from_raw_fd(number) };
    ftruncate(&file, len as u64)?;
    // Whether it may be locked shows now.
    Mapping::of(&file, len).map_err(io::Error::other)?;
    Ok(file)
}

/// Says once why keys wait in ordinary locked memory.
fn note_missing(error: &io::Error) {
    static TOLD: std::sync::Once = std::sync::Once::new();
    TOLD.call_once(|| {
        log::info!(
            "keys wait for the next data plane in locked memory, since there is no secret one: {error}"
        );
    });
}

/// Secret memory while it is written or read.
struct Mapping {
    at: NonNull<u8>,
    len: usize,
}

impl Mapping {
    fn of(file: impl AsFd, len: usize) -> Result<Self, KeyError> {
        let fail = |e: Errno| KeyError::Lock {
            call: "map",
            source: e.into(),
        };
        // SAFETY: a fresh mapping at an address that the kernel chooses aliases nothing.
        let at = unsafe {
            mmap(
                ptr::null_mut::<c_void>(),
                len,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::SHARED,
                file,
                0,
            )
        }
        .map_err(fail)?;
        let at = NonNull::new(at.cast::<u8>()).ok_or_else(|| fail(Errno::NOMEM))?;
        Ok(Self { at, len })
    }

    fn bytes(&mut self) -> &mut [u8] {
        // SAFETY: the mapping has so many initialised bytes, is this value's alone, and lives as long as the borrow.
        unsafe { std::slice::from_raw_parts_mut(self.at.as_ptr(), self.len) }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the mapping was made with this length, and nothing borrows it any more.
        let _ = unsafe { munmap(self.at.as_ptr().cast(), self.len) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::DEK_LEN;
    use crate::Dek;

    fn deks() -> DekStack {
        let key = || Dek::generate().unwrap();
        DekStack::from(key()).pushed(key().with_outer(key()).unwrap())
    }

    fn same(one: &DekStack, other: &DekStack) -> bool {
        one.iter().zip(other.iter()).all(|(one, other)| {
            let outer = |dek: &Dek| dek.outer().map(|outer| outer.expose().to_vec());
            one.expose() == other.expose() && outer(one) == outer(other)
        })
    }

    #[test]
    fn keys_come_back_as_they_were_put() {
        let first = deks();
        let mut kept = KeptDeks::new(&first).unwrap();
        for _ in 0..2 {
            assert!(same(&kept.deks().unwrap(), &first));
        }
        let mut locked = KeptDeks {
            layers: 2,
            memory: Memory::Locked(LockedBytes::zeroed(4 * DEK_LEN).unwrap()),
        };
        locked
            .with(|mut bytes| first.send(&mut bytes))
            .unwrap()
            .unwrap();
        assert!(same(&locked.deks().unwrap(), &first));
    }

    /// Nobody who reads the memory of this process finds a key that waits.
    #[test]
    fn a_key_that_waits_is_mapped_nowhere() {
        let Ok(file) = secret_memory(64) else {
            eprintln!("not tested: this kernel has no secret memory");
            return;
        };
        let is_mapped = || {
            let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
            maps.contains("secretmem")
        };
        let mut mapping = Mapping::of(&file, 64).unwrap();
        assert!(is_mapped(), "the search finds nothing");
        mapping.bytes().fill(7);
        let address = mapping.at.as_ptr() as u64;
        let memory = std::fs::File::open("/proc/self/mem").unwrap();
        let read = std::os::unix::fs::FileExt::read_at(&memory, &mut [0; 64], address);
        assert!(
            read.is_err(),
            "the kernel reads it for whoever may trace us"
        );
        drop(mapping);
        let mut kept = KeptDeks {
            layers: 1,
            memory: Memory::Secret { file, len: 64 },
        };
        assert!(!is_mapped());
        kept.with(|bytes| assert_eq!(bytes, [7; 64])).unwrap();
        assert!(!is_mapped());
    }
}
