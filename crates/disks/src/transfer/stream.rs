//! A disk's plaintext in order: this thread has the disk read ahead and decrypts, another one writes.
//!
//! Between them are a few buffers, and they wait for each other when all of these are full, or empty. The keys are the
//! reader's, which has to stop: it drops them then, whatever the writer waits for.

use std::ops::Range;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::Duration;

use zeroize::Zeroizing;

use crate::import::{Cancel, ImportError};
use crate::resource::error::DiskError;
use keys::with_wiped_call_stack;
use volume::pipeline::{DiskIo, PipelineError, Plaintext};

/// Bytes that are read, decrypted and written at a time.
pub(crate) const CHUNK: usize = 512 << 10;
/// Buffers of as many bytes, and of how many of them the disk reads ahead.
const CHUNKS: usize = 10;
const AHEAD: usize = 6;
/// How often who waits looks whether to stop.
pub(super) const LOOK: Duration = Duration::from_millis(200);

/// What plaintext goes to, in order.
pub(super) trait Output: Send {
    /// Bytes at `offset`, which is not before where the last call ended.
    fn data(&mut self, offset: u64, plaintext: &[u8], cancel: &Cancel) -> Result<(), DiskError>;

    /// The next `count` bytes are zeros, or not of interest.
    fn zeros(&mut self, count: u64, cancel: &Cancel) -> Result<(), DiskError>;
}

/// Reads data of the first `size` bytes and skips what is known to be zeros.
pub(super) fn stream(
    source: DiskIo,
    size: u64,
    sink: &mut impl Output,
    cancel: &Cancel,
    progress: impl FnMut(u64),
) -> Result<(), DiskError> {
    stream_ranges(source, size, DiskIo::next_data, sink, cancel, progress)
}

/// Reads what `next` says: the first range, in whole sectors, at or behind a place. They may overlap, and are
/// read once then.
pub(super) fn stream_ranges(
    source: DiskIo,
    size: u64,
    next: impl Fn(&DiskIo, u64) -> Result<Option<Range<u64>>, PipelineError>,
    sink: &mut impl Output,
    cancel: &Cancel,
    mut progress: impl FnMut(u64),
) -> Result<(), DiskError> {
    let (full, to_write) = channel();
    let (empty, to_fill) = channel();
    let pieces = Pieces::new(next, 0..size);
    let position = thread::scope(|scope| {
        let to = &mut *sink;
        let writing = move || write(to, &to_write, &empty, cancel);
        let writer = thread::Builder::new()
            .name("image-writer".into())
            .spawn_scoped(scope, writing)
            .map_err(ImportError::Thread)?;
        let read =
            with_wiped_call_stack(|| read(source, pieces, full, &to_fill, cancel, &mut progress));
        let written = writer.join();
        read?;
        written.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })?;
    // Only now: who gets too little sees that it is not all.
    sink.zeros(size - position, cancel)?;
    progress(size);
    Ok(())
}

/// Reads and decrypts all pieces. It ends early when nobody takes them any more. The disk is closed then, and its keys
/// are gone.
fn read<N: Fn(&DiskIo, u64) -> Result<Option<Range<u64>>, PipelineError>>(
    mut source: DiskIo,
    mut pieces: Pieces<N>,
    full: Sender<(u64, Plaintext)>,
    to_fill: &Receiver<Plaintext>,
    cancel: &Cancel,
    progress: &mut impl FnMut(u64),
) -> Result<(), DiskError> {
    let mut spare: Vec<Plaintext> = (0..CHUNKS)
        .map(|_| Zeroizing::new(vec![0; CHUNK]))
        .collect();
    let (mut ahead, mut is_through) = (0, false);
    loop {
        cancel.check()?;
        spare.extend(to_fill.try_iter());
        while ahead < AHEAD && !is_through {
            let Some(mut plaintext) = spare.pop() else {
                break;
            };
            let Some(piece) = pieces.take(&source)? else {
                is_through = true;
                break;
            };
            // It fits into the buffer as it was made.
            plaintext.resize((piece.end - piece.start) as usize, 0);
            source.read_ahead(piece.start, plaintext)?;
            ahead += 1;
        }
        match source.next_read()? {
            Some((offset, plaintext)) => {
                ahead -= 1;
                let end = offset + plaintext.len() as u64;
                if full.send((offset, plaintext)).is_err() {
                    return Ok(());
                }
                progress(end);
            }
            None if is_through => return Ok(()),
            None => match to_fill.recv_timeout(LOOK) {
                Ok(plaintext) => spare.push(plaintext),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return Ok(()),
            },
        }
    }
}

/// Writes what was read, until that ends; how far it is then.
fn write(
    sink: &mut impl Output,
    to_write: &Receiver<(u64, Plaintext)>,
    empty: &Sender<Plaintext>,
    cancel: &Cancel,
) -> Result<u64, DiskError> {
    let mut position = 0;
    for (offset, plaintext) in to_write {
        sink.zeros(offset - position, cancel)?;
        cancel.check()?;
        sink.data(offset, &plaintext, cancel)?;
        position = offset + plaintext.len() as u64;
        // Who has read all needs no more.
        let _ = empty.send(plaintext);
    }
    Ok(position)
}

/// What is to be read, in pieces of a buffer.
pub(crate) struct Pieces<N> {
    next: N,
    /// Where they end.
    end: u64,
    /// What is left of the range that was found last.
    range: Range<u64>,
}

impl<N: Fn(&DiskIo, u64) -> Result<Option<Range<u64>>, PipelineError>> Pieces<N> {
    /// Of a part of the disk, in whole sectors, what `next` says.
    pub(crate) fn new(next: N, of: Range<u64>) -> Self {
        Self {
            next,
            end: of.end,
            range: of.start..of.start,
        }
    }

    /// The next one.
    ///
    /// # Errors
    /// Those of `next`.
    pub(crate) fn take(&mut self, source: &DiskIo) -> Result<Option<Range<u64>>, PipelineError> {
        while self.range.is_empty() {
            let position = self.range.end;
            let Some(found) = (self.next)(source, position)? else {
                return Ok(None);
            };
            self.range = found.start.max(position)..found.end.min(self.end);
            if self.range.end <= position {
                return Ok(None);
            }
        }
        let start = self.range.start;
        // Pieces end where a multiple of their length does, so that no cluster of an image is cut.
        let end = (start / CHUNK as u64 + 1) * CHUNK as u64;
        self.range.start = end.min(self.range.end);
        Ok(Some(start..self.range.start))
    }
}
