//! Cutting a request into pieces: which blocks, under which mark, from or into which buffer.

use std::ops::Range;

use crate::cipher::{Cursor, Direction};
use crate::store::{Store, StoreFile, StoreOp};
use crate::units::{BLOCK_SIZE, ByteOffset};
use crate::volume::{BlockState, Volume};

use super::drive::{BUFFER_LEN, Pipeline, Progress};
use super::piece::{Piece, RequestId};

/// Blocks that are made zero under one mark.
const ZERO_STEP: u64 = 1024;

impl<S: Store> Pipeline<S> {
    pub(super) fn issue_read(&mut self, id: RequestId) -> Progress {
        let Some((at, left, cursor)) = self.position(id) else {
            return Progress::Issued;
        };
        let most = left.min(BUFFER_LEN as u64 - at.in_block());
        let first = at.block().0;
        let run_at = |volume: &Volume, most: u64| {
            let run = volume.map().run(first, blocks_of(at, most).end - first);
            (
                run.is_data,
                most.min((first + run.blocks) * BLOCK_SIZE - at.0),
            )
        };
        let (is_data, len) = run_at(&self.volume, most);
        if !is_data {
            if let Some(request) = self.requests.get_mut(id) {
                cursor.fill_zeros(&request.op.memory.slices, len as usize);
            }
            self.advance(id, len, false);
            return Progress::More;
        }
        if let Some(progress) = self.in_place(id, at, len, cursor, Direction::Decrypt) {
            return progress;
        }
        if !self.has_room() {
            return Progress::NoRoom;
        }
        let blocks = blocks_of(at, len);
        if !self.volume.locks().try_shared(blocks.clone()) {
            return Progress::InUse;
        }
        // Only now, with the blocks marked, does what the map says stay true until the read is done.
        let (still_data, still) = run_at(&self.volume, len);
        if !still_data || still < len {
            self.volume.locks().release_shared(blocks);
            return Progress::More;
        }
        let Some(buffer) = self.pool.take() else {
            self.volume.locks().release_shared(blocks);
            return Progress::NoRoom;
        };
        let alignment = self.store.alignment();
        let start = at.0 / alignment * alignment;
        let skip = (at.0 - start) as usize;
        let aligned = (at.0 + len).next_multiple_of(alignment) - start;
        let piece = Piece::Read {
            request: id,
            at,
            len: len as usize,
            skip,
            cursor,
            blocks,
        };
        let file = StoreFile::Data;
        self.submit_piece(
            piece,
            StoreOp::Read {
                file,
                at: start,
                len: aligned as usize,
                buffer,
            },
        );
        self.advance(id, len, true);
        Progress::More
    }

    pub(super) fn issue_write(&mut self, id: RequestId) -> Progress {
        let Some((at, left, cursor)) = self.position(id) else {
            return Progress::Issued;
        };
        let most = left.min(BUFFER_LEN as u64 - at.in_block());
        if let Some(progress) = self.in_place(id, at, most, cursor, Direction::Encrypt) {
            return progress;
        }
        if at.in_block() != 0 || left < BLOCK_SIZE {
            let len = left.min(BLOCK_SIZE - at.in_block());
            return self.issue_partial(id, at, len, cursor, false);
        }
        if !self.has_room() {
            return Progress::NoRoom;
        }
        let len = (left / BLOCK_SIZE * BLOCK_SIZE).min(BUFFER_LEN as u64);
        let blocks = blocks_of(at, len);
        if !self.volume.locks().try_shared(blocks.clone()) {
            return Progress::InUse;
        }
        let Some(mut buffer) = self.pool.take() else {
            self.volume.locks().release_shared(blocks);
            return Progress::NoRoom;
        };
        if let (Some(request), Some(cipher)) = (self.requests.get_mut(id), &mut self.cipher) {
            let into = &mut buffer.as_mut_slice()[..len as usize];
            cipher.encrypt(at, &request.op.memory.slices, cursor, into);
        }
        let piece = Piece::Write {
            request: id,
            blocks,
            exclusive: false,
            whole: true,
        };
        let file = StoreFile::Data;
        self.submit_piece(
            piece,
            StoreOp::Write {
                file,
                at: at.0,
                len: len as usize,
                buffer,
            },
        );
        self.advance(id, len, true);
        Progress::More
    }

    /// Transforms a range in the data file itself, where that is memory and all of its blocks have
    /// data: the map stays as it is, and no buffer and no operation is needed. `None` when this is
    /// not the way.
    fn in_place(
        &mut self,
        id: RequestId,
        at: ByteOffset,
        len: u64,
        cursor: Cursor,
        direction: Direction,
    ) -> Option<Progress> {
        let host = self.store.mapped(at.0, len as usize)?;
        let blocks = blocks_of(at, len);
        let count = blocks.end - blocks.start;
        let all_data = |volume: &Volume| {
            let run = volume.map().run(blocks.start, count);
            run.is_data && run.blocks == count
        };
        if !all_data(&self.volume) {
            return None;
        }
        if !self.volume.locks().try_shared(blocks.clone()) {
            return Some(Progress::InUse);
        }
        // With the blocks marked the answer stays true: none of them can become a hole.
        let still = all_data(&self.volume);
        if let (true, Some(request), Some(cipher)) =
            (still, self.requests.get_mut(id), &mut self.cipher)
        {
            let (slices, len) = (&request.op.memory.slices, len as usize);
            match direction {
                // SAFETY: the store maps `len` bytes at `host` for as long as it lives; the blocks
                // have data, so their pages are there. Guest memory is mapped elsewhere, and nobody
                // makes references into the mapping.
                Direction::Encrypt => unsafe {
                    cipher.encrypt_to(at, slices, cursor, host, len);
                },
                // SAFETY: as above.
                Direction::Decrypt => unsafe {
                    cipher.decrypt_from(at, host, len, slices, cursor);
                },
            }
        }
        self.volume.locks().release_shared(blocks.clone());
        if !still {
            return None;
        }
        self.advance(id, len, false);
        Some(Progress::More)
    }

    pub(super) fn issue_zero(&mut self, id: RequestId, release: bool) -> Progress {
        let Some((at, left, cursor)) = self.position(id) else {
            return Progress::Issued;
        };
        if at.in_block() != 0 || left < BLOCK_SIZE {
            let len = left.min(BLOCK_SIZE - at.in_block());
            if self.volume.map().get(at.block().0) != BlockState::Data {
                self.advance(id, len, false);
                return Progress::More;
            }
            return self.issue_partial(id, at, len, cursor, true);
        }
        let first = at.block().0;
        let blocks = first..first + (left / BLOCK_SIZE).min(ZERO_STEP);
        if !self.volume.locks().try_exclusive(blocks.clone()) {
            return Progress::InUse;
        }
        let to = if release {
            BlockState::ZeroHeld
        } else {
            BlockState::Zero
        };
        self.volume.map().set_zero(blocks.clone(), to);
        self.volume.locks().release_exclusive(blocks.clone());
        self.advance(id, (blocks.end - blocks.start) * BLOCK_SIZE, false);
        Progress::More
    }

    /// A write of less than a block, of the guest's bytes or of zeros.
    fn issue_partial(
        &mut self,
        id: RequestId,
        at: ByteOffset,
        len: u64,
        cursor: Cursor,
        zeros: bool,
    ) -> Progress {
        if !self.has_room() {
            return Progress::NoRoom;
        }
        let block = at.block().0..at.block().0 + 1;
        let alignment = self.store.alignment();
        let fits = at.0.is_multiple_of(alignment) && len.is_multiple_of(alignment);
        let map = self.volume.map();
        // In a block that has data, sectors can be replaced without looking at the others, since
        // XTS encrypts each AES block by itself; all others keep what they have.
        let alone = !(fits && map.get(block.start) == BlockState::Data);
        let locks = self.volume.locks();
        let locked = match alone {
            true => locks.try_exclusive(block.clone()),
            false => locks.try_shared(block.clone()),
        };
        if !locked {
            return Progress::InUse;
        }
        let release = |volume: &Volume| match alone {
            true => volume.locks().release_exclusive(block.clone()),
            false => volume.locks().release_shared(block.clone()),
        };
        let has_data = map.get(block.start) == BlockState::Data;
        if !has_data && (zeros || !alone) {
            // Another queue made it zeros meanwhile: look again from the start.
            release(&self.volume);
            return Progress::More;
        }
        let Some(mut buffer) = self.pool.take() else {
            release(&self.volume);
            return Progress::NoRoom;
        };
        let file = StoreFile::Data;
        let (piece, op) = if alone && has_data {
            let piece = Piece::Merge {
                request: id,
                at,
                len: len as usize,
                cursor,
                zeros,
            };
            let (at, len) = (block.start * BLOCK_SIZE, BLOCK_SIZE as usize);
            (
                piece,
                StoreOp::Read {
                    file,
                    at,
                    len,
                    buffer,
                },
            )
        } else if alone {
            let (start, len) = (ByteOffset(block.start * BLOCK_SIZE), len as usize);
            let into = &mut buffer.as_mut_slice()[..BLOCK_SIZE as usize];
            let skip = at.in_block() as usize;
            if let Some(cipher) = &mut self.cipher {
                cipher.encrypt_zeros(start, &mut into[..skip]);
                cipher.encrypt_zeros(at.plus(len as u64), &mut into[skip + len..]);
            }
            self.encrypt(id, at, cursor, zeros, &mut into[skip..skip + len]);
            let piece = Piece::Write {
                request: id,
                blocks: block,
                exclusive: true,
                whole: true,
            };
            (
                piece,
                StoreOp::Write {
                    file,
                    at: start.0,
                    len: BLOCK_SIZE as usize,
                    buffer,
                },
            )
        } else {
            let into = &mut buffer.as_mut_slice()[..len as usize];
            self.encrypt(id, at, cursor, zeros, into);
            let piece = Piece::Write {
                request: id,
                blocks: block,
                exclusive: false,
                whole: false,
            };
            (
                piece,
                StoreOp::Write {
                    file,
                    at: at.0,
                    len: len as usize,
                    buffer,
                },
            )
        };
        self.submit_piece(piece, op);
        self.advance(id, len, true);
        Progress::More
    }

    pub(super) fn encrypt(
        &mut self,
        id: RequestId,
        at: ByteOffset,
        cursor: Cursor,
        zeros: bool,
        into: &mut [u8],
    ) {
        let Some(cipher) = &mut self.cipher else {
            return;
        };
        if zeros {
            cipher.encrypt_zeros(at, into);
        } else if let Some(request) = self.requests.get_mut(id) {
            cipher.encrypt(at, &request.op.memory.slices, cursor, into);
        }
    }
}

/// The blocks that `len` bytes from `at` on touch.
fn blocks_of(at: ByteOffset, len: u64) -> Range<u64> {
    at.block().0..(at.0 + len).div_ceil(BLOCK_SIZE)
}
