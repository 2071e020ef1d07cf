//! Memory that another process or a guest may change at any time.

use std::ptr::NonNull;

/// A range of memory that is shared with a guest.
///
/// It is never turned into a reference: the guest writes to it whenever it likes, so Rust's rules
/// for references cannot be kept. It is only given to the cipher, which reads or writes each byte
/// once through the pointer.
#[derive(Debug, Clone, Copy)]
pub struct SharedSlice {
    ptr: NonNull<u8>,
    len: usize,
}

// SAFETY: a SharedSlice is an address and a length; what makes its use sound is the promise given
// to `new`, which does not depend on the thread.
unsafe impl Send for SharedSlice {}

impl SharedSlice {
    /// Names `len` bytes at `ptr`.
    ///
    /// # Safety
    /// The range must stay mapped, readable and (if it is to be written) writable until the
    /// request that carries it has completed, and no Rust reference to it may be alive meanwhile.
    pub unsafe fn new(ptr: NonNull<u8>, len: usize) -> Self {
        Self { ptr, len }
    }

    /// Bytes in the range.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The part behind the first `offset` bytes.
    #[must_use]
    pub fn without(&self, offset: usize) -> Self {
        let offset = offset.min(self.len);
        // SAFETY: `offset` is at most the length, so the pointer stays in or just behind the range.
        let ptr = unsafe { self.ptr.add(offset) };
        Self {
            ptr,
            len: self.len - offset,
        }
    }

    /// The address of byte `offset`, which must not lie behind the end.
    pub(super) fn at(&self, offset: usize) -> *mut u8 {
        debug_assert!(offset <= self.len);
        self.ptr.as_ptr().wrapping_add(offset)
    }
}

/// A position in a list of [`SharedSlice`]s.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Cursor {
    /// Which slice.
    pub slice: usize,
    /// Byte in it.
    pub offset: usize,
}

impl Cursor {
    /// The contiguous piece at the cursor, at most `most` bytes: its address and length. `None`
    /// at the end of the list.
    pub(super) fn piece(
        &mut self,
        slices: &[SharedSlice],
        most: usize,
    ) -> Option<(*mut u8, usize)> {
        loop {
            let slice = slices.get(self.slice)?;
            if self.offset < slice.len() {
                return Some((slice.at(self.offset), (slice.len() - self.offset).min(most)));
            }
            *self = Self {
                slice: self.slice + 1,
                offset: 0,
            };
        }
    }

    /// The position `bytes` further on (or the end of the list).
    pub fn advance(&mut self, slices: &[SharedSlice], bytes: usize) {
        let mut left = bytes;
        while left > 0 {
            let Some((_, len)) = self.piece(slices, left) else {
                return;
            };
            self.offset += len;
            left -= len;
        }
    }

    /// Writes `bytes` zeros from the position on.
    pub fn fill_zeros(mut self, slices: &[SharedSlice], bytes: usize) {
        let mut left = bytes;
        while left > 0 {
            let Some((at, len)) = self.piece(slices, left) else {
                return;
            };
            // SAFETY: `piece` gives `len` bytes of a slice, which the maker of the slice promised
            // to be writable.
            unsafe { std::ptr::write_bytes(at, 0, len) };
            self.offset += len;
            left -= len;
        }
    }

    /// Copies from the position on into `into`: the small parts of a request that are not data.
    pub fn read(mut self, slices: &[SharedSlice], into: &mut [u8]) {
        let mut done = 0;
        while done < into.len() {
            let Some((at, len)) = self.piece(slices, into.len() - done) else {
                return;
            };
            // SAFETY: `piece` gives `len` readable bytes of a slice and `into` has as many left;
            // guest memory and ours never overlap.
            unsafe { std::ptr::copy_nonoverlapping(at, into[done..].as_mut_ptr(), len) };
            self.offset += len;
            done += len;
        }
    }

    /// Copies `from` to the position: the small answers that are not data.
    pub fn write(mut self, slices: &[SharedSlice], from: &[u8]) {
        let mut done = 0;
        while done < from.len() {
            let Some((at, len)) = self.piece(slices, from.len() - done) else {
                return;
            };
            // SAFETY: as in `read`, and the maker of the slice promised that it is writable.
            unsafe { std::ptr::copy_nonoverlapping(from[done..].as_ptr(), at, len) };
            self.offset += len;
            done += len;
        }
    }
}
