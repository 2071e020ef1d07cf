//! The names in a tar archive, of which an OVA is one.

use super::raw;
use super::raw::RawImage;
use super::{ImportError, SourceImage};

/// Bytes of a header, and what members are filled up to.
const RECORD: u64 = 512;
/// Members that are looked at: an OVA has a description, a manifest and some disks.
const MOST: usize = 64;

/// The names of the first members, as POSIX.1-1988's `ustar` header has them: the name at 0 (100
/// bytes), the size in octal digits at 124 (12 bytes), or in base 256 when the first bit is set.
///
/// # Errors
/// [`ImportError::Io`].
pub(super) fn members(file: &mut RawImage) -> Result<Vec<String>, ImportError> {
    let mut names = Vec::new();
    let mut at = 0;
    while names.len() < MOST && at < file.size() {
        let header = raw::read(file, at, RECORD as usize)?;
        let (Some(name), Some(size)) = (header.get(..100), header.get(124..136)) else {
            break;
        };
        let name: Vec<u8> = name.iter().copied().take_while(|b| *b != 0).collect();
        if name.is_empty() {
            break;
        }
        names.push(String::from_utf8_lossy(&name).into_owned());
        let Some(next) = size_of(size)
            .and_then(|size| size.checked_next_multiple_of(RECORD))
            .and_then(|size| at.checked_add(RECORD)?.checked_add(size))
        else {
            break;
        };
        at = next;
    }
    Ok(names)
}

fn size_of(field: &[u8]) -> Option<u64> {
    if field.first()? & 0x80 != 0 {
        return Some(u64::from_be_bytes(field.get(4..12)?.try_into().ok()?));
    }
    let digits: String = field
        .iter()
        .map(|b| char::from(*b))
        .filter(char::is_ascii_digit)
        .collect();
    u64::from_str_radix(&digits, 8).ok()
}
