//! Causes as one line.

use std::error::Error as StdError;

use azure_core::error::Error;

/// Characters of a server's text that a message repeats at most.
const REPEATED: usize = 200;

/// An error with its causes in one line; libraries say the essential in the last of them.
pub(super) fn chain(error: &Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        cause = error.source();
    }
    one_line(&text)
}

/// A server's text as a part of a message: one line, of printable characters, not too long.
pub(super) fn one_line(text: &str) -> String {
    let words: Vec<&str> = text.split_whitespace().collect();
    let line: String = words
        .join(" ")
        .chars()
        .filter(|c| !c.is_control())
        .take(REPEATED)
        .collect();
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_servers_text_becomes_one_printable_line() {
        assert_eq!(one_line("a\r\n b\tc\u{1b}[31m"), "a b c[31m");
        assert_eq!(one_line(&"x".repeat(1000)).len(), REPEATED);
    }
}
