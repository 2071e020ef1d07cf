//! Copying a source image into a disk: data only, zeros stay holes.
//!
//! A thread of its own reads the image while this one looks for zeros, encrypts and begins to write. Between
//! them are a few buffers, and they wait for each other when all of these are full, or empty.

use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;

use keys::units::is_zero;
use zeroize::Zeroizing;

use super::{Cancel, ImportError, SourceImage};

/// Bytes that are read, encrypted and written at a time.
const CHUNK: usize = 512 << 10;
/// Buffers of as many bytes between reading and writing.
const CHUNKS: usize = 8;
/// Bytes that storage is told of before they are read.
const AHEAD: u64 = 4 << 20;
/// Zeros are looked for in blocks of this size, which is the block map's.
const BLOCK: usize = 4096;

/// Where a disk's plaintext goes, to be encrypted.
pub trait PlaintextSink {
    /// What can go wrong.
    type Error;

    /// Begins to write `plaintext` at `offset`, both multiples of 512. It may fail later: then a
    /// later call does, or the one that makes all of it durable.
    ///
    /// # Errors
    /// The sink's.
    fn write_behind(&mut self, offset: u64, plaintext: &[u8]) -> Result<(), Self::Error>;
}

/// Which side of a copy failed.
#[derive(Debug)]
pub enum CopyError<E> {
    /// The source, or a signal.
    Source(ImportError),
    /// The sink.
    Sink(E),
}

impl<E> From<ImportError> for CopyError<E> {
    fn from(error: ImportError) -> Self {
        Self::Source(error)
    }
}

/// Plaintext of an image and where it begins. The buffer is zeroed when the copy ends, however it ends.
struct Chunk {
    offset: u64,
    plaintext: Zeroizing<Vec<u8>>,
}

/// Copies the whole image into a new, empty disk of `disk_size` bytes (a multiple of 512, not less
/// than the image's size; what the image does not cover is zeros). `progress` is told how far in
/// the image the copy has come. Afterwards all writes are begun; the caller has the sink end them.
///
/// # Errors
/// [`CopyError`], also when a signal asked to stop.
pub fn copy<S: PlaintextSink>(
    source: &mut (dyn SourceImage + Send),
    disk_size: u64,
    sink: &mut S,
    cancel: &Cancel,
    mut progress: impl FnMut(u64),
) -> Result<(), CopyError<S::Error>> {
    let size = source.size();
    let (full, to_write) = channel();
    let (empty, to_fill) = channel();
    for _ in 0..CHUNKS {
        // The other end is here.
        let _ = empty.send(Zeroizing::new(vec![0; CHUNK]));
    }
    thread::scope(|scope| {
        let reader = thread::Builder::new()
            .name("image-reader".into())
            .spawn_scoped(scope, move || {
                read_data(source, disk_size, &to_fill, &full, cancel)
            })
            .map_err(ImportError::Thread)?;
        let written = write_chunks(to_write, empty, size, sink, cancel, &mut progress);
        // It ends when there is nothing more to read or nobody to read for. What a failure of the source
        // leaves unread is no failure of the sink.
        let read = reader
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        written.and(read.map_err(CopyError::Source))
    })?;
    progress(size);
    Ok(())
}

/// Writes what was read, until that ends, and gives the buffers back.
fn write_chunks<S: PlaintextSink>(
    to_write: Receiver<Chunk>,
    empty: Sender<Zeroizing<Vec<u8>>>,
    size: u64,
    sink: &mut S,
    cancel: &Cancel,
    progress: &mut impl FnMut(u64),
) -> Result<(), CopyError<S::Error>> {
    for Chunk { offset, plaintext } in to_write {
        cancel.check()?;
        write_data(sink, offset, &plaintext).map_err(CopyError::Sink)?;
        progress((offset + plaintext.len() as u64).min(size));
        // A reader that has come to its end needs no more.
        let _ = empty.send(plaintext);
    }
    Ok(())
}

/// Reads all that may be data, a chunk at a time, until there is no more of it or nobody wants it.
fn read_data(
    source: &mut dyn SourceImage,
    disk_size: u64,
    to_fill: &Receiver<Zeroizing<Vec<u8>>>,
    full: &Sender<Chunk>,
    cancel: &Cancel,
) -> Result<(), ImportError> {
    let size = source.size();
    let block = BLOCK as u64;
    let mut position = 0;
    while position < size {
        cancel.check()?;
        let Some(extent) = source.next_data(position)? else {
            break;
        };
        // Whole blocks, so that one block is never written in two pieces.
        let mut offset = (extent.start / block * block).max(position);
        let end = extent.end.next_multiple_of(block).min(disk_size);
        let mut told = extent.start;
        while offset < end {
            let Ok(mut plaintext) = to_fill.recv() else {
                return Ok(());
            };
            cancel.check()?;
            let length = usize::try_from(end - offset).map_or(CHUNK, |rest| rest.min(CHUNK));
            plaintext.resize(length, 0);
            if offset + AHEAD / 2 >= told && told < extent.end {
                let next = told..(told + AHEAD).min(extent.end);
                told = next.end;
                source.will_read(next);
            }
            read_padded(source, offset, &mut plaintext)?;
            if full.send(Chunk { offset, plaintext }).is_err() {
                return Ok(());
            }
            offset += length as u64;
        }
        position = end;
    }
    Ok(())
}

/// Reads what the source has and fills up with zeros behind its end.
fn read_padded(
    source: &mut dyn SourceImage,
    offset: u64,
    chunk: &mut [u8],
) -> Result<(), ImportError> {
    let rest = source.size().saturating_sub(offset);
    let there = usize::try_from(rest).map_or(chunk.len(), |rest| rest.min(chunk.len()));
    let (data, padding) = chunk.split_at_mut(there);
    padding.fill(0);
    source.read_at(offset, data)
}

/// Writes the runs of blocks that are not all zeros.
fn write_data<S: PlaintextSink>(sink: &mut S, offset: u64, chunk: &[u8]) -> Result<(), S::Error> {
    let is_data = |block: &[u8]| !is_zero(block);
    let mut at = 0;
    for run in chunk
        .chunks(BLOCK)
        .collect::<Vec<_>>()
        .chunk_by(|a, b| is_data(a) == is_data(b))
    {
        let length: usize = run.iter().map(|block| block.len()).sum();
        if is_data(run[0]) {
            sink.write_behind(offset + at as u64, &chunk[at..at + length])?;
        }
        at += length;
    }
    Ok(())
}
