//! What clients of Azure storage send besides the bytes: digests, conditions, blobs that are made; and what they are told
//! when they are refused.

use serde_json::json;

use super::blob::{Blob, DISKS, FOOTER, Got, access, revoke};
use super::client::{Client, Managed};
use super::vaults::group;
use crate::azure::client::Connection;

const D: &str = "~/resourceGroups/rg/providers/Microsoft.Compute/disks/d";
const SIZE: usize = 1 << 20;
/// Of 512 bytes of 1, as Azure's own library computes them.
const MD5: &str = "OToPoPNI+wOHGrk3JgV93A==";
const CRC64: &str = "xMWZ8JhHXD8=";

/// A disk that waits to be uploaded, and where.
fn upload(managed: &Managed) -> (Client<'_>, Blob) {
    let client = managed.client(&managed.admin);
    group(&client);
    let body = json!({"location": "local", "properties": {"creationData": {
        "createOption": "Upload", "uploadSizeBytes": SIZE + FOOTER,
    }}});
    client.ok(&format!("PUT {D}"), Some(&body));
    let blob = access(&client, D, "Write", 3600);
    (client, blob)
}

/// Writes to the first sector, with a further header.
fn put(blob: &Blob, byte: u8, header: &str) -> Got {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), [byte; 512]).unwrap();
    let data = format!("@{}", file.path().display());
    let arguments = [
        "-X",
        "PUT",
        "-H",
        "x-ms-page-write: update",
        "-H",
        "x-ms-range: bytes=0-511",
        "-H",
        header,
        "--data-binary",
        &data,
    ];
    blob.with("&comp=page").curl(&arguments)
}

/// A request without a body.
fn ask(blob: &Blob, method: &str, headers: &[&str]) -> Got {
    let mut arguments = vec!["-X", method];
    for header in headers {
        arguments.extend(["-H", *header]);
    }
    blob.curl(&arguments)
}

#[test]
fn what_was_damaged_on_the_way_is_not_kept() {
    let managed = Managed::new();
    let (_client, blob) = upload(&managed);
    let md5 = format!("Content-MD5: {MD5}");
    let crc64 = format!("x-ms-content-crc64: {CRC64}");
    for (byte, header, code) in [
        (2, md5.as_str(), "Md5Mismatch"),
        (2, crc64.as_str(), "Crc64Mismatch"),
        (1, "Content-MD5: garbage!!", "InvalidMd5"),
        (1, "x-ms-content-crc64: AAAA", "InvalidHeaderValue"),
        (1, "x-ms-structured-body: XSM/1.0", "UnsupportedHeader"),
        (1, "x-ms-encryption-key: AAAA", "UnsupportedHeader"),
    ] {
        let refused = put(&blob, byte, header).refusal();
        assert_eq!(refused, (400, code.into()), "{header}");
    }
    let got = put(&blob, 1, &md5);
    assert_eq!((got.status, got.header("content-md5")), (201, Some(MD5)));
    assert_eq!(put(&blob, 1, &crc64).status, 201);

    // And the other way.
    managed.host.ok("disk create e --size 1MiB");
    let client = managed.client(&managed.admin);
    let read = access(&client, &format!("{DISKS}/e"), "Read", 3600);
    let asked = "x-ms-range-get-content-md5: true";
    let got = ask(&read, "GET", &["Range: bytes=0-511", asked]);
    // 512 zeros.
    let of_zeros = Some("v2GerAzfP2jUluqTRBN+iw==");
    assert_eq!((got.status, got.header("content-md5")), (206, of_zeros));
    assert_eq!(got.body, [0; 512]);
    assert_eq!(ask(&read, "GET", &[asked]).refusal().0, 400, "of all of it");
}

#[test]
fn conditions_hold_and_each_write_has_another_etag() {
    let managed = Managed::new();
    let (_client, blob) = upload(&managed);
    let etag = |got: &Got| got.header("etag").unwrap().to_owned();
    let first = etag(&blob.curl(&["--head"]));
    let written = put(&blob, 1, &format!("If-Match: {first}"));
    assert_eq!(written.status, 201, "{written:?}");
    let second = etag(&written);
    assert_ne!(first, second);
    assert_eq!(etag(&blob.curl(&["--head"])), second);
    let stale = put(&blob, 2, &format!("If-Match: {first}"));
    assert_eq!(stale.refusal(), (412, "ConditionNotMet".into()));
    for (header, code) in [
        (
            "x-ms-if-sequence-number-eq: 3",
            "SequenceNumberConditionNotMet",
        ),
        ("x-ms-lease-id: x", "LeaseNotPresentWithBlobOperation"),
        (
            "If-Unmodified-Since: Sun, 06 Nov 1994 08:49:37 GMT",
            "ConditionNotMet",
        ),
    ] {
        assert_eq!(put(&blob, 2, header).refusal(), (412, code.into()));
    }

    managed.host.ok("disk create e --size 1MiB");
    let client = managed.client(&managed.admin);
    let read = access(&client, &format!("{DISKS}/e"), "Read", 3600);
    let etag = etag(&read.range("0-9"));
    let known = ask(&read, "GET", &[&format!("If-None-Match: {etag}")]);
    assert_eq!((known.status, known.body.len()), (304, 0));
    assert_eq!(known.header("etag"), Some(etag.as_str()));
    let part = "Range: bytes=0-9";
    let same = ask(&read, "GET", &[part, &format!("If-Range: {etag}")]);
    assert_eq!((same.status, same.body.len()), (206, 10));
    // Whoever has the beginning of something else gets all of this.
    let other = ask(&read, "GET", &[part, "If-Range: \"0x1\""]);
    assert_eq!((other.status, other.body.len()), (200, SIZE + FOOTER));
}

/// As azcopy does it with what it uploads to.
#[test]
fn a_blob_is_made_anew_and_described() {
    let managed = Managed::new();
    let (client, blob) = upload(&managed);
    let page = "x-ms-blob-type: PageBlob";
    let length = format!("x-ms-blob-content-length: {}", SIZE + FOOTER);
    assert_eq!(blob.put(0, &[1; 4096]).status, 201);
    for (headers, refusal) in [
        (
            [page, "x-ms-blob-content-length: 512"],
            (400, "InvalidHeaderValue"),
        ),
        (
            ["x-ms-blob-type: BlockBlob", &length],
            (409, "InvalidBlobType"),
        ),
        ([page, "x-ms-meta-a: b"], (400, "MissingRequiredHeader")),
    ] {
        let refused = ask(&blob, "PUT", &headers).refusal();
        assert_eq!(refused, (refusal.0, refusal.1.into()), "{headers:?}");
    }
    let made = ask(&blob, "PUT", &[page, &length]);
    assert_eq!(made.status, 201, "{made:?}");
    for comp in ["properties", "metadata"] {
        let described = blob.with(&format!("&comp={comp}"));
        let got = ask(&described, "PUT", &["x-ms-meta-a: b"]);
        assert_eq!(got.status, 200, "{comp}: {got:?}");
    }
    // What was there before is gone with it, and so is a footer.
    let (status, code) = client.refused(&format!("POST {D}/endGetAccess"), None);
    assert_eq!((status, code.as_str()), (409, "InvalidVhd"));
    managed.host.ok("disk create e --size 1MiB");
    let read = access(&client, &format!("{DISKS}/e"), "Read", 3600);
    let refused = ask(&read, "PUT", &[page, &length]).refusal();
    assert_eq!(refused.0, 403, "whoever reads makes none");
}

/// Azure's clients take the first of three words for the account at `localhost`.
#[test]
fn urls_are_those_that_azures_clients_ask_for() {
    let managed = Managed::new();
    managed.host.ok("disk create e --size 1MiB");
    let client = managed.client(&managed.admin);
    let read = access(&client, &format!("{DISKS}/e"), "Read", 3600);
    assert!(
        read.url
            .starts_with(&format!("{}/sas/disks/", managed.base())),
        "{}",
        read.url
    );
    assert_eq!(read.range("0-9").status, 206);
    // Those of an earlier version count as long as they did.
    let before = Blob::at(&managed, &read.url.replacen("/sas/disks/", "/sas/", 1));
    assert_eq!(before.range("0-9").status, 206);
    let other = Blob::at(&managed, &read.url.replacen("/sas/disks/", "/sas/x/", 1));
    assert_eq!(other.range("0-9").refusal().0, 403);
}

/// A client that sends all before it reads is told why it was refused, and can go on with its connection.
#[test]
fn a_refusal_is_read_by_who_sends_everything_before() {
    let managed = Managed::new();
    let (client, blob) = upload(&managed);
    let (_, path) = blob.url.split_once(&managed.base()).unwrap();
    let path = path.to_owned();
    // Whatever becomes of the upload, access has ended then.
    client.refused(&format!("POST {D}/endGetAccess"), None);
    let length = 4 << 20;
    let host = managed.authority();
    let put = |path: &str, headers: &str, length: usize| {
        let mut request = format!(
            "PUT {path} HTTP/1.1\r\nHost: {host}\r\n{headers}Content-Length: {length}\r\n\r\n"
        )
        .into_bytes();
        request.resize(request.len() + length, 7);
        request
    };
    let page = format!(
        "x-ms-page-write: update\r\nx-ms-range: bytes=0-{}\r\n",
        length - 1
    );
    let mut connection = Connection::open(&managed.served).unwrap();
    for _ in 0..3 {
        connection
            .write(&put(&format!("{path}&comp=page"), &page, length))
            .unwrap();
        let (answer, body) = connection.read_bytes().unwrap();
        assert_eq!(answer.status, 403, "{answer:?}");
        assert!(String::from_utf8_lossy(&body).contains("AuthenticationFailed"));
    }
    // So it is for the management API, and for who has said nothing of whom it is.
    for (headers, status) in [
        (format!("Authorization: Bearer {}\r\n", client.token), 413),
        (String::new(), 401),
    ] {
        let path = "/subscriptions?api-version=2022-12-01";
        let mut connection = Connection::open(&managed.served).unwrap();
        connection.write(&put(path, &headers, 8 << 20)).unwrap();
        assert_eq!(connection.read().unwrap().status, status);
    }
    revoke(&client, D);
}
