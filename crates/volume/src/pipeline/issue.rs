//! Cutting a request into pieces: which blocks, under which mark, from or into which buffer.

use std::ops::Range;

use crate::store::{BUFFER_LEN, IoBuffer, Store, StoreFile, StoreOp};
use crate::{BlockState, Lack, Run, Source, Volume, VolumeError};
use keys::units::{BLOCK_SIZE, ByteOffset, LayerIndex};
use xts::{CipherStack, Cursor, Direction};

use super::drive::{Pipeline, Progress};
use super::piece::{Part, Piece, RequestId};

/// Blocks that are made zero under one mark.
const ZERO_STEP: u64 = 1024;

impl<S: Store> Pipeline<S> {
    pub(super) fn issue_read(&mut self, id: RequestId) -> Progress {
        let Some((at, left, cursor)) = self.position(id) else {
            return Progress::Issued;
        };
        let most = left.min(BUFFER_LEN as u64 - at.in_block());
        let (source, len) = match self.source(at, most) {
            Ok(Some(found)) => found,
            Ok(None) => return Progress::InUse,
            Err(error) => return self.fail(id, error),
        };
        let Source::Layer(layer) = source else {
            if let Some(request) = self.requests.get_mut(id) {
                cursor.fill_zeros(&request.op.memory.slices, len as usize);
            }
            self.advance(id, len, false);
            return Progress::More;
        };
        if let Some(progress) = self.in_place(id, at, len, cursor, layer, Direction::Decrypt) {
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
        if !matches!(self.source(at, len), Ok(Some(still)) if still == (source, len)) {
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
            layer,
            cursor,
            blocks,
        };
        let file = StoreFile::Data(layer);
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

    /// Where the content from `at` on is, and of how many bytes, at most `most`, it is there; `None`
    /// while somebody else loads a map.
    fn source(&self, at: ByteOffset, most: u64) -> Result<Option<(Source, u64)>, VolumeError> {
        let blocks = blocks_of(at, most);
        let run = self
            .volume
            .lookup(blocks.start, blocks.end - blocks.start)?;
        Ok(run.map(|run| {
            let end = (blocks.start + run.blocks) * BLOCK_SIZE;
            (run.what, most.min(end - at.0))
        }))
    }

    pub(super) fn issue_write(&mut self, id: RequestId) -> Progress {
        let Some((at, left, cursor)) = self.position(id) else {
            return Progress::Issued;
        };
        let most = left.min(BUFFER_LEN as u64 - at.in_block());
        match self.volume.map().ensure(blocks_of(at, most)) {
            Ok(true) => {}
            Ok(false) => return Progress::InUse,
            Err(error) => return self.fail(id, error),
        }
        let top = LayerIndex::TOP;
        if let Some(progress) = self.in_place(id, at, most, cursor, top, Direction::Encrypt) {
            return progress;
        }
        if at.in_block() != 0 || left < BLOCK_SIZE {
            let len = left.min(BLOCK_SIZE - at.in_block()) as usize;
            let zeros = false;
            return self.issue_partial(
                id,
                Part {
                    at,
                    len,
                    cursor,
                    zeros,
                },
            );
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
        let cipher = self.ciphers.as_mut().and_then(CipherStack::top);
        if let (Some(request), Some(cipher)) = (self.requests.get_mut(id), cipher) {
            let into = &mut buffer.as_mut_slice()[..len as usize];
            cipher.encrypt(at, &request.op.memory.slices, cursor, into);
        }
        let durable = self.durable_write(id, &blocks);
        let piece = Piece::Write {
            request: id,
            blocks,
            exclusive: false,
            whole: true,
            durable,
        };
        self.submit_write(piece, at, len as usize, buffer);
        self.advance(id, len, true);
        Progress::More
    }

    /// Transforms a range in a layer's data file itself, where that is memory and has all of its
    /// blocks: the map stays as it is, and no buffer and no operation is needed. `None` when this is
    /// not the way.
    fn in_place(
        &mut self,
        id: RequestId,
        at: ByteOffset,
        len: u64,
        cursor: Cursor,
        layer: LayerIndex,
        direction: Direction,
    ) -> Option<Progress> {
        let host = self.store.mapped(layer, at.0, len as usize)?;
        let blocks = blocks_of(at, len);
        let count = blocks.end - blocks.start;
        let found = Run {
            what: Source::Layer(layer),
            blocks: count,
        };
        let has_all = |volume: &Volume| {
            let run = volume.lookup(blocks.start, count);
            matches!(run, Ok(Some(run)) if run == found)
        };
        if !has_all(&self.volume) {
            return None;
        }
        if !self.volume.locks().try_shared(blocks.clone()) {
            return Some(Progress::InUse);
        }
        // With the blocks marked the answer stays true: none of them can become a hole.
        let still = has_all(&self.volume);
        if still {
            // Memory keeps nothing that a sync would.
            self.is_durable_alone(id, &blocks, true);
        }
        let cipher = self.ciphers.as_mut().and_then(|all| all.layer(layer));
        if let (true, Some(request), Some(cipher)) = (still, self.requests.get_mut(id), cipher) {
            let (slices, len) = (&request.op.memory.slices, len as usize);
            match direction {
                // SAFETY: the store maps `len` bytes at `host` for as long as it lives, the top layer's
                // to be written to; the blocks have data, so their pages are there. Guest memory is
                // mapped elsewhere, and nobody makes references into the mapping.
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
            return match self.source(at, len) {
                Ok(Some((Source::Zeros, _))) => {
                    self.advance(id, len, false);
                    Progress::More
                }
                Ok(Some((Source::Layer(_), _))) => {
                    let (len, zeros) = (len as usize, true);
                    self.issue_partial(
                        id,
                        Part {
                            at,
                            len,
                            cursor,
                            zeros,
                        },
                    )
                }
                Ok(None) => Progress::InUse,
                Err(error) => self.fail(id, error),
            };
        }
        if self.is_burst_over() {
            return Progress::NoRoom;
        }
        let first = at.block().0;
        let blocks = first..first + (left / BLOCK_SIZE).min(ZERO_STEP);
        match self.volume.map().ensure(blocks.clone()) {
            Ok(true) => {}
            Ok(false) => return Progress::InUse,
            Err(error) => return self.fail(id, error),
        }
        if !self.volume.locks().try_exclusive(blocks.clone()) {
            return Progress::InUse;
        }
        let to = if release {
            BlockState::ZeroHeld
        } else {
            BlockState::Zero
        };
        let map = self.volume.map();
        map.set_zero(blocks.clone(), to);
        if !self.volume.lower().is_empty() {
            map.hide(blocks.clone());
        }
        self.volume.locks().release_exclusive(blocks.clone());
        if release {
            self.note_discard();
        }
        let count = blocks.end - blocks.start;
        self.zeroed(count);
        self.advance(id, count * BLOCK_SIZE, false);
        Progress::More
    }

    /// A write of less than a block, of the guest's bytes or of zeros.
    fn issue_partial(&mut self, id: RequestId, part: Part) -> Progress {
        if !self.has_room() {
            return Progress::NoRoom;
        }
        let Part { at, len, zeros, .. } = part;
        let block = at.block().0..at.block().0 + 1;
        let top = Source::Layer(LayerIndex::TOP);
        let source_now = |volume: &Volume| volume.lookup(block.start, 1);
        let alignment = self.store.alignment();
        let fits = at.0.is_multiple_of(alignment) && (len as u64).is_multiple_of(alignment);
        // In a block that the top layer has, sectors can be replaced without looking at the others,
        // since XTS encrypts each AES block by itself; all others keep what they have.
        let alone = match source_now(&self.volume) {
            Ok(Some(run)) => !(fits && run.what == top),
            Ok(None) => return Progress::InUse,
            Err(error) => return self.fail(id, error),
        };
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
        let source = match source_now(&self.volume) {
            Ok(Some(run)) => run.what,
            Ok(None) | Err(_) => {
                release(&self.volume);
                return Progress::InUse;
            }
        };
        if (source == Source::Zeros && zeros) || (source != top && !alone) {
            // Another queue made it zeros meanwhile: look again from the start.
            release(&self.volume);
            return Progress::More;
        }
        let Some(buffer) = self.pool.take() else {
            release(&self.volume);
            return Progress::NoRoom;
        };
        match source {
            Source::Layer(layer) if alone => {
                let piece = Piece::Rewrite {
                    request: id,
                    blocks: block.clone(),
                    layer,
                    part: Some(part),
                };
                self.submit_read(piece, layer, block, buffer);
            }
            Source::Layer(_) => self.write_sectors(id, part, block, buffer),
            Source::Zeros => self.write_among_zeros(id, part, block, buffer),
        }
        self.advance(id, len as u64, true);
        Progress::More
    }

    fn submit_read(
        &mut self,
        piece: Piece,
        layer: LayerIndex,
        blocks: Range<u64>,
        buffer: IoBuffer,
    ) {
        let op = StoreOp::Read {
            file: StoreFile::Data(layer),
            at: blocks.start * BLOCK_SIZE,
            len: ((blocks.end - blocks.start) * BLOCK_SIZE) as usize,
            buffer,
        };
        self.submit_piece(piece, op);
    }

    /// Writes the first `len` bytes of a buffer to the top layer.
    pub(super) fn submit_write(
        &mut self,
        piece: Piece,
        at: ByteOffset,
        len: usize,
        buffer: IoBuffer,
    ) {
        let durable = matches!(
            &piece,
            Piece::Write {
                durable: Some(_),
                ..
            }
        );
        let op = StoreOp::Write {
            file: StoreFile::TOP,
            at: at.0,
            len,
            durable,
            buffer,
        };
        self.submit_piece(piece, op);
    }

    /// Sectors of a block that the top layer has.
    fn write_sectors(
        &mut self,
        id: RequestId,
        part: Part,
        block: Range<u64>,
        mut buffer: IoBuffer,
    ) {
        self.encrypt(id, part, &mut buffer.as_mut_slice()[..part.len]);
        let durable = self.durable_write(id, &block);
        let piece = Piece::Write {
            request: id,
            blocks: block,
            exclusive: false,
            whole: false,
            durable,
        };
        self.submit_write(piece, part.at, part.len, buffer);
    }

    /// A whole block, zeros but for a part of it.
    fn write_among_zeros(
        &mut self,
        id: RequestId,
        part: Part,
        block: Range<u64>,
        mut buffer: IoBuffer,
    ) {
        let start = ByteOffset(block.start * BLOCK_SIZE);
        let into = &mut buffer.as_mut_slice()[..BLOCK_SIZE as usize];
        let (skip, end) = (
            part.at.in_block() as usize,
            part.at.in_block() as usize + part.len,
        );
        if let Some(cipher) = self.ciphers.as_mut().and_then(CipherStack::top) {
            cipher.encrypt_zeros(start, &mut into[..skip]);
            cipher.encrypt_zeros(part.at.plus(part.len as u64), &mut into[end..]);
        }
        self.encrypt(id, part, &mut into[skip..end]);
        let durable = self.durable_write(id, &block);
        let piece = Piece::Write {
            request: id,
            blocks: block,
            exclusive: true,
            whole: true,
            durable,
        };
        self.submit_write(piece, start, BLOCK_SIZE as usize, buffer);
    }

    /// Copies up what the top layer lacks when the `drop` layers beneath it are to go.
    pub(super) fn issue_raise(&mut self, id: RequestId, drop: usize) -> Progress {
        let Some((at, left, _)) = self.position(id) else {
            return Progress::Issued;
        };
        let all = blocks_of(at, left);
        let lack = |volume: &Volume, most: u64| volume.lack(all.start, most, drop);
        let run = match lack(&self.volume, all.end - all.start) {
            Ok(Some(run)) => run,
            Ok(None) => return Progress::InUse,
            Err(error) => return self.fail(id, error),
        };
        let most = match run.what {
            Lack::Nothing => {
                self.advance(id, left.min(run.blocks * BLOCK_SIZE), false);
                return Progress::More;
            }
            Lack::Content(_) => BUFFER_LEN as u64 / BLOCK_SIZE,
            Lack::Zeros => ZERO_STEP,
        };
        if !self.has_room() {
            return Progress::NoRoom;
        }
        let count = run.blocks.min(most);
        let blocks = all.start..all.start + count;
        if !self.volume.locks().try_exclusive(blocks.clone()) {
            return Progress::InUse;
        }
        // The guest may have written some of them until they were marked.
        let still = matches!(lack(&self.volume, count), Ok(Some(now)) if now.what == run.what
            && now.blocks == count);
        if !still {
            self.volume.locks().release_exclusive(blocks);
            return Progress::More;
        }
        let bytes = left.min(count * BLOCK_SIZE);
        let Lack::Content(layer) = run.what else {
            self.volume.map().hide(blocks.clone());
            self.volume.locks().release_exclusive(blocks);
            self.advance(id, bytes, false);
            return Progress::More;
        };
        let Some(buffer) = self.pool.take() else {
            self.volume.locks().release_exclusive(blocks);
            return Progress::NoRoom;
        };
        let piece = Piece::Rewrite {
            request: id,
            blocks: blocks.clone(),
            layer,
            part: None,
        };
        self.submit_read(piece, layer, blocks, buffer);
        self.advance(id, bytes, true);
        Progress::More
    }

    /// Encrypts a part of a block for the top layer.
    pub(super) fn encrypt(&mut self, id: RequestId, part: Part, into: &mut [u8]) {
        let Some(cipher) = self.ciphers.as_mut().and_then(CipherStack::top) else {
            return;
        };
        if part.zeros {
            cipher.encrypt_zeros(part.at, into);
        } else if let Some(request) = self.requests.get_mut(id) {
            cipher.encrypt(part.at, &request.op.memory.slices, part.cursor, into);
        }
    }
}

/// The blocks that `len` bytes from `at` on touch.
fn blocks_of(at: ByteOffset, len: u64) -> Range<u64> {
    at.block().0..(at.0 + len).div_ceil(BLOCK_SIZE)
}
