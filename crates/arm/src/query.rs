//! The query of a request: the version of the API, a filter, and pages.

use url::form_urlencoded;
use uuid::Uuid;

use crate::error::ArmError;
use crate::filter::Filter;
use installation::catalog::Kind;

/// Most items of a page.
const PAGE: usize = 1000;
/// More bytes than any name has.
const MAX_NAME: usize = 255;

/// What the query says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Query {
    /// The version, as it was sent.
    pub api_version: String,
    /// What is asked for of a list.
    pub filter: Filter,
    /// The filter as it was sent.
    pub filter_text: Option<String>,
    /// Most items that a page may have.
    pub top: usize,
    /// The last item of the page before.
    pub after: Option<String>,
}

impl Query {
    /// Parses the part of a URL after `?`.
    ///
    /// # Errors
    /// 400 without a version, or for a filter, a number of items or a token that is none. Any date is a version:
    /// clients mix several for one type, and what is not known of a body is refused there.
    pub fn parse(query: &str) -> Result<Self, ArmError> {
        let mut found = Self {
            api_version: String::new(),
            filter: Filter::default(),
            filter_text: None,
            top: PAGE,
            after: None,
        };
        for (name, value) in form_urlencoded::parse(query.as_bytes()) {
            match name.to_ascii_lowercase().as_str() {
                "api-version" => found.api_version = value.into_owned(),
                "$filter" => {
                    found.filter = Filter::parse(&value).map_err(|error| {
                        let code = "InvalidFilterInQueryString";
                        ArmError::new(400, code, format!("Invalid $filter in the query: {error}."))
                    })?;
                    found.filter_text = Some(value.into_owned());
                }
                "$top" => {
                    let top = value.parse().ok().filter(|top: &usize| *top > 0);
                    found.top = top.ok_or_else(|| wrong("$top", &value))?.min(PAGE);
                }
                "$skiptoken" => match is_key(&value) {
                    true => found.after = Some(value.into_owned()),
                    false => return Err(wrong("$skiptoken", &value)),
                },
                _ => {}
            }
        }
        if found.api_version.is_empty() {
            return Err(ArmError::new(
                400,
                "MissingApiVersionParameter",
                "The api-version query parameter (?api-version=) is required for all requests.",
            ));
        }
        if !is_version(&found.api_version) {
            return Err(ArmError::new(
                400,
                "InvalidApiVersionParameter",
                format!(
                    "The api-version '{}' is invalid. It is a date, as 2025-01-02, and may end in -preview.",
                    found.api_version.chars().take(40).collect::<String>()
                ),
            ));
        }
        Ok(found)
    }

    /// The query of the page after the one whose last item is `last`.
    pub fn next(&self, last: &str) -> String {
        let mut query = form_urlencoded::Serializer::new(String::new());
        query.append_pair("api-version", &self.api_version);
        if let Some(filter) = &self.filter_text {
            query.append_pair("$filter", filter);
        }
        if self.top != PAGE {
            query.append_pair("$top", &self.top.to_string());
        }
        query.append_pair("$skiptoken", last).finish()
    }
}

fn wrong(parameter: &str, value: &str) -> ArmError {
    let value: String = value.chars().take(80).collect();
    ArmError::parameter(
        parameter,
        format!("The value '{value}' of the query parameter {parameter} is invalid."),
    )
}

/// What the key of an item in a list looks like: `disk/NAME`, or the id of a deployment.
fn is_key(text: &str) -> bool {
    if Uuid::try_parse(text).is_ok() {
        return true;
    }
    let Some((kind, name)) = text.split_once('/') else {
        return false;
    };
    Kind::from_text(kind).is_some() && (1..=MAX_NAME).contains(&name.len()) && !name.contains('/')
}

/// `2025-01-02`, `2025-01-02-preview`, `2025-01-02-preview.3`
fn is_version(text: &str) -> bool {
    let Some((date, rest)) = text.as_bytes().split_at_checked(10) else {
        return false;
    };
    let is_date = date.iter().enumerate().all(|(at, byte)| match at {
        4 | 7 => *byte == b'-',
        _ => byte.is_ascii_digit(),
    });
    let word = |b: &u8| b.is_ascii_alphanumeric() || b"-.".contains(b);
    is_date && (rest.is_empty() || rest.len() < 24 && rest[0] == b'-' && rest.iter().all(word))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_date_is_a_version() {
        for version in ["2025-01-02", "2025-05-31-preview", "2099-01-01-preview.12"] {
            let query = Query::parse(&format!("api-version={version}")).unwrap();
            assert_eq!(query.api_version, version);
        }
        for (query, code) in [
            ("", "MissingApiVersionParameter"),
            ("api-version=7.4", "InvalidApiVersionParameter"),
            ("api-version=2025-1-02", "InvalidApiVersionParameter"),
            (
                "api-version=2025-01-02preview",
                "InvalidApiVersionParameter",
            ),
            ("api-version=2025-01-0\u{e9}", "InvalidApiVersionParameter"),
            (
                "api-version=2025-01-02&$filter=x",
                "InvalidFilterInQueryString",
            ),
            ("api-version=2025-01-02&$top=0", "InvalidParameter"),
            ("api-version=2025-01-02&$top=-1", "InvalidParameter"),
            ("api-version=2025-01-02&$top=all", "InvalidParameter"),
            ("api-version=2025-01-02&$skiptoken=x", "InvalidParameter"),
            ("api-version=2025-01-02&$skiptoken=", "InvalidParameter"),
            (
                "api-version=2025-01-02&$skiptoken=disk/",
                "InvalidParameter",
            ),
            ("api-version=2025-01-02&$skiptoken=vm/a", "InvalidParameter"),
        ] {
            assert_eq!(Query::parse(query).unwrap_err().code, code, "{query}");
        }
    }

    #[test]
    fn the_next_page_is_asked_for_as_this_one() {
        let text = "api-version=2025-01-02&%24filter=name%20eq%20%27x%27&$top=2";
        let query = Query::parse(text).unwrap();
        assert_eq!(query.top, 2);
        let many = Query::parse("api-version=2025-01-02&$top=5000").unwrap();
        assert_eq!(many.top, PAGE);
        let next = Query::parse(&query.next("disk/2")).unwrap();
        assert_eq!(next.after.as_deref(), Some("disk/2"));
        assert_eq!((next.filter, next.top), (query.filter.clone(), 2));
        let id = Uuid::from_u128(7).to_string();
        let next = Query::parse(&query.next(&id)).unwrap();
        assert_eq!(next.after, Some(id), "of deployments");
    }
}
