//! `keyvault serve` with one vault and one key, and connections to it.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use rustls::client::Resumption;
use rustls::crypto::aws_lc_rs::default_provider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use serde_json::{Value, json};

use super::Outcome;

/// As values are in requests.
pub fn encode(bytes: &[u8]) -> String {
    use base64::Engine as _;
    base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(bytes)
}

/// A server with one vault and one key, and a token for it.
pub struct Server {
    process: Child,
    port: u16,
    /// The path of the key.
    pub kid: String,
    token: String,
    /// That keeps sessions.
    config: Arc<ClientConfig>,
    /// That keeps none.
    forgetful: Arc<ClientConfig>,
}

impl Server {
    /// Starts a program with its state in an empty directory.
    pub fn start(program: PathBuf, state: &Path, bits: u32) -> Outcome<Self> {
        let command = |line: &str| command(&program, state, line);
        let run = |line: &str| run(command(line));
        run("keyvault create myvault")?;
        run("keyvault update myvault --operations-limit 10000000")?;
        let user = run("identity create bench")?;
        let id = text(&user, "principalId")?;
        run(&format!(
            "keyvault set-policy myvault --object-id {id} --key-permissions all"
        ))?;
        let create = format!("keyvault key create k --vault-name myvault --size {bits}");
        let key = run(&create)?;
        let kid = text(&key["key"], "kid")?;
        let path = kid.split_once("/keys/").ok_or("a key id has no path")?.1;
        let mut process = command("keyvault serve --listen 127.0.0.1:0")
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
        let mut config = ClientConfig::builder_with_provider(Arc::new(default_provider()))
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_no_client_auth();
        let keeping = Arc::new(config.clone());
        config.resumption = Resumption::disabled();
        let mut server = Self {
            process,
            port,
            kid: format!("/keys/{path}"),
            token: String::new(),
            config: keeping,
            forgetful: Arc::new(config),
        };
        let request = format!(
            "GET /msi/token?api-version=2019-08-01&resource=https://vault.localhost:{port} \
             HTTP/1.1\r\nHost: localhost\r\nX-IDENTITY-HEADER: {}\r\n\r\n",
            text(&user, "secret")?
        );
        let answer = server.connect(false)?.exchange(request.as_bytes())?;
        server.token = text(&answer, "access_token")?.into();
        Ok(server)
    }

    /// Its process.
    pub fn pid(&self) -> Outcome<i32> {
        Ok(self.process.id().try_into()?)
    }

    /// A new connection, perhaps with the session of an earlier one.
    pub fn connect(&self, resumes: bool) -> Outcome<Connection> {
        let tcp = TcpStream::connect(("127.0.0.1", self.port))?;
        tcp.set_nodelay(true)?;
        let name = ServerName::try_from("localhost")?;
        let config = if resumes {
            &self.config
        } else {
            &self.forgetful
        };
        let client = ClientConnection::new(Arc::clone(config), name)?;
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

/// A connection over TLS.
pub struct Connection {
    stream: BufReader<StreamOwned<ClientConnection, TcpStream>>,
    port: u16,
    token: String,
}

impl Connection {
    /// The value that an operation on a key gives.
    pub fn ask(&mut self, kid: &str, operation: &str, value: &Value) -> Outcome<Value> {
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

fn command(program: &Path, state: &Path, line: &str) -> Command {
    let mut command = Command::new(program);
    command
        .args(line.split(' '))
        .args(["-o", "json"])
        .env("SEALDISK_STATE_DIR", state.join("state"))
        .stdin(Stdio::null());
    command
}

fn run(mut command: Command) -> Outcome<Value> {
    let output = command.output()?;
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
