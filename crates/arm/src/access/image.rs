//! The data of a grant as an image that is imported: read as it is sent to whoever downloads it, and no longer than
//! that is allowed.

use std::io;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

use super::sessions::{Opened, Sent, Sessions};
use crate::error::ArmError;
use disks::import::{ImageFormat, ImportError, Source, SourceImage};
use disks::{Download, Page};
use installation::catalog::AccessRecord;
use server::{ByteStream, Chunk};

/// Opens what a grant that counts now is of.
///
/// # Errors
/// The vault's refusal; that it cannot be opened, or is in upload.
pub fn image(sessions: &Sessions, grant: &AccessRecord) -> Result<Source, ArmError> {
    let refused = |error: super::BlobError| ArmError::new(error.status, &error.code, error.message);
    let session = sessions.get(grant).map_err(refused)?;
    let Opened::Read(reader) = session.opened() else {
        return Err(ArmError::conflict("The source is being uploaded."));
    };
    let size = reader.size();
    let pages = reader.pages(0..size)?.into_pages().into_iter();
    let data = pages.map(|page| match page {
        Page::Data(range) | Page::Clear(range) => range,
    });
    let logical_sector_size = Some(reader.logical_sector_size());
    let begun = sessions.begin_download(&session, size).map_err(refused)?;
    let download = Download::begin(Arc::clone(reader), 0..size)?;
    let data = data.collect();
    Ok(Source {
        image: Box::new(GrantedImage {
            stream: Sent::new(session.clone(), download, begun),
            name: format!("{} {}", grant.kind, grant.name).into(),
            size,
            data,
            at: 0,
            chunk: Chunk::Zeros(0),
        }),
        format: ImageFormat::Raw,
        looks_like: None,
        logical_sector_size,
    })
}

/// An image that is read once, from its beginning to its end.
struct GrantedImage {
    stream: Sent,
    name: PathBuf,
    size: u64,
    /// What may have data, in order.
    data: Vec<Range<u64>>,
    /// Where what is left of `chunk` begins.
    at: u64,
    chunk: Chunk,
}

impl GrantedImage {
    /// Takes up to so many of the next bytes, into a buffer if there is one.
    fn take(&mut self, most: u64, into: Option<&mut [u8]>) -> io::Result<usize> {
        while self.chunk.is_empty() {
            let next = self.stream.next_chunk()?;
            self.chunk = next.ok_or(io::ErrorKind::UnexpectedEof)?;
        }
        let most = usize::try_from(most).unwrap_or(usize::MAX);
        let taken = match &mut self.chunk {
            Chunk::Zeros(left) => {
                let taken = most.min(*left);
                if let Some(into) = into {
                    into[..taken].fill(0);
                }
                *left -= taken;
                taken
            }
            Chunk::Data(bytes, range) => {
                let taken = most.min(range.len());
                if let Some(into) = into {
                    into[..taken].copy_from_slice(&bytes[range.start..range.start + taken]);
                }
                range.start += taken;
                taken
            }
        };
        self.at += taken as u64;
        Ok(taken)
    }

    fn read(&mut self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        if offset < self.at {
            return Err(io::ErrorKind::NotSeekable.into());
        }
        while self.at < offset {
            self.take(offset - self.at, None)?;
        }
        let mut done = 0;
        while done < buffer.len() {
            let rest = &mut buffer[done..];
            done += self.take(rest.len() as u64, Some(rest))?;
        }
        Ok(())
    }
}

impl SourceImage for GrantedImage {
    fn size(&self) -> u64 {
        self.size
    }

    fn read_at(&mut self, offset: u64, buffer: &mut [u8]) -> Result<(), ImportError> {
        self.read(offset, buffer).map_err(|source| ImportError::Io {
            call: "read",
            path: self.name.clone(),
            source,
        })
    }

    fn next_data(&mut self, offset: u64) -> Result<Option<Range<u64>>, ImportError> {
        let next = self.data.partition_point(|data| data.end <= offset);
        let found = self.data.get(next);
        Ok(found.map(|data| data.start.max(offset)..data.end.min(self.size)))
    }
}
