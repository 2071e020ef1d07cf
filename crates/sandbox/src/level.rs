//! How much of the confinement has to be had, and what could not be.

use std::fmt::{self, Display};
use std::str::FromStr;

use crate::SandboxError;

/// Whether a process goes on without a part of its confinement.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sandbox {
    /// It does not.
    Strict,
    /// It says what is missing, and goes on.
    BestEffort,
}

impl Sandbox {
    /// What holds when nothing is said: root can have all of it on any host, an ordinary user cannot.
    pub fn ordinary() -> Self {
        match rustix::process::geteuid().is_root() {
            true => Self::Strict,
            false => Self::BestEffort,
        }
    }
}

impl FromStr for Sandbox {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "strict" => Ok(Self::Strict),
            "best-effort" => Ok(Self::BestEffort),
            other => Err(format!("'{other}' is neither 'strict' nor 'best-effort'")),
        }
    }
}

impl Display for Sandbox {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Strict => "strict",
            Self::BestEffort => "best-effort",
        })
    }
}

/// What of a confinement could not be had.
#[derive(Debug, Default)]
pub struct Missing(Vec<String>);

impl Missing {
    /// Notes that something could not be had, and why.
    pub fn note(&mut self, what: &str, why: impl Display) {
        self.0.push(format!("{what} ({why})"));
    }

    /// The value, or a note of why there is none.
    pub fn or_note<T, E: Display>(&mut self, what: &str, result: Result<T, E>) -> Option<T> {
        result.map_err(|why| self.note(what, why)).ok()
    }

    /// Whether there is everything.
    pub fn is_nothing(&self) -> bool {
        self.0.is_empty()
    }

    /// Decides whether the process goes on without what is missing, which is logged then.
    ///
    /// # Errors
    /// [`SandboxError::Missing`], by [`Sandbox::Strict`].
    pub fn settle(self, sandbox: Sandbox, process: &'static str) -> Result<(), SandboxError> {
        if self.is_nothing() {
            return Ok(());
        }
        let missing = format!("it is without {}", self.0.join(", "));
        match sandbox {
            Sandbox::Strict => Err(SandboxError::Missing { process, missing }),
            Sandbox::BestEffort => {
                log::warn!("the {process} is not confined as it should be: {missing}");
                Ok(())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_named_and_counts_when_it_is_to() {
        assert!(
            Missing::default()
                .settle(Sandbox::Strict, "data plane")
                .is_ok()
        );
        let missing = || {
            let mut missing = Missing::default();
            assert_eq!(
                missing.or_note("a PID namespace", Ok::<_, &str>(7)),
                Some(7)
            );
            assert_eq!(missing.or_note("a PID namespace", Err::<(), _>("no")), None);
            missing.note("Landlock", "an old kernel");
            missing
        };
        assert!(missing().settle(Sandbox::BestEffort, "data plane").is_ok());
        let error = missing().settle(Sandbox::Strict, "data plane").unwrap_err();
        let said = error.to_string();
        assert!(
            said.contains("without a PID namespace (no), Landlock (an old kernel)"),
            "{said}"
        );
    }

    #[test]
    fn levels_are_read_as_they_are_written() {
        for level in [Sandbox::Strict, Sandbox::BestEffort] {
            assert_eq!(level.to_string().parse(), Ok(level));
        }
        assert!("none".parse::<Sandbox>().is_err());
    }
}
