//! Ceph's librados and librbd, as much of them as a disk needs.
//!
//! The libraries are loaded by name when a client is made, and nothing of them is needed to build this program. They
//! stay loaded: they have threads. What is here is for Ceph 16 (Pacific) and newer; a library that lacks a function is
//! refused by the function's name.
//!
//! All `unsafe` that has to do with them is in this crate. Handles close themselves, in the right order, since each holds
//! the one that it was made of: an [`Image`] its [`Pool`], and that its [`Cluster`].
//!
//! What is set of a client whatever its ceph.conf says is in [`settings`](Settings): no cache, since what was completed has to
//! survive the process; and no timeout of an operation, since one that was given up may still land.

mod aio;
mod api;
mod cluster;
mod error;
mod image;
mod keyring;
mod lock;
mod object;
mod pool;
mod settings;

pub use cluster::{Client, Cluster};
pub use error::CephError;
pub use image::{Extent, Image};
pub use object::{Omap, Operation};
pub use pool::Pool;
pub use settings::Settings;
