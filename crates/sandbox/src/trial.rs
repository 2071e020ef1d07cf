//! Finding out what of a confinement a host allows.

use crate::calls::{Call, refuse};
use crate::landlock::{Keeps, restrict};
use crate::{Missing, Privileges, Sandbox, SandboxError, empty_root, isolate};

/// Confines this process for good in all ways that a data plane is. It must have one thread, and may go on in a child
/// ([`isolate`]).
///
/// # Errors
/// [`SandboxError::Missing`]: what this host does not allow; and others.
pub fn try_confinement() -> Result<(), SandboxError> {
    let mut missing = Missing::default();
    let isolated = isolate(&mut missing, |_| {})?;
    if isolated.has_mounts() {
        missing.or_note("an empty root directory", empty_root());
    }
    Privileges { user: None }.give_up(&mut missing);
    restrict(Keeps::All, [], &mut missing);
    let any = Call {
        number: libc::SYS_acct,
        name: "acct",
        only: Vec::new(),
        why: "it would do no harm here: that there is a filter counts",
    };
    missing.or_note("a filter of system calls", refuse(&[any]));
    missing.settle(Sandbox::Strict, "data plane")
}
