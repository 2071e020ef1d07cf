//! Errors of a Ceph client.

use std::io;

use thiserror::Error;

/// What a Ceph client can fail with.
#[derive(Debug, Error)]
pub enum CephError {
    /// A library cannot be loaded.
    #[error(
        "layers on Ceph RBD need {file}, which cannot be loaded ({why}): install the package {package} of this \
         distribution"
    )]
    Library {
        /// Its file.
        file: &'static str,
        /// The package that it comes in, as Debian calls it.
        package: &'static str,
        /// What the loader said.
        why: String,
    },
    /// A library lacks a function.
    #[error(
        "{file} of this host has no {function}: layers on Ceph RBD need Ceph 16 (Pacific) or newer"
    )]
    Function {
        /// Its file.
        file: &'static str,
        /// The function.
        function: &'static str,
    },
    /// A keyring cannot be used.
    #[error("the keyring {path} cannot be used: {why}")]
    Keyring {
        /// Its file.
        path: String,
        /// Why not.
        why: String,
    },
    /// A name cannot be one on a cluster.
    #[error("'{0}' cannot be a name on a cluster")]
    Name(String),
    /// An image is not set as it has to be.
    #[error(
        "{what} has {option} = {value}, by which completed writes could be lost with this process: {remedy}"
    )]
    Setting {
        /// The image.
        what: String,
        /// The option.
        option: &'static str,
        /// What it is.
        value: String,
        /// What to do.
        remedy: &'static str,
    },
    /// The cluster refused something, or it failed.
    #[error("cannot {what}: {}{}", io::Error::from_raw_os_error(*errno), remedy.as_ref().map_or(String::new(), |remedy| format!("; {remedy}")))]
    Failed {
        /// What was tried, as a verb.
        what: String,
        /// The number of the error, positive.
        errno: i32,
        /// What to do, where that is known.
        remedy: Option<String>,
    },
}

/// What a comparison that failed is told by, and the offset of the first difference is added (`MAX_ERRNO` of Ceph).
const DIFFERS: i32 = 4095;

impl CephError {
    /// An operation's answer, which is a number of an error if it is negative.
    pub(crate) fn check(answer: i32, what: impl FnOnce() -> String) -> Result<u32, Self> {
        match u32::try_from(answer) {
            Ok(answer) => Ok(answer),
            Err(_) => Err(Self::failed(what(), answer)),
        }
    }

    pub(crate) fn failed(what: String, answer: i32) -> Self {
        Self::Failed {
            what,
            errno: answer.saturating_abs(),
            remedy: None,
        }
    }

    /// The same with what to do, by the number of the error.
    pub(crate) fn advised(self, advice: impl FnOnce(i32) -> Option<String>) -> Self {
        match self {
            Self::Failed {
                what,
                errno,
                remedy: None,
            } => Self::Failed {
                what,
                errno,
                remedy: advice(errno),
            },
            other => other,
        }
    }

    /// The number of the error, if the cluster told one.
    pub fn errno(&self) -> Option<i32> {
        match self {
            Self::Failed { errno, .. } => Some(*errno),
            _ => None,
        }
    }

    /// Whether this client was fenced: nothing that it does counts any more.
    pub fn is_fenced(&self) -> bool {
        self.errno() == Some(libc::ESHUTDOWN)
    }

    /// Whether there is none of that name.
    pub fn is_missing(&self) -> bool {
        self.errno() == Some(libc::ENOENT)
    }

    /// Whether there is one of that name already.
    pub fn is_there(&self) -> bool {
        self.errno() == Some(libc::EEXIST)
    }

    /// Whether somebody else has the lock.
    pub fn is_locked(&self) -> bool {
        self.errno() == Some(libc::EROFS)
    }

    /// Whether what an [`Operation`](crate::Operation) compares with was something else.
    pub fn is_other(&self) -> bool {
        match self.errno() {
            // An omap key or a version; the last two for an older and a newer one.
            Some(libc::ECANCELED | libc::ERANGE | libc::EOVERFLOW) => true,
            Some(errno) => errno >= DIFFERS,
            None => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_told_by_their_numbers() {
        assert_eq!(CephError::check(7, String::new).unwrap(), 7);
        let failed = |answer| CephError::check(answer, || "do it".into()).unwrap_err();
        assert!(failed(-108).is_fenced() && failed(-2).is_missing() && failed(-17).is_there());
        assert!(failed(-30).is_locked() && !failed(-30).is_other());
        for other in [-125, -34, -75, -4095, -4195] {
            assert!(failed(other).is_other(), "{other}");
        }
        let said = failed(-2).to_string();
        assert_eq!(said, "cannot do it: No such file or directory (os error 2)");
        let advised = failed(-1).advised(|errno| (errno == 1).then(|| "give it".into()));
        assert!(advised.to_string().ends_with("; give it"), "{advised}");
    }
}
