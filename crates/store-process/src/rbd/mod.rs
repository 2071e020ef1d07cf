//! Layers on Ceph RBD: an image a layer, with the map before the data; headers and holders as objects. docs/rbd.md has
//! the names, the order of writes, and what was measured.

mod backend;
mod lock;
mod names;
mod place;
mod serve;
mod stack;
#[cfg(test)]
mod tests;

pub use names::{DATA_AT, MAP_AT};
pub(crate) use serve::serve_rbd;

use ceph::CephError;

use crate::PlaceError;
use crate::session::end_now;

/// The status of a process that was fenced.
const FENCED: i32 = 4;

/// Ends this process, whose client was fenced: somebody else has the disk, and nothing that is left here is to be written.
/// No destructor of the library is run, since that would wait for the cluster.
fn end_fenced() -> ! {
    log::error!(
        "the cluster has fenced this client: another one has the disk, or it was said to be gone"
    );
    end_now(FENCED)
}

/// What a place says of an error of the cluster.
fn told(error: &CephError, what: impl FnOnce() -> String) -> PlaceError {
    if error.is_fenced() {
        end_fenced();
    }
    let is_busy = error.is_locked() || error.errno() == Some(libc::EBUSY);
    match error {
        _ if error.is_missing() => PlaceError::Missing(what()),
        _ if error.is_there() => PlaceError::There(what()),
        _ if error.is_other() => PlaceError::Changed(what()),
        _ if is_busy => PlaceError::InUse {
            what: what(),
            by: None,
        },
        _ if matches!(error.errno(), Some(libc::ENOSPC | libc::EDQUOT)) => {
            PlaceError::NoSpace(error.to_string())
        }
        _ => PlaceError::Failed(error.to_string()),
    }
}
