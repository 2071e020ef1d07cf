//! Text of the other process.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Text that fits on one line of a log or a terminal, whoever said it: newlines are spaces, and what a
/// terminal obeys, or what turns the direction of writing, is gone.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(from = "String", into = "String")]
pub struct Line(String);

impl Line {
    /// Any value, as it is printed.
    pub fn of(value: &impl fmt::Display) -> Self {
        value.to_string().into()
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl From<String> for Line {
    fn from(text: String) -> Self {
        let printable = |c: char| match c {
            '\n' => Some(' '),
            '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => None,
            c if c.is_control() => None,
            c => Some(c),
        };
        let line: String = text.chars().filter_map(printable).collect();
        Self(line.trim().to_owned())
    }
}

impl From<&str> for Line {
    fn from(text: &str) -> Self {
        text.to_owned().into()
    }
}

impl From<Line> for String {
    fn from(line: Line) -> Self {
        line.0
    }
}

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_that_a_terminal_obeys_is_left() {
        let json = r#""two\nlines \u001b[2J\u0007\u202ex\u0085 ""#;
        let line: Line = serde_json::from_str(json).unwrap();
        assert_eq!(line.as_str(), "two lines [2Jx");
    }
}
