//! Numbers in five columns: whatever a disk tells, no number is wider.

/// What stands where there is no number.
pub(crate) const NOTHING: &str = "-";

/// A number of things, or of things a second: `0`, `0.4`, `7`, `1234`, `12.3k`, `1.2M`.
pub(crate) fn count(number: f64) -> String {
    match number {
        zero if zero <= 0.0 => "0".into(),
        few if few < 0.05 => "<0.1".into(),
        few if few < 9.95 && few.fract() >= 0.05 && few.fract() < 0.95 => format!("{few:.1}"),
        some if some < 9999.5 => format!("{some:.0}"),
        many => short(many),
    }
}

/// Bytes a second in millions of them: `0`, `0.05`, `4.72`, `12.3`, `1234`, `12.3k`.
pub(crate) fn megabytes(bytes: f64) -> String {
    match bytes / 1e6 {
        zero if zero <= 0.0 => "0".into(),
        few if few < 0.005 => "<0.01".into(),
        few if few < 9.995 => format!("{few:.2}"),
        some if some < 99.95 => format!("{some:.1}"),
        some if some < 9999.5 => format!("{some:.0}"),
        many => short(many),
    }
}

/// A number from a thousand on, with a letter.
fn short(number: f64) -> String {
    let mut rest = number;
    for unit in ["k", "M", "G", "T", "P"] {
        rest /= 1000.0;
        if rest < 99.95 {
            return format!("{rest:.1}{unit}");
        }
        if rest < 999.5 {
            return format!("{rest:.0}{unit}");
        }
    }
    // Nobody counts so far, but a data plane that a guest has taken over can say it.
    "many".into()
}

/// A latency in seconds: `85µs`, `1.2ms`, `120ms`, `1.5s`; with `u` for `µ` where there is none.
pub(crate) fn latency(seconds: Option<f64>, micro: char) -> String {
    let Some(seconds) = seconds else {
        return NOTHING.into();
    };
    let (micros, millis) = (seconds * 1e6, seconds * 1e3);
    match seconds {
        _ if micros < 0.95 => format!("<1{micro}s"),
        _ if micros < 999.5 => format!("{micros:.0}{micro}s"),
        _ if millis < 9.95 => format!("{millis:.1}ms"),
        _ if millis < 999.5 => format!("{millis:.0}ms"),
        _ if seconds < 9.95 => format!("{seconds:.1}s"),
        _ => format!("{seconds:.0}s"),
    }
}

/// How much of a whole is done, in per cent: nothing where there is no whole.
pub(crate) fn percent(done: u64, total: u64) -> Option<u64> {
    let percent = u128::from(done) * 100;
    let percent = percent.checked_div(u128::from(total))?;
    // At most 100, whatever is told.
    u64::try_from(percent.min(100)).ok()
}

/// A time: `12 s`, `5 min`, `3 h`, `40 d`.
pub(crate) fn duration(seconds: i64) -> String {
    match seconds {
        ..120 => format!("{} s", seconds.max(0)),
        120..7200 => format!("{} min", seconds / 60),
        7200..172_800 => format!("{} h", seconds / 3600),
        _ => format!("{} d", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_are_at_most_five_wide() {
        for (number, expected) in [
            (0.0, "0"),
            (0.01, "<0.1"),
            (0.42, "0.4"),
            (7.0, "7"),
            (9.96, "10"),
            (9.5, "9.5"),
            (1234.4, "1234"),
            (9999.4, "9999"),
            (9999.6, "10.0k"),
            (123_456.0, "123k"),
            (999_900.0, "1.0M"),
            (1.5e9, "1.5G"),
            (f64::MAX, "many"),
            (f64::INFINITY, "many"),
        ] {
            assert_eq!(count(number), expected, "{number}");
        }
        for power in -40..600 {
            let number = 10f64.powf(f64::from(power) / 20.0);
            for text in [count(number), megabytes(number)] {
                assert!(text.len() <= 5, "{number}: {text}");
            }
        }
    }

    #[test]
    fn megabytes_are_millions() {
        for (bytes, expected) in [
            (0.0, "0"),
            (100.0, "<0.01"),
            (4096.0, "<0.01"),
            (50_000.0, "0.05"),
            (4_720_000.0, "4.72"),
            (12_340_000.0, "12.3"),
            (1.234e9, "1234"),
            (4e10, "40.0k"),
        ] {
            assert_eq!(megabytes(bytes), expected, "{bytes}");
        }
    }

    #[test]
    fn latencies_are_at_most_five_wide() {
        for (seconds, expected) in [
            (0.0, "<1µs"),
            (85e-6, "85µs"),
            (999.6e-6, "1.0ms"),
            (1.24e-3, "1.2ms"),
            (0.0096, "9.6ms"),
            (0.12, "120ms"),
            (1.5, "1.5s"),
            (64.0, "64s"),
        ] {
            assert_eq!(latency(Some(seconds), 'µ'), expected, "{seconds}");
        }
        assert_eq!(latency(None, 'u'), "-");
        assert_eq!(latency(Some(85e-6), 'u'), "85us");
        for power in -160..37 {
            let text = latency(Some(10f64.powf(f64::from(power) / 20.0)), 'u');
            assert!(text.len() <= 5, "{text}");
        }
    }

    #[test]
    fn percents_and_durations_are_whole() {
        assert_eq!(percent(41, 100), Some(41));
        assert_eq!(percent(u64::MAX, 1), Some(100));
        assert_eq!(percent(0, 0), None);
        let texts = [-5, 119, 120, 7199, 7200, 200_000].map(duration);
        assert_eq!(texts, ["0 s", "119 s", "2 min", "119 min", "2 h", "2 d"]);
    }
}
