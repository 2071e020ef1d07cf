//! An operation as an entry of the submission queue.

use io_uring::types::{Fixed, FsyncFlags};
use io_uring::{opcode, squeue};

use crate::store::{StoreFile, StoreOp, Tag};
use keys::units::MAX_LAYERS;

/// Registered files: those of all layers and a map. While layers are pushed and dropped there may be
/// some more for a moment.
pub(super) const MAX_FILES: usize = MAX_LAYERS + 8;

/// Numbers of the registered files; the data of the layers beneath the top follow.
pub(super) const DATA: Fixed = Fixed(0);
pub(super) const MAP: Fixed = Fixed(1);

/// An operation that is under way.
pub(super) struct InFlight {
    pub(super) tag: Tag,
    pub(super) op: StoreOp,
    /// Bytes of it that are done.
    pub(super) done: usize,
}

impl InFlight {
    /// The entry for what of the operation is not done yet. `is_registered` says of a chunk of buffers whether
    /// the kernel knows its memory.
    pub(super) fn entry(&self, is_registered: impl Fn(usize) -> bool) -> squeue::Entry {
        let done = self.done;
        let fixed = |file: &StoreFile| match file {
            &StoreFile::TOP => DATA,
            StoreFile::Data(layer) => Fixed(MAP.0 + u32::from(layer.0)),
            StoreFile::Map => MAP,
        };
        match &self.op {
            StoreOp::Read {
                file,
                at,
                len,
                buffer,
            } => {
                let (into, len) = (buffer.ptr().wrapping_add(done), (len - done) as u32);
                let (file, at) = (fixed(file), at + done as u64);
                match is_registered(buffer.slot()) {
                    true => opcode::ReadFixed::new(file, into, len, buffer.slot() as u16)
                        .offset(at)
                        .build(),
                    false => opcode::Read::new(file, into, len).offset(at).build(),
                }
            }
            StoreOp::Write {
                file,
                at,
                len,
                durable,
                buffer,
            } => {
                let flags = if *durable { libc::RWF_DSYNC } else { 0 };
                let (from, len) = (buffer.ptr().wrapping_add(done), (len - done) as u32);
                let (file, at) = (fixed(file), at + done as u64);
                match is_registered(buffer.slot()) {
                    true => opcode::WriteFixed::new(file, from, len, buffer.slot() as u16)
                        .offset(at)
                        .rw_flags(flags)
                        .build(),
                    false => opcode::Write::new(file, from, len)
                        .offset(at)
                        .rw_flags(flags)
                        .build(),
                }
            }
            StoreOp::Sync { file } => opcode::Fsync::new(fixed(file))
                .flags(FsyncFlags::DATASYNC)
                .build(),
            StoreOp::Punch { at, len } => {
                let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
                opcode::Fallocate::new(DATA, *len)
                    .offset(*at)
                    .mode(mode)
                    .build()
            }
        }
    }
}

/// What an operation does, for messages.
pub(in crate::store) fn verb(op: &StoreOp) -> &'static str {
    match op {
        StoreOp::Read {
            file: StoreFile::Data(_),
            ..
        } => "read ciphertext",
        StoreOp::Read {
            file: StoreFile::Map,
            ..
        } => "read the block map",
        StoreOp::Write {
            file: StoreFile::Data(_),
            ..
        } => "write ciphertext",
        StoreOp::Write {
            file: StoreFile::Map,
            ..
        } => "write the block map",
        StoreOp::Sync {
            file: StoreFile::Data(_),
        } => "sync the data file",
        StoreOp::Sync {
            file: StoreFile::Map,
        } => "sync the block map",
        StoreOp::Punch { .. } => "punch a hole into the data file",
    }
}
