//! The server's certificate: the operator's own, or one of a certificate authority that is made with
//! the first start and that clients are told to trust (`STATE_DIR/tls/ca.pem`). The servers of an installation share it.
//!
//! Of the generated kind only the authority is kept. The server's own key and certificate are made
//! anew at each start and before they expire, and are nowhere but in its memory.

use std::fs;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use axum_server::tls_rustls::RustlsConfig;
use rcgen::{
    BasicConstraints, CertificateParams, CidrSubnet, DnType, ExtendedKeyUsagePurpose,
    GeneralSubtree, IsCa, Issuer, KeyPair, KeyUsagePurpose, NameConstraints, SerialNumber,
};
use rustls::ServerConfig;
use rustls::crypto::aws_lc_rs::default_provider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use time::format_description::well_known::Rfc3339;
use time::{Duration, OffsetDateTime};
use zeroize::Zeroizing;

use super::ServerError;
use installation::KeyStore;
use keys::{fill_random, sha256};

/// How long the authority is valid. Clients trust it by a file that somebody copied to them.
const CA_LIFETIME: Duration = Duration::days(20 * 365);
/// How long a certificate of the server is valid.
const LEAF_LIFETIME: Duration = Duration::days(90);
/// Clocks of clients that are behind see a new certificate as one of the future.
const BACKDATED: Duration = Duration::hours(1);
/// What `ca.pem` says before the certificate; whoever reads PEM passes over it.
const UNTIL: &str = "# Certificate authority of a Sealdisk key vault, valid until ";
/// The key of the authority, and its certificate.
const CA_KEY: &str = "ca.key";
const CA: &str = "ca.pem";
/// And the names and addresses that it may vouch for.
const NAMES: &str = "# It vouches for nothing but: ";

/// Where the certificate comes from.
pub enum CertificateSource {
    /// Files of the operator, read again when they change.
    Files {
        /// The chain, PEM.
        certificate: PathBuf,
        /// The private key, PEM.
        key: PathBuf,
    },
    /// The authority of the installation.
    Generated {
        /// Where its key is, and its certificate.
        keys: KeyStore,
        /// `STATE_DIR/tls`, where this host has the certificate.
        dir: PathBuf,
        /// The domains of vaults.
        domains: Vec<String>,
        /// The address that is listened on.
        address: IpAddr,
    },
}

/// The TLS configuration of a server, which is kept up to date.
pub struct Tls {
    source: CertificateSource,
    config: RustlsConfig,
    state: Mutex<State>,
}

/// From which the certificate in use was made.
#[derive(PartialEq, Eq)]
enum State {
    Files([Option<SystemTime>; 2]),
    Until(OffsetDateTime),
}

impl Tls {
    /// Reads or makes the certificate.
    ///
    /// # Errors
    /// [`ServerError`]: it cannot be used.
    pub fn open(source: CertificateSource) -> Result<Self, ServerError> {
        let (config, state) = load(&source)?;
        Ok(Self {
            source,
            config: RustlsConfig::from_config(config),
            state: Mutex::new(state),
        })
    }

    /// What connections are served with; it changes with the certificate.
    pub fn config(&self) -> RustlsConfig {
        self.config.clone()
    }

    /// The certificate that clients have to trust; `None` with the operator's own.
    pub fn ca_file(&self) -> Option<PathBuf> {
        match &self.source {
            CertificateSource::Generated { dir, .. } => Some(ca_file(dir)),
            CertificateSource::Files { .. } => None,
        }
    }

    /// Renews a certificate of which a third of its time is left, and reads changed files again.
    ///
    /// # Errors
    /// [`ServerError`]: the certificate stays as it was.
    pub fn run_due(&self) -> Result<(), ServerError> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let due = match (&*state, &self.source) {
            (State::Until(end), _) => OffsetDateTime::now_utc() > *end - LEAF_LIFETIME / 3,
            (seen, CertificateSource::Files { certificate, key }) => {
                *seen != State::Files(modified(certificate, key))
            }
            _ => false,
        };
        if due {
            let (config, now) = load(&self.source)?;
            self.config.reload_from_config(config);
            *state = now;
            log::info!("the TLS certificate was renewed");
        }
        Ok(())
    }
}

/// The authority's certificate in `STATE_DIR/tls`.
pub fn ca_file(dir: &Path) -> PathBuf {
    dir.join(CA)
}

/// Makes the authority if there is none yet, and returns its certificate's file.
///
/// # Errors
/// [`ServerError`].
pub fn ensure_ca(
    keys: &KeyStore,
    dir: &Path,
    domains: &[String],
    address: IpAddr,
) -> Result<PathBuf, ServerError> {
    Authority::open(keys, dir, &names(domains, address))?;
    Ok(ca_file(dir))
}

/// The names and addresses of a server, in the order of its certificate. A domain means what is below
/// it too.
fn names(domains: &[String], address: IpAddr) -> Vec<String> {
    let mut names = vec!["localhost".to_owned(), "127.0.0.1".into(), "::1".into()];
    names.extend(domains.iter().cloned());
    let own = address.to_string();
    if !address.is_unspecified() && !names.contains(&own) {
        names.push(own);
    }
    names
}

fn load(source: &CertificateSource) -> Result<(Arc<ServerConfig>, State), ServerError> {
    match source {
        CertificateSource::Files { certificate, key } => {
            // Looked at first: a change while they are read is then seen the next time.
            let state = State::Files(modified(certificate, key));
            Ok((from_files(certificate, key)?, state))
        }
        CertificateSource::Generated {
            keys,
            dir,
            domains,
            address,
        } => {
            let names = names(domains, *address);
            let authority = Authority::open(keys, dir, &names)?;
            let (chain, key, end) = authority.issue(&names)?;
            let config = server_config(chain, key, &ca_file(dir))?;
            Ok((config, State::Until(end)))
        }
    }
}

fn modified(certificate: &Path, key: &Path) -> [Option<SystemTime>; 2] {
    [certificate, key].map(|path| fs::metadata(path).and_then(|m| m.modified()).ok())
}

fn from_files(certificate: &Path, key: &Path) -> Result<Arc<ServerConfig>, ServerError> {
    let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_slice_iter(&read(certificate)?)
        .collect::<Result<_, _>>()
        .map_err(|e| unusable(certificate, e))?;
    if chain.is_empty() {
        return Err(unusable(certificate, "there is no certificate in it"));
    }
    let private = PrivateKeyDer::from_pem_slice(&read(key)?).map_err(|e| unusable(key, e))?;
    server_config(chain, private, certificate)
}

/// TLS 1.2 and 1.3. Only HTTP/1.1 is spoken: one request at a time on each connection, which keeps
/// what a client can ask for at once in bounds.
fn server_config(
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
    path: &Path,
) -> Result<Arc<ServerConfig>, ServerError> {
    let mut config = ServerConfig::builder_with_provider(Arc::new(default_provider()))
        .with_safe_default_protocol_versions()
        .and_then(|builder| builder.with_no_client_auth().with_single_cert(chain, key))
        .map_err(|e| unusable(path, e))?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

/// The certificate authority of an installation.
struct Authority {
    params: CertificateParams,
    key: KeyPair,
}

impl Authority {
    /// Reads it, makes it when there is none, and gives it a new certificate in good time, or when it has
    /// none that vouches for `names` and for nothing else. The key stays, and so does the name: who trusts
    /// the old certificate is served with either, as far as that vouches for the server's names.
    fn open(store: &KeyStore, dir: &Path, names: &[String]) -> Result<Self, ServerError> {
        // Servers that start at the same time make one authority.
        let keys = store.open()?;
        let key_path = store.place_of(CA_KEY);
        let key = match keys.read_unguarded(CA_KEY)? {
            Some(pem) => {
                let pem = std::str::from_utf8(&pem).map_err(|e| unusable(&key_path, e))?;
                KeyPair::from_pem(pem).map_err(|e| unusable(&key_path, e))?
            }
            None => {
                let key = KeyPair::generate().map_err(|e| unusable(&key_path, e))?;
                let pem = Zeroizing::new(key.serialize_pem());
                keys.put(CA_KEY, pem.as_bytes(), true)?;
                key
            }
        };
        let now = OffsetDateTime::now_utc();
        let path = store.place_of(CA);
        let found = keys.read_unguarded(CA)?;
        let found = found.and_then(|found| String::from_utf8(found.to_vec()).ok());
        let known = found.as_deref().and_then(constraints);
        let mut all = known.clone().unwrap_or_default();
        all.extend(
            names
                .iter()
                .filter(|name| !all.contains(name))
                .cloned()
                .collect::<Vec<_>>(),
        );
        let params = ca_params(&key, now, &all)?;
        let end = found.as_deref().and_then(expiry);
        let due = end.is_none_or(|end| now > end - CA_LIFETIME / 3);
        let text = match found.filter(|_| !due && known.as_ref() == Some(&all)) {
            Some(text) => text,
            None => {
                let certificate = params.self_signed(&key).map_err(|e| unusable(&path, e))?;
                let until = params.not_after.format(&Rfc3339).unwrap_or_default();
                let all = all.join(" ");
                let text = format!("{UNTIL}{until}\n{NAMES}{all}\n{}", certificate.pem());
                keys.put(CA, text.as_bytes(), false)?;
                if end.is_some() || known.is_some() {
                    log::warn!(
                        "the certificate authority {} was renewed: give it to the clients again",
                        path.display()
                    );
                }
                text
            }
        };
        if store.is_shared() {
            show(dir, &text)?;
        }
        Ok(Self { params, key })
    }

    fn issue(
        self,
        names: &[String],
    ) -> Result<
        (
            Vec<CertificateDer<'static>>,
            PrivateKeyDer<'static>,
            OffsetDateTime,
        ),
        ServerError,
    > {
        let what = Path::new("of the server");
        let fail = |e: rcgen::Error| unusable(what, e);
        let mut all = Vec::new();
        for name in names {
            all.push(name.clone());
            if name.parse::<IpAddr>().is_err() && name != "localhost" {
                all.push(format!("*.{name}"));
            }
        }
        let now = OffsetDateTime::now_utc();
        let mut params = CertificateParams::new(all).map_err(fail)?;
        params.distinguished_name = rcgen::DistinguishedName::new();
        params
            .distinguished_name
            .push(DnType::CommonName, "Sealdisk key vault");
        params.not_before = now - BACKDATED;
        params.not_after = now + LEAF_LIFETIME;
        params.serial_number = Some(serial()?);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.use_authority_key_identifier_extension = true;
        let key = KeyPair::generate().map_err(fail)?;
        let end = params.not_after;
        let issuer = Issuer::new(self.params, self.key);
        let certificate = params.signed_by(&key, &issuer).map_err(fail)?;
        Ok((vec![certificate.into()], key.into(), end))
    }
}

/// The name has a part of the key's hash in it: the authorities of two installations must not be
/// taken for each other, and the server's certificate must not have its authority's name.
///
/// It is constrained to the server's names (RFC 5280 §4.2.1.10): who gets its key can pretend to be
/// these, and nobody else, to clients that trust it.
fn ca_params(
    key: &KeyPair,
    now: OffsetDateTime,
    names: &[String],
) -> Result<CertificateParams, ServerError> {
    let hash = sha256(key.public_key_raw());
    let id: String = hash.iter().take(4).map(|b| format!("{b:02x}")).collect();
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params
        .distinguished_name
        .push(DnType::CommonName, format!("Sealdisk vault CA {id}"));
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    let subtrees = names.iter().map(|name| match name.parse() {
        Ok(IpAddr::V4(v4)) => GeneralSubtree::IpAddress(CidrSubnet::V4(v4.octets(), [0xff; 4])),
        Ok(IpAddr::V6(v6)) => GeneralSubtree::IpAddress(CidrSubnet::V6(v6.octets(), [0xff; 16])),
        Err(_) => GeneralSubtree::DnsName(name.clone()),
    });
    params.name_constraints = Some(NameConstraints {
        permitted_subtrees: subtrees.collect(),
        excluded_subtrees: Vec::new(),
    });
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.not_before = now - BACKDATED;
    params.not_after = (now + CA_LIFETIME).truncate_to_second();
    params.serial_number = Some(serial()?);
    Ok(params)
}

/// RFC 5280 §4.1.2.2: positive, at most 20 bytes.
fn serial() -> Result<SerialNumber, ServerError> {
    let mut bytes = [0; 16];
    fill_random(&mut bytes).map_err(|e| ServerError::System {
        what: "make a certificate's serial number",
        source: io::Error::other(e),
    })?;
    bytes[0] = bytes[0] & 0x7f | 0x40;
    Ok(SerialNumber::from_slice(&bytes))
}

fn expiry(text: &str) -> Option<OffsetDateTime> {
    let until = text.lines().find_map(|line| line.strip_prefix(UNTIL))?;
    OffsetDateTime::parse(until, &Rfc3339).ok()
}

/// The names that the authority's certificate is constrained to; `None` for one from before there were
/// constraints.
fn constraints(text: &str) -> Option<Vec<String>> {
    let names = text.lines().find_map(|line| line.strip_prefix(NAMES))?;
    Some(names.split_whitespace().map(Into::into).collect())
}

/// Has this host have a certificate that is elsewhere as a file, which clients are given.
fn show(dir: &Path, text: &str) -> Result<(), ServerError> {
    let here = KeyStore::in_directory(dir).open()?;
    let known = here.read_unguarded(CA)?;
    match known.is_some_and(|known| known.as_slice() == text.as_bytes()) {
        true => Ok(()),
        false => Ok(here.put(CA, text.as_bytes(), false)?),
    }
}

fn read(path: &Path) -> Result<Vec<u8>, ServerError> {
    fs::read(path).map_err(|source| ServerError::File {
        what: "read",
        path: path.into(),
        source,
    })
}

fn unusable(path: &Path, why: impl std::fmt::Display) -> ServerError {
    ServerError::Certificate {
        path: path.into(),
        why: why.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use keys::FIPS;
    use std::net::Ipv4Addr;
    use std::os::unix::fs::PermissionsExt;

    fn generated(dir: &Path) -> CertificateSource {
        CertificateSource::Generated {
            keys: KeyStore::in_directory(&dir.join("tls")),
            dir: dir.join("tls"),
            domains: vec!["vault.localhost".into()],
            address: Ipv4Addr::LOCALHOST.into(),
        }
    }

    #[test]
    fn the_authority_is_made_once_and_its_key_is_private() {
        let dir = tempfile::tempdir().unwrap();
        let tls = Tls::open(generated(dir.path())).unwrap();
        let ca = fs::read(tls.ca_file().unwrap()).unwrap();
        Tls::open(generated(dir.path())).unwrap();
        assert_eq!(fs::read(tls.ca_file().unwrap()).unwrap(), ca);
        let key = fs::metadata(dir.path().join("tls/ca.key")).unwrap();
        assert_eq!(key.permissions().mode() & 0o777, 0o600);
        let parsed = CertificateDer::pem_slice_iter(&ca).count();
        assert_eq!(parsed, 1, "readers of PEM pass over the line before");
    }

    /// Suites, groups and signatures of the validated module only, and no session of TLS 1.2 without the
    /// extended master secret (RFC 7627).
    #[test]
    fn with_fips_tls_is_the_validated_modules() {
        let dir = tempfile::tempdir().unwrap();
        let (config, _) = load(&generated(dir.path())).unwrap();
        assert_eq!(config.fips(), FIPS);
        let client = rustls::ClientConfig::builder()
            .with_root_certificates(rustls::RootCertStore::empty())
            .with_no_client_auth();
        assert_eq!(client.fips(), FIPS);
    }

    #[test]
    fn an_authority_that_nears_its_end_gets_a_new_certificate_of_the_same_key() {
        let dir = tempfile::tempdir().unwrap();
        let tls = dir.path().join("tls");
        let domains = ["vault.localhost".to_owned()];
        let keys = KeyStore::in_directory(&tls);
        let ensure = || ensure_ca(&keys, &tls, &domains, Ipv4Addr::LOCALHOST.into()).unwrap();
        let path = ensure();
        let first = fs::read_to_string(&path).unwrap();
        let old = expiry(&first).unwrap();
        let near = OffsetDateTime::now_utc() + Duration::days(365);
        let text = first.replace(
            &old.format(&Rfc3339).unwrap(),
            &near.format(&Rfc3339).unwrap(),
        );
        fs::write(&path, text).unwrap();
        let key = fs::read(tls.join("ca.key")).unwrap();
        ensure();
        let second = fs::read_to_string(&path).unwrap();
        assert_ne!(first, second);
        assert!(expiry(&second).unwrap() >= old);
        assert_eq!(fs::read(tls.join("ca.key")).unwrap(), key);
    }

    #[test]
    fn a_certificate_is_renewed_before_it_expires() {
        let dir = tempfile::tempdir().unwrap();
        let tls = Tls::open(generated(dir.path())).unwrap();
        let before = tls.config().get_inner();
        tls.run_due().unwrap();
        assert!(Arc::ptr_eq(&before, &tls.config().get_inner()), "not yet");
        *tls.state.lock().unwrap() = State::Until(OffsetDateTime::now_utc() + Duration::days(29));
        tls.run_due().unwrap();
        assert!(!Arc::ptr_eq(&before, &tls.config().get_inner()));
    }

    #[test]
    fn files_of_the_operator_are_read_again_when_they_change() {
        let dir = tempfile::tempdir().unwrap();
        let (certificate, key) = (dir.path().join("c.pem"), dir.path().join("k.pem"));
        let make = || {
            let pair = KeyPair::generate().unwrap();
            let params = CertificateParams::new(vec!["v.example.net".to_owned()]).unwrap();
            fs::write(&certificate, params.self_signed(&pair).unwrap().pem()).unwrap();
            fs::write(&key, pair.serialize_pem()).unwrap();
        };
        make();
        let source = CertificateSource::Files {
            certificate: certificate.clone(),
            key: key.clone(),
        };
        let tls = Tls::open(source).unwrap();
        let before = tls.config().get_inner();
        make();
        let later = SystemTime::now() + std::time::Duration::from_secs(5);
        fs::File::options()
            .write(true)
            .open(&certificate)
            .and_then(|file| file.set_modified(later))
            .unwrap();
        tls.run_due().unwrap();
        let after = tls.config().get_inner();
        assert!(!Arc::ptr_eq(&before, &after));
        // A key that does not fit: the old certificate stays in use.
        fs::write(&key, KeyPair::generate().unwrap().serialize_pem()).unwrap();
        fs::File::options()
            .write(true)
            .open(&key)
            .and_then(|file| file.set_modified(later))
            .unwrap();
        let error = tls.run_due().unwrap_err();
        assert!(matches!(error, ServerError::Certificate { .. }), "{error}");
        assert!(Arc::ptr_eq(&after, &tls.config().get_inner()));
    }

    #[test]
    fn what_is_no_certificate_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("c.pem");
        fs::write(&path, "no certificate").unwrap();
        let source = CertificateSource::Files {
            certificate: path.clone(),
            key: path.clone(),
        };
        let error = Tls::open(source).err().unwrap().to_string();
        assert!(error.contains("c.pem"), "{error}");
    }
}
