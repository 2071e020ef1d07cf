//! A TLS server that answers as a test tells it, for faults that a real vault does not have on
//! demand. Its good answers are made up; `tests/vaults/azure` and the end-to-end tests have real ones.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use rustls::pki_types::PrivateKeyDer;
use rustls::{ServerConfig, ServerConnection, StreamOwned};
use vault::remote::{ManagedIdentity, RemoteVault, TokenCache};

/// A request as it arrived.
#[derive(Clone, Debug)]
pub struct Request {
    pub method: String,
    pub path: String,
    pub query: String,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Request {
    pub fn header(&self, name: &str) -> Option<&str> {
        let own = self
            .headers
            .iter()
            .find(|(n, _)| n.eq_ignore_ascii_case(name));
        own.map(|(_, value)| value.as_str())
    }

    pub fn token(&self) -> Option<&str> {
        self.header("authorization")?.strip_prefix("Bearer ")
    }
}

/// What becomes of a request.
#[derive(Clone, Debug)]
pub enum Reply {
    /// An answer with these further headers.
    Answer(u16, Vec<(&'static str, String)>, String),
    /// Bytes as they are; the connection is closed then.
    Raw(Vec<u8>),
    /// Nothing, for as long as the client waits.
    Hang,
    /// The connection ends in the middle of it.
    Reset,
}

pub fn json(status: u16, body: impl Into<String>) -> Reply {
    Reply::Answer(status, Vec::new(), body.into())
}

pub fn azure_error(status: u16, code: &str, inner: &str) -> Reply {
    let body = serde_json::json!({
        "error": {"code": code, "message": "made up", "innererror": {"code": inner}}
    });
    json(status, body.to_string())
}

type Script = dyn Fn(&Request) -> Reply + Send + Sync;

pub struct Server {
    port: u16,
    ca: String,
    state: Arc<State>,
    accepting: Option<JoinHandle<()>>,
    /// Where the identity's secret is.
    dir: tempfile::TempDir,
}

struct State {
    script: Box<Script>,
    seen: Mutex<Vec<Request>>,
    open: AtomicUsize,
    stop: AtomicBool,
}

impl Server {
    /// A server for `HOST`, whose certificate is for `name`.
    pub fn with_certificate_for(
        name: &str,
        script: impl Fn(&Request) -> Reply + Send + Sync + 'static,
    ) -> Self {
        let (config, ca) = certificate(name);
        let dir = tempfile::tempdir().unwrap();
        private_file(&dir.path().join("secret"), SECRET);
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let state = Arc::new(State {
            script: Box::new(script),
            seen: Mutex::default(),
            open: AtomicUsize::new(0),
            stop: AtomicBool::new(false),
        });
        let accepting = {
            let state = state.clone();
            thread::spawn(move || accept(&listener, &Arc::new(config), &state))
        };
        Self {
            port,
            ca,
            state,
            accepting: Some(accepting),
            dir,
        }
    }

    pub fn new(script: impl Fn(&Request) -> Reply + Send + Sync + 'static) -> Self {
        Self::with_certificate_for(HOST, script)
    }

    pub fn url(&self) -> String {
        format!("https://{HOST}:{}", self.port)
    }

    pub fn ca(&self) -> &str {
        &self.ca
    }

    /// What arrived whose path begins so, in order.
    pub fn seen(&self, path: &str) -> Vec<Request> {
        let seen = self.state.seen.lock().unwrap();
        seen.iter()
            .filter(|r| r.path.starts_with(path))
            .cloned()
            .collect()
    }

    /// Connections that are open, once those that are being closed are.
    pub fn open_connections(&self) -> usize {
        let deadline = Instant::now() + Duration::from_secs(10);
        while self.state.open.load(Ordering::SeqCst) > 0 && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(5));
        }
        self.state.open.load(Ordering::SeqCst)
    }

    /// The vault of this server, as an identity sees it for which the server issues tokens.
    pub fn vault(&self, tokens: &TokenCache) -> RemoteVault {
        self.vault_with_ca(&self.ca, tokens)
    }

    pub fn vault_with_ca(&self, ca: &str, tokens: &TokenCache) -> RemoteVault {
        let endpoint = format!("https://localhost:{}/msi/token", self.port);
        let secret = self.dir.path().join("secret");
        let identity = ManagedIdentity::endpoint(&endpoint, secret, None).unwrap();
        RemoteVault::new(&self.url(), Some(ca), identity, tokens).unwrap()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.state.stop.store(true, Ordering::SeqCst);
        // Wakes the thread that accepts.
        let _ = TcpStream::connect((Ipv4Addr::LOCALHOST, self.port));
        let _ = self.accepting.take().map(JoinHandle::join);
    }
}

pub const HOST: &str = "myvault.vault.localhost";
pub const SECRET: &str = "the identity's secret";

pub fn private_file(path: &std::path::Path, content: &str) {
    use std::os::unix::fs::OpenOptionsExt;
    let mut options = std::fs::OpenOptions::new();
    options.write(true).create(true).truncate(true).mode(0o600);
    options
        .open(path)
        .unwrap()
        .write_all(content.as_bytes())
        .unwrap();
}

fn certificate(name: &str) -> (ServerConfig, String) {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params
        .distinguished_name
        .push(DnType::CommonName, "test CA");
    let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new([name.to_owned(), "localhost".into()]).unwrap();
    params
        .distinguished_name
        .push(DnType::CommonName, "test server");
    let leaf = params.signed_by(&key, &issuer).unwrap();
    let der = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![leaf.der().clone()], der)
        .unwrap();
    (config, issuer.pem())
}

fn accept(listener: &TcpListener, config: &Arc<ServerConfig>, state: &Arc<State>) {
    for stream in listener.incoming() {
        if state.stop.load(Ordering::SeqCst) {
            return;
        }
        let Ok(stream) = stream else { continue };
        let (config, state) = (config.clone(), state.clone());
        thread::spawn(move || {
            state.open.fetch_add(1, Ordering::SeqCst);
            // A client that goes away is not the test's concern here.
            let _ = serve(stream, config, &state);
            state.open.fetch_sub(1, Ordering::SeqCst);
        });
    }
}

fn serve(stream: TcpStream, config: Arc<ServerConfig>, state: &State) -> std::io::Result<()> {
    stream.set_read_timeout(Some(Duration::from_secs(30)))?;
    let socket = stream.try_clone()?;
    let connection = ServerConnection::new(config).map_err(std::io::Error::other)?;
    let mut stream = BufReader::new(StreamOwned::new(connection, stream));
    while let Some(request) = read_request(&mut stream)? {
        state.seen.lock().unwrap().push(request.clone());
        match (state.script)(&request) {
            Reply::Answer(status, headers, body) => {
                let mut head = format!(
                    "HTTP/1.1 {status} X\r\ncontent-type: application/json\r\ncontent-length: {}\r\n",
                    body.len()
                );
                for (name, value) in headers {
                    head += &format!("{name}: {value}\r\n");
                }
                let whole = format!("{head}\r\n{body}");
                stream.get_mut().write_all(whole.as_bytes())?;
                stream.get_mut().flush()?;
            }
            Reply::Raw(bytes) => {
                stream.get_mut().write_all(&bytes)?;
                stream.get_mut().flush()?;
                return socket.shutdown(Shutdown::Both);
            }
            Reply::Reset => return socket.shutdown(Shutdown::Both),
            Reply::Hang => {
                // Until the client gives up.
                let _ = stream.read(&mut [0]);
                return Ok(());
            }
        }
    }
    Ok(())
}

fn read_request(stream: &mut impl BufRead) -> std::io::Result<Option<Request>> {
    let mut line = String::new();
    if stream.read_line(&mut line)? == 0 {
        return Ok(None);
    }
    let mut words = line.split_whitespace();
    let method = words.next().unwrap_or_default().to_owned();
    let target = words.next().unwrap_or_default();
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let mut request = Request {
        method,
        path: path.to_owned(),
        query: query.to_owned(),
        headers: Vec::new(),
        body: Vec::new(),
    };
    loop {
        let mut line = String::new();
        stream.read_line(&mut line)?;
        let line = line.trim_end();
        if line.is_empty() {
            break;
        }
        if let Some((name, value)) = line.split_once(':') {
            request
                .headers
                .push((name.to_owned(), value.trim().to_owned()));
        }
    }
    let length = request
        .header("content-length")
        .and_then(|l| l.parse().ok());
    request.body = vec![0; length.unwrap_or(0)];
    stream.read_exact(&mut request.body)?;
    Ok(Some(request))
}
