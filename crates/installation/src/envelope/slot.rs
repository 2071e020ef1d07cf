//! One copy of a header as bytes.
//!
//! # Layout of a slot (64 KiB, in version 1: 16 KiB; integers little-endian)
//!
//! | offset | bytes | what |
//! |---|---|---|
//! | 0 | 8 | magic `SEALDISK` |
//! | 8 | 4 | format version, 2 |
//! | 12 | 4 | length of the payload, *n*, at most 65024 (in version 1: 15872) |
//! | 16 | 8 | sequence number: of all whole copies the highest one counts |
//! | 24 | 32 | HMAC-SHA256 of bytes 0..24 and the payload, key: see below |
//! | 56 | 4 | CRC-32C (Castagnoli) of the slot with these four bytes as zeros |
//! | 60 | 452 | zeros |
//! | 512 | *n* | payload: [`HeaderPayload`] as UTF-8 JSON |
//! | 512 + *n* | rest | zeros |
//!
//! Magic, version and checksum keep their places in every later format version, so that a newer
//! whole copy is told from a damaged one. The slots of each version have their own places in the
//! file, which `file.rs` describes; a copy of one version in a place of the other is refused.
//!
//! The HMAC's key is HKDF-SHA256 of the top layer's DEK (64 bytes, no salt) with the info string
//! `sealdisk header authentication v1`, 64 bytes. With double encryption the inner DEK is the input and the outer one
//! the salt, so that it takes both.

use std::ops::{Deref, DerefMut};
use std::path::Path;

use aws_lc_rs::constant_time::verify_slices_are_equal;

use super::{EnvelopeError, HeaderAuthority, HeaderKey, HeaderPayload, version_1};
use keys::Dek;

/// Bytes of one slot.
pub const SLOT_LEN: usize = VERSION_2.slot_len;
/// Bytes that the JSON may have.
pub const MAX_PAYLOAD_LEN: usize = SLOT_LEN - PAYLOAD_AT;
/// The format that is written, and the newest that is read.
pub const FORMAT_VERSION: u32 = VERSION_2.number;

/// A version of the format.
#[derive(Debug, Clone, Copy)]
pub(super) struct Version {
    pub(super) number: u32,
    /// Bytes of a slot.
    pub(super) slot_len: usize,
}

pub(super) const VERSION_1: Version = Version {
    number: 1,
    slot_len: 16 << 10,
};
pub(super) const VERSION_2: Version = Version {
    number: 2,
    slot_len: 64 << 10,
};

const MAGIC: [u8; 8] = *b"SEALDISK";
const MAC_AT: usize = 24;
const CRC_AT: usize = 56;
const PAYLOAD_AT: usize = 512;

/// A header that was authenticated under its top layer's DEK, or is new.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header(HeaderPayload);

impl Header {
    /// The header of something new.
    pub fn new(payload: HeaderPayload) -> Self {
        Self(payload)
    }
}

impl Deref for Header {
    type Target = HeaderPayload;

    fn deref(&self) -> &HeaderPayload {
        &self.0
    }
}

impl DerefMut for Header {
    fn deref_mut(&mut self) -> &mut HeaderPayload {
        &mut self.0
    }
}

/// A whole copy of a header whose authenticity nobody has checked yet.
#[derive(Debug, Clone)]
pub struct UnverifiedHeader {
    payload: HeaderPayload,
    sequence: u64,
    authenticated_bytes: Vec<u8>,
    mac: [u8; 32],
    /// Whether it is the only whole copy of its file.
    pub(super) is_alone: bool,
    /// What the others say, where that is something else.
    pub(super) others: Vec<HeaderPayload>,
}

impl UnverifiedHeader {
    /// Whether the other copy in its file is none: torn, overwritten, or damaged.
    pub fn is_alone(&self) -> bool {
        self.is_alone
    }

    /// What other whole copies in its file claim, each of which claims something else. While there are any, one of them may
    /// be all that storage has, or that a power cut leaves.
    pub fn others(&self) -> &[HeaderPayload] {
        &self.others
    }

    /// What the header claims: good for showing it and for finding the key to ask, nothing more.
    pub fn claims(&self) -> &HeaderPayload {
        &self.payload
    }

    /// What the header claims, for whoever needs nothing else of it.
    pub fn into_claims(self) -> HeaderPayload {
        self.payload
    }

    /// The sequence number that it claims.
    pub fn sequence(&self) -> u64 {
        self.sequence
    }

    /// Checks that `dek` is the top layer's and that the header was written by a holder of it.
    ///
    /// # Errors
    /// [`EnvelopeError::WrongDek`] or [`EnvelopeError::Unauthentic`].
    pub fn authenticate(self, dek: &Dek) -> Result<Header, EnvelopeError> {
        if let Some(top) = self.payload.top() {
            top.check.verify(top.id, dek)?;
        }
        self.proven_by(dek)
    }

    /// Checks that the header was written by a holder of the DEK from which `key` is derived.
    ///
    /// # Errors
    /// [`EnvelopeError::Unauthentic`], also for the header of another top layer.
    pub fn authenticate_by(self, key: &HeaderKey) -> Result<Header, EnvelopeError> {
        self.proven_by(key)
    }

    fn proven_by(self, by: &impl HeaderAuthority) -> Result<Header, EnvelopeError> {
        let right = by.header_mac(&self.authenticated_bytes);
        verify_slices_are_equal(&right, &self.mac).map_err(|_| EnvelopeError::Unauthentic {
            name: self.payload.name.clone(),
        })?;
        Ok(Header(self.payload))
    }
}

/// What a place for a slot turns out to hold.
pub(super) enum Slot<'a> {
    /// A whole copy.
    Whole(WholeCopy<'a>),
    /// Has the magic and a wrong checksum: a write that a crash cut off, or damage.
    Torn,
    /// Nothing but zeros.
    Zero,
    /// No magic, though not zeros.
    Foreign,
}

/// The bytes of a whole copy, whose payload nobody has read yet.
pub(super) struct WholeCopy<'a> {
    version: Version,
    /// What precedes the payload.
    head: &'a [u8],
    json: &'a [u8],
}

impl WholeCopy<'_> {
    /// The sequence number that it claims.
    pub(super) fn sequence(&self) -> u64 {
        u64::from_le_bytes(std::array::from_fn(|i| self.head[16 + i]))
    }

    /// Whether another one says the same, byte for byte: then what is so of one payload is so of the other.
    pub(super) fn says_the_same(&self, other: &Self) -> bool {
        self.version.number == other.version.number && self.json == other.json
    }

    /// Reads the payload.
    ///
    /// # Errors
    /// As [`decode`], for something that this program never writes.
    pub(super) fn header(&self, path: &Path) -> Result<UnverifiedHeader, EnvelopeError> {
        let malformed = |reason: String| EnvelopeError::Malformed {
            path: path.to_owned(),
            reason,
        };
        let payload = match self.version.number {
            1 => serde_json::from_slice::<version_1::Payload>(self.json).map(HeaderPayload::from),
            _ => serde_json::from_slice(self.json),
        }
        .map_err(|e| malformed(e.to_string()))?;
        payload.check().map_err(malformed)?;
        Ok(UnverifiedHeader {
            payload,
            sequence: self.sequence(),
            authenticated_bytes: [&self.head[..MAC_AT], self.json].concat(),
            mac: std::array::from_fn(|i| self.head[MAC_AT + i]),
            is_alone: false,
            others: Vec::new(),
        })
    }
}

/// Makes the bytes of a slot.
pub(super) fn encode(
    header: &Header,
    sequence: u64,
    by: &impl HeaderAuthority,
) -> Result<Vec<u8>, EnvelopeError> {
    let unwritable = |reason: String| EnvelopeError::Unwritable {
        name: header.name.clone(),
        reason,
    };
    header.check().map_err(unwritable)?;
    let json = serde_json::to_vec_pretty(&header.0).map_err(|e| unwritable(e.to_string()))?;
    if json.len() > MAX_PAYLOAD_LEN {
        return Err(unwritable(format!(
            "its {} bytes do not fit; flatten the disk, so that it has fewer layers",
            json.len()
        )));
    }
    let mut slot = vec![0; SLOT_LEN];
    slot[..8].copy_from_slice(&MAGIC);
    slot[8..12].copy_from_slice(&FORMAT_VERSION.to_le_bytes());
    slot[12..16].copy_from_slice(&(json.len() as u32).to_le_bytes());
    slot[16..24].copy_from_slice(&sequence.to_le_bytes());
    slot[PAYLOAD_AT..PAYLOAD_AT + json.len()].copy_from_slice(&json);
    let mac = by.header_mac(&[&slot[..MAC_AT], &json].concat());
    slot[MAC_AT..MAC_AT + 32].copy_from_slice(&mac);
    let checksum = checksum(&slot);
    slot[CRC_AT..CRC_AT + 4].copy_from_slice(&checksum.to_le_bytes());
    Ok(slot)
}

/// Judges the bytes in a place for slots of `version`, but for the payload of a whole copy.
///
/// # Errors
/// Content with a correct checksum that cannot be used: a newer format, or something that this
/// program never writes. A crash makes neither, so the other copy is no way out.
pub(super) fn decode<'a>(
    version: Version,
    slot: &'a [u8],
    path: &Path,
) -> Result<Slot<'a>, EnvelopeError> {
    let malformed = |reason: String| EnvelopeError::Malformed {
        path: path.to_owned(),
        reason,
    };
    if is_zero(slot) {
        return Ok(Slot::Zero);
    }
    if !slot.starts_with(&MAGIC) {
        return Ok(Slot::Foreign);
    }
    let field = |at: usize| -> [u8; 4] { std::array::from_fn(|i| slot[at + i]) };
    if u32::from_le_bytes(field(CRC_AT)) != checksum(slot) {
        return Ok(Slot::Torn);
    }
    let found = u32::from_le_bytes(field(8));
    if found > FORMAT_VERSION {
        return Err(EnvelopeError::NewerFormat {
            path: path.to_owned(),
            found,
            supported: FORMAT_VERSION,
        });
    }
    if found != version.number {
        return Err(malformed(format!("there is no header format {found} here")));
    }
    let (length, most) = (
        u32::from_le_bytes(field(12)) as usize,
        version.slot_len - PAYLOAD_AT,
    );
    if length > most {
        return Err(malformed(format!(
            "its payload claims {length} bytes where {most} fit"
        )));
    }
    Ok(Slot::Whole(WholeCopy {
        version,
        head: &slot[..PAYLOAD_AT],
        json: &slot[PAYLOAD_AT..PAYLOAD_AT + length],
    }))
}

/// Whether there is nothing but zeros. Each byte is compared with the next one, as slices: the C library is fast at
/// that in every build.
pub(super) fn is_zero(bytes: &[u8]) -> bool {
    match bytes {
        [] => true,
        [first, rest @ ..] => *first == 0 && *rest == bytes[..rest.len()],
    }
}

fn checksum(slot: &[u8]) -> u32 {
    let head = crc32c::crc32c(&slot[..CRC_AT]);
    let zeroed = crc32c::crc32c_append(head, &[0; 4]);
    crc32c::crc32c_append(zeroed, &slot[CRC_AT + 4..])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zeros_are_nothing_but_zeros() {
        assert!(is_zero(&[]) && is_zero(&[0]) && is_zero(&[0; SLOT_LEN]));
        assert!(!is_zero(&[1]) && !is_zero(&[1; 100]));
        for at in [0, 1, 63, 64, 98, 99] {
            let mut bytes = [0; 100];
            bytes[at] = 1;
            assert!(!is_zero(&bytes), "{at}");
        }
    }
}
