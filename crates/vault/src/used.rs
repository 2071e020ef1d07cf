//! Who has used a key, as the vault tells.

use time::OffsetDateTime;
use uuid::Uuid;

/// Names of disks that are told apart for one key version, caller and operation. They are a claim of
/// the caller's, who could name a new one each time; what is beyond that is counted without a name.
pub const NAMED_DISKS: u16 = 256;

/// Who has used a key version for what, and when.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyUsed {
    /// The version.
    pub version: String,
    /// The identity.
    pub caller: Uuid,
    /// What it did: `KeyWrap`, `KeyUnwrap`, `KeyEncrypt` or `KeyDecrypt`.
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
