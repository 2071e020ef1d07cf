//! What may be shown on a terminal.

/// A text on one line, without what a terminal obeys: a path, a name in somebody's file or a message from
/// beneath may have any characters. JSON has them escaped.
pub(crate) fn printable(text: &str) -> String {
    let plain = |c: char| if c.is_control() { ' ' } else { c };
    text.chars().map(plain).collect()
}
