//! From the text of a request to JSON. `az` puts the template's file into its request as it is: names without quotes,
//! comments, commas before a closing bracket and line breaks in strings are read.

use std::collections::HashMap;

use jsonc_parser::ast::{ObjectPropName, Value};
use jsonc_parser::common::{Range, Ranged};
use jsonc_parser::{CollectOptions, ParseOptions, parse_to_ast};

use crate::error::TemplateError;
use crate::limits::{MAX_BODY, MAX_DEPTH, MAX_NODES};
use crate::node::{Kind, Node, Position};

/// Reads a text. Places in the template are counted from its own beginning: that is the file that the user knows.
pub(crate) fn read(body: &[u8]) -> Result<Node, TemplateError> {
    if body.len() > MAX_BODY {
        let message =
            "The request content size exceeds the maximum size of 4 MB: make the template smaller.";
        return Err(TemplateError::RequestContentTooLarge(message.to_owned()));
    }
    let openings = body.iter().filter(|byte| b",[{".contains(byte)).count();
    if openings > MAX_NODES {
        let message = format!(
            "The request content has more than {MAX_NODES} values: make the template smaller."
        );
        return Err(TemplateError::content(&message));
    }
    let text = std::str::from_utf8(body)
        .map_err(|e| TemplateError::content(&format!("The request content is not UTF-8: {e}.")))?;
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    refuse_depth(text)?;
    let options = ParseOptions {
        allow_missing_commas: false,
        allow_hexadecimal_numbers: false,
        allow_unary_plus_numbers: false,
        allow_bare_decimal_point_numbers: false,
        allow_non_finite_numbers: false,
        ..ParseOptions::default()
    };
    let parsed = parse_to_ast(text, &CollectOptions::default(), &options).map_err(|e| {
        TemplateError::content(&format!(
            "The request content was invalid and could not be deserialized: '{e}'."
        ))
    })?;
    let Some(value) = parsed.value else {
        return Err(TemplateError::content("The request content is empty."));
    };
    let start = template_start(&value).unwrap_or_default();
    Reader::new(text, start).node(&value)
}

/// Refuses brackets within brackets before anything goes into them: the parser takes stack for each.
fn refuse_depth(text: &str) -> Result<(), TemplateError> {
    let mut depth = 0_usize;
    let mut rest = text.as_bytes();
    while let Some((byte, after)) = rest.split_first() {
        rest = after;
        match byte {
            b'[' | b'{' => depth += 1,
            b']' | b'}' => depth = depth.saturating_sub(1),
            b'"' | b'\'' => rest = after_string(rest, *byte),
            b'/' if rest.starts_with(b"/") => rest = after_first(rest, b"\n"),
            b'/' if rest.starts_with(b"*") => rest = after_first(&rest[1..], b"*/"),
            _ => {}
        }
        if depth > MAX_DEPTH {
            return Err(TemplateError::content(&format!(
                "The request content has more than {MAX_DEPTH} levels."
            )));
        }
    }
    Ok(())
}

/// What follows the end of a string.
fn after_string(text: &[u8], quote: u8) -> &[u8] {
    let mut rest = text;
    while let Some((byte, after)) = rest.split_first() {
        rest = after;
        match byte {
            b'\\' => rest = rest.get(1..).unwrap_or_default(),
            byte if *byte == quote => break,
            _ => {}
        }
    }
    rest
}

/// What follows the first occurrence of an end.
fn after_first<'a>(text: &'a [u8], end: &[u8]) -> &'a [u8] {
    let at = text.windows(end.len()).position(|window| window == end);
    at.map_or(&[], |at| &text[at + end.len()..])
}

/// Where the value of `properties.template` begins.
fn template_start(value: &Value<'_>) -> Option<usize> {
    Some(property(property(value, "properties")?, "template")?.start())
}

fn property<'a>(value: &'a Value<'a>, name: &str) -> Option<&'a Value<'a>> {
    let Value::Object(object) = value else {
        return None;
    };
    let named =
        |prop: &&jsonc_parser::ast::ObjectProp<'_>| name_of(&prop.name).eq_ignore_ascii_case(name);
    object
        .properties
        .iter()
        .rev()
        .find(named)
        .map(|prop| &prop.value)
}

fn name_of<'a>(name: &'a ObjectPropName<'a>) -> &'a str {
    match name {
        ObjectPropName::String(text) => &text.value,
        ObjectPropName::Word(word) => word.value,
    }
}

struct Reader {
    start: usize,
    /// Where each line after the first begins, from `start` on.
    lines: Vec<usize>,
}

impl Reader {
    fn new(text: &str, start: usize) -> Self {
        let breaks = text.bytes().enumerate().skip(start);
        let lines = breaks.filter(|(_, byte)| *byte == b'\n');
        Self {
            start,
            lines: lines.map(|(at, _)| at + 1).collect(),
        }
    }

    fn position(&self, range: Range) -> Position {
        let line = self.lines.partition_point(|begin| *begin <= range.start);
        let begin = match line {
            0 => self.start,
            line => self.lines[line - 1],
        };
        let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        Position {
            line: count(line + 1),
            column: count(range.start.saturating_sub(begin) + 1),
        }
    }

    fn node(&self, value: &Value<'_>) -> Result<Node, TemplateError> {
        let at = self.position(value.range());
        let kind = match value {
            Value::NullKeyword(_) => Kind::Null,
            Value::BooleanLit(lit) => Kind::Bool(lit.value),
            Value::NumberLit(lit) => Kind::Number(number(lit.value, at)?),
            Value::StringLit(lit) => Kind::Text(lit.value.to_string()),
            Value::Array(array) => {
                let elements = array.elements.iter();
                Kind::Array(
                    elements
                        .map(|element| self.node(element))
                        .collect::<Result<_, _>>()?,
                )
            }
            Value::Object(object) => self.object(object)?,
        };
        Ok(Node { at, kind })
    }

    /// Of two properties with one name the second counts, as in Azure.
    fn object(&self, object: &jsonc_parser::ast::Object<'_>) -> Result<Kind, TemplateError> {
        let mut places = HashMap::new();
        let mut entries: Vec<(String, Node)> = Vec::with_capacity(object.properties.len());
        for prop in &object.properties {
            let name = name_of(&prop.name).to_owned();
            let node = self.node(&prop.value)?;
            let place = *places
                .entry(name.to_ascii_lowercase())
                .or_insert(entries.len());
            match entries.get_mut(place) {
                Some(entry) => *entry = (name, node),
                None => entries.push((name, node)),
            }
        }
        Ok(Kind::Object(entries))
    }
}

fn number(text: &str, at: Position) -> Result<serde_json::Number, TemplateError> {
    text.parse().map_err(|_| {
        let short = crate::error::shortened(text);
        TemplateError::content(&format!(
            "The request content was invalid: '{short}' at line '{}' and column '{}' is no number.",
            at.line, at.column
        ))
    })
}
