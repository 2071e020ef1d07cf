//! Strings. Positions and lengths count characters.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};
use serde_json::Value;
use url::Url;

use super::args::Args;
use crate::error::shortened;
use crate::value::{display, room};

type Outcome = Result<Value, String>;

/// What `uriComponent` leaves as it is: RFC 3986's unreserved characters.
const RESERVED: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~');

pub(super) fn concat(args: &Args<'_>) -> Outcome {
    if matches!(args.value(0), Value::Array(_)) {
        let mut joined = Vec::new();
        for at in 0..args.len() {
            joined.extend_from_slice(args.array(at)?);
        }
        return Ok(Value::Array(joined));
    }
    let mut joined = String::new();
    for value in args.values() {
        match value {
            Value::String(_) | Value::Number(_) | Value::Bool(_) => joined += &display(value),
            other => return Err(args.expects("a string or an array", other)),
        }
    }
    Ok(joined.into())
}

pub(super) fn string(args: &Args<'_>) -> Outcome {
    Ok(display(args.value(0)).into())
}

pub(super) fn to_lower(args: &Args<'_>) -> Outcome {
    Ok(args.text(0)?.to_lowercase().into())
}

pub(super) fn to_upper(args: &Args<'_>) -> Outcome {
    Ok(args.text(0)?.to_uppercase().into())
}

pub(super) fn trim(args: &Args<'_>) -> Outcome {
    Ok(args.text(0)?.trim().into())
}

pub(super) fn replace(args: &Args<'_>) -> Outcome {
    let (text, old, new) = (args.text(0)?, args.text(1)?, args.text(2)?);
    if old.is_empty() {
        return Err(args.refuses("the string to replace is empty"));
    }
    let found = text.matches(old).count();
    room(text.len().saturating_add(found.saturating_mul(new.len())))?;
    Ok(text.replace(old, new).into())
}

/// By one delimiter, or any of an array.
pub(super) fn split(args: &Args<'_>) -> Outcome {
    let text = args.text(0)?;
    let delimiters: Vec<&str> = match args.value(1) {
        Value::Array(elements) => {
            let texts = elements.iter().map(|element| {
                element
                    .as_str()
                    .ok_or_else(|| args.expects("an array of strings", element))
            });
            texts.collect::<Result<_, _>>()?
        }
        _ => vec![args.text(1)?],
    };
    let delimiters: Vec<_> = delimiters.into_iter().filter(|it| !it.is_empty()).collect();
    if delimiters.len() > MAX_DELIMITERS {
        return Err(args.refuses(&format!("there are more than {MAX_DELIMITERS} delimiters")));
    }
    if delimiters.iter().any(|it| it.len() > MAX_DELIMITER) {
        return Err(args.refuses(&format!("a delimiter has more than {MAX_DELIMITER} bytes")));
    }
    let mut pieces = Vec::new();
    let mut begin = 0;
    let mut at = 0;
    while at < text.len() {
        match delimiters.iter().find(|it| text[at..].starts_with(**it)) {
            Some(delimiter) => {
                room((pieces.len() + 1).saturating_mul(size_of::<Value>()))?;
                pieces.push(Value::from(&text[begin..at]));
                at += delimiter.len();
                begin = at;
            }
            None => at += text[at..].chars().next().map_or(1, char::len_utf8),
        }
    }
    pieces.push(Value::from(&text[begin..]));
    Ok(Value::Array(pieces))
}

/// How many delimiters `split` looks for.
const MAX_DELIMITERS: usize = 8;
/// Bytes of a delimiter: each is compared at each place of the text.
const MAX_DELIMITER: usize = 64;

pub(super) fn join(args: &Args<'_>) -> Outcome {
    let (elements, delimiter) = (args.array(0)?, args.text(1)?);
    let pieces: Vec<_> = elements.iter().map(display).collect();
    let size = pieces.iter().map(String::len).sum::<usize>();
    room(size.saturating_add(pieces.len().saturating_mul(delimiter.len())))?;
    Ok(pieces.join(delimiter).into())
}

pub(super) fn substring(args: &Args<'_>) -> Outcome {
    let (text, start) = (args.text(0)?, args.int(1)?);
    let characters = text.chars().count() as i64;
    let rest = characters.saturating_sub(start);
    let length = if args.len() > 2 { args.int(2)? } else { rest };
    if start < 0 || length < 0 || length > rest {
        return Err(args.refuses(&format!(
            "the index '{start}' and length '{length}' must refer to a location within the string of length '{characters}'"
        )));
    }
    let taken = text.chars().skip(start as usize).take(length as usize);
    Ok(taken.collect::<String>().into())
}

pub(super) fn starts_with(args: &Args<'_>) -> Outcome {
    let (text, start) = (lower(args, 0)?, lower(args, 1)?);
    Ok(text.starts_with(&start).into())
}

pub(super) fn ends_with(args: &Args<'_>) -> Outcome {
    let (text, end) = (lower(args, 0)?, lower(args, 1)?);
    Ok(text.ends_with(&end).into())
}

fn lower(args: &Args<'_>, at: usize) -> Result<String, String> {
    Ok(args.text(at)?.to_lowercase())
}

pub(super) fn pad_left(args: &Args<'_>) -> Outcome {
    let text = match args.value(0) {
        value @ (Value::String(_) | Value::Number(_)) => display(value),
        other => return Err(args.expects("a string or an integer", other)),
    };
    let filler = if args.len() > 2 { args.text(2)? } else { " " };
    let mut filler = filler.chars();
    let (Some(filler), None) = (filler.next(), filler.next()) else {
        return Err(args.refuses("the padding is to be one character"));
    };
    let width = args.int(1)?.max(0) as usize;
    let missing = width.saturating_sub(text.chars().count());
    room(missing.saturating_mul(filler.len_utf8()))?;
    let padding = std::iter::repeat_n(filler, missing);
    Ok(padding.chain(text.chars()).collect::<String>().into())
}

pub(super) fn json(args: &Args<'_>) -> Outcome {
    parse_json(args, args.text(0)?)
}

fn parse_json(args: &Args<'_>, text: &str) -> Outcome {
    room(values_in(text).saturating_mul(size_of::<Value>()))?;
    let parsed = serde_json::from_str(text);
    parsed.map_err(|e| args.refuses(&format!("the string is no valid JSON: {e}")))
}

/// How many values a JSON text can have: they take more memory than their text.
fn values_in(text: &str) -> usize {
    text.bytes().filter(|byte| b",[{:".contains(byte)).count()
}

pub(super) fn base64(args: &Args<'_>) -> Outcome {
    Ok(STANDARD.encode(args.text(0)?).into())
}

pub(super) fn base64_to_string(args: &Args<'_>) -> Outcome {
    decoded(args).map(Value::from)
}

pub(super) fn base64_to_json(args: &Args<'_>) -> Outcome {
    parse_json(args, &decoded(args)?)
}

fn decoded(args: &Args<'_>) -> Result<String, String> {
    let bytes = STANDARD.decode(args.text(0)?).ok();
    bytes
        .and_then(|bytes| String::from_utf8(bytes).ok())
        .ok_or_else(|| args.refuses("the string is no base64 of a UTF-8 text"))
}

pub(super) fn data_uri(args: &Args<'_>) -> Outcome {
    let encoded = STANDARD.encode(display(args.value(0)));
    Ok(format!("data:text/plain;charset=utf8;base64,{encoded}").into())
}

pub(super) fn uri(args: &Args<'_>) -> Outcome {
    let (base, relative) = (args.text(0)?, args.text(1)?);
    let joined = Url::parse(base).and_then(|base| base.join(relative));
    joined.map(|url| Value::from(url.as_str())).map_err(|e| {
        args.refuses(&format!(
            "'{}' and '{}' give no absolute URI: {e}",
            shortened(base),
            shortened(relative)
        ))
    })
}

pub(super) fn uri_component(args: &Args<'_>) -> Outcome {
    Ok(utf8_percent_encode(args.text(0)?, RESERVED)
        .to_string()
        .into())
}

pub(super) fn uri_component_to_string(args: &Args<'_>) -> Outcome {
    let decoded = percent_decode_str(args.text(0)?).decode_utf8();
    decoded
        .map(Value::from)
        .map_err(|_| args.refuses("the string does not decode to UTF-8"))
}
