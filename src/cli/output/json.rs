//! JSON: as it is, and coloured.

use std::io::{self, Write};

use serde::Serialize;
use serde_json::Value;
use serde_json::ser::{Formatter, PrettyFormatter, Serializer};

const KEY: &[u8] = b"\x1b[1;34m";
const STRING: &[u8] = b"\x1b[32m";
const OTHER: &[u8] = b"\x1b[36m";
const PLAIN: &[u8] = b"\x1b[0m";

/// In lines, with indents.
pub(super) fn pretty(value: &Value) -> Result<String, serde_json::Error> {
    serde_json::to_string_pretty(value)
}

/// In lines, with colours that a terminal shows.
pub(super) fn coloured(value: &Value) -> Result<String, serde_json::Error> {
    with(value, Coloured::new())
}

fn with(value: &Value, formatter: impl Formatter) -> Result<String, serde_json::Error> {
    let mut text = Vec::new();
    value.serialize(&mut Serializer::with_formatter(&mut text, formatter))?;
    Ok(String::from_utf8_lossy(&text).into_owned())
}

/// What writes it in lines, with the colours around each name and value.
struct Coloured<'a> {
    lines: PrettyFormatter<'a>,
    in_key: bool,
}

impl Coloured<'_> {
    fn new() -> Self {
        Self {
            lines: PrettyFormatter::new(),
            in_key: false,
        }
    }

    fn value<W: ?Sized + Write>(writer: &mut W, text: impl std::fmt::Display) -> io::Result<()> {
        writer.write_all(OTHER)?;
        write!(writer, "{text}")?;
        writer.write_all(PLAIN)
    }
}

impl Formatter for Coloured<'_> {
    fn write_null<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        Self::value(writer, "null")
    }

    fn write_bool<W: ?Sized + Write>(&mut self, writer: &mut W, value: bool) -> io::Result<()> {
        Self::value(writer, value)
    }

    fn write_i64<W: ?Sized + Write>(&mut self, writer: &mut W, value: i64) -> io::Result<()> {
        Self::value(writer, value)
    }

    fn write_u64<W: ?Sized + Write>(&mut self, writer: &mut W, value: u64) -> io::Result<()> {
        Self::value(writer, value)
    }

    fn begin_string<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        writer.write_all(if self.in_key { KEY } else { STRING })?;
        writer.write_all(b"\"")
    }

    fn end_string<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        writer.write_all(b"\"")?;
        writer.write_all(PLAIN)
    }

    fn begin_array<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.lines.begin_array(writer)
    }

    fn end_array<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.lines.end_array(writer)
    }

    fn begin_array_value<W: ?Sized + Write>(
        &mut self,
        writer: &mut W,
        first: bool,
    ) -> io::Result<()> {
        self.lines.begin_array_value(writer, first)
    }

    fn end_array_value<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.lines.end_array_value(writer)
    }

    fn begin_object<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.lines.begin_object(writer)
    }

    fn end_object<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.lines.end_object(writer)
    }

    fn begin_object_key<W: ?Sized + Write>(
        &mut self,
        writer: &mut W,
        first: bool,
    ) -> io::Result<()> {
        self.in_key = true;
        self.lines.begin_object_key(writer, first)
    }

    fn end_object_key<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.in_key = false;
        self.lines.end_object_key(writer)
    }

    fn begin_object_value<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.lines.begin_object_value(writer)
    }

    fn end_object_value<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.lines.end_object_value(writer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn without_its_colours_it_is_the_same_json() {
        let value = json!({
            "name": "a\u{1b}[31m\"b\\", "sizes": [1, -2, 0.5], "none": null, "yes": true,
            "empty": {}, "no": [], "in": {"n": "x"},
        });
        let coloured = coloured(&value).unwrap();
        assert!(coloured.contains("\u{1b}[1;34m\"name\"\u{1b}[0m: \u{1b}[32m\"a"));
        let mut bare = coloured;
        for colour in [KEY, STRING, OTHER, PLAIN] {
            bare = bare.replace(std::str::from_utf8(colour).unwrap(), "");
        }
        assert_eq!(bare, pretty(&value).unwrap());
    }
}
