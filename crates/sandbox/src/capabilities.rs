//! Users and capabilities.

use std::io;

use rustix::io::Errno;
use rustix::process::{Gid, Uid};
use rustix::thread::{
    CapabilitySet, CapabilitySets, capabilities, capability_is_in_bounding_set,
    clear_ambient_capability_set, remove_capability_from_bounding_set, set_capabilities,
    set_no_new_privs, set_thread_groups, set_thread_res_gid, set_thread_res_uid,
};

use crate::{Missing, User};

/// What a process gives up for good.
#[derive(Debug, Clone, Copy)]
pub struct Privileges {
    /// Who it becomes; `None` when it stays who it is.
    pub user: Option<User>,
}

impl Privileges {
    /// Becomes the user, drops all capabilities, and sees to it that none comes back: the calling thread, which is to
    /// be the only one.
    pub fn give_up(self, missing: &mut Missing) {
        missing.or_note("an empty bounding set", bound(CapabilitySet::empty()));
        if let Some(user) = self.user {
            missing.or_note("a user of its own", user.become_it());
        }
        missing.or_note("an empty set of capabilities", keep(CapabilitySet::empty()));
        missing.or_note("no_new_privs", set_no_new_privs(true));
    }
}

impl User {
    fn become_it(self) -> io::Result<()> {
        let (user, group) = (Uid::from_raw(self.uid), Gid::from_raw(self.gid));
        set_thread_groups(&[])?;
        set_thread_res_gid(group, group, group)?;
        Ok(set_thread_res_uid(user, user, user)?)
    }
}

/// Drops all capabilities but these for good, of the calling thread and those that it will start.
///
/// # Errors
/// What the kernel says.
pub fn drop_to(kept: CapabilitySet) -> io::Result<()> {
    bound(kept)?;
    keep(kept)
}

/// Leaves nothing but this in the bounding set. Who may not change it has no privileges to lose.
fn bound(kept: CapabilitySet) -> io::Result<()> {
    for number in 0..u64::BITS {
        let one = CapabilitySet::from_bits_retain(1 << number);
        match capability_is_in_bounding_set(one) {
            Ok(true) if !kept.contains(one) => remove_capability_from_bounding_set(one)?,
            Ok(_) => {}
            // The kernel has no more.
            Err(Errno::INVAL) => return Ok(()),
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

fn keep(kept: CapabilitySet) -> io::Result<()> {
    clear_ambient_capability_set()?;
    let kept = capabilities(None)?.permitted & kept;
    let sets = CapabilitySets {
        effective: kept,
        permitted: kept,
        inheritable: CapabilitySet::empty(),
    };
    Ok(set_capabilities(None, sets)?)
}
