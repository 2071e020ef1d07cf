//! A client of a cluster.

use std::ffi::{CStr, CString, c_char};
use std::ptr;
use std::sync::Arc;

use zeroize::Zeroizing;

use crate::api::{Api, ClusterHandle};
use crate::keyring::key_of;
use crate::settings::FORCED;
use crate::{CephError, Settings};

/// A client that is not connected: it has read its configuration and its key, and has no thread.
pub struct Client {
    handle: Handle,
    settings: Settings,
}

/// A client that is connected.
pub struct Cluster {
    handle: Handle,
    name: String,
    /// By which others can have it fenced.
    address: String,
}

/// What `rados_create2` makes, until it is shut down.
pub(crate) struct Handle {
    pub(crate) api: &'static Api,
    pub(crate) raw: ClusterHandle,
}

// SAFETY: "A handle … can be used by multiple threads" (librados.h); what is done before it is connected is done by
// whoever has it for itself.
unsafe impl Send for Handle {}
// SAFETY: as above.
unsafe impl Sync for Handle {}

impl Drop for Handle {
    fn drop(&mut self) {
        // SAFETY: it was made by `rados_create2`, and everything that was made of it is gone: each holds it.
        unsafe { (self.api.rados.rados_shutdown)(self.raw) };
    }
}

impl Client {
    /// Loads the libraries, and reads the configuration and the keyring. The process has as many threads as before.
    ///
    /// # Errors
    /// [`CephError`].
    pub fn new(settings: Settings) -> Result<Self, CephError> {
        let api = Api::get()?;
        log::debug!("librbd {}", api.rbd_version());
        let (cluster, name) = (text(&settings.cluster)?, text(&settings.name())?);
        let mut raw = ptr::null_mut();
        // SAFETY: both texts live through the call, and `raw` can be written to.
        let made =
            unsafe { (api.rados.rados_create2)(&mut raw, cluster.as_ptr(), name.as_ptr(), 0) };
        CephError::check(made, || format!("be {} of Ceph", settings.name()))?;
        let handle = Handle { api, raw };
        handle.read_configuration(&settings)?;
        handle.take_arguments(&settings.arguments)?;
        if let Some(keyring) = &settings.keyring {
            handle.set("keyring", &keyring.to_string_lossy())?;
        }
        for (option, value) in FORCED {
            match handle.set(option, value) {
                Err(error) if error.is_missing() => log::debug!("librados has no {option}"),
                set => set?,
            }
        }
        handle.read_key(&settings.name())?;
        Ok(Self { handle, settings })
    }

    /// Connects. From now on the process has threads of the library.
    ///
    /// # Errors
    /// [`CephError::Failed`].
    pub fn connect(self) -> Result<Arc<Cluster>, CephError> {
        let Self { handle, settings } = self;
        let name = settings.name();
        // SAFETY: the handle is one that was not connected before.
        let connected = unsafe { (handle.api.rados.rados_connect)(handle.raw) };
        CephError::check(connected, || format!("reach the Ceph cluster as {name}"))
            .map_err(|error| error.advised(|errno| advice(errno, &settings)))?;
        let address = handle.address()?;
        Ok(Arc::new(Cluster {
            handle,
            name,
            address,
        }))
    }
}

/// What is the matter with a cluster that cannot be reached.
fn advice(errno: i32, settings: &Settings) -> Option<String> {
    let name = settings.name();
    match errno {
        libc::ENOENT => Some(format!(
            "there is no monitor in ceph.conf, or no keyring of {name} where it says: give --ceph-conf, --id or --keyring"
        )),
        libc::EACCES | libc::EPERM => {
            Some(format!("the cluster has no {name}, or another key for it"))
        }
        libc::ETIMEDOUT => {
            Some("no monitor answers: see mon_host of ceph.conf, and the network".into())
        }
        libc::EINVAL => Some(format!("the key of {name} is none")),
        _ => None,
    }
}

impl Cluster {
    /// Who it is, with `client.`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Where it is seen to be, by which others can have it fenced. Another client of the same host has another address.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Has the cluster take nothing more from the client of this address for so many seconds, and sees to it that all
    /// that this client does from now on comes after that. One that is fenced already stays so for as long as it was
    /// said first.
    ///
    /// # Errors
    /// [`CephError::Failed`].
    pub fn fence(&self, address: &str, seconds: u32) -> Result<(), CephError> {
        let rados = &self.handle.api.rados;
        let text = text(address)?;
        // SAFETY: the text lives through the call, which does not write to it.
        let fenced = unsafe {
            (rados.rados_blocklist_add)(self.handle.raw, text.as_ptr().cast_mut(), seconds)
        };
        CephError::check(fenced, || format!("fence the client {address}")).map_err(|error| {
            error.advised(|errno| {
                let may_not = matches!(errno, libc::EACCES | libc::EPERM);
                may_not.then(|| format!("{} needs the capability mon 'profile rbd'", self.name))
            })
        })?;
        // SAFETY: the handle is connected.
        let waited = unsafe { (rados.rados_wait_for_latest_osdmap)(self.handle.raw) };
        CephError::check(waited, || "wait for the cluster's map".into()).map(drop)
    }

    pub(crate) fn handle(&self) -> &Handle {
        &self.handle
    }
}

impl Handle {
    fn read_configuration(&self, settings: &Settings) -> Result<(), CephError> {
        let path = settings.conf.as_ref().map(|path| path.to_string_lossy());
        let given = path.as_deref().map(text).transpose()?;
        let raw = given.as_ref().map_or(ptr::null(), |path| path.as_ptr());
        // SAFETY: the path, if there is one, lives through the call.
        let read = unsafe { (self.api.rados.rados_conf_read_file)(self.raw, raw) };
        let what = match &path {
            Some(path) => format!("read {path}"),
            None => format!("read /etc/ceph/{}.conf", settings.cluster),
        };
        CephError::check(read, || what).map(drop)
    }

    fn take_arguments(&self, arguments: &[String]) -> Result<(), CephError> {
        // The first is the program's name, by convention.
        let all = ["sealdisk"]
            .into_iter()
            .chain(arguments.iter().map(String::as_str));
        let all: Vec<_> = all.map(text).collect::<Result<_, _>>()?;
        let mut raw: Vec<*const c_char> = all.iter().map(|text| text.as_ptr()).collect();
        let count = raw.len() as i32;
        // SAFETY: there are so many texts, all of which live through the call.
        let taken =
            unsafe { (self.api.rados.rados_conf_parse_argv)(self.raw, count, raw.as_mut_ptr()) };
        CephError::check(taken, || "take the arguments of CEPH_ARGS".into()).map(drop)
    }

    fn set(&self, option: &str, value: &str) -> Result<(), CephError> {
        let (name, value) = (
            text(option)?,
            Zeroizing::new(text(value)?.into_bytes_with_nul()),
        );
        // SAFETY: both texts live through the call, and end with a zero.
        let set = unsafe {
            (self.api.rados.rados_conf_set)(self.raw, name.as_ptr(), value.as_ptr().cast())
        };
        CephError::check(set, || format!("set the option {option} of Ceph")).map(drop)
    }

    fn get(&self, option: &str) -> Result<String, CephError> {
        let name = text(option)?;
        let mut value = Zeroizing::new(vec![0u8; 16 << 10]);
        // SAFETY: the text lives through the call, and so many bytes can be written to.
        let got = unsafe {
            let into = value.as_mut_ptr().cast();
            (self.api.rados.rados_conf_get)(self.raw, name.as_ptr(), into, value.len())
        };
        CephError::check(got, || format!("read the option {option} of Ceph"))?;
        let value = CStr::from_bytes_until_nul(&value).unwrap_or_default();
        Ok(value.to_string_lossy().into_owned())
    }

    /// Reads the key of a user, unless the configuration has it or none is needed, so that no file is looked at when
    /// the client connects.
    fn read_key(&self, name: &str) -> Result<(), CephError> {
        let has_key =
            ["key", "keyfile"].map(|option| self.get(option).is_ok_and(|it| !it.is_empty()));
        if has_key.contains(&true) {
            return Ok(());
        }
        let Some(key) = key_of(name, &self.get("keyring")?)? else {
            // Whether it is needed the cluster says.
            return Ok(());
        };
        self.set("key", &key)
    }

    fn address(&self) -> Result<String, CephError> {
        let mut raw: *mut c_char = ptr::null_mut();
        // SAFETY: `raw` can be written to.
        let got = unsafe { (self.api.rados.rados_getaddrs)(self.raw, &mut raw) };
        CephError::check(got, || "learn the address of this client".into())?;
        if raw.is_null() {
            return Err(CephError::failed(
                "learn the address of this client".into(),
                -libc::EIO,
            ));
        }
        // SAFETY: the library has made a text there, which it frees below.
        let address = unsafe { CStr::from_ptr(raw) }
            .to_string_lossy()
            .into_owned();
        // SAFETY: as above, and nothing refers to it any more.
        unsafe { (self.api.rados.rados_buffer_free)(raw) };
        Ok(address)
    }
}

/// A text for the library.
pub(crate) fn text(text: &str) -> Result<CString, CephError> {
    CString::new(text).map_err(|_| CephError::Name(text.escape_debug().to_string()))
}
