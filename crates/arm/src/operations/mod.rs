//! Operations that outlive their requests, and the server.
//!
//! # Order of steps
//!
//! 1. the operation is in the catalog, with what is needed to go on with it;
//! 2. a thread of its own does the work, and the request waits for it for a moment: what is short is answered as if
//!    there were no operation;
//! 3. what has become of it is in the catalog.
//!
//! A process that dies between 1 and 3 leaves an operation that goes on: the next start of the server does its work
//! again, each step of which finds what the one before has left. One that cannot go on ends as failed.
//!
//! Where several servers serve an installation, 1 says which of them does 2, and another one goes on with it when that is
//! gone. Two requests about one resource at two servers: each looks for the operation of the other once its own is in the
//! catalog, so that one of both at least is refused.

mod asking;
mod failure;
mod going;
mod lifecycle;
mod owners;
mod parts;
mod views;

pub use asking::Worker;
pub use failure::{cut_off, failure, preempted};
pub use going::{Going, Share};
pub use lifecycle::{PATIENCE, begin, begin_after, forget_ended, go_on, new, wait};
pub use owners::Owners;
pub use parts::Server;
pub use views::{accepted, result, status, status_of, watched, watching};
