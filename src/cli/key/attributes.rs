//! The options that say whether, when and for what a key may be used.

use clap::Args;
use time::format_description::well_known::Rfc3339;
use time::macros::format_description;
use time::{Date, OffsetDateTime, PrimitiveDateTime};

use crate::cli::CliError;
use vault::{AttributeChange, KeyChange, KeyOps};

#[derive(Args)]
pub(super) struct AttributeArgs {
    /// Whether the key is enabled
    #[arg(long, value_name = "true|false")]
    enabled: Option<bool>,
    /// Expiry time, as 2027-01-31, 2027-01-31T12:00Z or with seconds and zone; '' for none
    #[arg(long, value_name = "TIME", value_parser = parse_limit)]
    expires: Option<Limit>,
    /// Start of validity, in the same forms; '' for none
    #[arg(long, value_name = "TIME", value_parser = parse_limit)]
    not_before: Option<Limit>,
    /// Permitted operations: some of encrypt decrypt wrapKey unwrapKey sign verify
    #[arg(long, num_args = 1.., value_name = "OPERATION")]
    ops: Vec<String>,
    /// Tags, in place of those that it has: NAME=VALUE, or '' for none
    #[arg(long, num_args = 1.., value_name = "NAME=VALUE", value_parser = parse_tag)]
    tags: Vec<Option<(String, String)>>,
}

impl AttributeArgs {
    pub(super) fn change(self) -> Result<KeyChange, CliError> {
        let ops = self.ops.iter().map(String::as_str);
        Ok(KeyChange {
            attributes: AttributeChange {
                enabled: self.enabled,
                not_before: self.not_before.map(|limit| limit.0),
                expires: self.expires.map(|limit| limit.0),
            },
            key_ops: match self.ops.is_empty() {
                true => None,
                false => Some(KeyOps::from_names(ops)?),
            },
            tags: match self.tags.is_empty() {
                true => None,
                false => Some(self.tags.into_iter().flatten().collect()),
            },
        })
    }
}

/// `NAME=VALUE`; `None` for the empty text.
fn parse_tag(text: &str) -> Result<Option<(String, String)>, String> {
    if text.is_empty() {
        return Ok(None);
    }
    let (name, value) = text.split_once('=').unwrap_or((text, ""));
    match name.is_empty() {
        true => Err("write it as NAME=VALUE".into()),
        false => Ok(Some((name.into(), value.into()))),
    }
}

/// A moment, or none.
#[derive(Clone, Copy)]
struct Limit(Option<OffsetDateTime>);

/// A time; the empty text takes the limit away, as with the Azure CLI.
fn parse_limit(text: &str) -> Result<Limit, String> {
    match text.is_empty() {
        true => Ok(Limit(None)),
        false => parse_time(text).map(|time| Limit(Some(time))),
    }
}

/// RFC 3339, or the Azure CLI's `YYYY-MM-DD[THH:MMZ]`, which are in UTC.
fn parse_time(text: &str) -> Result<OffsetDateTime, String> {
    let minutes = format_description!("[year]-[month]-[day]T[hour]:[minute]Z");
    let day = format_description!("[year]-[month]-[day]");
    OffsetDateTime::parse(text, &Rfc3339)
        .or_else(|_| PrimitiveDateTime::parse(text, minutes).map(PrimitiveDateTime::assume_utc))
        .or_else(|_| Date::parse(text, day).map(|date| date.midnight().assume_utc()))
        .map_err(|_| {
            "write it as 2027-01-31, 2027-01-31T12:00Z or 2027-01-31T12:00:00+01:00".into()
        })
}

#[cfg(test)]
mod tests {
    use super::*;
    use time::macros::datetime;

    #[test]
    fn times_in_every_documented_form() {
        for (text, time) in [
            ("2027-01-31", datetime!(2027-01-31 00:00 UTC)),
            ("2027-01-31T12:30Z", datetime!(2027-01-31 12:30 UTC)),
            ("2027-01-31T12:30:05Z", datetime!(2027-01-31 12:30:05 UTC)),
            (
                "2027-01-31T12:30:05+01:00",
                datetime!(2027-01-31 11:30:05 UTC),
            ),
        ] {
            assert_eq!(parse_time(text).unwrap(), time);
        }
        for bad in [
            "",
            "2027-02-30",
            "tomorrow",
            "31.1.2027",
            "2027-01-31T12:30",
        ] {
            assert!(parse_time(bad).is_err(), "{bad}");
        }
    }
}
