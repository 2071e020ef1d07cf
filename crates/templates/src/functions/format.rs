//! `format`: .NET's composite formats, as far as they are of use for integers and strings.

use serde_json::Value;

use super::args::Args;
use crate::value::{display, room};

pub(super) fn format(args: &Args<'_>) -> Result<Value, String> {
    let pattern = args.text(0)?;
    let mut out = String::new();
    let mut rest = pattern;
    while let Some(at) = rest.find(['{', '}']) {
        out += &rest[..at];
        let brace = &rest[at..=at];
        rest = &rest[at + 1..];
        if let Some(after) = rest.strip_prefix(brace) {
            out += brace;
            rest = after;
        } else if let Some((item, after)) = rest.split_once('}').filter(|_| brace == "{") {
            out += &self::item(args, item)?;
            rest = after;
        } else {
            return Err(args.refuses("the format string has a brace without another"));
        }
        room(out.len())?;
    }
    out += rest;
    Ok(out.into())
}

/// What stands for `{index,width:format}`.
fn item(args: &Args<'_>, item: &str) -> Result<String, String> {
    let (place, format) = item
        .split_once(':')
        .map_or((item, None), |(place, format)| (place, Some(format)));
    let (index, width) = place
        .split_once(',')
        .map_or((place, None), |(index, width)| (index, Some(width)));
    let index: usize = index
        .trim()
        .parse()
        .map_err(|_| args.refuses("the format string has an index that is no number"))?;
    if index >= args.len() - 1 {
        return Err(args.refuses(&format!(
            "the format string asks for the argument '{index}', which is not provided"
        )));
    }
    let value = args.value(index + 1);
    let text = match format {
        Some(format) => with_format(args, value, format)?,
        None => display(value),
    };
    match width {
        Some(width) => padded(args, &text, width),
        None => Ok(text),
    }
}

/// To the right of so many blanks, or to the left for a negative width.
fn padded(args: &Args<'_>, text: &str, width: &str) -> Result<String, String> {
    let width: i64 = width
        .trim()
        .parse()
        .map_err(|_| args.refuses("the format string has a width that is no number"))?;
    let places = usize::try_from(width.unsigned_abs()).unwrap_or(usize::MAX);
    let missing = places.saturating_sub(text.chars().count());
    room(missing)?;
    let blanks = " ".repeat(missing);
    Ok(if width < 0 {
        format!("{text}{blanks}")
    } else {
        format!("{blanks}{text}")
    })
}

/// How many digits a format may ask for.
const MAX_DIGITS: usize = 99;

/// `D` and `X` with a number of digits, `N` with commas, and zeros for as many digits. Strings have no formats.
fn with_format(args: &Args<'_>, value: &Value, format: &str) -> Result<String, String> {
    let Some(number) = value.as_i64() else {
        return Ok(display(value));
    };
    let refused = || {
        let format = crate::error::shortened(format);
        args.refuses(&format!("the number format '{format}' is not supported"))
    };
    let kind = format.chars().next().unwrap_or('D');
    let digits = format.get(1..).filter(|_| kind != '0').unwrap_or_default();
    let digits: Option<usize> = if digits.is_empty() {
        None
    } else {
        Some(digits.parse().map_err(|_| refused())?)
    };
    let least = digits.unwrap_or(0);
    if least > MAX_DIGITS || format.len() > MAX_DIGITS {
        return Err(refused());
    }
    let sign = if number < 0 { "-" } else { "" };
    let amount = number.unsigned_abs();
    match kind {
        'D' | 'd' => Ok(format!("{sign}{amount:0least$}")),
        'X' => Ok(format!("{number:0least$X}")),
        'x' => Ok(format!("{number:0least$x}")),
        'N' | 'n' => {
            let decimals = digits.unwrap_or(2);
            let point = if decimals > 0 { "." } else { "" };
            let zeros = "0".repeat(decimals);
            Ok(format!("{sign}{}{point}{zeros}", grouped(amount)))
        }
        '0' if format.bytes().all(|byte| byte == b'0') => {
            let least = format.len();
            Ok(format!("{sign}{amount:0least$}"))
        }
        _ => Err(refused()),
    }
}

/// With a comma before each three digits.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut grouped = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    grouped
}
