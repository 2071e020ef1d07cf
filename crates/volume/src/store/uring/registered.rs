//! Files and buffers that the kernel keeps registered with a ring.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::ptr::NonNull;

use crate::store::locked::Pinned;
use crate::store::{StackFiles, StoreError};

use super::entry::MAX_FILES;
use super::retry::patiently;
use super::ring::UringStore;

impl UringStore {
    /// In the order of the numbers; all other numbers become free.
    pub(super) fn register_files(&self) -> Result<(), StoreError> {
        let fail = |source| StoreError::Setup {
            what: "register files with io_uring",
            source,
        };
        let mut numbers = [-1; MAX_FILES];
        let descriptors = descriptors(&self.files);
        let into = numbers
            .get_mut(..descriptors.len())
            .ok_or_else(|| fail(io::ErrorKind::InvalidInput.into()))?;
        into.copy_from_slice(&descriptors);
        let mut done = 0;
        while done < numbers.len() {
            let submitter = self.events.ring.submitter();
            let update = || submitter.register_files_update(done as u32, &numbers[done..]);
            match patiently(update).map_err(fail)? {
                0 => return Err(fail(io::ErrorKind::Other.into())),
                some => done += some,
            }
        }
        Ok(())
    }

    /// Registers memory of buffers, if this user may lock as much.
    pub(super) fn register_memory(&mut self, chunk: usize, start: NonNull<u8>, len: usize) {
        let memory = libc::iovec {
            iov_base: start.as_ptr().cast(),
            iov_len: len,
        };
        // An ordinary user may lock less memory than that: it works all the same.
        let Some(pinned) = Pinned::new(len) else {
            return warn_unregistered(&io::ErrorKind::OutOfMemory.into());
        };
        match self.register_buffer(chunk, memory) {
            Ok(()) => self.registered[chunk] = Some(pinned),
            Err(error) => warn_unregistered(&error),
        }
    }

    /// Unregisters memory of buffers.
    pub(super) fn unregister_memory(&mut self, chunk: usize) {
        if self.registered[chunk].take().is_some() {
            let nothing = libc::iovec {
                iov_base: std::ptr::null_mut(),
                iov_len: 0,
            };
            if let Err(error) = self.register_buffer(chunk, nothing) {
                // Its pages stay pinned until other memory takes its place.
                log::warn!("memory of buffers stays registered with io_uring: {error}");
            }
        }
    }

    fn register_buffer(&mut self, chunk: usize, memory: libc::iovec) -> io::Result<()> {
        let submitter = self.events.ring.submitter();
        // SAFETY: the memory is mapped for as long as any buffer of it is, and the kernel pins its pages:
        // nothing depends on it staying mapped.
        unsafe { submitter.register_buffers_update(chunk as u32, &[memory], None) }
    }
}

/// In the order of the numbers.
fn descriptors(files: &StackFiles) -> Vec<RawFd> {
    let top = [files.data.file().as_raw_fd(), files.map.file().as_raw_fd()];
    let lower = files.lower.iter().map(|file| file.file().as_raw_fd());
    top.into_iter().chain(lower).collect()
}

/// Says once what more locked memory would be good for.
fn warn_unregistered(error: &io::Error) {
    static SAID: std::sync::Once = std::sync::Once::new();
    SAID.call_once(|| {
        log::warn!(
            "buffers are not registered with io_uring, which costs some CPU time: {error}; raise \
             RLIMIT_MEMLOCK (`ulimit -l`, LimitMEMLOCK= of a systemd unit)"
        );
    });
}
