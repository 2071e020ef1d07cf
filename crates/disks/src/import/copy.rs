//! Copying a source image into a disk: data only, zeros stay holes.

use keys::units::is_zero;
use zeroize::Zeroizing;

use super::{Cancel, ImportError, SourceImage};

/// Bytes that are read, encrypted and written at a time.
const CHUNK: usize = 1 << 20;
/// Zeros are looked for in blocks of this size, which is the block map's.
const BLOCK: usize = 4096;

/// Where a disk's plaintext goes, to be encrypted.
pub trait PlaintextSink {
    /// What can go wrong.
    type Error;

    /// Writes `plaintext` at `offset`, both multiples of 512.
    ///
    /// # Errors
    /// The sink's.
    fn write_at(&mut self, offset: u64, plaintext: &[u8]) -> Result<(), Self::Error>;
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

/// Copies the whole image into a new, empty disk of `disk_size` bytes (a multiple of 512, not less
/// than the image's size; what the image does not cover is zeros). `progress` is told how far in
/// the image the copy has come.
///
/// # Errors
/// [`CopyError`], also when a signal asked to stop.
pub fn copy<S: PlaintextSink>(
    source: &mut dyn SourceImage,
    disk_size: u64,
    sink: &mut S,
    cancel: &Cancel,
    mut progress: impl FnMut(u64),
) -> Result<(), CopyError<S::Error>> {
    // The only plaintext that is ever held here; zeroed when the copy ends, however it ends.
    let mut buffer = Zeroizing::new(vec![0; CHUNK]);
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
        while offset < end {
            cancel.check()?;
            let length = usize::try_from(end - offset).map_or(CHUNK, |rest| rest.min(CHUNK));
            let chunk = &mut buffer[..length];
            read_padded(source, offset, chunk)?;
            write_data(sink, offset, chunk).map_err(CopyError::Sink)?;
            offset += length as u64;
            progress(offset.min(size));
        }
        position = end;
    }
    progress(size);
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
            sink.write_at(offset + at as u64, &chunk[at..at + length])?;
        }
        at += length;
    }
    Ok(())
}
