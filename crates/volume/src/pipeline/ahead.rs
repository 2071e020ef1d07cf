//! Reads ahead and writes behind of a disk without a guest: several are under way at once, so that the device
//! works while this thread encrypts or decrypts, and while its caller does something else.

use std::ptr::NonNull;

use keys::units::BLOCK_SIZE;
use xts::SharedSlice;

use super::disk_io::{BEHIND, DiskIo, Plaintext, ReadAhead, request, ring_failed};
use super::{PipelineError, RequestKind, Token};
use crate::store::Wait;

/// Ranges that are copied up at once by [`DiskIo::copy_up_behind`].
const COPIES: usize = 3;

impl DiskIo {
    /// Begins to read what is at `offset` into all of `plaintext`; both in whole 512-byte sectors. The reads
    /// come out of [`DiskIo::next_read`] in the order in which they were begun.
    ///
    /// # Errors
    /// [`PipelineError`] when the ring does not work any more.
    pub fn read_ahead(
        &mut self,
        offset: u64,
        mut plaintext: Plaintext,
    ) -> Result<(), PipelineError> {
        const FIRST: u64 = BEHIND.0 + 1;
        let token = Token(FIRST + self.reads_begun);
        let len = plaintext.len();
        // SAFETY: the bytes are in `self.reads`, which nobody reads or drops before the request has ended;
        // when the ring fails, or this is dropped, the pipeline goes first (it is the first field). A vector's
        // bytes stay where they are while it moves.
        let slice =
            unsafe { SharedSlice::new(NonNull::from(plaintext.as_mut_slice()).cast(), len) };
        self.submit(token, request(RequestKind::Read, offset, len), Some(slice))?;
        self.reads_begun += 1;
        self.reads.push_back(ReadAhead {
            token,
            offset,
            plaintext,
            result: None,
        });
        self.issue()
    }

    /// Waits for the first of the reads that were begun: where it was, and what is there. `None` when there is
    /// none.
    ///
    /// # Errors
    /// [`PipelineError::Request`] when the store fails or the range is not on the disk.
    pub fn next_read(&mut self) -> Result<Option<(u64, Plaintext)>, PipelineError> {
        while let Some(read) = self.reads.front_mut() {
            if let Some(result) = read.result.take() {
                let read = self.reads.pop_front();
                result?;
                return Ok(read.map(|read| (read.offset, read.plaintext)));
            }
            self.poll()?;
            if self.reads.front().is_some_and(|read| read.result.is_none()) {
                self.wait()?;
            }
        }
        Ok(None)
    }

    /// Encrypts `plaintext` and begins to write it to `offset`, in whole blocks of 4096 bytes (else it is
    /// written when this returns). How much is under way is limited by the buffers for ciphertext, for which
    /// this waits.
    ///
    /// # Errors
    /// [`PipelineError::Request`] when this write has failed already, or one that was begun before it.
    pub fn write_behind(&mut self, offset: u64, plaintext: &[u8]) -> Result<(), PipelineError> {
        let len = plaintext.len();
        if !offset.is_multiple_of(BLOCK_SIZE) || !(len as u64).is_multiple_of(BLOCK_SIZE) {
            return self.write_at(offset, plaintext);
        }
        self.tell_failed()?;
        // SAFETY: `plaintext` is borrowed until this returns. A pipeline reads the memory of a write of whole
        // blocks while it issues it and never after that, and it has issued all when no request waits; one
        // whose ring has failed is gone.
        let slice = unsafe { SharedSlice::new(NonNull::from(plaintext).cast(), len) };
        let kind = RequestKind::Write { durable: false };
        self.submit(BEHIND, request(kind, offset, len), Some(slice))?;
        self.writes += 1;
        self.issue()?;
        while self.has_waiting()? {
            self.wait()?;
            self.poll()?;
        }
        self.enter(Wait::No)?;
        self.tell_failed()
    }

    /// As [`DiskIo::copy_up`], and leaves it under way, so that the next can be begun before it ends. There are
    /// three at most.
    ///
    /// # Errors
    /// As [`DiskIo::write_behind`].
    pub fn copy_up_behind(
        &mut self,
        offset: u64,
        len: u64,
        drop: u8,
    ) -> Result<u64, PipelineError> {
        self.await_writes(COPIES - 1)?;
        let (request, missing) = self.to_copy_up(offset, len, drop, &|| true)?;
        if let Some(request) = request {
            self.submit(BEHIND, request, None)?;
            self.writes += 1;
            self.issue()?;
        }
        Ok(missing)
    }

    /// Waits for the writes that were begun. They are not durable.
    ///
    /// # Errors
    /// [`PipelineError::Request`] when one of them has failed.
    pub fn end_writes(&mut self) -> Result<(), PipelineError> {
        self.await_writes(0)
    }

    /// Waits until no more than so many of them are under way.
    fn await_writes(&mut self, most: usize) -> Result<(), PipelineError> {
        while self.writes > most {
            self.poll()?;
            if self.writes > most {
                self.wait()?;
            }
        }
        self.tell_failed()
    }

    /// Issues as much as there are buffers for, and has the kernel begin with it.
    fn issue(&mut self) -> Result<(), PipelineError> {
        self.enter(Wait::No)?;
        while self.is_between_bursts()? {
            self.poll()?;
            self.enter(Wait::No)?;
        }
        Ok(())
    }

    fn tell_failed(&mut self) -> Result<(), PipelineError> {
        match self.failed.take() {
            Some(error) => Err(error.into()),
            None => Ok(()),
        }
    }

    fn has_waiting(&self) -> Result<bool, PipelineError> {
        let pipeline = self.pipeline.as_ref().ok_or_else(ring_failed)?;
        Ok(pipeline.has_waiting())
    }

    fn is_between_bursts(&self) -> Result<bool, PipelineError> {
        let pipeline = self.pipeline.as_ref().ok_or_else(ring_failed)?;
        Ok(pipeline.is_between_bursts())
    }
}
