//! The tokens of access that was granted to the data of disks and snapshots.
//!
//! A token is 256 random bits, shown once and stored as its SHA-256.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use time::OffsetDateTime;
use uuid::Uuid;
use zeroize::Zeroizing;

use super::{Installation, InstallationError};
use crate::catalog::AccessRecord;
use keys::{fill_random, sha256};
use vault::{VaultError, VaultErrorCode};

/// Random bytes of a token.
const TOKEN_LEN: usize = 32;

/// A token, to be handed to whoever is granted access.
pub struct AccessToken(Zeroizing<String>);

impl AccessToken {
    /// A new one, and its hash for the catalog.
    ///
    /// # Errors
    /// When there is no randomness.
    pub fn new() -> Result<(Self, [u8; 32]), InstallationError> {
        let mut random = Zeroizing::new([0; TOKEN_LEN]);
        fill_random(random.as_mut_slice())
            .map_err(|e| VaultError::caused(VaultErrorCode::Internal, "no token was made", e))?;
        let text = Zeroizing::new(URL_SAFE_NO_PAD.encode(random.as_slice()));
        let hash = sha256(text.as_bytes());
        Ok((Self(text), hash))
    }

    /// Its text: letters, digits, `-` and `_`.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl Installation {
    /// The grant of that id, if it counts now and that is its token.
    ///
    /// # Errors
    /// When the catalog cannot be read.
    pub fn access_by_token(
        &self,
        id: Uuid,
        token: &str,
    ) -> Result<Option<AccessRecord>, InstallationError> {
        let found = self.catalog().access(id)?;
        // One that is not there is compared too, so that time does not tell which are.
        let known = found.as_ref().map(|access| access.token);
        let expected = known.unwrap_or_default();
        let given = sha256(token.as_bytes());
        let equal = aws_lc_rs::constant_time::verify_slices_are_equal(&given, &expected).is_ok();
        let now = OffsetDateTime::now_utc();
        Ok(found.filter(|access| equal && access.is_live(now)))
    }
}
