//! Operations on an image that nobody waits for.

use std::ffi::c_void;
use std::ptr;

use crate::api::{Api, CompletionHandle};
use crate::{CephError, Image};

/// What is done when an operation has ended: by a thread of the library, once.
type End = Box<dyn FnOnce(Result<usize, i32>) + Send>;

/// What the library is given of an operation.
struct Pending {
    api: &'static Api,
    end: End,
}

impl Image {
    /// Reads `len` bytes from `at` on to `into`. Then `end` is called with how many it were, or the number of the error;
    /// the image ends where it were fewer.
    ///
    /// # Safety
    /// So many bytes from `into` on must be mapped until `end` was called and has returned. Others may be at them meanwhile
    /// if nobody has a reference to them.
    pub unsafe fn begin_read(
        &self,
        at: u64,
        into: *mut u8,
        len: usize,
        end: impl FnOnce(Result<usize, i32>) + Send + 'static,
    ) {
        self.begin(end, |completion| {
            // SAFETY: the image is open, and the caller promises the memory.
            unsafe { (self.api.rbd.rbd_aio_read)(self.raw, at, len, into.cast(), completion) }
        });
    }

    /// Writes `len` bytes from `from` on at `at`. They are durable when `end` is called. Bytes behind the end of the image
    /// are left out without an error.
    ///
    /// # Safety
    /// As of [`Image::begin_read`].
    pub unsafe fn begin_write(
        &self,
        at: u64,
        from: *const u8,
        len: usize,
        end: impl FnOnce(Result<usize, i32>) + Send + 'static,
    ) {
        self.begin(end, |completion| {
            // SAFETY: as above.
            unsafe { (self.api.rbd.rbd_aio_write)(self.raw, at, len, from.cast(), completion) }
        });
    }

    /// Gives the space of a range back. What it reads as then is not said.
    pub fn begin_discard(
        &self,
        at: u64,
        len: u64,
        end: impl FnOnce(Result<usize, i32>) + Send + 'static,
    ) {
        self.begin(end, |completion| {
            // SAFETY: the image is open.
            unsafe { (self.api.rbd.rbd_aio_discard)(self.raw, at, len, completion) }
        });
    }

    /// Has a range read as zeros, and gives its space back where that can be.
    pub fn begin_zeroes(
        &self,
        at: u64,
        len: usize,
        end: impl FnOnce(Result<usize, i32>) + Send + 'static,
    ) {
        let (zero_flags, op_flags) = (0, 0);
        self.begin(end, |completion| {
            // SAFETY: the image is open.
            unsafe {
                let zero = self.api.rbd.rbd_aio_write_zeroes;
                zero(self.raw, at, len, completion, zero_flags, op_flags)
            }
        });
    }

    /// Waits until all that was begun before has ended.
    pub fn begin_flush(&self, end: impl FnOnce(Result<usize, i32>) + Send + 'static) {
        self.begin(end, |completion| {
            // SAFETY: the image is open.
            unsafe { (self.api.rbd.rbd_aio_flush)(self.raw, completion) }
        });
    }

    fn begin(
        &self,
        end: impl FnOnce(Result<usize, i32>) + Send + 'static,
        call: impl FnOnce(CompletionHandle) -> i32,
    ) {
        let pending = Box::new(Pending {
            api: self.api,
            end: Box::new(end),
        });
        let raw = Box::into_raw(pending);
        let mut completion: CompletionHandle = ptr::null_mut();
        // SAFETY: `completion` can be written to, and `ended` is for what it is given.
        let made =
            unsafe { (self.api.rbd.rbd_aio_create_completion)(raw.cast(), ended, &mut completion) };
        if let Err(error) = CephError::check(made, String::new) {
            return refuse(raw, &error);
        }
        if let Err(error) = CephError::check(call(completion), String::new) {
            // SAFETY: what was not begun has no end, so the completion is nobody else's.
            unsafe { (self.api.rbd.rbd_aio_release)(completion) };
            refuse(raw, &error);
        }
    }
}

/// Ends what could not be begun.
fn refuse(raw: *mut Pending, error: &CephError) {
    // SAFETY: it was made by `Box::into_raw` just now, and the library does not have it.
    let pending = unsafe { Box::from_raw(raw) };
    (pending.end)(Err(error.errno().unwrap_or(libc::EIO)));
}

/// Called by the library when an operation has ended.
///
/// # Safety
/// `raw` must be what [`Image::begin`] has made, and not have been here before.
unsafe extern "C" fn ended(completion: CompletionHandle, raw: *mut c_void) {
    // SAFETY: the caller's promise.
    let pending = unsafe { Box::from_raw(raw.cast::<Pending>()) };
    let Pending { api, end } = *pending;
    // SAFETY: the operation has ended, and its completion is there until it is released.
    let answer = unsafe { (api.rbd.rbd_aio_get_return_value)(completion) };
    // SAFETY: it is not looked at any more.
    unsafe { (api.rbd.rbd_aio_release)(completion) };
    end(usize::try_from(answer)
        .map_err(|_| i32::try_from(answer.unsigned_abs()).unwrap_or(libc::EIO)));
}
