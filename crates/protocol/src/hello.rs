//! Which versions of the protocol a program speaks, and how two programs choose one.
//!
//! The first frame of each side is its [`Hello`], sent without waiting for the other's. Both then use
//! the highest version that both speak, or refuse each other ([`ProtocolError::Version`]). So an attach
//! process and a data plane of different programs can talk to each other.
//!
//! The frames themselves and the hello never change. Everything after it belongs to a version: a message
//! or a field that the chosen version does not have is refused by its name, never skipped. Whoever adds
//! one raises [`SUPPORTED`]`.highest`, and does not send it while a lower version is in use.

use std::io::{self, Write};
use std::os::unix::net::UnixStream;

use serde::{Deserialize, Serialize};

use crate::error::io_error;
use crate::frame::encode;
use crate::{Peer, ProtocolError, Versions};

/// The versions that this program speaks.
pub const SUPPORTED: Versions = Versions {
    lowest: 1,
    highest: 1,
};

/// The first frame of each side.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Hello {
    /// What whoever sends it speaks.
    pub hello: Versions,
}

/// Says this program's hello.
pub(crate) fn greet(mut stream: &UnixStream) -> Result<(), ProtocolError> {
    let hello = encode(&Hello { hello: SUPPORTED })?;
    match stream.write_all(&hello) {
        // It has ended already, which `Messages::greet` finds.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        sent => sent.map_err(io_error("greet the data plane")),
    }
}

/// The version to use with `peer`, which speaks `theirs`.
///
/// # Errors
/// [`ProtocolError::Version`] when no version is in both ranges.
pub(crate) fn choose(ours: Versions, peer: Peer, theirs: Versions) -> Result<u16, ProtocolError> {
    let highest = ours.highest.min(theirs.highest);
    match highest >= ours.lowest.max(theirs.lowest) {
        true => Ok(highest),
        false => Err(ProtocolError::Version { peer, theirs, ours }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn versions(lowest: u16, highest: u16) -> Versions {
        Versions { lowest, highest }
    }

    #[test]
    fn the_highest_common_version_is_used() {
        for (ours, theirs, chosen) in [
            ((1, 1), (1, 1), Some(1)),
            ((1, 2), (1, 1), Some(1)),
            ((1, 2), (2, 5), Some(2)),
            ((3, 5), (1, 4), Some(4)),
            ((1, 2), (3, 3), None),
            ((4, 4), (1, 3), None),
            ((1, 9), (7, 3), None),
        ] {
            let ours = versions(ours.0, ours.1);
            let theirs = versions(theirs.0, theirs.1);
            assert_eq!(choose(ours, Peer::DataPlane, theirs).ok(), chosen);
            let swapped = choose(theirs, Peer::AttachProcess, ours);
            assert_eq!(swapped.ok(), chosen, "both sides choose alike");
        }
    }

    #[test]
    fn a_version_that_is_not_known_is_named() {
        let refused = choose(versions(1, 2), Peer::DataPlane, versions(3, 3)).unwrap_err();
        let text = refused.to_string();
        assert!(
            text.starts_with("the data plane speaks protocol 3, this program 1 to 2"),
            "{text}"
        );
        let refused = choose(versions(3, 3), Peer::AttachProcess, versions(1, 2)).unwrap_err();
        let text = refused.to_string();
        assert!(
            text.starts_with("the attach process speaks protocol 1 to 2, this program 3"),
            "{text}"
        );
    }
}
