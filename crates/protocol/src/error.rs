//! Errors of what the two processes of an attach say to each other.

use std::io;

use thiserror::Error;

use keys::KeyError;
use volume::store::StoreError;
use xts::CipherError;

use crate::{CommandKind, Line, Peer, Versions};

/// Why a message could not be sent, or not be taken, or why a command was not done.
#[derive(Debug, Error)]
pub enum ProtocolError {
    /// The socket failed.
    #[error("cannot {what}: {source}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// The other process is gone, or has said its last.
    #[error("the {0} has ended")]
    Ended(Peer),
    /// It said nothing for too long.
    #[error("the {0} does not answer")]
    Silent(Peer),
    /// There is no version that both processes speak.
    #[error(
        "the {peer} speaks protocol {theirs}, this program {ours}: start both from versions of sealdisk \
         that have one in common"
    )]
    Version {
        /// The other process.
        peer: Peer,
        /// What it speaks.
        theirs: Versions,
        /// What this program speaks.
        ours: Versions,
    },
    /// What came is not a frame.
    #[error("what came is not a whole frame of the protocol")]
    NoFrame,
    /// A message is longer than any may be, of which this is the length in bytes.
    #[error("a message of {0} bytes is longer than any of the protocol")]
    TooLong(usize),
    /// A frame has a message that the protocol does not have, or fields that the message does not have.
    #[error("not a message of this protocol: {0}")]
    Malformed(Line),
    /// A command came without the files or the keys that belong to it, or with others.
    #[error("{0}")]
    Cargo(String),
    /// The data plane answers what it was not asked.
    #[error("the data plane answers command {number} with \"{reply}\", and {}", expected(*.asked))]
    Unasked {
        /// The command that it names.
        number: u64,
        /// What it says, without details.
        reply: &'static str,
        /// The next command that is to be answered.
        asked: Option<(u64, CommandKind)>,
    },
    /// The data plane did not do what it was told.
    #[error("{0}")]
    Refused(Line),
    /// A key could not be sent or received.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// A layer has a data unit that there is no cipher for.
    #[error(transparent)]
    Cipher(#[from] CipherError),
    /// A descriptor is not one of a layer's file.
    #[error(transparent)]
    Store(#[from] StoreError),
}

fn expected(asked: Option<(u64, CommandKind)>) -> String {
    match asked {
        Some((number, kind)) => format!("the next answer is that of {number} ({kind})"),
        None => "no command waits for an answer".into(),
    }
}

/// For the socket's errors.
pub(crate) fn io_error(what: &'static str) -> impl Fn(io::Error) -> ProtocolError {
    move |source| ProtocolError::Io { what, source }
}
