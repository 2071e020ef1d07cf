//! Who has used a key, as the vault tells.

use time::OffsetDateTime;
use uuid::Uuid;

/// The operation of a disk that was unregistered while the key version wrapped it, in
/// [`KeyUsed::operation`]; the origin is its directory then.
pub const UNREGISTERED: &str = "DiskUnregister";

/// Who has used a key version for what, and when.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyUsed {
    /// The version.
    pub version: String,
    /// The identity.
    pub caller: Uuid,
    /// What it did: `KeyWrap`, `KeyUnwrap`, `KeyEncrypt` or `KeyDecrypt`; or [`UNREGISTERED`].
    pub operation: String,
    /// For which disk, as the caller said; `None` where it did not.
    pub disk: Option<String>,
    /// Where it asked from the last time.
    pub origin: String,
    /// The first time.
    pub first: OffsetDateTime,
    /// The last time.
    pub last: OffsetDateTime,
    /// How often, in all.
    pub uses: u64,
}
