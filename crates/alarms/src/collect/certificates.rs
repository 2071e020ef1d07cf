//! Until when certificates are valid.

use std::fs;
use std::path::Path;
use std::time::Duration;

use der::asn1::{AnyRef, GeneralizedTime, UtcTime};
use der::{Reader, SliceReader, Tag, TagMode, TagNumber, Tagged};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use time::OffsetDateTime;

use crate::alarm::SubjectKind;
use crate::facts::{CertificateFacts, Facts, Unknown};
use crate::settings::Settings;

/// Bytes of a file of certificates at most.
const MAX_LEN: u64 = 1 << 20;

/// The certificates that Sealdisk makes, and those that the settings name.
pub(super) fn certificates(state_dir: &Path, settings: &Settings, facts: &mut Facts) {
    let authority = state_dir.join("tls/ca.pem");
    let made = authority.exists().then_some((authority, true));
    let named = settings
        .certificates
        .iter()
        .map(|path| (path.clone(), false));
    for (path, renewed) in made.into_iter().chain(named) {
        match certificate_end(&path) {
            Ok(expires) => facts.certificates.push(CertificateFacts {
                path,
                expires,
                renewed,
            }),
            Err(why) => {
                let unknown = Unknown::of_file(SubjectKind::Certificate, &path, why);
                facts.unknown.push(unknown);
            }
        }
    }
}

/// When the first certificate of a file (PEM) ends: a chain ends with its shortest part.
///
/// # Errors
/// Why the file has no certificates.
pub fn certificate_end(path: &Path) -> Result<OffsetDateTime, String> {
    let length = fs::metadata(path).map_err(|e| e.to_string())?.len();
    if length > MAX_LEN {
        return Err("the file is too long for certificates".into());
    }
    let text = fs::read(path).map_err(|e| e.to_string())?;
    let mut ends = Vec::new();
    for certificate in CertificateDer::pem_slice_iter(&text) {
        let certificate = certificate.map_err(|e| format!("it is no PEM ({e})"))?;
        let end = end_of(&certificate).map_err(|e| format!("it is no certificate ({e})"))?;
        ends.push(end);
    }
    let first = ends.into_iter().min();
    first.ok_or_else(|| "there is no certificate in it".into())
}

/// `notAfter` of a certificate (RFC 5280 §4.1).
fn end_of(certificate: &[u8]) -> der::Result<OffsetDateTime> {
    let whole: AnyRef<'_> = SliceReader::new(certificate)?.decode()?;
    whole.tag().assert_eq(Tag::Sequence)?;
    let signed: AnyRef<'_> = SliceReader::new(whole.value())?.decode()?;
    signed.tag().assert_eq(Tag::Sequence)?;
    let mut fields = SliceReader::new(signed.value())?;
    // The version has a default, and then is not there.
    fields.context_specific::<u8>(TagNumber(0), TagMode::Explicit)?;
    // Serial number, algorithm, issuer.
    for _ in 0..3 {
        fields.decode::<AnyRef<'_>>()?;
    }
    let validity: AnyRef<'_> = fields.decode()?;
    validity.tag().assert_eq(Tag::Sequence)?;
    let mut times = SliceReader::new(validity.value())?;
    times.decode::<AnyRef<'_>>()?;
    let end: AnyRef<'_> = times.decode()?;
    let since_1970: Duration = match end.tag() {
        Tag::UtcTime => end.decode_as::<UtcTime>()?.to_unix_duration(),
        _ => end.decode_as::<GeneralizedTime>()?.to_unix_duration(),
    };
    let seconds = i64::try_from(since_1970.as_secs()).unwrap_or(i64::MAX);
    // A year beyond 9999 has no such form.
    Ok(OffsetDateTime::from_unix_timestamp(seconds).unwrap_or(OffsetDateTime::UNIX_EPOCH))
}

#[cfg(test)]
mod tests {
    use super::*;
    use rcgen::{CertificateParams, KeyPair};

    fn certificate(until: OffsetDateTime) -> String {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec!["v.example".into()]).unwrap();
        params.not_after = until;
        params.self_signed(&key).unwrap().pem()
    }

    #[test]
    fn the_end_of_a_certificate_is_read_before_and_after_2050() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("c.pem");
        // UTCTime until 2049, then GeneralizedTime.
        for seconds in [1_700_000_000, 2_500_000_000, 4_000_000_000] {
            let until = OffsetDateTime::from_unix_timestamp(seconds).unwrap();
            fs::write(&path, certificate(until)).unwrap();
            assert_eq!(certificate_end(&path), Ok(until));
        }
        let ends = [2_000_000_000, 1_900_000_000].map(|seconds| {
            let until = OffsetDateTime::from_unix_timestamp(seconds).unwrap();
            (until, certificate(until))
        });
        fs::write(&path, format!("# two\n{}{}", ends[0].1, ends[1].1)).unwrap();
        assert_eq!(
            certificate_end(&path),
            Ok(ends[1].0),
            "the first end of a chain"
        );
    }

    #[test]
    fn what_is_no_certificate_is_said_to_be_none() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("c.pem");
        assert!(certificate_end(&path).is_err(), "there is none");
        let cut = "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n";
        for text in ["", "nonsense", cut] {
            fs::write(&path, text).unwrap();
            assert!(certificate_end(&path).is_err(), "{text}");
        }
        let whole = certificate(OffsetDateTime::UNIX_EPOCH);
        let der = CertificateDer::from_pem_slice(whole.as_bytes()).unwrap();
        for length in 0..der.len() {
            // A certificate that was cut off is none, or its end is still there: never a panic.
            let _ = end_of(&der[..length]);
        }
    }
}
