//! The lock of an image: who has it may write to it, and nobody else.
//!
//! Unless a client asks for the lock by hand, the library takes it when it writes, and gives it to whoever wants to write
//! next, without any error. Once it was asked for by hand nobody gets it who asks. But a holder that says nothing for half a
//! minute is taken for dead: it is fenced then, and who asks gets the lock. So whoever may not take the lock from somebody
//! must not ask.

use std::ptr;

use crate::api::LOCK_EXCLUSIVE;
use crate::cluster::text;
use crate::{CephError, Image};

/// For how long a client is fenced from which a lock was taken: one that was frozen, and goes on later, writes again. The
/// cluster's own hour is too little for a host that was suspended.
const FENCED_FOR: u32 = 30 * 24 * 3600;

impl Image {
    /// Acquires the lock, and keeps it until the image is closed. Does nothing for who has it.
    ///
    /// # Errors
    /// [`CephError::is_locked`]: somebody has it who lives.
    pub fn lock(&self) -> Result<(), CephError> {
        // SAFETY: the image is open.
        let acquired = unsafe { (self.api.rbd.rbd_lock_acquire)(self.raw, LOCK_EXCLUSIVE) };
        self.check(acquired, "lock").map(drop)
    }

    /// The address of the client that has the lock, if one has; it may be dead.
    ///
    /// # Errors
    /// [`CephError::Failed`].
    pub fn lock_owner(&self) -> Result<Option<String>, CephError> {
        let (mut mode, mut owners, mut count) = (0, [ptr::null_mut(); 4], 4);
        // SAFETY: the image is open, and all can be written to; `count` says how many owners there are.
        let told = unsafe {
            let owners_of = self.api.rbd.rbd_lock_get_owners;
            owners_of(self.raw, &mut mode, owners.as_mut_ptr(), &mut count)
        };
        match self.check(told, "see who has locked") {
            Err(error) if error.is_missing() => return Ok(None),
            told => told?,
        };
        let owner = owners.first().filter(|owner| count > 0 && !owner.is_null());
        let owner = owner.map(|owner| {
            // SAFETY: the library has made a text there, which it frees below.
            let owner = unsafe { std::ffi::CStr::from_ptr(*owner) };
            owner.to_string_lossy().into_owned()
        });
        // SAFETY: these are what the library has filled; nothing refers to their texts any more.
        unsafe { (self.api.rbd.rbd_lock_get_owners_cleanup)(owners.as_mut_ptr(), count) };
        Ok(owner)
    }

    /// Takes the lock from a client, which is fenced first: nothing that it has begun or will begin lands after this.
    ///
    /// # Errors
    /// [`CephError::Failed`].
    pub fn take_lock_from(&self, owner: &str) -> Result<(), CephError> {
        self.pool().cluster().fence(owner, FENCED_FOR)?;
        let address = text(owner)?;
        // SAFETY: the image is open, and the text lives through the call.
        let broken =
            unsafe { (self.api.rbd.rbd_lock_break)(self.raw, LOCK_EXCLUSIVE, address.as_ptr()) };
        match self.check(broken, "break the lock of") {
            // Somebody else was faster, or it has given it up.
            Err(error) if matches!(error.errno(), Some(libc::EBUSY | libc::ENOENT)) => {}
            broken => _ = broken?,
        }
        self.lock()
    }
}
