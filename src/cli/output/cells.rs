//! Values as a table shows them to people.

use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::printable::printable;
pub(in crate::cli) use live::size_text as size_cell;
use vault::KeyUrl;

/// What stands where there is no value.
pub(in crate::cli) const NOTHING: &str = "-";

/// Digits of a key's version that tell it from the others of the key.
const VERSION_DIGITS: usize = 8;

/// A moment: RFC 3339 in whole seconds, or `-`.
pub(in crate::cli) fn time_cell(time: Option<OffsetDateTime>) -> String {
    let text = time.map(|time| time.truncate_to_second().format(&Rfc3339));
    text.and_then(Result::ok).unwrap_or_else(|| NOTHING.into())
}

/// A text; one that is a moment in RFC 3339 in whole seconds.
pub(in crate::cli) fn text_cell(text: &str) -> String {
    match OffsetDateTime::parse(text, &Rfc3339) {
        Ok(time) => time_cell(Some(time)),
        Err(_) => printable(text),
    }
}

/// A number of bytes that may not be known.
pub(in crate::cli) fn optional_size_cell(bytes: Option<u64>) -> String {
    bytes.map_or_else(|| NOTHING.into(), size_cell)
}

/// A key by its vault, its name and the first digits of its version; JSON has the whole URL.
pub(in crate::cli) fn key_cell(url: &str) -> String {
    let Ok(parsed) = url.parse::<KeyUrl>() else {
        return url.into();
    };
    let (vault, name) = (vault_of(&parsed), &parsed.key.name);
    match &parsed.key.version {
        Some(version) => format!("{vault}/{name}/{}", version_cell(version)),
        None => format!("{vault}/{name}"),
    }
}

/// A key's version by its first digits.
pub(in crate::cli) fn version_cell(version: &str) -> String {
    match version.char_indices().nth(VERSION_DIGITS) {
        Some((end, _)) => format!("{}…", &version[..end]),
        None => version.into(),
    }
}

/// The name of a key's vault, here or elsewhere: the first part of its host.
pub(in crate::cli) fn vault_of(key: &KeyUrl) -> &str {
    let host = key.vault_url.trim_start_matches("https://");
    host.split(['.', ':']).next().unwrap_or(host)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_in_whole_seconds() {
        assert_eq!(
            text_cell("2026-11-30T06:50:36.861420446Z"),
            "2026-11-30T06:50:36Z"
        );
        for text in ["2026-11-30", "web", "", "06:50:36.8Z"] {
            assert_eq!(text_cell(text), text);
        }
    }

    #[test]
    fn a_key_is_short_and_what_is_no_key_stays_as_it_is() {
        let version = "0123456789abcdef0123456789abcdef";
        let url = format!("https://myvault.vault.localhost/keys/mykey/{version}");
        assert_eq!(key_cell(&url), "myvault/mykey/01234567…");
        let url = "https://far.vault.azure.net:8443/keys/mykey";
        assert_eq!(key_cell(url), "far/mykey");
        assert_eq!(key_cell("something"), "something");
    }
}
