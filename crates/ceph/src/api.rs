//! The functions of the libraries, as their headers have them (`rados/librados.h`, `rbd/librbd.h` of Ceph 16.2).

use std::ffi::{c_char, c_int, c_void};
use std::sync::OnceLock;

use libloading::Library;

use crate::CephError;

/// `rados_t`.
pub(crate) type ClusterHandle = *mut c_void;
/// `rados_ioctx_t`.
pub(crate) type PoolHandle = *mut c_void;
/// `rados_write_op_t`.
pub(crate) type WriteHandle = *mut c_void;
/// `rados_read_op_t`.
pub(crate) type ReadHandle = *mut c_void;
/// `rados_omap_iter_t`.
pub(crate) type OmapHandle = *mut c_void;
/// `rbd_image_t`.
pub(crate) type ImageHandle = *mut c_void;
/// `rbd_image_options_t`.
pub(crate) type OptionsHandle = *mut c_void;
/// `rbd_completion_t`.
pub(crate) type CompletionHandle = *mut c_void;
/// `rbd_callback_t`.
pub(crate) type Callback = unsafe extern "C" fn(CompletionHandle, *mut c_void);
/// What `rbd_diff_iterate2` calls for each extent: where, how long, whether it is there, and what it was given.
pub(crate) type ExtentCallback = unsafe extern "C" fn(u64, usize, c_int, *mut c_void) -> c_int;

/// `rbd_config_option_t`.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct ConfigOption {
    pub(crate) name: *mut c_char,
    pub(crate) value: *mut c_char,
    pub(crate) source: c_int,
}

/// `rbd_image_spec_t`.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct ImageSpec {
    pub(crate) id: *mut c_char,
    pub(crate) name: *mut c_char,
}

/// `RBD_LOCK_MODE_EXCLUSIVE`.
pub(crate) const LOCK_EXCLUSIVE: c_int = 0;
/// `RBD_IMAGE_OPTION_FEATURES`.
pub(crate) const OPTION_FEATURES: c_int = 1;
/// `RBD_IMAGE_OPTION_ORDER`.
pub(crate) const OPTION_ORDER: c_int = 2;
/// `LIBRADOS_CREATE_EXCLUSIVE`.
pub(crate) const CREATE_EXCLUSIVE: c_int = 1;
/// `LIBRADOS_CREATE_IDEMPOTENT`.
pub(crate) const CREATE_IDEMPOTENT: c_int = 0;
/// `LIBRADOS_CMPXATTR_OP_EQ`.
pub(crate) const COMPARE_EQUAL: u8 = 1;

/// A library with functions of these types.
macro_rules! library {
    (
        $(#[$doc:meta])*
        $name:ident in $file:literal of $package:literal;
        $(fn $function:ident($($kind:ty),* $(,)?) $(-> $result:ty)?;)+
    ) => {
        $(#[$doc])*
        pub(crate) struct $name {
            $(pub(crate) $function: unsafe extern "C" fn($($kind),*) $(-> $result)?,)+
        }

        impl $name {
            fn load() -> Result<Self, CephError> {
                let library = load($file, $package)?;
                Ok(Self {
                    // SAFETY: the function has this type in all versions that have it, as its header says.
                    $($function: unsafe {
                        function(library, $file, concat!(stringify!($function), "\0"))
                    }?,)+
                })
            }
        }
    };
}

library! {
    /// librados.
    Rados in "librados.so.2" of "librados2";
    fn rados_create2(*mut ClusterHandle, *const c_char, *const c_char, u64) -> c_int;
    fn rados_conf_read_file(ClusterHandle, *const c_char) -> c_int;
    fn rados_conf_parse_argv(ClusterHandle, c_int, *mut *const c_char) -> c_int;
    fn rados_conf_set(ClusterHandle, *const c_char, *const c_char) -> c_int;
    fn rados_conf_get(ClusterHandle, *const c_char, *mut c_char, usize) -> c_int;
    fn rados_connect(ClusterHandle) -> c_int;
    fn rados_shutdown(ClusterHandle);
    fn rados_getaddrs(ClusterHandle, *mut *mut c_char) -> c_int;
    fn rados_buffer_free(*mut c_char);
    fn rados_wait_for_latest_osdmap(ClusterHandle) -> c_int;
    fn rados_blocklist_add(ClusterHandle, *mut c_char, u32) -> c_int;
    fn rados_ioctx_create(ClusterHandle, *const c_char, *mut PoolHandle) -> c_int;
    fn rados_ioctx_destroy(PoolHandle);
    fn rados_ioctx_set_namespace(PoolHandle, *const c_char);
    fn rados_set_pool_full_try(PoolHandle);
    fn rados_get_last_version(PoolHandle) -> u64;
    fn rados_read(PoolHandle, *const c_char, *mut c_char, usize, u64) -> c_int;
    fn rados_create_write_op() -> WriteHandle;
    fn rados_release_write_op(WriteHandle);
    fn rados_write_op_create(WriteHandle, c_int, *const c_char);
    fn rados_write_op_assert_exists(WriteHandle);
    fn rados_write_op_assert_version(WriteHandle, u64);
    fn rados_write_op_cmpext(WriteHandle, *const c_char, usize, u64, *mut c_int);
    fn rados_write_op_write_full(WriteHandle, *const c_char, usize);
    fn rados_write_op_remove(WriteHandle);
    fn rados_write_op_omap_set2(
        WriteHandle, *const *const c_char, *const *const c_char, *const usize, *const usize, usize,
    );
    fn rados_write_op_omap_cmp2(WriteHandle, *const c_char, u8, *const c_char, usize, usize, *mut c_int);
    fn rados_write_op_omap_rm_keys2(WriteHandle, *const *const c_char, *const usize, usize);
    fn rados_write_op_operate(WriteHandle, PoolHandle, *const c_char, *mut libc::time_t, c_int) -> c_int;
    fn rados_create_read_op() -> ReadHandle;
    fn rados_release_read_op(ReadHandle);
    fn rados_read_op_omap_get_vals2(
        ReadHandle, *const c_char, *const c_char, u64, *mut OmapHandle, *mut u8, *mut c_int,
    );
    fn rados_read_op_operate(ReadHandle, PoolHandle, *const c_char, c_int) -> c_int;
    fn rados_omap_get_next2(
        OmapHandle, *mut *mut c_char, *mut *mut c_char, *mut usize, *mut usize,
    ) -> c_int;
    fn rados_omap_get_end(OmapHandle);
}

library! {
    /// librbd.
    Rbd in "librbd.so.1" of "librbd1";
    fn rbd_version(*mut c_int, *mut c_int, *mut c_int);
    fn rbd_namespace_exists(PoolHandle, *const c_char, *mut bool) -> c_int;
    fn rbd_image_options_create(*mut OptionsHandle);
    fn rbd_image_options_destroy(OptionsHandle);
    fn rbd_image_options_set_uint64(OptionsHandle, c_int, u64) -> c_int;
    fn rbd_create4(PoolHandle, *const c_char, u64, OptionsHandle) -> c_int;
    fn rbd_remove(PoolHandle, *const c_char) -> c_int;
    fn rbd_list2(PoolHandle, *mut ImageSpec, *mut usize) -> c_int;
    fn rbd_image_spec_list_cleanup(*mut ImageSpec, usize);
    fn rbd_open(PoolHandle, *const c_char, *mut ImageHandle, *const c_char) -> c_int;
    fn rbd_open_read_only(PoolHandle, *const c_char, *mut ImageHandle, *const c_char) -> c_int;
    fn rbd_close(ImageHandle) -> c_int;
    fn rbd_get_size(ImageHandle, *mut u64) -> c_int;
    fn rbd_resize(ImageHandle, u64) -> c_int;
    fn rbd_config_image_list(ImageHandle, *mut ConfigOption, *mut c_int) -> c_int;
    fn rbd_config_image_list_cleanup(*mut ConfigOption, c_int);
    fn rbd_lock_acquire(ImageHandle, c_int) -> c_int;
    fn rbd_lock_break(ImageHandle, c_int, *const c_char) -> c_int;
    fn rbd_lock_get_owners(ImageHandle, *mut c_int, *mut *mut c_char, *mut usize) -> c_int;
    fn rbd_lock_get_owners_cleanup(*mut *mut c_char, usize);
    fn rbd_read(ImageHandle, u64, usize, *mut c_char) -> isize;
    fn rbd_write(ImageHandle, u64, usize, *const c_char) -> isize;
    fn rbd_flush(ImageHandle) -> c_int;
    fn rbd_diff_iterate2(
        ImageHandle, *const c_char, u64, u64, u8, u8, ExtentCallback, *mut c_void,
    ) -> c_int;
    fn rbd_aio_create_completion(*mut c_void, Callback, *mut CompletionHandle) -> c_int;
    fn rbd_aio_get_return_value(CompletionHandle) -> isize;
    fn rbd_aio_release(CompletionHandle);
    fn rbd_aio_read(ImageHandle, u64, usize, *mut c_char, CompletionHandle) -> c_int;
    fn rbd_aio_write(ImageHandle, u64, usize, *const c_char, CompletionHandle) -> c_int;
    fn rbd_aio_discard(ImageHandle, u64, u64, CompletionHandle) -> c_int;
    fn rbd_aio_write_zeroes(ImageHandle, u64, usize, CompletionHandle, c_int, c_int) -> c_int;
    fn rbd_aio_flush(ImageHandle, CompletionHandle) -> c_int;
}

/// Both libraries.
pub(crate) struct Api {
    pub(crate) rados: Rados,
    pub(crate) rbd: Rbd,
}

impl Api {
    /// Loads them, once for the process.
    pub(crate) fn get() -> Result<&'static Self, CephError> {
        static LOADED: OnceLock<Api> = OnceLock::new();
        if let Some(loaded) = LOADED.get() {
            return Ok(loaded);
        }
        let api = Self {
            rados: Rados::load()?,
            rbd: Rbd::load()?,
        };
        // Of two that come at once one is used; the libraries are the same.
        Ok(LOADED.get_or_init(|| api))
    }

    /// The version of librbd.
    pub(crate) fn rbd_version(&self) -> String {
        let [mut major, mut minor, mut extra] = [0; 3];
        // SAFETY: all three can be written to.
        unsafe { (self.rbd.rbd_version)(&mut major, &mut minor, &mut extra) };
        format!("{major}.{minor}.{extra}")
    }
}

fn load(file: &'static str, package: &'static str) -> Result<&'static Library, CephError> {
    // SAFETY: what the library does when it is loaded is what every Ceph client has it do. It is looked for by the
    // loader alone, in the directories of the system.
    let library = unsafe { Library::new(file) };
    let library = library.map_err(|error| CephError::Library {
        file,
        package,
        why: error.to_string(),
    })?;
    // It has threads by the time anybody could give it up.
    Ok(Box::leak(Box::new(library)))
}

/// A function of a library. Its name ends with a zero.
///
/// # Safety
/// `F` must be the type of a pointer to that function.
unsafe fn function<F: Copy>(
    library: &'static Library,
    file: &'static str,
    name: &'static str,
) -> Result<F, CephError> {
    // SAFETY: the caller's promise.
    let symbol = unsafe { library.get::<F>(name.as_bytes()) };
    match symbol {
        Ok(symbol) => Ok(*symbol),
        Err(_) => Err(CephError::Function {
            file,
            function: name.trim_end_matches('\0'),
        }),
    }
}
