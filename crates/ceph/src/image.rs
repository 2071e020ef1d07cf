//! An image that is open.

use std::ffi::{CStr, c_char, c_int, c_void};
use std::ops::Range;
use std::ptr;
use std::sync::Arc;

use crate::api::{Api, ConfigOption, ImageHandle};
use crate::cluster::text;
use crate::settings::REQUIRED;
use crate::{CephError, Pool};

/// A range of an image of which something is there.
pub type Extent = Range<u64>;

/// An image that is open.
pub struct Image {
    pub(crate) api: &'static Api,
    pub(crate) raw: ImageHandle,
    pool: Arc<Pool>,
    name: String,
}

// SAFETY: librbd is made to be used by many threads at once: each function takes the image's own locks.
unsafe impl Send for Image {}
// SAFETY: as above.
unsafe impl Sync for Image {}

impl Drop for Image {
    /// Waits for what is under way, and gives the lock up, if it has it.
    fn drop(&mut self) {
        // SAFETY: it was opened, and nothing refers to it. Should it fail, as for a client that was fenced, it is closed
        // all the same.
        let _ = unsafe { (self.api.rbd.rbd_close)(self.raw) };
    }
}

impl Image {
    /// Opens an image to write to it, for which its lock has to be acquired first.
    ///
    /// # Errors
    /// [`CephError::Failed`], [`CephError::Setting`].
    pub fn open(pool: &Arc<Pool>, name: &str) -> Result<Self, CephError> {
        let image = Self::open_by(pool, name, pool.api.rbd.rbd_open)?;
        image.check_settings()?;
        Ok(image)
    }

    /// Opens an image to read it, whoever writes to it.
    ///
    /// # Errors
    /// [`CephError::Failed`].
    pub fn open_to_read(pool: &Arc<Pool>, name: &str) -> Result<Self, CephError> {
        Self::open_by(pool, name, pool.api.rbd.rbd_open_read_only)
    }

    fn open_by(
        pool: &Arc<Pool>,
        name: &str,
        open: unsafe extern "C" fn(
            *mut c_void,
            *const c_char,
            *mut ImageHandle,
            *const c_char,
        ) -> c_int,
    ) -> Result<Self, CephError> {
        let (image, mut raw) = (text(name)?, ptr::null_mut());
        // SAFETY: the name lives through the call, `raw` can be written to, and no snapshot is named.
        let opened = unsafe { open(pool.raw, image.as_ptr(), &mut raw, ptr::null()) };
        pool.check(opened, || {
            format!("open the image {name} of {}", pool.name())
        })?;
        Ok(Self {
            api: pool.api,
            raw,
            pool: pool.clone(),
            name: name.into(),
        })
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Where it is.
    pub fn pool(&self) -> &Arc<Pool> {
        &self.pool
    }

    pub(crate) fn check(&self, answer: i32, what: &str) -> Result<u32, CephError> {
        let what = || format!("{what} the image {} of {}", self.name, self.pool.name());
        self.pool.check(answer, what)
    }

    /// Sees to it that nothing of the pool or of the image overrides what this client is set to.
    fn check_settings(&self) -> Result<(), CephError> {
        let rbd = &self.api.rbd;
        let empty = ConfigOption {
            name: ptr::null_mut(),
            value: ptr::null_mut(),
            source: 0,
        };
        let mut room = 128;
        let (mut options, count) = loop {
            let (mut options, mut count) = (vec![empty; room as usize], room);
            // SAFETY: so many elements can be written to; `count` says how many there are.
            let listed =
                unsafe { (rbd.rbd_config_image_list)(self.raw, options.as_mut_ptr(), &mut count) };
            if listed == -libc::ERANGE {
                // It has told how many there are.
                room = count.max(room * 2);
                continue;
            }
            self.check(listed, "read the settings of")?;
            break (options, count);
        };
        let there = options.get(..count as usize).unwrap_or_default();
        let is_wrong = there.iter().find_map(|option| {
            // SAFETY: the library has made texts there, which it frees below.
            let [name, value] = [option.name, option.value].map(|it| unsafe { owned(it) });
            let (required, right) = REQUIRED.iter().find(|(required, _)| *required == name)?;
            (value != *right).then(|| (*required, value))
        });
        // SAFETY: these are the elements that the library has filled; nothing refers to their texts any more.
        unsafe { (rbd.rbd_config_image_list_cleanup)(options.as_mut_ptr(), count) };
        match is_wrong {
            None => Ok(()),
            Some((option, value)) => Err(CephError::Setting {
                what: format!("the image {} of {}", self.name, self.pool.name()),
                option,
                value,
                remedy: "take it out of the pool's and the image's settings (`rbd config pool remove`, \
                    `rbd config image remove`)",
            }),
        }
    }

    /// Its bytes.
    ///
    /// # Errors
    /// [`CephError::Failed`].
    pub fn size(&self) -> Result<u64, CephError> {
        let mut size = 0;
        // SAFETY: the image is open, and `size` can be written to.
        let told = unsafe { (self.api.rbd.rbd_get_size)(self.raw, &mut size) };
        self.check(told, "read the size of")?;
        Ok(size)
    }

    /// Makes it so many bytes large. What is new reads as zeros.
    ///
    /// # Errors
    /// [`CephError::Failed`].
    pub fn resize(&self, bytes: u64) -> Result<(), CephError> {
        // SAFETY: the image is open.
        let resized = unsafe { (self.api.rbd.rbd_resize)(self.raw, bytes) };
        self.check(resized, "resize").map(drop)
    }

    /// Fills `buffer` from `at` on, and waits for it.
    ///
    /// # Errors
    /// [`CephError::Failed`], also when the image ends before.
    pub fn read(&self, at: u64, buffer: &mut [u8]) -> Result<(), CephError> {
        let into = buffer.as_mut_ptr().cast();
        // SAFETY: the image is open, and so many bytes can be written to.
        let read = unsafe { (self.api.rbd.rbd_read)(self.raw, at, buffer.len(), into) };
        self.all_of(read, buffer.len(), "read")
    }

    /// Writes `bytes` at `at`, and waits for it. They are durable then.
    ///
    /// # Errors
    /// [`CephError::Failed`], also when the image ends before.
    pub fn write(&self, at: u64, bytes: &[u8]) -> Result<(), CephError> {
        let from = bytes.as_ptr().cast();
        // SAFETY: the image is open, and there are so many bytes.
        let written = unsafe { (self.api.rbd.rbd_write)(self.raw, at, bytes.len(), from) };
        self.all_of(written, bytes.len(), "write to")
    }

    fn all_of(&self, done: isize, len: usize, what: &str) -> Result<(), CephError> {
        match usize::try_from(done) {
            Ok(done) if done == len => Ok(()),
            // It ends before, which the library does not call an error.
            Ok(_) => self.check(-libc::EIO, what).map(drop),
            Err(_) => {
                let answer = i32::try_from(done).unwrap_or(-libc::EIO);
                self.check(answer, what).map(drop)
            }
        }
    }

    /// Waits until all that was completed, and all that is under way, is durable.
    ///
    /// # Errors
    /// [`CephError::Failed`].
    pub fn flush(&self) -> Result<(), CephError> {
        // SAFETY: the image is open.
        let flushed = unsafe { (self.api.rbd.rbd_flush)(self.raw) };
        self.check(flushed, "flush").map(drop)
    }

    /// What is there of the `len` bytes from `at` on, in order. What is between reads as zeros.
    ///
    /// # Errors
    /// [`CephError::Failed`].
    pub fn extents(&self, at: u64, len: u64) -> Result<Vec<Extent>, CephError> {
        let mut found: Vec<Extent> = Vec::new();
        let (from, include_parent, whole_objects) = (ptr::null(), 0, 0);
        let into = (&raw mut found).cast();
        // SAFETY: the image is open. The library calls `note` with what it is given here, one call after the other, and
        // with nothing any more when this returns.
        let listed = unsafe {
            let iterate = self.api.rbd.rbd_diff_iterate2;
            iterate(
                self.raw,
                from,
                at,
                len,
                include_parent,
                whole_objects,
                note,
                into,
            )
        };
        self.check(listed, "see what is there of")?;
        Ok(found)
    }
}

/// Notes an extent.
///
/// # Safety
/// `into` must be the list of [`Image::extents`], which nobody else is at.
unsafe extern "C" fn note(at: u64, len: usize, is_there: c_int, into: *mut c_void) -> c_int {
    // SAFETY: the caller's promise.
    let found = unsafe { &mut *into.cast::<Vec<Extent>>() };
    if is_there != 0 {
        let end = at.saturating_add(len as u64);
        match found.last_mut() {
            Some(last) if last.end == at => last.end = end,
            _ => found.push(at..end),
        }
    }
    0
}

/// A text of the library's as our own.
///
/// # Safety
/// It must be one, or null.
unsafe fn owned(text: *const c_char) -> String {
    match text.is_null() {
        true => String::new(),
        // SAFETY: the caller's promise.
        false => unsafe { CStr::from_ptr(text) }
            .to_string_lossy()
            .into_owned(),
    }
}
