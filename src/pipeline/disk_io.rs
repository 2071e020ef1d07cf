//! A disk without a guest: for import and decryption, by the code that serves guests.

use std::io;
use std::ops::Range;
use std::ptr::NonNull;
use std::sync::Arc;

use crate::cipher::{Cipher, SharedSlice};
use crate::keys::Dek;
use crate::store::{LayerFiles, StoreError, UringStore, Wait};
use crate::units::{BLOCK_SIZE, ByteOffset};
use crate::volume::Volume;

use super::{Finished, GuestBuffer, Op, OpKind, Pipeline, PipelineError, Token};

/// Synchronous access to an opened volume.
pub struct DiskIo {
    /// `None` after the ring has failed.
    pipeline: Option<Pipeline<UringStore>>,
    volume: Arc<Volume>,
}

impl DiskIo {
    /// Makes a pipeline over the layer's files.
    ///
    /// # Errors
    /// [`PipelineError`] when the ring, the buffers or the cipher cannot be made.
    pub fn open(volume: Arc<Volume>, files: LayerFiles, dek: &Dek) -> Result<Self, PipelineError> {
        let cipher = Cipher::new(dek, volume.geometry().data_unit)?;
        Self::with(volume, files, Some(cipher))
    }

    /// As [`DiskIo::open`] for a disk whose key is not there: what was completed before can be
    /// made durable all the same.
    ///
    /// # Errors
    /// [`PipelineError`] when the ring or the buffers cannot be made.
    pub fn open_to_flush(volume: Arc<Volume>, files: LayerFiles) -> Result<Self, PipelineError> {
        Self::with(volume, files, None)
    }

    fn with(
        volume: Arc<Volume>,
        files: LayerFiles,
        cipher: Option<Cipher>,
    ) -> Result<Self, PipelineError> {
        let store = UringStore::new(files)?;
        let pipeline = Pipeline::new(volume.clone(), store, cipher)?;
        Ok(Self {
            pipeline: Some(pipeline),
            volume,
        })
    }

    /// Encrypts `plaintext` to `offset`; both in whole 512-byte sectors.
    ///
    /// # Errors
    /// [`PipelineError::Op`] when the store fails or the range is not on the disk.
    pub fn write_at(&mut self, offset: u64, plaintext: &[u8]) -> Result<(), PipelineError> {
        let from = NonNull::from(plaintext).cast();
        // SAFETY: `plaintext` is borrowed until `run` has seen the request finished, and a write
        // only reads from it.
        let slice = unsafe { SharedSlice::new(from, plaintext.len()) };
        self.run(
            OpKind::Write { durable: false },
            offset,
            plaintext.len() as u64,
            Some(slice),
        )
    }

    /// Decrypts what is at `offset` into `plaintext`; both in whole 512-byte sectors.
    ///
    /// # Errors
    /// As [`DiskIo::write_at`].
    pub fn read_at(&mut self, offset: u64, plaintext: &mut [u8]) -> Result<(), PipelineError> {
        let len = plaintext.len();
        // SAFETY: `plaintext` is borrowed mutably until `run` has seen the request finished.
        let slice = unsafe { SharedSlice::new(NonNull::from(plaintext).cast(), len) };
        self.run(OpKind::Read, offset, len as u64, Some(slice))
    }

    /// The next range from `offset` on that has data; everything before it reads as zeros.
    pub fn next_data(&self, offset: u64) -> Option<Range<u64>> {
        let size = self.volume.geometry().size;
        let mut at = offset;
        while at < size {
            let block = ByteOffset(at).block().0;
            let run = self.volume.map().run(block, u64::MAX - block);
            let end = ((block + run.blocks) * BLOCK_SIZE).min(size);
            if run.is_data {
                return Some(at..end);
            }
            at = end;
        }
        None
    }

    /// Makes everything written so far durable.
    ///
    /// # Errors
    /// [`PipelineError::Op`] when a sync fails.
    pub fn flush(&mut self) -> Result<(), PipelineError> {
        self.run(OpKind::Flush, 0, 0, None)
    }

    fn run(
        &mut self,
        kind: OpKind,
        offset: u64,
        len: u64,
        slice: Option<SharedSlice>,
    ) -> Result<(), PipelineError> {
        let pipeline = self.pipeline.as_mut().ok_or_else(ring_failed)?;
        let memory = GuestBuffer {
            slices: slice.into_iter().collect(),
            owner: None,
        };
        pipeline.submit(Op {
            kind,
            at: ByteOffset(offset),
            len,
            memory,
            token: Token(0),
        });
        let mut finished: Vec<Finished> = Vec::with_capacity(1);
        loop {
            pipeline.poll();
            pipeline.take_finished(&mut finished);
            if let Some(done) = finished.pop() {
                return Ok(done.result?);
            }
            if let Err(error) = pipeline.store_mut().enter(Wait::Forever) {
                // The request still names the caller's memory: nothing may carry it on later.
                self.pipeline = None;
                return Err(error.into());
            }
        }
    }
}

fn ring_failed() -> StoreError {
    StoreError::Io {
        what: "go on after a failure of io_uring",
        source: io::ErrorKind::Other.into(),
    }
}
