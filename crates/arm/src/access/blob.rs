//! Answers to requests for the bytes of a disk.

use std::ops::Range;
use std::sync::Arc;
use std::time::SystemTime;

use time::OffsetDateTime;
use uuid::Uuid;
use zeroize::Zeroizing;

use super::conditions::{self, Current, Met};
use super::digests::Wanted;
use super::error::BlobError;
use super::list_xml::list;
use super::policy::is_forbidden;
use super::request::{Asked, BlobRequest, ByteRange, Since, Ticket};
use super::sessions::{Opened, Sent, Session, Sessions};
use crate::error::ArmError;
use crate::id::ResourceId;
use disks::{DiskError, Download, FOOTER_LEN, PageList, Part, Reader, Uploader};
use installation::Installation;
use installation::catalog::{Access, AccessRecord};
use installation::envelope::ResourceKind;
use server::{ByteStream, Head, Site, TransferBody, TransferReply};

/// The version of Azure storage's protocol that is told to clients which say none.
const VERSION: &str = "2021-08-06";

/// How long the body of a request may be.
///
/// # Errors
/// The answer to somebody whose body is not even read.
pub fn admit(site: &Site<'_>, head: &Head) -> Result<usize, TransferReply> {
    let refuse = |error: BlobError| error.reply(head.method == "HEAD");
    let admitted = admitted(site, head).map_err(refuse)?;
    let length = match admitted.0.asked {
        Asked::Write(range) => range.end - range.start,
        _ => 0,
    };
    let announced = head
        .header("content-length")
        .map_or(Some(0), |text| text.parse().ok());
    if announced != Some(length) {
        let message = "The value for one of the HTTP headers is not in the correct format: the body has to be as long \
                       as the range.";
        let wrong = match head.header("content-length") {
            None => BlobError::new(
                411,
                "MissingContentLengthHeader",
                "Content-Length HTTP header is missing.",
            ),
            Some(_) => BlobError::new(400, "InvalidHeaderValue", message),
        };
        return Err(refuse(wrong));
    }
    Ok(length as usize)
}

/// Answers a request.
pub fn transfer(
    sessions: &Sessions,
    site: &Site<'_>,
    head: &Head,
    body: Zeroizing<Vec<u8>>,
) -> TransferReply {
    let answer = admitted(site, head).and_then(|(request, grant)| {
        answer(
            sessions,
            site.installation(),
            head,
            (&request, &grant),
            body,
        )
    });
    answer.unwrap_or_else(|error| error.reply(head.method == "HEAD"))
}

/// A request, and the grant by which it is made. What is refused is in the audit log.
fn admitted(site: &Site<'_>, head: &Head) -> Result<(BlobRequest, AccessRecord), BlobError> {
    let found = BlobRequest::parse(head).and_then(|request| {
        let grant = granted(site.installation(), &request.ticket)?;
        if request.asked.is_change() && grant.access != Access::Write {
            let message =
                "This request is not authorized to perform this operation using this permission.";
            return Err(BlobError::new(
                403,
                "AuthorizationPermissionMismatch",
                message,
            ));
        }
        Ok((request, grant))
    });
    found.inspect_err(|error| {
        if error.status == 403 {
            // Whoever has no token can think of paths without end: what they are is not told apart.
            let detail = match BlobError::unauthentic() == *error {
                true => format!("{} without a valid token", head.method),
                false => format!("{} {}", head.method, head.path),
            };
            site.note_refused(
                head.peer,
                "AccessRefused",
                Uuid::nil(),
                &error.code,
                &detail,
            );
        }
    })
}

/// The grant of a ticket.
///
/// # Errors
/// 403 for one that does not count.
pub fn granted(installation: &Installation, ticket: &Ticket) -> Result<AccessRecord, BlobError> {
    let grant = installation.access_by_token(ticket.grant, &ticket.token)?;
    let grant = grant.filter(|grant| grant.resource == ticket.resource);
    let grant = grant.ok_or_else(BlobError::unauthentic)?;
    match is_forbidden(installation, grant.kind.into(), &grant.name)? {
        false => Ok(grant),
        true => Err(BlobError::new(
            403,
            "AuthorizationFailure",
            "This request is not authorized to perform this operation: the disk's network access policy forbids it.",
        )),
    }
}

fn answer(
    sessions: &Sessions,
    installation: &Installation,
    head: &Head,
    (request, grant): (&BlobRequest, &AccessRecord),
    body: Zeroizing<Vec<u8>>,
) -> Result<TransferReply, BlobError> {
    let session = sessions.get(grant)?;
    match session.opened() {
        Opened::Read(reader) => {
            let about = About::of(&session, head);
            if conditions::check(head, about.current())? == Met::NotModified {
                return Ok(about.not_modified());
            }
            match &request.asked {
                Asked::Head => Ok(about.alone()),
                Asked::Get(range) => get(sessions, head, (&session, reader), &about, *range),
                Asked::List { .. } => list_of(installation, reader, &about, &request.asked),
                _ => Err(BlobError::unauthentic()),
            }
        }
        Opened::Write(uploader) => change(head, request, (&*session, &**uploader), body),
    }
}

/// The bytes of a disk.
fn get(
    sessions: &Sessions,
    head: &Head,
    (session, reader): (&Arc<Session>, &Arc<Reader>),
    about: &About,
    range: Option<ByteRange>,
) -> Result<TransferReply, BlobError> {
    let range = match conditions::counts_range(head, about.current())? {
        true => range,
        false => None,
    };
    let (status, part) = about.part(range)?;
    let length = part.end - part.start;
    let wanted = Wanted::of(head, range.is_some(), length)?;
    let begun = sessions.begin_download(session, length)?;
    let download = Download::begin(Arc::clone(reader), part.clone())?;
    let sent = Sent::new(Arc::clone(session), download, begun);
    let mut headers = Vec::new();
    if status == 206 {
        let of = format!("bytes {}-{}/{}", part.start, part.end - 1, about.length);
        headers.push(("content-range", of));
    }
    let stream: Box<dyn ByteStream> = match wanted {
        None => Box::new(sent),
        Some(wanted) => {
            let whole = sent.whole()?;
            headers.push(wanted.header(whole.bytes()));
            Box::new(whole)
        }
    };
    Ok(about.reply(status, headers, TransferBody::Stream(stream), None))
}

/// Which ranges of a disk have data, or have changed.
fn list_of(
    installation: &Installation,
    reader: &Reader,
    about: &About,
    asked: &Asked,
) -> Result<TransferReply, BlobError> {
    let Asked::List {
        range,
        since,
        most,
        from,
    } = asked
    else {
        return Err(BlobError::unauthentic());
    };
    let (_, part) = about.part(*range)?;
    let part = part.start.max(*from)..part.end;
    let pages = match since {
        None => reader.pages(part)?,
        Some(since) => {
            let snapshot = earlier(installation, since)?;
            reader
                .pages_since(installation, &snapshot, part)
                .map_err(unrelated)?
        }
    };
    Ok(about.listed(pages, *most))
}

/// Changes a disk in upload.
fn change(
    head: &Head,
    request: &BlobRequest,
    (session, uploader): (&Session, &Uploader),
    body: Zeroizing<Vec<u8>>,
) -> Result<TransferReply, BlobError> {
    let _turn = session.turn(conditions::are_any(head));
    // It may be over since then.
    session.check()?;
    let about = About::of(session, head);
    if conditions::check(head, about.current())? == Met::NotModified {
        return Ok(about.not_modified());
    }
    let (range, part) = match &request.asked {
        Asked::Head => return Ok(about.alone()),
        Asked::Get(_) | Asked::List { .. } => {
            let message =
                "This request is not authorized to perform this operation using this permission.";
            let code = "AuthorizationPermissionMismatch";
            return Err(BlobError::new(403, code, message));
        }
        // They mean nothing here, as its name or type says nothing of a disk.
        Asked::Describe(length) => {
            about.check_length(*length)?;
            return Ok(about.reply(200, Vec::new(), TransferBody::Empty, None));
        }
        Asked::Create(length) => {
            about.check_length(Some(*length))?;
            request.digests.check(&body)?;
            (0..*length, Part::Zeros(*length))
        }
        Asked::Clear(range) => {
            request.digests.check(&body)?;
            (range.clone(), Part::Zeros(range.end - range.start))
        }
        Asked::Write(range) => {
            if body.len() as u64 != range.end - range.start {
                return Err(BlobError::header("content-length"));
            }
            request.digests.check(&body)?;
            (range.clone(), Part::Bytes(body))
        }
    };
    written((session, uploader), &about, &range, part)?;
    let mut headers = request.digests.headers();
    headers.extend([
        ("x-ms-blob-sequence-number", "0".to_owned()),
        ("x-ms-request-server-encrypted", "true".to_owned()),
    ]);
    let now = About::of(session, head);
    Ok(now.reply(201, headers, TransferBody::Empty, None))
}

/// Writes a part of a disk in upload, or has it be zeros.
fn written(
    (session, uploader): (&Session, &Uploader),
    about: &About,
    range: &Range<u64>,
    part: Part,
) -> Result<(), BlobError> {
    if range.end > about.length {
        let message = "The page range specified is invalid.";
        return Err(BlobError::new(416, "InvalidPageRange", message));
    }
    let takes_room = matches!(part, Part::Bytes(_));
    if takes_room && !uploader.has_room(range.end - range.start) {
        return Err(BlobError::no_space());
    }
    uploader.write(range.start, part).map_err(|error| {
        session.give_up();
        match error.is_no_space() {
            true => BlobError::no_space(),
            false => BlobError::from(ArmError::internal(error)),
        }
    })
}

/// The name of an earlier snapshot.
fn earlier(installation: &Installation, since: &Since) -> Result<String, BlobError> {
    let kind = ResourceKind::Snapshot;
    let name = match since {
        Since::Url(ticket) => {
            let grant = granted(installation, ticket)?;
            (grant.kind == kind).then_some(grant.name)
        }
        Since::Name(text) => {
            let name = match ResourceId::parse(text) {
                Ok(id) => id.name().to_owned(),
                Err(_) => text.clone(),
            };
            installation.catalog().name_of(kind.into(), &name)?
        }
    };
    name.ok_or_else(no_earlier)
}

/// Whether there is a snapshot of that name is told to nobody who may not read it.
fn no_earlier() -> BlobError {
    let message = "The previous snapshot is not found, or the disk does not lie on it any more.";
    BlobError::new(404, "PreviousSnapshotNotFound", message)
}

/// A disk does not lie on the snapshot.
fn unrelated(error: DiskError) -> BlobError {
    match error {
        DiskError::Argument(_) => no_earlier(),
        error => error.into(),
    }
}

/// What is said of a disk in each answer.
struct About {
    /// Bytes, with the footer.
    length: u64,
    etag: String,
    modified: SystemTime,
    version: String,
}

impl About {
    fn of(session: &Session, head: &Head) -> Self {
        let (size, version, modified) = match session.opened() {
            Opened::Read(reader) => (reader.size(), reader.version(), reader.modified()),
            Opened::Write(uploader) => (uploader.size(), uploader.version(), uploader.modified()),
        };
        Self {
            length: size + FOOTER_LEN as u64,
            etag: format!("\"0x{version:016X}\""),
            modified,
            version: head.header("x-ms-version").unwrap_or(VERSION).into(),
        }
    }

    /// The status for a range, and what it is of.
    fn part(&self, range: Option<ByteRange>) -> Result<(u16, Range<u64>), BlobError> {
        match range {
            None => Ok((200, 0..self.length)),
            Some(range) => {
                let part = range.of(self.length).ok_or_else(BlobError::range)?;
                Ok((206, part))
            }
        }
    }

    /// What conditions are about.
    fn current(&self) -> Current<'_> {
        Current {
            etag: &self.etag,
            modified: self.modified,
        }
    }

    /// Refuses another length than there is, as a client says it.
    fn check_length(&self, said: Option<u64>) -> Result<(), BlobError> {
        match said {
            Some(said) if said != self.length => Err(BlobError::header("x-ms-blob-content-length")),
            _ => Ok(()),
        }
    }

    /// The answer that says nothing else.
    fn alone(&self) -> TransferReply {
        self.reply(200, Vec::new(), TransferBody::Empty, Some(self.length))
    }

    /// The answer to a client that has it already.
    fn not_modified(&self) -> TransferReply {
        let headers = vec![("x-ms-error-code", "ConditionNotMet".to_owned())];
        self.reply(304, headers, TransferBody::Empty, None)
    }

    fn listed(&self, pages: PageList, most: Option<usize>) -> TransferReply {
        let xml = list(&pages.into_pages(), most.unwrap_or(usize::MAX));
        let headers = vec![
            ("content-type", "application/xml".to_owned()),
            ("x-ms-blob-content-length", self.length.to_string()),
        ];
        self.reply(200, headers, TransferBody::Bytes(xml.into_bytes()), None)
    }

    fn reply(
        &self,
        status: u16,
        mut headers: Vec<(&'static str, String)>,
        body: TransferBody,
        length: Option<u64>,
    ) -> TransferReply {
        let has_type = headers.iter().any(|(name, _)| *name == "content-type");
        if !has_type && !matches!(status, 201 | 304) {
            headers.push(("content-type", "application/octet-stream".into()));
        }
        if let Some(length) = length {
            headers.push(("content-length", length.to_string()));
        }
        headers.extend([
            ("accept-ranges", "bytes".to_owned()),
            ("etag", self.etag.clone()),
            ("last-modified", http_date(self.modified)),
            ("x-ms-blob-type", "PageBlob".to_owned()),
            ("x-ms-version", self.version.clone()),
        ]);
        TransferReply {
            status,
            headers,
            body,
        }
    }
}

/// As HTTP has it (RFC 9110 §5.6.7).
fn http_date(time: SystemTime) -> String {
    let time = OffsetDateTime::from(time);
    format!(
        "{:.3}, {:02} {:.3} {:04} {:02}:{:02}:{:02} GMT",
        time.weekday().to_string(),
        time.day(),
        time.month().to_string(),
        time.year(),
        time.hour(),
        time.minute(),
        time.second()
    )
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn dates_are_as_http_has_them() {
        let time = SystemTime::UNIX_EPOCH + Duration::from_secs(784_111_777);
        assert_eq!(http_date(time), "Sun, 06 Nov 1994 08:49:37 GMT");
    }
}
