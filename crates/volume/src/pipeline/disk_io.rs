//! A disk without a guest: for import and decryption, by the code that serves guests.

use std::collections::VecDeque;
use std::io;
use std::ops::Range;
use std::ptr::NonNull;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::store::{BufferPool, DiskStore, StackFiles, StoreError, UringStore, Wait, WaitingStore};
use crate::{Source, Volume, VolumeError};
use keys::DekStack;
use keys::units::{BLOCK_SIZE, ByteOffset};
use xts::{CipherStack, SharedSlice};
use zeroize::Zeroizing;

use super::{
    BlockRequest, Finished, GuestBuffer, Pipeline, PipelineError, RequestError, RequestKind,
    Submission, Token,
};

/// How long a request waits for what another thread has, before it is tried again.
pub(super) const RETRY: Duration = Duration::from_micros(200);

/// Threads of the kernel that work for it at once.
const WORKERS: u32 = 8;

/// The request that is waited for. Reads ahead have larger names.
const OWN: Token = Token(0);
/// All writes behind.
pub(super) const BEHIND: Token = Token(1);

/// Plaintext on its way from or to a disk; it is zeroed when it is dropped.
pub type Plaintext = Zeroizing<Vec<u8>>;

/// A read that was begun.
pub(super) struct ReadAhead {
    pub(super) token: Token,
    pub(super) offset: u64,
    pub(super) plaintext: Plaintext,
    /// Once it has ended.
    pub(super) result: Option<Result<(), RequestError>>,
}

/// Synchronous access to an opened volume, and reads ahead and writes behind of it.
pub struct DiskIo {
    /// `None` after the ring has failed.
    pub(super) pipeline: Option<Pipeline<DiskStore>>,
    volume: Arc<Volume>,
    /// Reads that were begun and not taken, in this order.
    pub(super) reads: VecDeque<ReadAhead>,
    /// Reads that were ever begun.
    pub(super) reads_begun: u64,
    /// Writes behind that have not ended.
    pub(super) writes: usize,
    /// What the first of the writes behind that failed has failed with, until it is told.
    pub(super) failed: Option<RequestError>,
    finished: Vec<Finished>,
}

impl DiskIo {
    /// Makes a pipeline over the disk's files.
    ///
    /// # Errors
    /// [`PipelineError`] when the ring, the buffers or the cipher cannot be made.
    pub fn open(
        volume: Arc<Volume>,
        files: StackFiles,
        deks: &DekStack,
    ) -> Result<Self, PipelineError> {
        let ciphers = CipherStack::new(deks, &volume.data_units())?;
        let store = UringStore::new(files)?;
        Self::on(store, volume, Some(ciphers), BufferPool::alone()?)
    }

    /// As [`DiskIo::open`] for a disk whose key is not there: what was completed before can be
    /// made durable all the same.
    ///
    /// # Errors
    /// [`PipelineError`] when the ring or the buffers cannot be made.
    pub fn open_to_flush(volume: Arc<Volume>, files: StackFiles) -> Result<Self, PipelineError> {
        let store = UringStore::new(files)?;
        Self::on(store, volume, None, BufferPool::alone()?)
    }

    /// As [`DiskIo::open`] on a store of the disk, with ciphers that are there already, or without any,
    /// and with these buffers.
    ///
    /// # Errors
    /// [`PipelineError`] when the ring cannot be used.
    pub fn on(
        store: impl Into<DiskStore>,
        volume: Arc<Volume>,
        ciphers: Option<CipherStack>,
        pool: BufferPool,
    ) -> Result<Self, PipelineError> {
        let mut store: DiskStore = store.into();
        store.limit_workers(WORKERS)?;
        let mut pipeline = Pipeline::with_pool(volume.clone(), store, ciphers, pool)?;
        pipeline.stop_punching();
        Ok(Self {
            pipeline: Some(pipeline),
            volume,
            reads: VecDeque::new(),
            reads_begun: 0,
            writes: 0,
            failed: None,
            finished: Vec::with_capacity(16),
        })
    }

    /// Encrypts `plaintext` to `offset`; both in whole 512-byte sectors.
    ///
    /// # Errors
    /// [`PipelineError::Request`] when the store fails or the range is not on the disk.
    pub fn write_at(&mut self, offset: u64, plaintext: &[u8]) -> Result<(), PipelineError> {
        let from = NonNull::from(plaintext).cast();
        // SAFETY: `plaintext` is borrowed until `run` has seen the request finished, and a write
        // only reads from it.
        let slice = unsafe { SharedSlice::new(from, plaintext.len()) };
        let kind = RequestKind::Write { durable: false };
        self.run(request(kind, offset, plaintext.len()), Some(slice))
    }

    /// Has `len` bytes at `offset` read as zeros, in whole 512-byte sectors. Their space can be given back.
    ///
    /// # Errors
    /// As [`DiskIo::write_at`].
    pub fn discard(&mut self, offset: u64, len: u64) -> Result<(), PipelineError> {
        let request = BlockRequest {
            kind: RequestKind::Zero {
                release: true,
                durable: false,
            },
            at: ByteOffset(offset),
            len,
        };
        self.run(request, None)
    }

    /// Decrypts what is at `offset` into `plaintext`; both in whole 512-byte sectors.
    ///
    /// # Errors
    /// As [`DiskIo::write_at`].
    pub fn read_at(&mut self, offset: u64, plaintext: &mut [u8]) -> Result<(), PipelineError> {
        let len = plaintext.len();
        // SAFETY: `plaintext` is borrowed mutably until `run` has seen the request finished.
        let slice = unsafe { SharedSlice::new(NonNull::from(plaintext).cast(), len) };
        self.run(request(RequestKind::Read, offset, len), Some(slice))
    }

    /// The next range from `offset` on that has data; everything before it reads as zeros.
    ///
    /// # Errors
    /// [`PipelineError::Volume`] when a map cannot be loaded.
    pub fn next_data(&self, offset: u64) -> Result<Option<Range<u64>>, PipelineError> {
        self.next_range(offset, |block, most| {
            let run = self.volume.lookup(block, most)?;
            Ok(run.map(|run| (run.what != Source::Zeros, run.blocks)))
        })
    }

    /// The next range from `offset` on of which the topmost `layers` layers have something, data or
    /// zeros; everything before it is as the layers beneath have it.
    ///
    /// # Errors
    /// As [`DiskIo::next_data`].
    pub fn next_held(
        &self,
        offset: u64,
        layers: usize,
    ) -> Result<Option<Range<u64>>, PipelineError> {
        self.next_range(offset, |block, most| {
            let run = self.volume.is_held(block, most, layers)?;
            Ok(run.map(|run| (run.what, run.blocks)))
        })
    }

    /// The next range from `offset` on of which `look` says so: it is given a block and how many there
    /// are at most, and says of how many it speaks.
    fn next_range(
        &self,
        offset: u64,
        look: impl Fn(u64, u64) -> Result<Option<(bool, u64)>, VolumeError>,
    ) -> Result<Option<Range<u64>>, PipelineError> {
        let size = self.volume.geometry().size;
        let blocks = self.volume.map().blocks();
        let mut at = offset;
        while at < size {
            let block = ByteOffset(at).block().0;
            let Some((wanted, count)) = look(block, blocks - block)? else {
                std::thread::sleep(RETRY);
                continue;
            };
            let end = ((block + count) * BLOCK_SIZE).min(size);
            if wanted {
                return Ok(Some(at..end));
            }
            at = end;
        }
        Ok(None)
    }

    /// Copies into the top layer what it is missing of a range of whole blocks when the `drop` layers
    /// beneath it are to go; how many bytes it was missing. As soon as `goes_on` says no, it waits for nobody who has
    /// blocks of the range, but for what it has begun itself.
    ///
    /// # Errors
    /// As [`DiskIo::write_at`], and [`VolumeError::Stopped`].
    pub fn copy_up(
        &mut self,
        offset: u64,
        len: u64,
        drop: u8,
        goes_on: &dyn Fn() -> bool,
    ) -> Result<u64, PipelineError> {
        let (request, missing) = self.to_copy_up(offset, len, drop, goes_on)?;
        if let Some(request) = request {
            self.run_while(request, None, goes_on)?;
        }
        Ok(missing)
    }

    /// What there is to do for [`DiskIo::copy_up`], if anything, and how many bytes are missing.
    pub(super) fn to_copy_up(
        &self,
        offset: u64,
        len: u64,
        drop: u8,
        goes_on: &dyn Fn() -> bool,
    ) -> Result<(Option<BlockRequest>, u64), PipelineError> {
        let (first, end) = (
            ByteOffset(offset).block().0,
            (offset + len).div_ceil(BLOCK_SIZE),
        );
        let missing = self
            .volume
            .count_missing(first..end, usize::from(drop), goes_on)?;
        // Zeros are to be noted too, where layers remain beneath.
        let is_needed = missing > 0 || usize::from(drop) < self.volume.lower().len();
        let request = BlockRequest {
            kind: RequestKind::CopyUp { drop },
            at: ByteOffset(offset),
            len,
        };
        Ok((is_needed.then_some(request), missing * BLOCK_SIZE))
    }

    /// The disk that this is of.
    pub fn volume(&self) -> &Arc<Volume> {
        &self.volume
    }

    /// Makes everything written so far durable.
    ///
    /// # Errors
    /// [`PipelineError::Request`] when a sync fails, or a write behind has failed.
    pub fn flush(&mut self) -> Result<(), PipelineError> {
        // A flush covers what has ended before it.
        self.end_writes()?;
        self.run(BlockRequest::FLUSH, None)
    }

    /// As [`DiskIo::flush`], and gives back the space of discarded blocks, overwritten first if
    /// `overwrite` says so, for `patience` at most. What is left, or fails, is given back by the next process
    /// that opens the disk. Afterwards the durable map says what is free.
    ///
    /// # Errors
    /// [`PipelineError::Request`] when a sync fails.
    pub fn flush_and_release(
        &mut self,
        overwrite: bool,
        patience: Duration,
    ) -> Result<(), PipelineError> {
        self.flush()?;
        let deadline = Instant::now() + patience;
        let pipeline = self.pipeline.as_mut().ok_or_else(ring_failed)?;
        pipeline.set_overwrite(overwrite);
        pipeline.release_all(true);
        while let Some(pipeline) = &mut self.pipeline
            && pipeline.is_releasing()
            && Instant::now() < deadline
        {
            pipeline.poll();
            self.enter(Wait::AtMost(RETRY))?;
        }
        self.settle()?;
        match self.volume.map().mark_released_dirty() {
            true => self.flush(),
            false => Ok(()),
        }
    }

    /// Whether the ring has failed. Blocks that it was working on stay marked then, so that others who
    /// share the volume would wait for them for ever.
    pub fn has_failed(&self) -> bool {
        self.pipeline.is_none()
    }

    /// Finishes the holes that were begun, whose blocks are marked in a volume that others may share,
    /// and begins no more.
    fn settle(&mut self) -> Result<(), PipelineError> {
        let pipeline = self.pipeline.as_mut().ok_or_else(ring_failed)?;
        pipeline.release_all(false);
        while let Some(pipeline) = &mut self.pipeline
            && !pipeline.is_idle()
        {
            self.enter(Wait::AtMost(RETRY))?;
            if let Some(pipeline) = &mut self.pipeline {
                pipeline.poll();
            }
        }
        Ok(())
    }

    pub(super) fn enter(&mut self, wait: Wait) -> Result<(), PipelineError> {
        let pipeline = self.pipeline.as_mut().ok_or_else(ring_failed)?;
        if let Err(error) = pipeline.store_mut().enter(wait) {
            // A request may still name the caller's memory: nothing may carry it on later.
            self.pipeline = None;
            return Err(error.into());
        }
        Ok(())
    }

    pub(super) fn submit(
        &mut self,
        token: Token,
        request: BlockRequest,
        slice: Option<SharedSlice>,
    ) -> Result<(), PipelineError> {
        let memory = GuestBuffer {
            slices: slice.into_iter().collect(),
            owner: None,
        };
        let pipeline = self.pipeline.as_mut().ok_or_else(ring_failed)?;
        pipeline.submit(Submission::new(token, request, memory));
        Ok(())
    }

    /// Carries on with everything, and notes what has ended; how the request did that is waited for, if it
    /// has ended.
    pub(super) fn poll(&mut self) -> Result<Option<Result<(), RequestError>>, PipelineError> {
        let pipeline = self.pipeline.as_mut().ok_or_else(ring_failed)?;
        pipeline.poll();
        pipeline.take_finished(&mut self.finished);
        let mut own = None;
        for done in self.finished.drain(..) {
            let (token, result, _) = done.take();
            match token {
                OWN => own = Some(result),
                BEHIND => {
                    self.writes -= 1;
                    self.failed = self.failed.take().or(result.err());
                }
                token => {
                    let read = self.reads.iter_mut().find(|read| read.token == token);
                    if let Some(read) = read {
                        read.result = Some(result);
                    }
                }
            }
        }
        Ok(own)
    }

    /// Submits what there is and waits until something can be carried on.
    pub(super) fn wait(&mut self) -> Result<(), PipelineError> {
        let pipeline = self.pipeline.as_ref().ok_or_else(ring_failed)?;
        let wait = match pipeline.waits_for_others() {
            _ if pipeline.is_between_bursts() => Wait::No,
            true => Wait::AtMost(RETRY),
            false => Wait::Forever,
        };
        self.enter(wait)
    }

    fn run(
        &mut self,
        request: BlockRequest,
        slice: Option<SharedSlice>,
    ) -> Result<(), PipelineError> {
        self.run_while(request, slice, &|| true)
    }

    fn run_while(
        &mut self,
        request: BlockRequest,
        slice: Option<SharedSlice>,
        goes_on: &dyn Fn() -> bool,
    ) -> Result<(), PipelineError> {
        self.submit(OWN, request, slice)?;
        loop {
            if let (Some(pipeline), false) = (&mut self.pipeline, goes_on()) {
                pipeline.give_up_copies();
            }
            if let Some(result) = self.poll()? {
                return Ok(result?);
            }
            self.wait()?;
        }
    }
}

pub(super) fn request(kind: RequestKind, offset: u64, len: usize) -> BlockRequest {
    BlockRequest {
        kind,
        at: ByteOffset(offset),
        len: len as u64,
    }
}

pub(super) fn ring_failed() -> StoreError {
    StoreError::Io {
        what: "go on after a failure of io_uring",
        source: io::ErrorKind::Other.into(),
    }
}
