//! Sizes for people.

/// Units of sizes; each is 1024 of the one before.
const UNITS: [&str; 7] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];

/// A number of bytes: `10 GiB` for exactly that, `10.0 GiB` for a little more or less.
pub fn size_text(bytes: u64) -> String {
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
            assert_eq!(size_text(bytes), expected, "{bytes}");
        }
    }
}
