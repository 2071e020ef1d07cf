//! Private keys in a hardware security module, through PKCS#11.
//!
//! The vault is an embedded one in every other way: its policies, its checks and its audit log are
//! here, and only the private halves of its keys are in a token, sensitive and not extractable. The
//! vault's database has, sealed, the `CKA_ID` that finds a key's object again.

mod error;
mod keys;
mod lane;
mod module;
mod oaep;
mod token;

pub use keys::HsmKeys;
pub use token::HsmToken;
