//! What a correct vhost-user-blk frontend may expect of an attached disk.

mod beside;
mod config;
mod discard;
mod full;
mod host;
mod lifecycle;
mod limits;
mod lost;
pub mod memory;
mod reference;
mod requests;
mod resize;
mod rings;
mod sharing;
mod waiting;

use super::MIB;
