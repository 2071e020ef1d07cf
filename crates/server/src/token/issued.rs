//! A token that was issued.

/// A token with what the SDKs want to know about it.
pub struct Issued {
    /// The token.
    pub token: String,
    /// When it expires, in Unix seconds.
    pub expires_on: i64,
    /// Seconds until then.
    pub expires_in: u64,
}
