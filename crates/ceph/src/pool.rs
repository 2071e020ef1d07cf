//! A pool, or a namespace of one.

use std::ptr;
use std::sync::Arc;

use crate::api::{Api, ImageSpec, OPTION_FEATURES, OPTION_ORDER, OptionsHandle, PoolHandle};
use crate::cluster::text;
use crate::{CephError, Cluster};

/// Features of an image: who writes has its lock, and it is known what there is of it (`rbd/features.h`: exclusive-lock,
/// object-map, fast-diff).
const FEATURES: u64 = 1 << 2 | 1 << 3 | 1 << 4;
/// Objects of an image have 4 MiB.
const ORDER: u64 = 22;

/// A pool, or a namespace of one, as a client sees it.
pub struct Pool {
    pub(crate) api: &'static Api,
    pub(crate) raw: PoolHandle,
    cluster: Arc<Cluster>,
    name: String,
    namespace: String,
}

// SAFETY: what is done by it here is not said to be for one thread, but for the setting of the namespace and the version
// that was seen last; the first is done before it is shared, the second by whoever has it for itself.
unsafe impl Send for Pool {}
// SAFETY: as above.
unsafe impl Sync for Pool {}

impl Drop for Pool {
    fn drop(&mut self) {
        // SAFETY: it was made by `rados_ioctx_create`, and no image of it is open: each holds it.
        unsafe { (self.api.rados.rados_ioctx_destroy)(self.raw) };
    }
}

impl Pool {
    /// Opens a pool, and a namespace of it if that is not empty.
    ///
    /// # Errors
    /// [`CephError::Failed`], also when there is no such pool or namespace.
    pub fn open(
        cluster: &Arc<Cluster>,
        pool: &str,
        namespace: &str,
    ) -> Result<Arc<Self>, CephError> {
        let handle = cluster.handle();
        let (api, name, space) = (handle.api, text(pool)?, text(namespace)?);
        let mut raw = ptr::null_mut();
        // SAFETY: the name lives through the call, and `raw` can be written to.
        let made = unsafe { (api.rados.rados_ioctx_create)(handle.raw, name.as_ptr(), &mut raw) };
        CephError::check(made, || format!("open the pool {pool}")).map_err(|error| {
            error.advised(|errno| {
                (errno == libc::ENOENT).then(|| "the cluster has no pool of that name".into())
            })
        })?;
        let this = Self {
            api,
            raw,
            cluster: cluster.clone(),
            name: pool.into(),
            namespace: namespace.into(),
        };
        // Who finds no space is told so. Else it would wait, and even an image could not be opened.
        // SAFETY: the handle is open.
        unsafe { (api.rados.rados_set_pool_full_try)(raw) };
        if !namespace.is_empty() {
            this.check_namespace()?;
            // SAFETY: the handle is open, and nobody else has it; the name lives through the call.
            unsafe { (api.rados.rados_ioctx_set_namespace)(raw, space.as_ptr()) };
        }
        Ok(Arc::new(this))
    }

    fn check_namespace(&self) -> Result<(), CephError> {
        let (namespace, mut exists) = (text(&self.namespace)?, false);
        // SAFETY: the name lives through the call, and `exists` can be written to.
        let looked = unsafe {
            (self.api.rbd.rbd_namespace_exists)(self.raw, namespace.as_ptr(), &mut exists)
        };
        let what = || {
            format!(
                "look for the namespace {} of the pool {}",
                self.namespace, self.name
            )
        };
        self.check(looked, what)?;
        match exists {
            true => Ok(()),
            false => Err(CephError::failed(what(), -libc::ENOENT).advised(|_| {
                let (pool, namespace) = (&self.name, &self.namespace);
                Some(format!(
                    "make it by `rbd namespace create {pool}/{namespace}`"
                ))
            })),
        }
    }

    /// The client that it is seen by.
    pub fn cluster(&self) -> &Arc<Cluster> {
        &self.cluster
    }

    /// Its name, with that of its namespace if it is one: `POOL/NAMESPACE`.
    pub fn name(&self) -> String {
        match self.namespace.is_empty() {
            true => self.name.clone(),
            false => format!("{}/{}", self.name, self.namespace),
        }
    }

    /// An answer, with what to do about it where that is known.
    pub(crate) fn check(
        &self,
        answer: i32,
        what: impl FnOnce() -> String,
    ) -> Result<u32, CephError> {
        CephError::check(answer, what).map_err(|error| {
            error.advised(|errno| match errno {
                libc::EPERM | libc::EACCES => Some(self.capability()),
                libc::ENOSPC | libc::EDQUOT => {
                    Some(format!("the pool {} or its cluster is full", self.name))
                }
                _ => None,
            })
        })
    }

    /// What a user needs to be allowed to.
    fn capability(&self) -> String {
        let namespace = match self.namespace.is_empty() {
            true => String::new(),
            false => format!(" namespace={}", self.namespace),
        };
        format!(
            "{} needs the capabilities mon 'profile rbd' and osd 'profile rbd pool={}{namespace}'",
            self.cluster.name(),
            self.name
        )
    }

    /// Makes an image of so many bytes, none of which is there yet.
    ///
    /// # Errors
    /// [`CephError::Failed`]: [`CephError::is_there`] says whether there is one of that name.
    pub fn create_image(&self, name: &str, bytes: u64) -> Result<(), CephError> {
        let image = text(name)?;
        let options = Options::new(self.api);
        options.set(OPTION_FEATURES, FEATURES)?;
        options.set(OPTION_ORDER, ORDER)?;
        // SAFETY: the name and the options live through the call.
        let made =
            unsafe { (self.api.rbd.rbd_create4)(self.raw, image.as_ptr(), bytes, options.raw) };
        self.check(made, || {
            format!("create the image {name} in {}", self.name())
        })
        .map(drop)
    }

    /// Removes an image that nobody has open to write to it, with all that is in it: that takes a second for some TiB. One
    /// that is read by somebody goes all the same.
    ///
    /// # Errors
    /// [`CephError::Failed`]: `EBUSY` when somebody has it open, [`CephError::is_missing`] when there is none.
    pub fn remove_image(&self, name: &str) -> Result<(), CephError> {
        let image = text(name)?;
        // SAFETY: the name lives through the call.
        let removed = unsafe { (self.api.rbd.rbd_remove)(self.raw, image.as_ptr()) };
        self.check(removed, || {
            format!("remove the image {name} of {}", self.name())
        })
        .map(drop)
    }

    /// The names of all images.
    ///
    /// # Errors
    /// [`CephError::Failed`].
    pub fn images(&self) -> Result<Vec<String>, CephError> {
        let rbd = &self.api.rbd;
        let mut room = 64;
        loop {
            let empty = ImageSpec {
                id: ptr::null_mut(),
                name: ptr::null_mut(),
            };
            let (mut listed, mut count) = (vec![empty; room], room);
            // SAFETY: so many elements can be written to; `count` says how many there are.
            let answer = unsafe { (rbd.rbd_list2)(self.raw, listed.as_mut_ptr(), &mut count) };
            if answer == -libc::ERANGE {
                // It has told how many there are.
                room = count.max(room * 2);
                continue;
            }
            self.check(answer, || format!("list the images of {}", self.name()))?;
            let there = listed.get(..count).unwrap_or_default();
            let names = there
                .iter()
                .filter(|image| !image.name.is_null())
                .map(|image| {
                    // SAFETY: the library has made a text there, which it frees below.
                    let name = unsafe { std::ffi::CStr::from_ptr(image.name) };
                    name.to_string_lossy().into_owned()
                });
            let names = names.collect();
            // SAFETY: these are the elements that the library has filled; nothing refers to their texts any more.
            unsafe { (rbd.rbd_image_spec_list_cleanup)(listed.as_mut_ptr(), count.min(room)) };
            return Ok(names);
        }
    }
}

/// Options of a new image.
struct Options {
    api: &'static Api,
    raw: OptionsHandle,
}

impl Options {
    fn new(api: &'static Api) -> Self {
        let mut raw = ptr::null_mut();
        // SAFETY: `raw` can be written to.
        unsafe { (api.rbd.rbd_image_options_create)(&mut raw) };
        Self { api, raw }
    }

    fn set(&self, option: i32, value: u64) -> Result<(), CephError> {
        // SAFETY: the options were made.
        let set = unsafe { (self.api.rbd.rbd_image_options_set_uint64)(self.raw, option, value) };
        CephError::check(set, || "set the options of an image".into()).map(drop)
    }
}

impl Drop for Options {
    fn drop(&mut self) {
        // SAFETY: they were made, and nothing refers to them.
        unsafe { (self.api.rbd.rbd_image_options_destroy)(self.raw) };
    }
}
