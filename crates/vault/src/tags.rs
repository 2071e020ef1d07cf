//! What the user attaches to a key.

use std::collections::BTreeMap;

use super::{VaultError, VaultErrorCode};

/// Names and values that a user attaches to a key; the vault only keeps them.
pub type Tags = BTreeMap<String, String>;

/// Azure's limits on tags.
const MAX_TAGS: usize = 15;

const MAX_TAG_LEN: usize = 256;

/// Checks the number and the length of tags (Azure's limits).
pub(super) fn check_tags(tags: &Tags) -> Result<(), VaultError> {
    if tags.len() > MAX_TAGS {
        return Err(refused(format!(
            "{} tags are too many; a key has at most {MAX_TAGS}",
            tags.len()
        )));
    }
    let long = |text: &String| text.chars().count() > MAX_TAG_LEN;
    if tags.iter().any(|(name, value)| long(name) || long(value)) {
        return Err(refused(format!(
            "a tag's name and its value have at most {MAX_TAG_LEN} characters each"
        )));
    }
    Ok(())
}

fn refused(message: String) -> VaultError {
    VaultError::new(VaultErrorCode::BadParameter, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_have_azures_limits() {
        let tags = |n: usize, len: usize| -> Tags {
            (0..n).map(|i| (format!("t{i}"), "ä".repeat(len))).collect()
        };
        check_tags(&tags(15, 256)).unwrap();
        assert!(check_tags(&tags(16, 1)).is_err());
        assert!(check_tags(&tags(1, 257)).is_err());
    }
}
