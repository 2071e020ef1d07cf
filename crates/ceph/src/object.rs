//! Objects: what is read and changed of one at once.

use std::collections::BTreeMap;
use std::ffi::CString;
use std::ptr;
use std::slice;

use crate::api::{
    Api, COMPARE_EQUAL, CREATE_EXCLUSIVE, CREATE_IDEMPOTENT, OmapHandle, ReadHandle, WriteHandle,
};
use crate::cluster::text;
use crate::{CephError, Pool};

/// The keys and values of an object, and which version of it has them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Omap {
    /// In the order of the keys.
    pub values: BTreeMap<String, Vec<u8>>,
    /// For [`Operation::if_version`].
    pub version: u64,
}

/// Keys that are read at a time.
const PAGE: usize = 1000;

/// Changes of one object, all of which are made at once, or none of them.
pub struct Operation {
    api: &'static Api,
    raw: WriteHandle,
    /// Why it cannot be done.
    error: Option<CephError>,
}

impl Operation {
    /// Changes nothing yet.
    pub fn new(pool: &Pool) -> Self {
        let api = pool.api;
        // SAFETY: it has no conditions.
        let raw = unsafe { (api.rados.rados_create_write_op)() };
        Self {
            api,
            raw,
            error: None,
        }
    }

    /// Only if there is no such object, which is made.
    #[must_use]
    pub fn if_new(self) -> Self {
        // SAFETY: the operation was made, and has not been done.
        unsafe { (self.api.rados.rados_write_op_create)(self.raw, CREATE_EXCLUSIVE, ptr::null()) };
        self
    }

    /// Makes the object if there is none, so that what follows has one to look at.
    #[must_use]
    pub fn or_new(self) -> Self {
        // SAFETY: as above.
        unsafe { (self.api.rados.rados_write_op_create)(self.raw, CREATE_IDEMPOTENT, ptr::null()) };
        self
    }

    /// Only if there is such an object.
    #[must_use]
    pub fn if_there(self) -> Self {
        // SAFETY: as above.
        unsafe { (self.api.rados.rados_write_op_assert_exists)(self.raw) };
        self
    }

    /// Only if it has this version, as [`Omap::version`] has told it.
    #[must_use]
    pub fn if_version(self, version: u64) -> Self {
        // SAFETY: as above.
        unsafe { (self.api.rados.rados_write_op_assert_version)(self.raw, version) };
        self
    }

    /// Only if it begins with these bytes. One that is shorter counts as if zeros followed.
    #[must_use]
    pub fn if_content(self, bytes: &[u8]) -> Self {
        let start = bytes.as_ptr().cast();
        // SAFETY: as above; the bytes are copied, and no place is given for how it compares.
        unsafe {
            let compare = self.api.rados.rados_write_op_cmpext;
            compare(self.raw, start, bytes.len(), 0, ptr::null_mut());
        }
        self
    }

    /// Only if this key has this value; a key that is not there has an empty one.
    #[must_use]
    pub fn if_value(mut self, key: &str, value: &[u8]) -> Self {
        if let Some(key) = self.text(key) {
            let (len, start) = (key.as_bytes().len(), value.as_ptr().cast());
            // SAFETY: as above; key and value are copied.
            unsafe {
                let compare = self.api.rados.rados_write_op_omap_cmp2;
                let raw = self.raw;
                compare(
                    raw,
                    key.as_ptr(),
                    COMPARE_EQUAL,
                    start,
                    len,
                    value.len(),
                    ptr::null_mut(),
                );
            }
        }
        self
    }

    /// Replaces its bytes by these.
    #[must_use]
    pub fn replace(self, bytes: &[u8]) -> Self {
        let start = bytes.as_ptr().cast();
        // SAFETY: as above; the bytes are copied.
        unsafe { (self.api.rados.rados_write_op_write_full)(self.raw, start, bytes.len()) };
        self
    }

    /// Gives a key this value.
    #[must_use]
    pub fn set(mut self, key: &str, value: &[u8]) -> Self {
        if let Some(key) = self.text(key) {
            let (keys, values) = ([key.as_ptr()], [value.as_ptr().cast()]);
            let (key_lens, value_lens) = ([key.as_bytes().len()], [value.len()]);
            // SAFETY: as above; there is one of each, and key and value are copied.
            unsafe {
                (self.api.rados.rados_write_op_omap_set2)(
                    self.raw,
                    keys.as_ptr(),
                    values.as_ptr(),
                    key_lens.as_ptr(),
                    value_lens.as_ptr(),
                    1,
                );
            }
        }
        self
    }

    /// Removes a key, if it is there.
    #[must_use]
    pub fn unset(mut self, key: &str) -> Self {
        if let Some(key) = self.text(key) {
            let (keys, lens) = ([key.as_ptr()], [key.as_bytes().len()]);
            // SAFETY: as above; there is one key, which is copied.
            unsafe {
                let remove = self.api.rados.rados_write_op_omap_rm_keys2;
                remove(self.raw, keys.as_ptr(), lens.as_ptr(), 1);
            }
        }
        self
    }

    /// Removes the object.
    #[must_use]
    pub fn remove(self) -> Self {
        // SAFETY: as above.
        unsafe { (self.api.rados.rados_write_op_remove)(self.raw) };
        self
    }

    fn text(&mut self, key: &str) -> Option<CString> {
        text(key).map_err(|error| self.error = Some(error)).ok()
    }
}

impl Drop for Operation {
    fn drop(&mut self) {
        // SAFETY: it was made by `rados_create_write_op`, and nothing refers to it.
        unsafe { (self.api.rados.rados_release_write_op)(self.raw) };
    }
}

impl Pool {
    /// Changes an object. It is durable, with all replicas, when this returns.
    ///
    /// # Errors
    /// [`CephError::Failed`]: [`CephError::is_other`], [`CephError::is_there`] or [`CephError::is_missing`] when a
    /// condition of the operation does not hold.
    pub fn change(&self, name: &str, operation: Operation) -> Result<(), CephError> {
        let mut operation = operation;
        if let Some(error) = operation.error.take() {
            return Err(error);
        }
        let object = text(name)?;
        // SAFETY: the operation was made and not done yet, and the name lives through the call.
        let done = unsafe {
            let operate = self.api.rados.rados_write_op_operate;
            operate(operation.raw, self.raw, object.as_ptr(), ptr::null_mut(), 0)
        };
        self.check(done, || {
            format!("change the object {name} in {}", self.name())
        })
        .map(drop)
    }

    /// The bytes of an object, `most` at most; `None` when there is none.
    ///
    /// # Errors
    /// [`CephError::Failed`].
    pub fn read(&self, name: &str, most: usize) -> Result<Option<Vec<u8>>, CephError> {
        let (object, mut bytes) = (text(name)?, vec![0u8; most]);
        let into = bytes.as_mut_ptr().cast();
        // SAFETY: the name lives through the call, and so many bytes can be written to.
        let read = unsafe { (self.api.rados.rados_read)(self.raw, object.as_ptr(), into, most, 0) };
        let what = || format!("read the object {name} in {}", self.name());
        match self.check(read, what) {
            Ok(len) => {
                bytes.truncate(len as usize);
                Ok(Some(bytes))
            }
            Err(error) if error.is_missing() => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The keys of an object that begin so, with their values; `None` when there is no such object. Where it changes while
    /// more than a thousand are read, some are of before, and the version too. The version is told by the pool as a whole:
    /// nobody else may read or change an object by it meanwhile.
    ///
    /// # Errors
    /// [`CephError::Failed`].
    pub fn omap(&self, name: &str, prefix: &str) -> Result<Option<Omap>, CephError> {
        self.omap_behind(name, prefix, "", usize::MAX)
    }

    /// As [`Pool::omap`], those behind `after`, `most` of them at most.
    ///
    /// # Errors
    /// As [`Pool::omap`].
    pub fn omap_behind(
        &self,
        name: &str,
        prefix: &str,
        after: &str,
        most: usize,
    ) -> Result<Option<Omap>, CephError> {
        let (object, prefix) = (text(name)?, text(prefix)?);
        let mut found = Omap {
            values: BTreeMap::new(),
            version: 0,
        };
        let mut after = text(after)?;
        loop {
            let left = most.saturating_sub(found.values.len()).min(PAGE) as u64;
            let page = Page::read(self, (&object, name), (&after, &prefix), left);
            let (page, has_more) = match page {
                Err(error) if error.is_missing() => return Ok(None),
                page => page?,
            };
            if found.version == 0 {
                // SAFETY: the handle is open.
                found.version = unsafe { (self.api.rados.rados_get_last_version)(self.raw) };
            }
            let values = page.values();
            let last = values.last().map(|(key, _)| text(key)).transpose()?;
            found.values.extend(values);
            match last {
                Some(last) if has_more && found.values.len() < most => after = last,
                _ => return Ok(Some(found)),
            }
        }
    }
}

/// Some keys and values of an object.
struct Page {
    api: &'static Api,
    raw: OmapHandle,
}

impl Page {
    /// Those behind `after` that begin so, `most` at most, and whether there are more.
    fn read(
        pool: &Pool,
        (object, name): (&CString, &str),
        (after, prefix): (&CString, &CString),
        most: u64,
    ) -> Result<(Self, bool), CephError> {
        let (api, read) = (pool.api, Read::new(pool.api));
        let (mut raw, mut has_more, mut result) = (ptr::null_mut(), 0u8, 0);
        // SAFETY: the operation was made; the texts, and the places that are written to, live until it is done.
        let done = unsafe {
            (api.rados.rados_read_op_omap_get_vals2)(
                read.raw,
                after.as_ptr(),
                prefix.as_ptr(),
                most,
                &mut raw,
                &mut has_more,
                &mut result,
            );
            (api.rados.rados_read_op_operate)(read.raw, pool.raw, object.as_ptr(), 0)
        };
        // Whatever comes of it, the iterator is there.
        let page = Self { api, raw };
        let what = || format!("read the keys of {name} in {}", pool.name());
        pool.check(done, what)?;
        pool.check(result, what)?;
        Ok((page, has_more != 0))
    }

    fn values(&self) -> Vec<(String, Vec<u8>)> {
        let mut found = Vec::new();
        loop {
            let (mut key, mut value) = (ptr::null_mut(), ptr::null_mut());
            let (mut key_len, mut value_len) = (0, 0);
            // SAFETY: the iterator is there, and all four can be written to.
            let next = unsafe {
                let next = self.api.rados.rados_omap_get_next2;
                next(self.raw, &mut key, &mut value, &mut key_len, &mut value_len)
            };
            if next < 0 || key.is_null() {
                return found;
            }
            // SAFETY: the library has told of so many bytes there, which stay until the iterator goes.
            let key = unsafe { bytes(key, key_len) };
            // SAFETY: as above.
            let value = unsafe { bytes(value, value_len) };
            found.push((String::from_utf8_lossy(key).into_owned(), value.to_vec()));
        }
    }
}

impl Drop for Page {
    fn drop(&mut self) {
        if !self.raw.is_null() {
            // SAFETY: it is an iterator of the library's, and what it gave was copied.
            unsafe { (self.api.rados.rados_omap_get_end)(self.raw) };
        }
    }
}

/// Bytes of the library's.
///
/// # Safety
/// There must be so many at this address, unless it is null, for as long as the result is used.
unsafe fn bytes<'a>(start: *const std::ffi::c_char, len: usize) -> &'a [u8] {
    match start.is_null() {
        true => &[],
        // SAFETY: the caller's promise.
        false => unsafe { slice::from_raw_parts(start.cast(), len) },
    }
}

/// An operation that reads.
struct Read {
    api: &'static Api,
    raw: ReadHandle,
}

impl Read {
    fn new(api: &'static Api) -> Self {
        // SAFETY: it has no conditions.
        let raw = unsafe { (api.rados.rados_create_read_op)() };
        Self { api, raw }
    }
}

impl Drop for Read {
    fn drop(&mut self) {
        // SAFETY: it was made by `rados_create_read_op`, and nothing refers to it.
        unsafe { (self.api.rados.rados_release_read_op)(self.raw) };
    }
}
