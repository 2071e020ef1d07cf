//! What a partition table says of the sectors of its disk.

use super::{ImportError, SourceImage};

/// The header of a GPT is in the second logical sector, and begins so (UEFI 2.10 §5.3.2).
const GPT: &[u8; 8] = b"EFI PART";

/// The logical sector size that the place of the GPT tells. None without a GPT, and when there is one
/// for either size, as some hybrids have it.
///
/// # Errors
/// [`ImportError`]: the image cannot be read.
pub(super) fn logical_sector_size(image: &mut dyn SourceImage) -> Result<Option<u32>, ImportError> {
    Ok(match (has_gpt(image, 512)?, has_gpt(image, 4096)?) {
        (true, false) => Some(512),
        (false, true) => Some(4096),
        _ => None,
    })
}

fn has_gpt(image: &mut dyn SourceImage, at: u64) -> Result<bool, ImportError> {
    let mut magic = [0; GPT.len()];
    if image.size() < at + GPT.len() as u64 {
        return Ok(false);
    }
    image.read_at(at, &mut magic)?;
    Ok(magic == *GPT)
}
