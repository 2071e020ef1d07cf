//! Who is let in.

mod guesses;
mod hosts;
mod sessions;
mod token;

pub(crate) use guesses::{Guesses, PAUSE};
pub(crate) use hosts::Hosts;
pub(crate) use sessions::{LIFETIME as SESSION_LIFETIME, Sessions};
pub(crate) use token::Token;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use zeroize::Zeroizing;

use keys::{KeyError, fill_random, sha256};
use subtle::ConstantTimeEq;

/// 256 random bits as text.
fn random_text() -> Result<Zeroizing<String>, KeyError> {
    let mut random = Zeroizing::new([0; 32]);
    fill_random(random.as_mut_slice())?;
    Ok(Zeroizing::new(URL_SAFE_NO_PAD.encode(random.as_slice())))
}

/// The hash of a secret: what is compared instead of it, so that its length shows in no time either.
#[derive(Debug, Clone, Copy)]
struct Hashed([u8; 32]);

impl Hashed {
    fn of(secret: &str) -> Self {
        Self(sha256(secret.as_bytes()))
    }

    fn is(&self, other: &Self) -> bool {
        self.0.ct_eq(&other.0).into()
    }
}
