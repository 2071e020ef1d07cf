//! A file in memory that is mapped by more than one process.

use std::fs::File;
use std::io;
use std::ptr::{self, NonNull};

use rustix::fs::{
    MemfdFlags, SealFlags, fcntl_add_seals, fcntl_get_seals, ftruncate, memfd_create,
};
use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap, munmap};

use crate::error::RingError;
use crate::layout::WORD;
use crate::sync::AtomicU64;

/// Makes a file in memory of so many zeros. Nobody can make it shorter, which would kill whoever has it mapped.
pub(crate) fn sealed_file(len: usize) -> io::Result<File> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let file = memfd_create("sealdisk-lanes", flags)?;
    ftruncate(&file, len as u64)?;
    fcntl_add_seals(&file, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)?;
    Ok(file.into())
}

/// The mapping of a file in memory.
pub(crate) struct SharedMemory {
    ptr: NonNull<u8>,
    len: usize,
}

// SAFETY: it is an address range that stays mapped. What lies in it is reached by atomics, or by who has been lent a part.
unsafe impl Send for SharedMemory {}
// SAFETY: as above.
unsafe impl Sync for SharedMemory {}

impl SharedMemory {
    /// Maps a file that is to have `len` bytes.
    ///
    /// # Errors
    /// [`RingError::Memory`] when it has not, or could get shorter; [`RingError::Io`].
    pub(crate) fn map(file: &File, len: usize) -> Result<Self, RingError> {
        let seals =
            fcntl_get_seals(file).map_err(RingError::io("look at the memory that is shared"))?;
        if !seals.contains(SealFlags::SHRINK) {
            return Err(RingError::Memory {
                what: "could be made shorter",
            });
        }
        let found = file
            .metadata()
            .map_err(RingError::io("look at the memory that is shared"))?;
        if found.len() != len as u64 {
            return Err(RingError::Memory {
                what: "has another length than was announced",
            });
        }
        let access = ProtFlags::READ | ProtFlags::WRITE;
        let flags = MapFlags::SHARED | MapFlags::NORESERVE;
        // SAFETY: a new mapping at an address that the kernel chooses aliases nothing of ours.
        let raw = unsafe { mmap(ptr::null_mut(), len, access, flags, file, 0) }
            .map_err(RingError::io("map the memory that is shared"))?;
        let ptr = NonNull::new(raw.cast()).ok_or(RingError::Memory {
            what: "is mapped at address 0",
        })?;
        Ok(Self { ptr, len })
    }

    /// The word at an offset, which follows from the layout.
    pub(crate) fn word(&self, at: usize) -> &AtomicU64 {
        // Panics: for a fault of ours; no offset is read from the memory.
        assert!(
            at.is_multiple_of(WORD) && at + WORD <= self.len,
            "a word outside of the memory"
        );
        // SAFETY: the word lies in the mapping and is aligned (asserted). Other processes may store to it, as to an
        // atomic; it is only ever used as one.
        unsafe { &*self.ptr.as_ptr().add(at).cast::<AtomicU64>() }
    }

    /// The address of a range, which follows from the layout or was checked.
    pub(crate) fn range(&self, at: usize, len: usize) -> NonNull<u8> {
        // Panics: as above.
        assert!(
            at.checked_add(len).is_some_and(|end| end <= self.len),
            "a range outside of the memory"
        );
        // SAFETY: the range lies in the mapping (asserted).
        unsafe { self.ptr.add(at) }
    }

    /// Where an address lies, if all of the `len` bytes from there on are of this memory.
    pub(crate) fn offset_of(&self, start: *const u8, len: usize) -> Option<usize> {
        let at = start.addr().checked_sub(self.ptr.addr().get())?;
        (at.checked_add(len)? <= self.len).then_some(at)
    }

    /// Gives the pages of a range back to the kernel, of whichever process they are. It reads as zeros then.
    pub(crate) fn release(&self, at: usize, len: usize) {
        self.advise(at, len, Advice::LinuxRemove);
    }

    /// Tells the kernel something of a range. What it does not know does no harm.
    pub(crate) fn advise(&self, at: usize, len: usize, advice: Advice) {
        let start = self.range(at, len).as_ptr().cast();
        // SAFETY: the range lies in the mapping. Of these kinds of advice one changes the content, of what nobody has been
        // lent.
        let _ = unsafe { madvise(start, len, advice) };
    }

    /// Takes the pages of a range, so that missing memory shows now.
    pub(crate) fn populate(&self, at: usize, len: usize) -> io::Result<()> {
        let start = self.range(at, len).as_ptr().cast();
        // SAFETY: the range lies in the mapping, and its content stays.
        unsafe { madvise(start, len, Advice::LinuxPopulateWrite) }?;
        Ok(())
    }
}

impl Drop for SharedMemory {
    fn drop(&mut self) {
        // SAFETY: the mapping was made by `map` with this length. Whoever has an address of it has this too.
        let _ = unsafe { munmap(self.ptr.as_ptr().cast(), self.len) };
    }
}
