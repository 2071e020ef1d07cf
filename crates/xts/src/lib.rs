//! AES-256-XTS: the only way by which data gets from guest memory to the host and back.
//!
//! The tweak is dm-crypt's `plain64`: the number of the data unit's first 512-byte sector,
//! little-endian, in bytes 0..8 of the tweak, also for 4096-byte data units. So
//! `cryptsetup open --type plain --cipher aes-xts-plain64 --key-size 512 --sector-size N` reads
//! what is written here. XTS is IEEE 1619-2018; SP 800-38E limits a data unit to 2^20 blocks,
//! which 256 never reaches.

#![deny(clippy::disallowed_types)]

mod aws_lc;
mod block;
mod engine;
mod error;
#[cfg(not(feature = "fips"))]
mod portable;
mod scatter;
mod shared;
mod stack;
#[cfg(test)]
mod tests;
mod tweak;

pub use aws_lc::AwsLcEngine;
pub use engine::{DataUnit, Direction, XtsEngine};
pub use error::CipherError;
#[cfg(not(feature = "fips"))]
pub use portable::PortableEngine;
pub use scatter::Cipher;
pub use shared::{Cursor, SharedSlice};
pub use stack::CipherStack;
pub use tweak::{TweakKey, TweakValue};
