//! What the tests of several crates share.
//!
//! Without features: faults of system calls ([`seccomp`]), limits of resources ([`rlimits`]), a random
//! generator that repeats itself ([`rng`]), the round keys of a DEK ([`key_schedule`]), a PostgreSQL server of a
//! test's own ([`postgres`]), and a Ceph cluster ([`ceph`]). With the feature
//! `program` also what works on the whole program: an installation (`Host`), a disk of its own that can be
//! attached (`Disk`, `Daemon`), a customer who holds the disk's key (`Customer`), a server of
//! vaults (`Server`), and a vhost-user-blk frontend in place of a guest (`frontend`).

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "helpers of tests panic as tests do"
)]

pub mod ceph;
pub mod key_schedule;
pub mod postgres;
pub mod rlimits;
pub mod rng;
pub mod seccomp;

#[cfg(feature = "program")]
pub mod alarms;
#[cfg(all(feature = "program", target_arch = "x86_64"))]
pub mod captive;
#[cfg(feature = "program")]
pub mod clean;
#[cfg(feature = "program")]
mod customer;
#[cfg(feature = "program")]
mod daemon;
#[cfg(feature = "program")]
mod disk;
#[cfg(feature = "program")]
mod files;
#[cfg(feature = "program")]
pub mod frontend;
#[cfg(feature = "program")]
mod host;
#[cfg(feature = "program")]
mod installed;
#[cfg(feature = "program")]
pub mod key_search;
#[cfg(feature = "program")]
mod processes;
#[cfg(feature = "program")]
mod program;
#[cfg(feature = "request-path")]
pub mod request_path;
#[cfg(feature = "program")]
mod server;
#[cfg(feature = "program")]
pub mod shared_fs;
#[cfg(feature = "program")]
pub mod small_fs;

/// How often a test does something: `usual`, or what the environment variable says, as in `scripts/test --full`.
pub fn times(variable: &str, usual: u32) -> u32 {
    let told = std::env::var(variable).ok();
    told.and_then(|n| n.parse().ok()).unwrap_or(usual)
}

/// How many deaths a test has: `usual`, or what `SEALDISK_DEATHS` says.
pub fn deaths(usual: u32) -> u32 {
    times("SEALDISK_DEATHS", usual)
}

#[cfg(feature = "program")]
pub use {
    customer::Customer,
    daemon::{AttachOptions, Daemon},
    disk::{Backend, Disk},
    files::{MARKER, allocated, contains, content_of, files_below, holds, noise, qemu_img, text},
    host::{Host, Words, one_line},
    installed::{DiskFiles, KEY, VAULT},
    processes::{
        alive, await_end, children, data_plane_of, kill, open_files, stat, stop, threads,
        with_descendants,
    },
    program::{expect_success, program, scratch},
    server::Server,
};

/// How long anything may take before a test calls it a hang. It measures nothing.
#[cfg(feature = "program")]
pub const PATIENCE: std::time::Duration = std::time::Duration::from_secs(60);
