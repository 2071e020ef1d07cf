//! The dashboard: who is let in, what is answered, and the page itself in a real Chromium.

// Clippy exempts only functions with #[test], and helpers of tests panic as tests do.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod access;
mod answers;
mod browser;
mod crowd;
mod pages;

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use serde_json::Value;
use test_support::{Host, PATIENCE, Server, one_line};

/// A running dashboard.
struct Dashboard(Server);

/// What is answered.
struct Answer {
    status: u16,
    head: String,
    body: String,
}

impl Answer {
    fn header(&self, name: &str) -> Option<&str> {
        let lines = self.head.lines().skip(1);
        let mut headers = lines.filter_map(|line| line.split_once(": "));
        let (_, value) = headers.find(|(found, _)| found.eq_ignore_ascii_case(name))?;
        Some(value)
    }

    fn json(&self) -> Value {
        assert_eq!(self.status, 200, "{}", self.body);
        serde_json::from_str(&self.body).unwrap()
    }
}

impl Dashboard {
    /// Of a host, which it looks at every second.
    fn of(host: &Host) -> Self {
        Self::with(host, "")
    }

    fn with(host: &Host, options: &str) -> Self {
        let serve = format!("dashboard --listen 127.0.0.1:0 --interval 1 -o json {options}");
        Self(Server::start(host.command(serve.as_str())))
    }

    fn token(&self) -> String {
        let file = self.0.ready["tokenFile"].as_str().unwrap();
        fs::read_to_string(file).unwrap().trim_end().to_owned()
    }

    fn authority(&self) -> String {
        self.0.address.to_string()
    }

    /// Sends a request as it is.
    fn send(&self, request: &str) -> Answer {
        let mut stream = TcpStream::connect(self.0.address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        // Who is refused in the middle of it does not take the rest.
        let _ = stream.write_all(request.as_bytes());
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        let answer = String::from_utf8(answer).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
        let status = head.split(' ').nth(1).map_or(0, |s| s.parse().unwrap());
        Answer {
            status,
            head: head.to_owned(),
            body: body.to_owned(),
        }
    }

    fn get_with(&self, path: &str, headers: &str) -> Answer {
        let host = self.authority();
        self.send(&format!(
            "GET {path} HTTP/1.1\r\nHost: {host}\r\n{headers}\r\n"
        ))
    }

    /// As whoever has the token asks for something.
    fn get(&self, path: &str) -> Answer {
        let token = self.token();
        self.get_with(path, &format!("Authorization: Bearer {token}\r\n"))
    }

    /// Waits until what is answered is as it should be, and gives it.
    fn await_json(&self, path: &str, mut is: impl FnMut(&Value) -> bool) -> Value {
        let end = Instant::now() + PATIENCE;
        loop {
            let json = self.get(path).json();
            if is(&json) {
                return json;
            }
            assert!(Instant::now() < end, "not answered: {json:#}");
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// All of a section that is known now, once it is as it should be.
    fn await_section(&self, name: &str, mut is: impl FnMut(&Value) -> bool) -> Value {
        let section = |state: &Value| state["sections"][name]["put"].clone();
        section(&self.await_json("/api/state", |state| is(&section(state))))
    }

    fn log_in(&self, token: &str) -> Answer {
        let body = format!("token={token}");
        let length = body.len();
        let host = self.authority();
        self.send(&format!(
            "POST /login HTTP/1.1\r\nHost: {host}\r\nOrigin: http://{host}\r\n\
             Content-Type: application/x-www-form-urlencoded\r\nContent-Length: {length}\r\n\r\n{body}"
        ))
    }
}
