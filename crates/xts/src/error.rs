//! Errors of the cipher: all of them come before the first byte is encrypted.

use thiserror::Error;

use keys::KeyError;

/// Errors of making a cipher ready.
#[derive(Debug, Error)]
pub enum CipherError {
    /// The expanded key could not be put into locked memory.
    #[error("cannot expand the data encryption key: {0}")]
    Key(#[from] KeyError),
    /// AWS-LC has no memory for a context.
    #[error("AWS-LC could not make an AES-256-XTS context: out of memory")]
    AwsLc,
    /// An engine does not encrypt as the standard says, on this host or as it was built.
    #[error(
        "the cipher is wrong here: AES-256-XTS by the engine {engine} does not give the known answer, so nothing may \
         be encrypted with it"
    )]
    Wrong {
        /// Which.
        engine: &'static str,
    },
    /// A data unit that is neither 512 nor 4096 bytes.
    #[error("a data unit is 512 or 4096 bytes, not {0}; choose one of them with --sector-size")]
    DataUnit(u64),
}
