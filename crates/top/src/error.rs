//! Why there is no table.

use std::io;
use std::path::PathBuf;

use thiserror::Error;

/// Why there is no table, or no more of it.
#[derive(Debug, Error)]
pub enum TopError {
    /// Its output is no terminal.
    #[error(
        "the live table needs a terminal, and this is none: `sealdisk top -b` prints plain text (`-b -n 1`: once)"
    )]
    NoTerminal,
    /// The terminal cannot show it.
    #[error(
        "the terminal (TERM={0}) cannot place text, as the live table needs it: `sealdisk top -b` prints plain text \
         (`-b -n 1`: once)"
    )]
    PlainTerminal(String),
    /// The terminal failed, or is gone.
    #[error("the terminal cannot be used: {0}")]
    Terminal(#[source] io::Error),
    /// The disks cannot be found.
    #[error("the runtime directory {} cannot be read: {source}", path.display())]
    RuntimeDir {
        /// It.
        path: PathBuf,
        /// What the kernel says.
        source: io::Error,
    },
    /// A thread, a signal or a clock is unavailable.
    #[error("cannot {what}: {source}")]
    System {
        /// What was to be done.
        what: &'static str,
        /// What the kernel says.
        source: io::Error,
    },
}

impl TopError {
    /// For programs.
    pub fn code(&self) -> &'static str {
        match self {
            Self::NoTerminal | Self::PlainTerminal(_) => "TerminalNeeded",
            Self::Terminal(_) => "TerminalFailed",
            Self::RuntimeDir { .. } => "RuntimeDirUnreadable",
            Self::System { .. } => "TopFailed",
        }
    }

    /// Names what was to be done.
    pub(crate) fn system(what: &'static str) -> impl Fn(io::Error) -> Self {
        move |source| Self::System { what, source }
    }
}
