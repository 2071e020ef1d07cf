//! Digests of what is transferred, as Azure storage's clients ask for them: MD5, and CRC-64 as NVMe has it. They find what
//! was damaged on the way, in a client's memory or a proxy, and protect from nobody who wants to do damage.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use crc::{Algorithm, Crc};
use md5::{Digest, Md5};

use super::error::BlobError;
use super::headers::only;
use server::Head;

const MD5: &str = "content-md5";
const CRC64: &str = "x-ms-content-crc64";
const RANGE_MD5: &str = "x-ms-range-get-content-md5";
const RANGE_CRC64: &str = "x-ms-range-get-content-crc64";
/// Most bytes of which a digest is told, as Azure storage has it.
const MOST: u64 = 4 << 20;

/// Azure storage's CRC-64.
const NVME: Algorithm<u64> = Algorithm {
    width: 64,
    poly: 0xad93_d235_94c9_3659,
    init: u64::MAX,
    refin: true,
    refout: true,
    xorout: u64::MAX,
    check: 0xae8b_1486_0a79_9888,
    residue: 0xf310_303b_2b6f_6e42,
};
static CRC: Crc<u64> = Crc::<u64>::new(&NVME);

/// What a body is to have, as its request says.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Digests {
    md5: Option<[u8; 16]>,
    crc64: Option<[u8; 8]>,
}

impl Digests {
    /// Those that a request says.
    ///
    /// # Errors
    /// 400 for what is none, and for both.
    pub fn of(head: &Head) -> Result<Self, BlobError> {
        let (md5, crc64) = (only(head, MD5)?, only(head, CRC64)?);
        if md5.is_some() && crc64.is_some() {
            return Err(BlobError::header(CRC64));
        }
        let wrong = || {
            let message = "The MD5 value specified in the request is invalid. MD5 value must be 128 bits and base64 \
                           encoded.";
            BlobError::new(400, "InvalidMd5", message)
        };
        Ok(Self {
            md5: md5
                .map(|text| decoded(text).ok_or_else(wrong))
                .transpose()?,
            crc64: crc64
                .map(|text| decoded(text).ok_or_else(|| BlobError::header(CRC64)))
                .transpose()?,
        })
    }

    /// Refuses a body that is another.
    ///
    /// # Errors
    /// 400.
    pub fn check(&self, body: &[u8]) -> Result<(), BlobError> {
        if self.md5.is_some_and(|wanted| wanted != md5_of(body)) {
            let message = "The MD5 value specified in the request did not match with the MD5 value calculated by the \
                           server.";
            return Err(BlobError::new(400, "Md5Mismatch", message));
        }
        if self.crc64.is_some_and(|wanted| wanted != crc64_of(body)) {
            let message = "The CRC64 value specified in the request did not match with the CRC64 value calculated by the \
                           server.";
            return Err(BlobError::new(400, "Crc64Mismatch", message));
        }
        Ok(())
    }

    /// What was compared, as the answer says it.
    pub fn headers(&self) -> Vec<(&'static str, String)> {
        let md5 = self.md5.map(|digest| (MD5, STANDARD.encode(digest)));
        let crc64 = self.crc64.map(|digest| (CRC64, STANDARD.encode(digest)));
        md5.into_iter().chain(crc64).collect()
    }
}

/// The digest of a range that whoever reads it wants to be told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wanted {
    /// MD5.
    Md5,
    /// CRC-64.
    Crc64,
}

impl Wanted {
    /// The one that a request for so many bytes asks for; `range` is whether it says which.
    ///
    /// # Errors
    /// 400 for both, for all of a disk, and for more bytes than Azure storage takes.
    pub fn of(head: &Head, range: bool, bytes: u64) -> Result<Option<Self>, BlobError> {
        let asked = |name: &str| match only(head, name)? {
            None => Ok(false),
            Some(text) if text.eq_ignore_ascii_case("true") => Ok(true),
            Some(text) if text.eq_ignore_ascii_case("false") => Ok(false),
            Some(_) => Err(BlobError::header(name)),
        };
        let (name, wanted) = match (asked(RANGE_MD5)?, asked(RANGE_CRC64)?) {
            (false, false) => return Ok(None),
            (true, false) => (RANGE_MD5, Self::Md5),
            (false, true) => (RANGE_CRC64, Self::Crc64),
            (true, true) => return Err(BlobError::header(RANGE_CRC64)),
        };
        match range && bytes <= MOST {
            true => Ok(Some(wanted)),
            false => Err(BlobError::header(name)),
        }
    }

    /// The header that tells it.
    pub fn header(self, bytes: &[u8]) -> (&'static str, String) {
        match self {
            Self::Md5 => (MD5, STANDARD.encode(md5_of(bytes))),
            Self::Crc64 => (CRC64, STANDARD.encode(crc64_of(bytes))),
        }
    }
}

fn decoded<const N: usize>(text: &str) -> Option<[u8; N]> {
    STANDARD.decode(text).ok()?.try_into().ok()
}

fn md5_of(bytes: &[u8]) -> [u8; 16] {
    let (mut digest, found) = ([0; 16], Md5::digest(bytes));
    digest.copy_from_slice(&found);
    digest
}

fn crc64_of(bytes: &[u8]) -> [u8; 8] {
    CRC.checksum(bytes).to_le_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As Azure's own library computes them.
    const OF_ONES: (&str, &str) = ("OToPoPNI+wOHGrk3JgV93A==", "xMWZ8JhHXD8=");

    fn head(headers: &[(&'static str, &str)]) -> Head {
        let peer = std::net::SocketAddr::from(([127, 0, 0, 1], 1));
        Head::new("PUT", "localhost", "/sas", peer).with_headers(headers)
    }

    fn code<T>(result: Result<T, BlobError>) -> Option<String> {
        result.err().map(|error| error.code)
    }

    #[test]
    fn a_body_is_what_its_digest_says() {
        assert_eq!(crc64_of(b"123456789"), NVME.check.to_le_bytes());
        for header in [
            ("content-md5", OF_ONES.0),
            ("x-ms-content-crc64", OF_ONES.1),
        ] {
            let digests = Digests::of(&head(&[header])).unwrap();
            digests.check(&[1; 512]).unwrap();
            let told = digests.headers();
            assert_eq!(told, [(header.0, header.1.to_owned())]);
            let refused = code(digests.check(&[2; 512])).unwrap();
            assert!(refused.ends_with("Mismatch"), "{refused}");
        }
        Digests::of(&head(&[])).unwrap().check(b"x").unwrap();
    }

    #[test]
    fn what_is_no_digest_is_refused() {
        for text in ["garbage!!", "", OF_ONES.1] {
            let refused = code(Digests::of(&head(&[("content-md5", text)])));
            assert_eq!(refused.as_deref(), Some("InvalidMd5"), "{text}");
        }
        let both = [
            ("content-md5", OF_ONES.0),
            ("x-ms-content-crc64", OF_ONES.1),
        ];
        let twice = [("content-md5", OF_ONES.0), ("content-md5", "x")];
        let short = [("x-ms-content-crc64", "AAAA")];
        for headers in [&both[..], &twice, &short] {
            let refused = code(Digests::of(&head(headers)));
            assert_eq!(
                refused.as_deref(),
                Some("InvalidHeaderValue"),
                "{headers:?}"
            );
        }
    }

    #[test]
    fn a_digest_is_told_of_a_range_that_is_not_too_long() {
        let of = |headers: &[(&'static str, &str)], range, bytes| {
            Wanted::of(&head(headers), range, bytes).map_err(|error| error.status)
        };
        let (md5, crc64) = ((RANGE_MD5, "True"), (RANGE_CRC64, "true"));
        assert_eq!(of(&[], false, u64::MAX), Ok(None));
        assert_eq!(of(&[(RANGE_MD5, "false")], false, 9), Ok(None));
        assert_eq!(of(&[md5], true, MOST), Ok(Some(Wanted::Md5)));
        assert_eq!(of(&[crc64], true, 1), Ok(Some(Wanted::Crc64)));
        assert_eq!(of(&[md5], true, MOST + 1), Err(400));
        assert_eq!(of(&[md5], false, 512), Err(400));
        assert_eq!(of(&[md5, crc64], true, 512), Err(400));
        assert_eq!(of(&[(RANGE_MD5, "1")], true, 512), Err(400));
        let told = Wanted::Crc64.header(&[1; 512]);
        assert_eq!(told, ("x-ms-content-crc64", OF_ONES.1.to_owned()));
    }
}
