//! What confines a process, and the launcher of confined processes.
//!
//! A process that is confined gives up, in this order, what it does not need: its namespaces and its root directory
//! ([`isolate`], [`empty_root`]), its user and its capabilities ([`Privileges`]), files ([`landlock`]), resources
//! ([`limit`]) and system calls ([`calls`]). None of it can be taken back.
//!
//! The kernel may refuse any of it. What could not be had is noted ([`Missing`]); [`Sandbox`] says whether the
//! process goes on without.
//!
//! # The launcher
//!
//! A process that Landlock confines can give no child a root directory of its own: Landlock forbids to mount. One
//! that has several threads can enter no user namespace, and one that has dropped its capabilities no namespace
//! at all. An attach process is all three, and starts data planes for as long as it lives. So it begins with a
//! [`Launcher`]: a process with one thread, which is told to start, to kill, and little else, and which no guest
//! and no network reaches. A program that takes over from this one has a launcher of its own, which this one
//! starts ([`Launcher::succeed`]).

pub mod calls;
pub mod landlock;

mod capabilities;
mod error;
mod launcher;
mod level;
mod limits;
mod log_format;
mod namespaces;
mod rule;
mod trial;
mod user;

pub use capabilities::{Privileges, drop_to};
pub use error::SandboxError;
pub use launcher::{LAUNCHER_FD, Launch, Launcher, bury_strangers, run_launcher};
pub use level::{Missing, Sandbox};
pub use limits::{limit, raise};
pub use log_format::{LOG_FORMAT, log_format, set_log_format};
pub use namespaces::{Isolated, NAMESPACES, empty_root, isolate, isolate_with_network};
pub use rule::Rule;
pub use trial::try_confinement;
pub use user::User;
