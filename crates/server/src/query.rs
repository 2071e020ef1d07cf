//! The query of a request: the version of the API, and pages of lists.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use url::form_urlencoded;

use super::ApiError;
use super::shortened::shortened;

/// The versions of Azure's key vault API that are understood, with the previews of each before it (the
/// Azure CLI asks with one). What they have of keys differs only in what is added: rotation and
/// random bytes with 7.3.
const API_VERSIONS: &[&str] = &[
    "7.0-preview",
    "7.0",
    "7.1-preview",
    "7.1",
    "7.2-preview",
    "7.2",
    "7.3-preview",
    "7.3",
    "7.4-preview.1",
    "7.4",
    "7.5-preview.1",
    "7.5",
    "7.6-preview.1",
    "7.6-preview.2",
    "7.6",
    "2025-06-01-preview",
    "2025-07-01-preview",
    LATEST,
];
/// The latest of them.
const LATEST: &str = "2025-07-01";
/// Most items of a page, as in Azure's.
const PAGE: usize = 25;

/// What the query says.
#[derive(Debug, PartialEq, Eq)]
pub struct Query {
    /// The version, one of those that are understood.
    pub api_version: &'static str,
    /// Most items that a page may have.
    pub max_results: usize,
    /// The last item of the page before.
    pub after: Option<String>,
}

impl Query {
    /// Parses the part of a URL after `?`; a name may be percent-encoded as well as its value.
    ///
    /// # Errors
    /// 400 for a version that is missing or not understood, or a page that makes no sense.
    pub fn parse(query: &str) -> Result<Self, ApiError> {
        let mut api_version = None;
        let mut max_results = PAGE;
        let mut after = None;
        for (name, value) in form_urlencoded::parse(query.as_bytes()) {
            match name.to_ascii_lowercase().as_str() {
                "api-version" => api_version = Some(known_version(&value)?),
                "maxresults" => {
                    max_results = value
                        .parse()
                        .ok()
                        .filter(|n| (1..=PAGE).contains(n))
                        .ok_or_else(|| {
                            ApiError::bad(format!("maxresults has to be from 1 to {PAGE}"))
                        })?;
                }
                "$skiptoken" => after = Some(from_token(&value)?),
                _ => {}
            }
        }
        Ok(Self {
            api_version: api_version
                .ok_or_else(|| ApiError::bad("api-version must be specified"))?,
            max_results,
            after,
        })
    }

    /// The URL of the page after the one whose last item is `last`.
    pub fn next_link(&self, collection: &str, last: &str) -> String {
        let query = form_urlencoded::Serializer::new(String::new())
            .append_pair("api-version", self.api_version)
            .append_pair("$skiptoken", &URL_SAFE_NO_PAD.encode(last))
            .append_pair("maxresults", &self.max_results.to_string())
            .finish();
        format!("{collection}?{query}")
    }
}

fn known_version(text: &str) -> Result<&'static str, ApiError> {
    let known = API_VERSIONS.iter().find(|known| **known == text);
    known.copied().ok_or_else(|| {
        ApiError::bad(format!(
            "The specified version ({}) is not recognized. Consider using the latest supported \
             version ({LATEST}).",
            shortened(text)
        ))
    })
}

fn from_token(text: &str) -> Result<String, ApiError> {
    let bytes = URL_SAFE_NO_PAD.decode(text).ok();
    bytes
        .and_then(|bytes| String::from_utf8(bytes).ok())
        .ok_or_else(|| ApiError::bad("the $skiptoken is not one of this vault"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_may_be_encoded_and_unknown_ones_are_passed_over() {
        let query = Query::parse("api%2Dversion=7.4&maxresults=3&x=y").unwrap();
        assert_eq!(query.api_version, "7.4");
        assert_eq!((query.max_results, query.after), (3, None));
        for version in ["7.6-preview.2", "2025-06-01-preview"] {
            assert!(API_VERSIONS.contains(&version), "{version}");
        }
        for version in API_VERSIONS {
            Query::parse(&format!("api-version={version}")).unwrap();
        }
    }

    #[test]
    fn a_next_link_leads_on_where_the_page_ended() {
        let query = Query::parse("api-version=7.4&maxresults=2").unwrap();
        let link = query.next_link("https://v.vault.localhost/keys", "key-é");
        let (collection, rest) = link.split_once('?').unwrap();
        assert_eq!(collection, "https://v.vault.localhost/keys");
        let next = Query::parse(rest).unwrap();
        assert_eq!(next.after.as_deref(), Some("key-é"));
        assert_eq!(next.max_results, 2);
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        for (query, why) in [
            ("", "must be specified"),
            ("api-version=6.0", "(6.0) is not recognized"),
            (
                "api-version=7.6-preview.9",
                "latest supported version (2025-07-01)",
            ),
            ("api-version=2099-01-01", "not recognized"),
            ("api-version=7.4&maxresults=0", "from 1 to 25"),
            ("api-version=7.4&maxresults=26", "from 1 to 25"),
            ("api-version=7.4&$skiptoken=!", "skiptoken"),
        ] {
            let error = Query::parse(query).unwrap_err();
            assert!(error.message.contains(why), "{query}: {}", error.message);
        }
    }
}
