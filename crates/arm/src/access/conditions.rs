//! Conditions of requests for the bytes of a disk: those of HTTP (RFC 9110 §13), and Azure storage's of sequence numbers
//! and leases, of which a disk has none.

use std::time::SystemTime;

use time::OffsetDateTime;
use time::format_description::well_known::Rfc2822;

use super::error::BlobError;
use super::headers::only;
use server::Head;

const MATCH: &str = "if-match";
const NONE_MATCH: &str = "if-none-match";
const MODIFIED: &str = "if-modified-since";
const UNMODIFIED: &str = "if-unmodified-since";
const IF_RANGE: &str = "if-range";

/// Whether a number satisfies a condition.
type Holds = fn(u64) -> bool;

/// What a sequence number is compared with: that of a disk is 0.
const SEQUENCE: [(&str, Holds); 3] = [
    ("x-ms-if-sequence-number-le", |_| true),
    ("x-ms-if-sequence-number-lt", |wanted| wanted > 0),
    ("x-ms-if-sequence-number-eq", |wanted| wanted == 0),
];

/// What is known of a disk.
#[derive(Debug, Clone, Copy)]
pub struct Current<'a> {
    /// What tells its content from another.
    pub etag: &'a str,
    /// When it was changed last.
    pub modified: SystemTime,
}

/// Whether a request is to be answered with what it asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Met {
    /// It is.
    Yes,
    /// It reads what it has already: 304.
    NotModified,
}

/// Whether a request has any condition.
pub fn are_any(head: &Head) -> bool {
    [MATCH, NONE_MATCH, MODIFIED, UNMODIFIED]
        .iter()
        .any(|name| head.header(name).is_some())
}

/// Whether the conditions of a request are met.
///
/// # Errors
/// 412 for one that is not, 400 for what is no condition.
pub fn check(head: &Head, current: Current<'_>) -> Result<Met, BlobError> {
    check_azures(head)?;
    let unmet = || {
        let message = "The condition specified using HTTP conditional header(s) is not met.";
        BlobError::new(412, "ConditionNotMet", message)
    };
    // Of two that say the same the more exact one counts.
    let goes_on = match (only(head, MATCH)?, date(head, UNMODIFIED)?) {
        (Some(tags), _) => is_among(tags, current.etag, false),
        (None, Some(date)) => seconds(current.modified) <= date,
        (None, None) => true,
    };
    if !goes_on {
        return Err(unmet());
    }
    let is_new = match (only(head, NONE_MATCH)?, date(head, MODIFIED)?) {
        (Some(tags), _) => !is_among(tags, current.etag, true),
        (None, Some(date)) => seconds(current.modified) > date,
        (None, None) => true,
    };
    match is_new {
        true => Ok(Met::Yes),
        false if matches!(head.method.as_str(), "GET" | "HEAD") => Ok(Met::NotModified),
        false => Err(unmet()),
    }
}

/// Whether the range of a request counts: not where the client has a part of something else (`If-Range`), which all of
/// this is to replace.
///
/// # Errors
/// 400 for a header that contradicts itself.
pub fn counts_range(head: &Head, current: Current<'_>) -> Result<bool, BlobError> {
    let Some(of) = only(head, IF_RANGE)? else {
        return Ok(true);
    };
    // Whatever is no date is a tag, or nothing that anybody was given.
    match parsed(of) {
        Some(date) => Ok(seconds(current.modified) == date),
        None => Ok(of.trim() == current.etag),
    }
}

fn check_azures(head: &Head) -> Result<(), BlobError> {
    if head.header("x-ms-lease-id").is_some() {
        let message = "There is currently no lease on the blob.";
        return Err(BlobError::new(
            412,
            "LeaseNotPresentWithBlobOperation",
            message,
        ));
    }
    for (name, holds) in SEQUENCE {
        let Some(text) = only(head, name)? else {
            continue;
        };
        let wanted = text.trim().parse().map_err(|_| BlobError::header(name))?;
        if !holds(wanted) {
            let message = "The sequence number condition specified was not met.";
            return Err(BlobError::new(
                412,
                "SequenceNumberConditionNotMet",
                message,
            ));
        }
    }
    Ok(())
}

/// Whether a list of tags has this one; a weak one, `W/"…"`, where that is enough.
fn is_among(tags: &str, etag: &str, weakly: bool) -> bool {
    let is = |tag: &str| {
        let strong = tag.strip_prefix("W/").filter(|_| weakly).unwrap_or(tag);
        tag == "*" || strong == etag
    };
    tags.split(',').map(str::trim).any(is)
}

/// The date that a header says, in seconds since 1970.
fn date(head: &Head, name: &str) -> Result<Option<i64>, BlobError> {
    let text = only(head, name)?;
    text.map(|text| parsed(text).ok_or_else(|| BlobError::header(name)))
        .transpose()
}

/// A date as HTTP has it now (RFC 9110 §5.6.7), which is one as mail has it.
fn parsed(text: &str) -> Option<i64> {
    let date = OffsetDateTime::parse(text.trim(), &Rfc2822).ok()?;
    Some(date.unix_timestamp())
}

/// As exactly as HTTP tells it.
fn seconds(time: SystemTime) -> i64 {
    OffsetDateTime::from(time).unix_timestamp()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const ETAG: &str = "\"0x1\"";
    const BEFORE: &str = "Sun, 06 Nov 1994 08:49:36 GMT";
    const THEN: &str = "Sun, 06 Nov 1994 08:49:37 GMT";

    fn head(method: &str, headers: &[(&'static str, &str)]) -> Head {
        let peer = std::net::SocketAddr::from(([127, 0, 0, 1], 1));
        Head::new(method, "localhost", "/sas", peer).with_headers(headers)
    }

    fn current() -> Current<'static> {
        let then = Duration::from_secs(784_111_777) + Duration::from_millis(500);
        Current {
            etag: ETAG,
            modified: SystemTime::UNIX_EPOCH + then,
        }
    }

    #[test]
    fn conditions_are_those_of_http() {
        use Met::{NotModified, Yes};
        for (header, get, put) in [
            ((MATCH, ETAG), Ok(Yes), Ok(Yes)),
            ((MATCH, "*"), Ok(Yes), Ok(Yes)),
            ((MATCH, "\"a\", \"0x1\""), Ok(Yes), Ok(Yes)),
            ((MATCH, "W/\"0x1\""), Err(412), Err(412)),
            ((MATCH, "\"0x2\""), Err(412), Err(412)),
            ((NONE_MATCH, "\"0x2\""), Ok(Yes), Ok(Yes)),
            ((NONE_MATCH, "W/\"0x1\""), Ok(NotModified), Err(412)),
            ((NONE_MATCH, "*"), Ok(NotModified), Err(412)),
            ((MODIFIED, BEFORE), Ok(Yes), Ok(Yes)),
            ((MODIFIED, THEN), Ok(NotModified), Err(412)),
            ((UNMODIFIED, THEN), Ok(Yes), Ok(Yes)),
            ((UNMODIFIED, BEFORE), Err(412), Err(412)),
            ((UNMODIFIED, "yesterday"), Err(400), Err(400)),
            (("x-ms-lease-id", "x"), Err(412), Err(412)),
            (("x-ms-if-sequence-number-le", "0"), Ok(Yes), Ok(Yes)),
            (("x-ms-if-sequence-number-lt", "0"), Err(412), Err(412)),
            (("x-ms-if-sequence-number-eq", "7"), Err(412), Err(412)),
            (("x-ms-if-sequence-number-eq", "-1"), Err(400), Err(400)),
        ] {
            for (method, wanted) in [("GET", get), ("PUT", put)] {
                let found = check(&head(method, &[header]), current());
                let found = found.map_err(|error| error.status);
                assert_eq!(found, wanted, "{method} {header:?}");
            }
        }
        let exact = [(MATCH, ETAG), (UNMODIFIED, BEFORE)];
        assert_eq!(check(&head("GET", &exact), current()).ok(), Some(Yes));
        assert!(are_any(&head("PUT", &exact)) && !are_any(&head("PUT", &[])));
    }

    #[test]
    fn a_range_of_something_else_is_none() {
        for (of, wanted) in [
            (ETAG, true),
            (THEN, true),
            ("\"0x2\"", false),
            ("W/\"0x1\"", false),
            (BEFORE, false),
        ] {
            let found = counts_range(&head("GET", &[(IF_RANGE, of)]), current());
            assert_eq!(found.ok(), Some(wanted), "{of}");
        }
        assert_eq!(counts_range(&head("GET", &[]), current()).ok(), Some(true));
    }
}
