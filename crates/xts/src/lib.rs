#![doc = include_str!("../README.md")]
//!
//! # Standards
//!
//! XTS is IEEE 1619-2018. The tweak is dm-crypt's `plain64`: the number of the data unit's first 512-byte sector,
//! little-endian, in bytes 0..8 of the tweak, also for data units of 4096 bytes. SP 800-38E limits a data unit to
//! 2^20 blocks; one of 4096 bytes has 256.
//!
//! # Double encryption
//!
//! A DEK may be two keys ([`keys::Dek::with_outer`]). Then a run passes through the inner cipher, and what comes of it
//! through the outer one, in one crossing of memory: the same as two dm-crypt mappings, one on top of the other, make
//! of it, the outer one at the bottom.
//!
//! # Engines
//!
//! [`Cipher`] does all that scattered memory asks for, once for all engines. An [`XtsEngine`] transforms runs of
//! whole AES blocks within one data unit. [`Cipher::new`] takes the one that is fastest on the CPU,
//! [`Cipher::with_engine`] one that the caller chooses. [`CipherStack`] has the ciphers of several layers of a
//! disk, and re-encrypts from one key to another.

#![deny(clippy::disallowed_types)]

mod aws_lc;
mod block;
#[cfg(not(feature = "fips"))]
mod choice;
mod engine;
mod error;
mod known_answer;
mod meeting;
#[cfg(not(feature = "fips"))]
mod portable;
mod scatter;
mod shared;
mod stack;
mod sync;
#[cfg(test)]
mod tests;
mod thread_cipher;
mod threads;
mod tweak;

pub use aws_lc::AwsLcEngine;
#[cfg(not(feature = "fips"))]
pub use choice::{Measured, measured_engines};
pub use engine::{DataUnit, Direction, XtsEngine};
pub use error::CipherError;
pub use known_answer::self_test;
#[cfg(not(feature = "fips"))]
pub use portable::PortableEngine;
pub use scatter::Cipher;
pub use shared::{Cursor, SharedSlice};
pub use stack::CipherStack;
pub use threads::CryptoThreads;
pub use tweak::{TweakKey, TweakValue};
