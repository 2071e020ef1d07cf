//! A small HTTP client over TLS that can do what a proper one never does.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rustls::crypto::aws_lc_rs::default_provider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use serde_json::{Value, json};
use test_support::Server;

use super::served::User;

/// Nothing here takes that long; a test that hangs ends with an error.
const PATIENCE: Duration = Duration::from_secs(60);

/// An answer.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub head: String,
    pub body: Value,
}

impl Answer {
    pub fn code(&self) -> &str {
        self.body["error"]["code"].as_str().unwrap_or_default()
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().find_map(|line| {
            let (key, value) = line.split_once(':')?;
            key.eq_ignore_ascii_case(name).then(|| value.trim())
        })
    }
}

/// A connection to a server.
pub struct Connection {
    stream: StreamOwned<ClientConnection, TcpStream>,
}

impl Connection {
    pub fn open(served: &Server) -> io::Result<Self> {
        let tcp = TcpStream::connect(("127.0.0.1", served.address.port()))?;
        tcp.set_read_timeout(Some(PATIENCE))?;
        tcp.set_write_timeout(Some(PATIENCE))?;
        tcp.set_nodelay(true)?;
        let name = ServerName::try_from("localhost").unwrap();
        let client = ClientConnection::new(config(&served.ca_file), name).unwrap();
        Ok(Self {
            stream: StreamOwned::new(client, tcp),
        })
    }

    pub fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.write_all(bytes)?;
        self.stream.flush()
    }

    /// Reads one answer; an error when the server closes the connection before.
    pub fn read(&mut self) -> io::Result<Answer> {
        let (mut answer, body) = self.read_bytes()?;
        if !body.is_empty() {
            answer.body = serde_json::from_slice(&body).unwrap();
        }
        Ok(answer)
    }

    /// The same without a look at the body.
    pub fn read_bytes(&mut self) -> io::Result<(Answer, Vec<u8>)> {
        let mut head = Vec::new();
        let mut byte = [0];
        while !head.ends_with(b"\r\n\r\n") {
            if self.stream.read(&mut byte)? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            head.push(byte[0]);
        }
        let head = String::from_utf8(head).unwrap();
        let answer = Answer {
            status: head.split(' ').nth(1).unwrap().parse().unwrap(),
            head,
            body: Value::Null,
        };
        let length = answer.header("content-length").unwrap_or("0");
        let mut body = vec![0; length.parse().unwrap()];
        self.stream.read_exact(&mut body)?;
        Ok((answer, body))
    }

    pub fn ask(
        &mut self,
        host: &str,
        token: &str,
        line: &str,
        body: Option<&Value>,
    ) -> io::Result<Answer> {
        let (method, path) = line.split_once(' ').unwrap();
        let separator = if path.contains('?') { '&' } else { '?' };
        let body = body.map(ToString::to_string).unwrap_or_default();
        let request = format!(
            "{method} {path}{separator}api-version=7.4 HTTP/1.1\r\nHost: {host}\r\n\
             Authorization: Bearer {token}\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        self.write(request.as_bytes())?;
        self.read()
    }
}

pub fn config(ca_file: &Path) -> Arc<ClientConfig> {
    let mut roots = RootCertStore::empty();
    roots
        .add(CertificateDer::from_pem_file(ca_file).unwrap())
        .unwrap();
    let config = ClientConfig::builder_with_provider(Arc::new(default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    Arc::new(config)
}

/// A user with a token, who asks one vault; each question on a connection of its own.
pub struct Client<'a> {
    pub served: &'a Server,
    pub vault: String,
    pub token: String,
}

impl<'a> Client<'a> {
    pub fn new(served: &'a Server, user: &User) -> Self {
        let answer = token(served, &user.secret, &served.resource());
        assert_eq!(answer.status, 200, "{answer:?}");
        Self {
            served,
            vault: served.host_of("myvault"),
            token: answer.body["access_token"].as_str().unwrap().into(),
        }
    }

    pub fn try_ask(&self, line: &str, body: Option<&Value>) -> io::Result<Answer> {
        Connection::open(self.served)?.ask(&self.vault, &self.token, line, body)
    }

    pub fn ask(&self, line: &str, body: Option<&Value>) -> Answer {
        self.try_ask(line, body).unwrap()
    }

    pub fn create(&self, name: &str) -> String {
        let answer = self.ask(
            &format!("POST /keys/{name}/create"),
            Some(&json!({"kty": "RSA"})),
        );
        assert_eq!(answer.status, 200, "{answer:?}");
        answer.body["key"]["kid"].as_str().unwrap().into()
    }
}

/// Asks the token service on the TLS port.
pub fn token(served: &Server, secret: &str, resource: &str) -> Answer {
    let mut connection = Connection::open(served).unwrap();
    let request = format!(
        "GET /msi/token?api-version=2019-08-01&resource={resource} HTTP/1.1\r\n\
         Host: localhost\r\nX-IDENTITY-HEADER: {secret}\r\n\r\n"
    );
    connection.write(request.as_bytes()).unwrap();
    connection.read().unwrap()
}

/// Asks a listener without TLS.
pub fn plain(url: &str, path: &str, headers: &str) -> (u16, Value) {
    plain_as(url, path, url.split('/').nth(2).unwrap(), headers)
}

/// The same under another name than its own.
pub fn plain_as(url: &str, path: &str, host: &str, headers: &str) -> (u16, Value) {
    let address = url.split('/').nth(2).unwrap();
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let request =
        format!("GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n{headers}\r\n");
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    (status, serde_json::from_str(body).unwrap_or(Value::Null))
}
