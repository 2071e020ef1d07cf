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
    /// A data unit that is neither 512 nor 4096 bytes.
    #[error("a data unit is 512 or 4096 bytes, not {0}; choose one of them with --sector-size")]
    DataUnit(u64),
}
