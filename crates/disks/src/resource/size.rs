//! Sizes as people write them.

/// Bytes of `10GiB`, `10G`, `512M` or `10737418240`.
///
/// A single letter is binary, as it is for QEMU and for the sizes of `az disk` (whose GB are GiB);
/// `GB` is refused because half of its readers take it for 10^9.
///
/// # Errors
/// What is wrong, as one sentence.
pub fn parse_size(text: &str) -> Result<u64, String> {
    let digits = text.trim_end_matches(|c: char| !c.is_ascii_digit());
    let suffix = text[digits.len()..].trim_start();
    let shift = match suffix.to_ascii_lowercase().as_str() {
        "" | "b" => 0,
        "k" | "kib" => 10,
        "m" | "mib" => 20,
        "g" | "gib" => 30,
        "t" | "tib" => 40,
        _ => {
            return Err(format!(
                "'{text}' is no size; write bytes or a number with KiB, MiB, GiB or TiB (K, M, G \
                 and T mean the same)"
            ));
        }
    };
    // `u64::from_str` would take a leading plus sign.
    if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return Err(format!(
            "'{text}' is no size; write a whole number of bytes, KiB, MiB, GiB or TiB (1536MiB for 1.5 GiB)"
        ));
    }
    let number = digits.parse::<u64>().ok();
    number
        .and_then(|number| number.checked_mul(1 << shift))
        .ok_or_else(|| format!("'{text}' is larger than any disk"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_are_binary() {
        for (text, bytes) in [
            ("0", 0),
            ("512", 512),
            ("512B", 512),
            ("4k", 4096),
            ("10GiB", 10 << 30),
            ("10 GiB", 10 << 30),
            ("10G", 10 << 30),
            ("3m", 3 << 20),
            ("64TiB", 64 << 40),
        ] {
            assert_eq!(parse_size(text), Ok(bytes), "{text}");
        }
    }

    #[test]
    fn anything_else_is_refused() {
        for text in [
            "",
            "G",
            "-1",
            "1.5G",
            "10GB",
            "1e9",
            "+1",
            "10Gi",
            "1 0",
            "99999999999T",
            "٣",
        ] {
            assert!(parse_size(text).is_err(), "{text}");
        }
        for text in ["1.5GiB", "1e9", "0x10", "", "-1"] {
            let why = parse_size(text).unwrap_err();
            assert!(why.contains("whole number"), "{text}: {why}");
        }
        let why = parse_size("99999999999T").unwrap_err();
        assert!(why.contains("larger"), "{why}");
    }
}
