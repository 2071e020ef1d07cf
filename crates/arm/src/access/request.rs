//! A request for the bytes of a disk, as Azure storage's clients write it, taken apart.
//!
//! ```text
//! GET  /sas/disks/DISK.vhd?sv=…&si=GRANT&sig=TOKEN           Range or x-ms-range
//! HEAD /sas/disks/DISK.vhd?…
//! GET  /sas/disks/DISK.vhd?comp=pagelist[&prevsnapshot=…]&…
//! PUT  /sas/disks/DISK.vhd?comp=page&…                       x-ms-page-write: update|clear
//! PUT  /sas/disks/DISK.vhd?…                                 x-ms-blob-type: PageBlob
//! PUT  /sas/disks/DISK.vhd?comp=properties|metadata&…
//! ```
//!
//! Azure's clients take the first of three words for the account at `localhost` and addresses, and make three of two: with
//! these three, each asks for what it was given, whatever the host.

use std::ops::Range;

use url::form_urlencoded;
use uuid::Uuid;

use super::digests::Digests;
use super::error::BlobError;
use super::headers::only;
use server::Head;

/// Where the URLs are.
const PREFIX: &str = "sas";
/// What is a container to Azure's clients.
const CONTAINER: &str = "disks";
/// The length of a blob that is made, or that is to have another length.
const LENGTH: &str = "x-ms-blob-content-length";
/// What asks for something that there is not: whoever sends it would rely on it.
const UNSUPPORTED: [&str; 8] = [
    "x-ms-copy-source",
    "x-ms-encryption-algorithm",
    "x-ms-encryption-key",
    "x-ms-encryption-key-sha256",
    "x-ms-encryption-scope",
    "x-ms-if-tags",
    "x-ms-sequence-number-action",
    "x-ms-structured-body",
];
/// Most bytes that a PUT writes.
pub const MAX_WRITTEN: u64 = 4 << 20;
const SECTOR: u64 = 512;
/// Azure's header for a range, and HTTP's.
const MS_RANGE: &str = "x-ms-range";
const RANGE: &str = "range";
/// Most ranges of a page of a list, as Azure storage has it.
const MAX_LISTED: usize = 10_000;

/// Whether a request is for the bytes of a disk.
pub fn is_transfer(head: &Head) -> bool {
    let first = head.path.split('/').find(|word| !word.is_empty());
    first == Some(PREFIX)
}

/// By which grant a request is made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ticket {
    /// The id of the disk or snapshot.
    pub resource: Uuid,
    /// That of the grant.
    pub grant: Uuid,
    /// The token.
    pub token: String,
}

/// A range of bytes, whose end may be open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ByteRange {
    /// From a place, to another one, which is not in it, or to the end.
    From(u64, Option<u64>),
    /// The last so many.
    Last(u64),
}

/// What is asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Asked {
    /// Some or all of the bytes.
    Get(Option<ByteRange>),
    /// What is said of all of them.
    Head,
    /// Which parts have data.
    List {
        /// Of which part.
        range: Option<ByteRange>,
        /// Only what changed since this snapshot.
        since: Option<Since>,
        /// At most so many.
        most: Option<usize>,
        /// From here on.
        from: u64,
    },
    /// To write a part.
    Write(Range<u64>),
    /// To have a part be zeros.
    Clear(Range<u64>),
    /// To have all of so many bytes be zeros, as a blob that is made anew.
    Create(u64),
    /// To give the blob properties or metadata, which mean nothing here, and this length, if one is said.
    Describe(Option<u64>),
}

impl Asked {
    /// Whether it changes the bytes, or what is said of them.
    pub fn is_change(&self) -> bool {
        match self {
            Self::Get(_) | Self::Head | Self::List { .. } => false,
            Self::Write(_) | Self::Clear(_) | Self::Create(_) | Self::Describe(_) => true,
        }
    }
}

/// An earlier snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Since {
    /// Its name, or its ARM id.
    Name(String),
    /// By a URL of its own.
    Url(Ticket),
}

/// A request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlobRequest {
    /// By which grant.
    pub ticket: Ticket,
    /// What is asked.
    pub asked: Asked,
    /// What is to be compared with the body.
    pub digests: Digests,
}

/// The parts of a query that count.
#[derive(Default)]
struct Parts {
    comp: Option<String>,
    since: Option<String>,
    most: Option<String>,
    from: Option<String>,
    grant: Option<Uuid>,
    token: Option<String>,
}

impl Parts {
    fn of(query: &str) -> Self {
        let mut parts = Self::default();
        for (name, value) in form_urlencoded::parse(query.as_bytes()) {
            let value = || Some(value.clone().into_owned());
            match &*name {
                "comp" => parts.comp = value(),
                "prevsnapshot" => parts.since = value(),
                "maxresults" => parts.most = value(),
                "marker" => parts.from = value(),
                "si" => parts.grant = Uuid::try_parse(&value().unwrap_or_default()).ok(),
                "sig" => parts.token = value(),
                _ => {}
            }
        }
        parts
    }

    fn ticket(&self, path: &str) -> Option<Ticket> {
        let mut words = path.split('/').filter(|word| !word.is_empty());
        let name = match [words.next(), words.next(), words.next(), words.next()] {
            [Some(PREFIX), Some(CONTAINER), Some(name), None] => name,
            // As URLs were before.
            [Some(PREFIX), Some(name), None, None] => name,
            _ => return None,
        };
        Some(Ticket {
            resource: Uuid::try_parse(name.strip_suffix(".vhd")?).ok()?,
            grant: self.grant?,
            token: self.token.clone()?,
        })
    }
}

impl Ticket {
    /// That of a URL, if it says one.
    pub fn of_url(url: &str) -> Option<Self> {
        let (path, query) = path_and_query(url);
        Parts::of(query).ticket(path)
    }

    /// The path and query of the URL that says it, with what Azure's have besides.
    pub fn path(&self, access: &str, expires: &str) -> String {
        let mut query = form_urlencoded::Serializer::new(String::new());
        query.append_pair("sv", "2018-03-28").append_pair("sr", "b");
        query.append_pair("si", &self.grant.to_string());
        query.append_pair("sp", access).append_pair("se", expires);
        query.append_pair("sig", &self.token);
        let name = format!("{}.vhd", self.resource);
        format!("/{PREFIX}/{CONTAINER}/{name}?{}", query.finish())
    }
}

impl BlobRequest {
    /// Takes a request apart.
    ///
    /// # Errors
    /// 403 for one without a token, 400 and 405 for what is not understood.
    pub fn parse(head: &Head) -> Result<Self, BlobError> {
        let parts = Parts::of(&head.query);
        let ticket = parts.ticket(&head.path);
        let ticket = ticket.ok_or_else(BlobError::unauthentic)?;
        if let Some(name) = UNSUPPORTED.iter().find(|name| head.header(name).is_some()) {
            let message = format!(
                "One of the HTTP headers specified in the request is not supported: {name}."
            );
            return Err(BlobError::new(400, "UnsupportedHeader", message));
        }
        let asked = match (head.method.as_str(), parts.comp.as_deref()) {
            ("GET", None) => Asked::Get(range(head)?),
            ("HEAD", None | Some("metadata")) | ("GET", Some("metadata")) => Asked::Head,
            ("GET", Some("pagelist")) => list(head, &parts)?,
            ("PUT", Some("page")) => write(head)?,
            ("PUT", None) => Asked::Create(created(head)?),
            ("PUT", Some("properties" | "metadata")) => Asked::Describe(length(head)?),
            _ => {
                let message = "The resource doesn't support specified Http Verb.";
                return Err(BlobError::new(405, "UnsupportedHttpVerb", message));
            }
        };
        let digests = match asked.is_change() {
            true => Digests::of(head)?,
            false => Digests::default(),
        };
        Ok(Self {
            ticket,
            asked,
            digests,
        })
    }
}

fn list(head: &Head, parts: &Parts) -> Result<Asked, BlobError> {
    let wrong = |name: &str| {
        let message = format!(
            "Value for one of the query parameters specified in the request URI is invalid: {name}."
        );
        BlobError::new(400, "InvalidQueryParameterValue", message)
    };
    let url = only(head, "x-ms-previous-snapshot-url")?;
    let since = match (url, &parts.since) {
        (Some(url), _) => {
            let ticket = Ticket::of_url(url);
            Some(Since::Url(ticket.ok_or_else(BlobError::unauthentic)?))
        }
        (None, Some(name)) if name.is_empty() => return Err(wrong("prevsnapshot")),
        (None, name) => name.clone().map(Since::Name),
    };
    let most = parts.most.as_deref().map(str::parse::<usize>).transpose();
    let most = most.ok().filter(|most| *most != Some(0));
    let from = parts.from.as_deref().unwrap_or_default();
    let from = match from {
        "" => Some(0),
        from => from.parse().ok(),
    };
    Ok(Asked::List {
        range: range(head)?,
        since,
        most: most
            .ok_or_else(|| wrong("maxresults"))?
            .map(|most| most.min(MAX_LISTED)),
        from: from.ok_or_else(|| wrong("marker"))?,
    })
}

/// The path and the query of a URL.
fn path_and_query(url: &str) -> (&str, &str) {
    let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
    let path = rest.find('/').map_or("", |at| &rest[at..]);
    path.split_once('?').unwrap_or((path, ""))
}

fn missing(name: &str) -> BlobError {
    let message =
        format!("An HTTP header that's mandatory for this request is not specified: {name}.");
    BlobError::new(400, "MissingRequiredHeader", message)
}

/// The length of a blob that is to be made.
fn created(head: &Head) -> Result<u64, BlobError> {
    const KIND: &str = "x-ms-blob-type";
    let kind = only(head, KIND)?.ok_or_else(|| missing(KIND))?;
    if !kind.eq_ignore_ascii_case("PageBlob") {
        let message = "The blob type is invalid for this operation: it is a page blob.";
        return Err(BlobError::new(409, "InvalidBlobType", message));
    }
    length(head)?.ok_or_else(|| missing(LENGTH))
}

fn length(head: &Head) -> Result<Option<u64>, BlobError> {
    let text = only(head, LENGTH)?;
    text.map(|text| text.parse().map_err(|_| BlobError::header(LENGTH)))
        .transpose()
}

fn write(head: &Head) -> Result<Asked, BlobError> {
    let what = only(head, "x-ms-page-write")?;
    let what = what.ok_or_else(|| missing("x-ms-page-write"))?;
    let range = match range(head)? {
        Some(ByteRange::From(start, Some(end))) => start..end,
        Some(_) => return Err(BlobError::header(MS_RANGE)),
        None => return Err(missing(MS_RANGE)),
    };
    // To read another part than was meant does no harm; to write one does.
    if let (Some(ours), Some(usual)) = (range_of(head, MS_RANGE)?, range_of(head, RANGE)?)
        && ours != usual
    {
        return Err(BlobError::header(MS_RANGE));
    }
    let length = range.end - range.start;
    let is_whole = range.start.is_multiple_of(SECTOR) && length.is_multiple_of(SECTOR);
    if !is_whole {
        let message = "The page range specified is invalid.";
        return Err(BlobError::new(416, "InvalidPageRange", message));
    }
    match what.to_ascii_lowercase().as_str() {
        "clear" => Ok(Asked::Clear(range)),
        "update" if length > MAX_WRITTEN => Err(BlobError::new(
            413,
            "RequestBodyTooLarge",
            format!(
                "The request body is too large and exceeds the maximum permissible limit of {MAX_WRITTEN}."
            ),
        )),
        "update" => Ok(Asked::Write(range)),
        _ => Err(BlobError::header("x-ms-page-write")),
    }
}

/// The range that is asked for: Azure's header counts when both are there.
fn range(head: &Head) -> Result<Option<ByteRange>, BlobError> {
    for name in [MS_RANGE, RANGE] {
        if let Some(found) = range_of(head, name)? {
            return Ok(Some(found));
        }
    }
    Ok(None)
}

fn range_of(head: &Head, name: &str) -> Result<Option<ByteRange>, BlobError> {
    let Some(text) = only(head, name)? else {
        return Ok(None);
    };
    let found = parse_range(text);
    found.map(Some).ok_or_else(|| BlobError::header(name))
}

/// `bytes=0-511`, `bytes=512-`, `bytes=-512`
fn parse_range(text: &str) -> Option<ByteRange> {
    let (start, end) = text.trim().strip_prefix("bytes=")?.split_once('-')?;
    let number = |text: &str| match text.bytes().all(|byte| byte.is_ascii_digit()) {
        true => text.parse::<u64>().ok(),
        false => None,
    };
    match (start, end) {
        ("", last) => Some(ByteRange::Last(number(last)?)),
        (start, "") => Some(ByteRange::From(number(start)?, None)),
        (start, end) => {
            let (start, end) = (number(start)?, number(end)?.checked_add(1)?);
            (start < end).then_some(ByteRange::From(start, Some(end)))
        }
    }
}

impl ByteRange {
    /// The part of so many bytes; `None` when there is none.
    pub fn of(self, length: u64) -> Option<Range<u64>> {
        let range = match self {
            Self::From(start, end) => start..end.unwrap_or(length).min(length),
            Self::Last(count) => length.saturating_sub(count)..length,
        };
        (range.start < range.end).then_some(range)
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use super::*;

    fn head(method: &str, query: &str, headers: &[(&'static str, &str)]) -> Head {
        let peer = SocketAddr::from(([127, 0, 0, 1], 1));
        let id = Uuid::from_u128(7);
        let path = format!("/sas/{id}.vhd?si={id}&sig=secret{query}");
        Head::new(method, "localhost", &path, peer).with_headers(headers)
    }

    fn asked(method: &str, query: &str, headers: &[(&'static str, &str)]) -> Result<Asked, u16> {
        let parsed = BlobRequest::parse(&head(method, query, headers));
        parsed
            .map(|request| request.asked)
            .map_err(|error| error.status)
    }

    #[test]
    fn ranges_are_as_they_are_written() {
        use ByteRange::{From, Last};
        for (text, wanted) in [
            ("bytes=0-511", Some(From(0, Some(512)))),
            ("bytes=512-", Some(From(512, None))),
            ("bytes=-512", Some(Last(512))),
            ("bytes=5-4", None),
            ("bytes=0-18446744073709551615", None),
            ("bytes=0-1,2-3", None),
            ("bytes=+1-2", None),
            ("bytes=", None),
            ("bits=0-1", None),
        ] {
            assert_eq!(parse_range(text), wanted, "{text}");
        }
        assert_eq!(From(3, Some(9)).of(5), Some(3..5));
        assert_eq!(From(5, None).of(5), None);
        assert_eq!(Last(9).of(5), Some(0..5));
        assert_eq!(Last(0).of(5), None);
    }

    #[test]
    fn what_is_asked_is_understood_or_refused() {
        let azures = [("range", "bytes=0-1"), ("x-ms-range", "bytes=2-3")];
        assert_eq!(
            asked("GET", "", &azures),
            Ok(Asked::Get(Some(ByteRange::From(2, Some(4)))))
        );
        assert_eq!(asked("HEAD", "", &[]), Ok(Asked::Head));
        let page = |range: &'static str, what: &'static str| {
            asked(
                "PUT",
                "&comp=page",
                &[("range", range), ("x-ms-page-write", what)],
            )
        };
        assert_eq!(
            page("bytes=512-1023", "update"),
            Ok(Asked::Write(512..1024))
        );
        assert_eq!(
            page("bytes=0-1073741823", "Clear"),
            Ok(Asked::Clear(0..1 << 30))
        );
        assert_eq!(page("bytes=0-4194815", "update"), Err(413));
        assert_eq!(page("bytes=1-512", "update"), Err(416));
        assert_eq!(page("bytes=0-510", "update"), Err(416));
        assert_eq!(page("bytes=0-", "update"), Err(400));
        assert_eq!(page("bytes=0-511", "append"), Err(400));
        // What contradicts itself is not written somewhere.
        let written = |more: &[(&'static str, &'static str)]| {
            let first = [("x-ms-range", "bytes=0-511"), ("x-ms-page-write", "update")];
            asked("PUT", "&comp=page", &[&first[..], more].concat())
        };
        for (more, wanted) in [
            (("x-ms-range", "bytes=0-511"), Ok(Asked::Write(0..512))),
            (("range", "bytes=0-511"), Ok(Asked::Write(0..512))),
            (("x-ms-range", "bytes=512-1023"), Err(400)),
            (("range", "bytes=512-1023"), Err(400)),
            (("range", "x"), Err(400)),
            (("x-ms-page-write", "clear"), Err(400)),
        ] {
            assert_eq!(written(&[more]), wanted, "{more:?}");
        }
        let twice = [("range", "bytes=0-1"), ("range", "bytes=2-3")];
        assert_eq!(asked("GET", "", &twice), Err(400));
        assert_eq!(asked("DELETE", "", &[]), Err(405));
        let blob = |kind: &str, length: &str| {
            let headers = [
                ("x-ms-blob-type", kind),
                ("x-ms-blob-content-length", length),
            ];
            asked("PUT", "", &headers)
        };
        assert_eq!(blob("PageBlob", "1024"), Ok(Asked::Create(1024)));
        assert_eq!(blob("BlockBlob", "1024"), Err(409));
        assert_eq!(blob("PageBlob", "x"), Err(400));
        assert_eq!(asked("PUT", "", &[]), Err(400));
        let metadata = asked("PUT", "&comp=metadata", &[("x-ms-meta-a", "b")]);
        assert_eq!(metadata, Ok(Asked::Describe(None)));
        for (method, header) in [
            ("PUT", ("x-ms-copy-source", "https://x.example/")),
            ("GET", ("x-ms-encryption-key", "a")),
            ("PUT", ("content-md5", "a")),
        ] {
            let headers = [
                ("x-ms-range", "bytes=0-511"),
                ("x-ms-page-write", "update"),
                header,
            ];
            let query = if method == "PUT" { "&comp=page" } else { "" };
            assert_eq!(asked(method, query, &headers), Err(400), "{header:?}");
        }
        assert_eq!(asked("GET", "&comp=pagelist&maxresults=0", &[]), Err(400));
        assert_eq!(asked("GET", "&comp=pagelist&marker=x", &[]), Err(400));
        let Ok(Asked::List {
            since, most, from, ..
        }) = asked(
            "GET",
            "&comp=pagelist&prevsnapshot=s1&maxresults=99999&marker=512",
            &[],
        )
        else {
            panic!("no list");
        };
        assert_eq!(
            (since, most, from),
            (Some(Since::Name("s1".into())), Some(10_000), 512)
        );
    }

    #[test]
    fn a_url_says_its_ticket() {
        let ticket = Ticket {
            resource: Uuid::from_u128(1),
            grant: Uuid::from_u128(2),
            token: "a-b_c".into(),
        };
        let url = format!(
            "https://localhost:8443{}",
            ticket.path("r", "2030-01-01T00:00:00Z")
        );
        assert!(url.contains("/sas/disks/"), "{url}");
        // And one of before.
        for url in [&url, &url.replacen("/disks/", "/", 1)] {
            let headers = [("x-ms-previous-snapshot-url", url.as_str())];
            let Ok(Asked::List { since, .. }) = asked("GET", "&comp=pagelist", &headers) else {
                panic!("no list");
            };
            assert_eq!(since, Some(Since::Url(ticket.clone())), "{url}");
        }
        for path in [
            "/sas/x.vhd?si=1&sig=2",
            "/sas",
            "/sas/a/b",
            "/sas/disks",
            "",
        ] {
            let headers = [("x-ms-previous-snapshot-url", path)];
            assert_eq!(asked("GET", "&comp=pagelist", &headers), Err(403), "{path}");
        }
    }
}
