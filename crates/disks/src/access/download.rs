//! Reading a range of a disk and its footer, a piece at a time, on a thread of its own: a ring of io_uring is one
//! thread's. It waits while nobody takes what it has read.

use std::ops::Range;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use zeroize::Zeroizing;

use crate::access::footer::FOOTER_LEN;
use crate::access::reader::Reader;
use crate::import::Cancel;
use crate::resource::error::DiskError;
use crate::transfer::{CHUNK, Pieces};
use keys::{KeyError, ROOMY_STACK, spawn_with_keys};
use volume::pipeline::{DiskIo, PipelineError, Plaintext};

/// Pieces that the disk reads ahead, and those that wait to be taken.
const AHEAD: usize = 3;
const WAITING: usize = 1;
const SECTOR: u64 = 512;

/// The next bytes.
pub enum Piece {
    /// So many zeros.
    Zeros(usize),
    /// These of a buffer.
    Data(Plaintext, Range<usize>),
}

impl Piece {
    /// How many bytes it is.
    pub fn len(&self) -> usize {
        match self {
            Self::Zeros(len) => *len,
            Self::Data(_, range) => range.len(),
        }
    }

    /// Whether it is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// A range that is being read.
pub struct Download {
    left: u64,
    pieces: Receiver<Result<Piece, DiskError>>,
}

impl Download {
    /// Begins to read a range of the bytes of a disk and its footer.
    ///
    /// # Errors
    /// [`DiskError::Key`] when there can be no thread.
    pub fn begin(reader: Arc<Reader>, range: Range<u64>) -> Result<Self, DiskError> {
        let end = range.end.min(reader.size() + FOOTER_LEN as u64);
        let range = range.start.min(end)..end;
        let left = range.end - range.start;
        let (give, pieces) = sync_channel(WAITING);
        let work = move || {
            let cancel = reader.keys().stopping(&Cancel::default());
            let all = Reading::new(&reader, range)
                .and_then(|mut reading| reading.give_all(&give, &cancel));
            if let Err(error) = all {
                // Who is not there any more need not know.
                let _ = give.send(Err(error));
            }
        };
        spawn_with_keys("download".into(), ROOMY_STACK, work)?;
        Ok(Self { left, pieces })
    }

    /// Bytes that are left.
    pub fn left(&self) -> u64 {
        self.left
    }

    /// The next bytes; `None` after the last. It blocks until they are read.
    ///
    /// # Errors
    /// [`DiskError`] when they cannot be read.
    pub fn next_piece(&mut self) -> Result<Option<Piece>, DiskError> {
        if self.left == 0 {
            return Ok(None);
        }
        let ended = |_| KeyError::Thread(std::io::ErrorKind::BrokenPipe.into());
        let piece = self.pieces.recv().map_err(ended)??;
        self.left = self.left.saturating_sub(piece.len() as u64);
        Ok(Some(piece))
    }
}

/// What the thread has.
struct Reading {
    io: DiskIo,
    pieces: Pieces<NextData>,
    /// Reads that were begun.
    ahead: usize,
    is_through: bool,
    at: u64,
    end: u64,
    size: u64,
    footer: [u8; FOOTER_LEN],
}

type NextData = fn(&DiskIo, u64) -> Result<Option<Range<u64>>, PipelineError>;

impl Reading {
    fn new(reader: &Reader, range: Range<u64>) -> Result<Self, DiskError> {
        let size = reader.size();
        let end = range.end.min(size).next_multiple_of(SECTOR);
        let sectors = range.start / SECTOR * SECTOR..end;
        Ok(Self {
            io: reader.io()?,
            pieces: Pieces::new(DiskIo::next_data as NextData, sectors),
            ahead: 0,
            is_through: false,
            at: range.start,
            end: range.end,
            size,
            footer: reader.footer(),
        })
    }

    /// Reads all and gives it away, until nobody takes it.
    fn give_all(
        &mut self,
        to: &SyncSender<Result<Piece, DiskError>>,
        cancel: &Cancel,
    ) -> Result<(), DiskError> {
        let data_end = self.end.min(self.size);
        let mut is_taken = true;
        while is_taken && self.at < data_end {
            cancel.check()?;
            self.read_ahead()?;
            let read = match self.ahead {
                0 => None,
                _ => self.io.next_read()?,
            };
            let next = read.as_ref().map_or(data_end, |(at, _)| *at);
            while is_taken && self.at < next {
                let zeros = (next - self.at).min(CHUNK as u64) as usize;
                is_taken = self.give(to, Piece::Zeros(zeros));
            }
            if let Some((at, plaintext)) = read.filter(|_| is_taken) {
                self.ahead -= 1;
                let from = (self.at - at) as usize;
                let end = (data_end - at).min(plaintext.len() as u64) as usize;
                is_taken = self.give(to, Piece::Data(plaintext, from..end));
            }
        }
        if is_taken && self.end > self.size {
            let range = (self.at - self.size) as usize..(self.end - self.size) as usize;
            let footer = Zeroizing::new(self.footer.to_vec());
            self.give(to, Piece::Data(footer, range));
        }
        Ok(())
    }

    fn give(&mut self, to: &SyncSender<Result<Piece, DiskError>>, piece: Piece) -> bool {
        self.at += piece.len() as u64;
        to.send(Ok(piece)).is_ok()
    }

    fn read_ahead(&mut self) -> Result<(), DiskError> {
        while self.ahead < AHEAD && !self.is_through {
            let Some(piece) = self.pieces.take(&self.io)? else {
                self.is_through = true;
                break;
            };
            let plaintext = Zeroizing::new(vec![0; (piece.end - piece.start) as usize]);
            self.io.read_ahead(piece.start, plaintext)?;
            self.ahead += 1;
        }
        Ok(())
    }
}
