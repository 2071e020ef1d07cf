//! What can go wrong with key material before any vault is asked.

use thiserror::Error;

/// Errors of the key types.
#[derive(Debug, Error)]
pub enum KeyError {
    /// The operating system would not lock the page of a key in memory.
    #[error(
        "cannot {call} the memory of a key: {source}; raise RLIMIT_MEMLOCK for this process \
         (`ulimit -l`, LimitMEMLOCK= of a systemd unit)"
    )]
    Lock {
        /// The system call that failed.
        call: &'static str,
        /// What the kernel said.
        #[source]
        source: std::io::Error,
    },
    /// A thread that works with keys could not be started.
    #[error(
        "cannot start a thread: {0}; raise TasksMax= of the systemd unit, the pids limit of the \
         container, or RLIMIT_NPROC (`ulimit -u`, LimitNPROC=)"
    )]
    Thread(#[source] std::io::Error),
    /// The random generator failed.
    #[error("the random generator failed, so no key was made")]
    Random,
    /// The library that was linked is not the validated module.
    #[error(
        "this program was built with the feature fips, but its AWS-LC is not in FIPS mode; build it \
         again, without AWS_LC_FIPS_SYS_SYSTEM_DIR"
    )]
    Module,
    /// A key of the wrong length was given.
    #[error("a data encryption key is {expected} bytes, not {actual}")]
    Length {
        /// Bytes that a key has.
        expected: usize,
        /// Bytes that were given.
        actual: usize,
    },
    /// Both halves of an XTS key are the same (SP 800-38E / FIPS 140 IG C.I forbid it).
    #[error("the two halves of an AES-256-XTS key are equal; such a key is refused")]
    EqualHalves,
    /// The two keys of a double DEK are one key, or there are more than two.
    #[error("double encryption takes two different keys, each of one pass; these are refused")]
    NoPair,
    /// The pipe on which the key was to arrive ended early or failed.
    #[error("the key did not arrive on its pipe: {0}")]
    Transfer(#[source] std::io::Error),
}
