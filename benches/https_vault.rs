//! Wrap and unwrap requests a second of `keyvault serve`, next to the library's bare RSA.
//!
//! 32 keep-alive connections ask a server on this machine, so that the clients' part of TLS and
//! HTTP comes out of the same CPUs; each answer is that of a durable audit record. The bare rate is
//! that of as many threads as there are CPUs, which do nothing else.
//!
//! Usage: cargo bench --bench https_vault [-- [--seconds N] [--bits 2048|3072|4096]]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::scope;
use std::time::{Duration, Instant};

use aws_lc_rs::rsa::{
    KeySize, OAEP_SHA256_MGF1SHA256, OaepPrivateDecryptingKey, OaepPublicEncryptingKey,
    PrivateDecryptingKey,
};
use rustls::crypto::aws_lc_rs::default_provider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use serde_json::{Value, json};
use test_support::program;

type Outcome<T> = Result<T, Box<dyn std::error::Error + Send + Sync>>;

const CONNECTIONS: usize = 32;
/// As long as the DEK of a disk.
const SECRET: [u8; 64] = [7; 64];

fn main() -> Outcome<()> {
    let options = Options::parse()?;
    let cpus = std::thread::available_parallelism()?.get();
    println!(
        "RSA-{}, OAEP with SHA-256, {} bytes, {cpus} CPUs, {CONNECTIONS} connections",
        options.bits,
        SECRET.len()
    );
    let bare = bare(&options, cpus)?;
    let served = served(&options)?;
    for (operation, bare, served) in [("wrap", bare.0, served.0), ("unwrap", bare.1, served.1)] {
        println!(
            "{operation:7} served {served:8.0}/s   bare {bare:8.0}/s   ratio {:.2}",
            served / bare
        );
    }
    Ok(())
}

struct Options {
    time: Duration,
    bits: u32,
}

impl Options {
    fn parse() -> Outcome<Self> {
        let mut options = Self {
            time: Duration::from_secs(10),
            bits: 3072,
        };
        let mut arguments = std::env::args().skip(1).filter(|a| a != "--bench");
        while let Some(name) = arguments.next() {
            let value = arguments.next().ok_or("an option has no value")?;
            match name.as_str() {
                "--seconds" => options.time = Duration::from_secs(value.parse()?),
                "--bits" => options.bits = value.parse()?,
                _ => return Err(format!("unknown option {name}").into()),
            }
        }
        Ok(options)
    }
}

/// Wraps and unwraps a second without a server.
fn bare(options: &Options, threads: usize) -> Outcome<(f64, f64)> {
    let size = match options.bits {
        2048 => KeySize::Rsa2048,
        3072 => KeySize::Rsa3072,
        4096 => KeySize::Rsa4096,
        _ => return Err("--bits has to be 2048, 3072 or 4096".into()),
    };
    let private = PrivateDecryptingKey::generate(size)?;
    let public = OaepPublicEncryptingKey::new(private.public_key())?;
    let private = OaepPrivateDecryptingKey::new(private)?;
    let wrap = || -> Outcome<Vec<u8>> {
        let mut wrapped = vec![0; public.ciphertext_size()];
        public.encrypt(&OAEP_SHA256_MGF1SHA256, &SECRET, &mut wrapped, None)?;
        Ok(wrapped)
    };
    let wrapped = wrap()?;
    let unwrap = || -> Outcome<()> {
        let mut secret = vec![0; private.min_output_size()];
        private.decrypt(&OAEP_SHA256_MGF1SHA256, &wrapped, &mut secret, None)?;
        Ok(())
    };
    Ok((
        rate(options.time, threads, |_| Ok(|| wrap().map(drop)))?,
        rate(options.time, threads, |_| Ok(unwrap))?,
    ))
}

/// Wraps and unwraps a second over HTTPS.
fn served(options: &Options) -> Outcome<(f64, f64)> {
    let dir = tempfile::tempdir()?;
    let server = Server::start(dir.path(), options.bits)?;
    let kid = server.kid.as_str();
    let wrapped = server
        .connect()?
        .ask(kid, "wrapkey", &json!(encode(&SECRET)))?;
    let ask = |operation: &'static str, value: Value| {
        let server = &server;
        move |_| -> Outcome<_> {
            let mut connection = server.connect()?;
            let value = value.clone();
            Ok(move || connection.ask(kid, operation, &value).map(drop))
        }
    };
    let secret = json!(encode(&SECRET));
    Ok((
        rate(options.time, CONNECTIONS, ask("wrapkey", secret))?,
        rate(options.time, CONNECTIONS, ask("unwrapkey", wrapped))?,
    ))
}

/// How often a second several threads together do something.
fn rate<F: FnMut() -> Outcome<()> + Send>(
    time: Duration,
    threads: usize,
    worker: impl Fn(usize) -> Outcome<F>,
) -> Outcome<f64> {
    let workers: Vec<F> = (0..threads).map(worker).collect::<Outcome<_>>()?;
    let done = AtomicU64::new(0);
    let started = Instant::now();
    scope(|scope| -> Outcome<()> {
        let threads: Vec<_> = workers
            .into_iter()
            .map(|mut work| {
                let done = &done;
                scope.spawn(move || -> Outcome<()> {
                    while started.elapsed() < time {
                        work()?;
                        done.fetch_add(1, Ordering::Relaxed);
                    }
                    Ok(())
                })
            })
            .collect();
        for thread in threads {
            thread.join().map_err(|_| "a thread panicked")??;
        }
        Ok(())
    })?;
    Ok(done.load(Ordering::Relaxed) as f64 / started.elapsed().as_secs_f64())
}

fn encode(bytes: &[u8]) -> String {
    use base64::Engine as _;
    base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(bytes)
}

/// A server with one vault and one key, and a token for it.
struct Server {
    process: Child,
    port: u16,
    kid: String,
    token: String,
    config: Arc<ClientConfig>,
}

impl Server {
    fn start(state: &Path, bits: u32) -> Outcome<Self> {
        run(state, "keyvault create myvault")?;
        run(state, "keyvault update myvault --operations-limit 10000000")?;
        let user = run(state, "identity create bench")?;
        let id = text(&user, "principalId")?;
        run(
            state,
            &format!("keyvault set-policy myvault --object-id {id} --key-permissions all"),
        )?;
        let create = format!("keyvault key create k --vault-name myvault --size {bits}");
        let key = run(state, &create)?;
        let kid = text(&key["key"], "kid")?;
        let path = kid.split_once("/keys/").ok_or("a key id has no path")?.1;
        let mut process = command(state, "keyvault serve --listen 127.0.0.1:0")
            .stdout(Stdio::piped())
            .spawn()?;
        let stdout = process.stdout.take().ok_or("no output")?;
        let mut line = String::new();
        BufReader::new(stdout).read_line(&mut line)?;
        let ready: Value = serde_json::from_str(&line)?;
        let port = text(&ready, "listen")?
            .rsplit_once(':')
            .ok_or("no port")?
            .1
            .parse()?;
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(text(&ready, "caFile")?)?)?;
        let config = ClientConfig::builder_with_provider(Arc::new(default_provider()))
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_no_client_auth();
        let mut server = Self {
            process,
            port,
            kid: format!("/keys/{path}"),
            token: String::new(),
            config: Arc::new(config),
        };
        let request = format!(
            "GET /msi/token?api-version=2019-08-01&resource=https://vault.localhost:{port} \
             HTTP/1.1\r\nHost: localhost\r\nX-IDENTITY-HEADER: {}\r\n\r\n",
            text(&user, "secret")?
        );
        let answer = server.connect()?.exchange(request.as_bytes())?;
        server.token = text(&answer, "access_token")?.into();
        Ok(server)
    }

    fn connect(&self) -> Outcome<Connection> {
        let tcp = TcpStream::connect(("127.0.0.1", self.port))?;
        tcp.set_nodelay(true)?;
        let name = ServerName::try_from("localhost")?;
        let client = ClientConnection::new(Arc::clone(&self.config), name)?;
        Ok(Connection {
            stream: BufReader::new(StreamOwned::new(client, tcp)),
            port: self.port,
            token: self.token.clone(),
        })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It ends with the benchmark, whatever became of that.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

struct Connection {
    stream: BufReader<StreamOwned<ClientConnection, TcpStream>>,
    port: u16,
    token: String,
}

impl Connection {
    fn ask(&mut self, kid: &str, operation: &str, value: &Value) -> Outcome<Value> {
        let body = json!({"alg": "RSA-OAEP-256", "value": value}).to_string();
        let request = format!(
            "POST {kid}/{operation}?api-version=7.4 HTTP/1.1\r\n\
             Host: myvault.vault.localhost:{}\r\nAuthorization: Bearer {}\r\n\
             Content-Length: {}\r\n\r\n{body}",
            self.port,
            self.token,
            body.len()
        );
        Ok(self.exchange(request.as_bytes())?["value"].clone())
    }

    fn exchange(&mut self, request: &[u8]) -> Outcome<Value> {
        let stream = self.stream.get_mut();
        stream.write_all(request)?;
        stream.flush()?;
        let mut status = String::new();
        self.stream.read_line(&mut status)?;
        let mut length = 0;
        loop {
            let mut line = String::new();
            self.stream.read_line(&mut line)?;
            if line.trim().is_empty() {
                break;
            }
            if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
                length = value.trim().parse()?;
            }
        }
        let mut body = vec![0; length];
        self.stream.read_exact(&mut body)?;
        if !status.contains(" 200 ") {
            return Err(format!("{status}{}", String::from_utf8_lossy(&body)).into());
        }
        Ok(serde_json::from_slice(&body)?)
    }
}

fn command(state: &Path, line: &str) -> Command {
    let mut command = Command::new(program());
    command
        .args(line.split(' '))
        .args(["-o", "json"])
        .env("SEALDISK_STATE_DIR", state.join("state"))
        .stdin(Stdio::null());
    command
}

fn run(state: &Path, line: &str) -> Outcome<Value> {
    let output = command(state, line).output()?;
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).into());
    }
    Ok(serde_json::from_slice(&output.stdout)?)
}

fn text<'a>(value: &'a Value, field: &str) -> Outcome<&'a str> {
    value[field]
        .as_str()
        .ok_or_else(|| format!("there is no {field} in {value}").into())
}
