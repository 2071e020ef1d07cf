//! Values as a table shows them to people.

use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::printable::printable;
use vault::KeyUrl;

/// What stands where there is no value.
pub(in crate::cli) const NOTHING: &str = "-";

/// Digits of a key's version that tell it from the others of the key.
const VERSION_DIGITS: usize = 8;

/// Units of sizes; each is 1024 of the one before.
const UNITS: [&str; 7] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];

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

/// A number of bytes: `10 GiB` for exactly that, `10.0 GiB` for a little more or less.
pub(in crate::cli) fn size_cell(bytes: u64) -> String {
    let mut unit = 0;
    while unit + 1 < UNITS.len() && (bytes >> (10 * (unit + 1))) > 0 {
        unit += 1;
    }
    let one = 1_u128 << (10 * unit);
    if u128::from(bytes) % one == 0 {
        return format!("{} {}", bytes >> (10 * unit), UNITS[unit]);
    }
    let mut tenths = (u128::from(bytes) * 10 + one / 2) / one;
    if tenths >= 10 * 1024 && unit + 1 < UNITS.len() {
        // What rounds to 1024.0 MiB is 1.0 GiB.
        (tenths, unit) = (10, unit + 1);
    }
    format!("{}.{} {}", tenths / 10, tenths % 10, UNITS[unit])
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
    fn sizes_are_exact_or_have_a_decimal() {
        for (bytes, expected) in [
            (0, "0 B"),
            (1, "1 B"),
            (1023, "1023 B"),
            (1024, "1 KiB"),
            (1536, "1.5 KiB"),
            (10 << 30, "10 GiB"),
            ((10 << 30) + 512, "10.0 GiB"),
            ((1 << 30) - 1, "1.0 GiB"),
            ((1 << 30) - (1 << 20), "1023 MiB"),
            (u64::MAX, "16.0 EiB"),
        ] {
            assert_eq!(size_cell(bytes), expected, "{bytes}");
        }
    }

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
