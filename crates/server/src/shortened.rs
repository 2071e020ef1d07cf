//! What an answer or the log repeats of a request.

/// Longest piece of a request that an answer or the log repeats.
const REPEATED: usize = 127;

/// What an answer or the log repeats of a request.
pub(super) fn shortened(text: &str) -> String {
    text.chars()
        .take(REPEATED)
        .map(|c| if c.is_control() { '\u{fffd}' } else { c })
        .collect()
}
