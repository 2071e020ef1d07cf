//! Dates: ISO 8601 durations, and .NET's formats as far as templates use them.

use serde_json::Value;
use time::format_description::well_known::Rfc3339;
use time::macros::format_description;
use time::{Date, Duration, Month, OffsetDateTime, PrimitiveDateTime};

use super::args::Args;
use crate::error::shortened;

type Outcome = Result<Value, String>;

/// What `dateTimeAdd` and `utcNow` give without a format.
const COMPACT: &str = "yyyyMMddTHHmmssZ";

pub(super) fn date_time_add(args: &Args<'_>) -> Outcome {
    let base = parse(args, args.text(0)?)?;
    let span = args.text(1)?;
    let format = if args.len() > 2 { args.text(2)? } else { "u" };
    let sum = Span::parse(span).and_then(|span| span.after(base));
    let sum = sum.ok_or_else(|| {
        args.refuses(&format!(
            "'{}' is no ISO 8601 duration, or leads too far",
            shortened(span)
        ))
    })?;
    format_date(sum, Some(format))
        .map(Value::from)
        .map_err(|why| args.refuses(&why))
}

pub(super) fn date_time_from_epoch(args: &Args<'_>) -> Outcome {
    let date = OffsetDateTime::from_unix_timestamp(args.int(0)?).ok();
    let text = date.and_then(|date| date.format(&Rfc3339).ok());
    text.map(Value::from)
        .ok_or_else(|| args.refuses("the number is no date"))
}

pub(super) fn date_time_to_epoch(args: &Args<'_>) -> Outcome {
    Ok(parse(args, args.text(0)?)?.unix_timestamp().into())
}

fn parse(args: &Args<'_>, text: &str) -> Result<OffsetDateTime, String> {
    if let Ok(date) = OffsetDateTime::parse(text, &Rfc3339) {
        return Ok(date);
    }
    let seconds = format_description!("[year]-[month]-[day] [hour]:[minute]:[second]Z");
    let compact = format_description!("[year][month][day]T[hour][minute][second]Z");
    let local = format_description!("[year]-[month]-[day]T[hour]:[minute]:[second]");
    let found = PrimitiveDateTime::parse(text, seconds)
        .or_else(|_| PrimitiveDateTime::parse(text, compact))
        .or_else(|_| PrimitiveDateTime::parse(text, local));
    let day = || Date::parse(text, format_description!("[year]-[month]-[day]"));
    found
        .or_else(|_| day().map(Date::midnight))
        .map(PrimitiveDateTime::assume_utc)
        .map_err(|_| args.refuses(&format!("'{}' is no date", shortened(text))))
}

/// An ISO 8601 duration: months have no fixed length.
struct Span {
    months: i64,
    rest: Duration,
}

impl Span {
    fn parse(text: &str) -> Option<Self> {
        let (sign, text) = match text.strip_prefix('-') {
            Some(rest) => (-1, rest),
            None => (1, text),
        };
        let text = text.strip_prefix('P')?;
        let (days, clock) = text.split_once('T').map_or((text, ""), |halves| halves);
        if days.is_empty() && clock.is_empty() {
            return None;
        }
        let mut span = Self {
            months: 0,
            rest: Duration::ZERO,
        };
        for (count, unit) in parts(days)? {
            let count = count.checked_mul(sign)?;
            match unit {
                'Y' => span.months = span.months.checked_add(count.checked_mul(12)?)?,
                'M' => span.months = span.months.checked_add(count)?,
                'W' => span.add(count, 7 * 86_400)?,
                'D' => span.add(count, 86_400)?,
                _ => return None,
            }
        }
        for (count, unit) in parts(clock)? {
            let seconds = match unit {
                'H' => 3_600,
                'M' => 60,
                'S' => 1,
                _ => return None,
            };
            span.add(count.checked_mul(sign)?, seconds)?;
        }
        Some(span)
    }

    fn add(&mut self, count: i64, seconds: i64) -> Option<()> {
        let more = Duration::seconds(count.checked_mul(seconds)?);
        self.rest = self.rest.checked_add(more)?;
        Some(())
    }

    fn after(&self, base: OffsetDateTime) -> Option<OffsetDateTime> {
        let month = i64::from(base.year()) * 12 + i64::from(u8::from(base.month())) - 1;
        let month = month.checked_add(self.months)?;
        let year = i32::try_from(month.div_euclid(12)).ok()?;
        let name = Month::try_from(u8::try_from(month.rem_euclid(12) + 1).ok()?).ok()?;
        let day = base.day().min(name.length(year));
        let date = Date::from_calendar_date(year, name, day).ok()?;
        base.replace_date(date).checked_add(self.rest)
    }
}

/// Numbers, each with the letter behind it.
fn parts(text: &str) -> Option<Vec<(i64, char)>> {
    let mut found = Vec::new();
    let mut rest = text;
    while !rest.is_empty() {
        let end = rest.find(|c: char| !c.is_ascii_digit())?;
        let unit = rest[end..].chars().next()?;
        found.push((rest[..end].parse().ok()?, unit));
        rest = &rest[end + unit.len_utf8()..];
    }
    Some(found)
}

/// A date in a format of .NET.
pub(crate) fn format_date(date: OffsetDateTime, format: Option<&str>) -> Result<String, String> {
    let utc = date.checked_to_offset(time::UtcOffset::UTC);
    let date = utc.ok_or_else(|| "the date is not between the years -9999 and 9999".to_owned())?;
    let pattern = match format.unwrap_or(COMPACT) {
        "u" => "yyyy-MM-dd HH:mm:ssZ",
        "s" => "yyyy-MM-ddTHH:mm:ss",
        "o" | "O" => "yyyy-MM-ddTHH:mm:ss.fffffffZ",
        "d" => "M/d/yyyy",
        other => other,
    };
    let refused = || {
        format!(
            "the date format '{}' is not supported: it has letters other than y, M, d, H, m, s, f, T and Z",
            shortened(pattern)
        )
    };
    let mut out = String::new();
    let mut rest = pattern;
    while let Some(c) = rest.chars().next() {
        let run = rest.len() - rest.trim_start_matches(c).len();
        let count = run / c.len_utf8();
        let width = count.min(9);
        match c {
            'y' if count == 2 => out += &format!("{:02}", date.year().rem_euclid(100)),
            'y' => out += &format!("{:0width$}", date.year()),
            'M' if count <= 2 => out += &format!("{:0width$}", u8::from(date.month())),
            'd' if count <= 2 => out += &format!("{:0width$}", date.day()),
            'H' if count <= 2 => out += &format!("{:0width$}", date.hour()),
            'm' if count <= 2 => out += &format!("{:0width$}", date.minute()),
            's' if count <= 2 => out += &format!("{:0width$}", date.second()),
            'f' if count <= 7 => out += &format!("{:09}", date.nanosecond())[..count],
            'T' | 'Z' => out += &rest[..run],
            c if c.is_alphabetic() => return Err(refused()),
            _ => out += &rest[..run],
        }
        rest = &rest[run..];
    }
    Ok(out)
}
