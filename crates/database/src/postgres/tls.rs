//! TLS to the server: it shows who it is, and may ask the same of the client.

use std::path::Path;
use std::sync::Arc;

use rustls::crypto::aws_lc_rs::default_provider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore};
use rustls_platform_verifier::BuilderVerifierExt;

use super::private::must_be_private;

/// Trusts the authorities in `roots`, or those of the system; shows a certificate if there is one.
pub(super) fn client(
    roots: Option<&Path>,
    certificate: Option<&Path>,
    key: Option<&Path>,
) -> Result<ClientConfig, String> {
    let builder = ClientConfig::builder_with_provider(Arc::new(default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|e| e.to_string())?;
    let builder = match roots {
        Some(path) => {
            let mut store = RootCertStore::empty();
            for certificate in certificates(path)? {
                store.add(certificate).map_err(|e| wrong(path, e))?;
            }
            builder.with_root_certificates(store)
        }
        None => builder
            .with_platform_verifier()
            .map_err(|e| format!("the system's authorities cannot be used: {e}"))?,
    };
    match (certificate, key) {
        (None, None) => Ok(builder.with_no_client_auth()),
        (Some(certificate), Some(key)) => {
            must_be_private(key)?;
            let secret = PrivateKeyDer::from_pem_file(key).map_err(|e| wrong(key, e))?;
            builder
                .with_client_auth_cert(certificates(certificate)?, secret)
                .map_err(|e| wrong(certificate, e))
        }
        _ => Err("sslcert and sslkey belong together".into()),
    }
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let read = CertificateDer::pem_file_iter(path).and_then(Iterator::collect);
    let read: Vec<_> = read.map_err(|e| wrong(path, e))?;
    match read.is_empty() {
        true => Err(wrong(path, "there is no certificate in it")),
        false => Ok(read),
    }
}

fn wrong(path: &Path, why: impl std::fmt::Display) -> String {
    format!("{} cannot be used: {why}", path.display())
}
