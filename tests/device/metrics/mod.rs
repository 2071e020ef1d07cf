//! Metrics: what is exported of real disks, by `sealdisk metrics serve`.

mod alerts;
mod counters;
mod exporter;
mod prometheus;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use test_support::{Host, PATIENCE, Server};

/// A running exporter.
struct Exporter(Server);

impl Exporter {
    /// Of a host, at which it looks every second.
    fn of(host: &Host) -> Self {
        Self::with(host, "--timeout 1")
    }

    fn with(host: &Host, options: &str) -> Self {
        let serve = format!("metrics serve --listen 127.0.0.1:0 --interval 1 -o json {options}");
        Self(Server::start(host.command(&serve[..])))
    }

    /// The status of an answer, and the answer.
    fn get(&self, path: &str) -> (u16, String) {
        self.get_with(path, "")
    }

    /// With more lines in the head of the request.
    fn get_with(&self, path: &str, head: &str) -> (u16, String) {
        let mut stream = TcpStream::connect(self.0.address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        write!(
            stream,
            "GET {path} HTTP/1.1\r\nHost: localhost\r\n{head}\r\n"
        )
        .unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").expect("a head and a body");
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        (status, body.to_owned())
    }

    /// All that is exported now.
    fn scrape(&self) -> Scrape {
        // What was scraped a moment ago would be told again.
        std::thread::sleep(Duration::from_millis(600));
        let (status, text) = self.get("/metrics");
        assert_eq!(status, 200, "{text}");
        Scrape(text)
    }

    /// Waits until a series has that value.
    fn await_value(&self, series: &str, value: f64) {
        let end = Instant::now() + PATIENCE;
        loop {
            let scrape = self.scrape();
            if scrape.value(series) == Some(value) {
                return;
            }
            assert!(
                Instant::now() < end,
                "{series} is not {value}\n{}",
                scrape.0
            );
        }
    }
}

/// The text of a scrape.
struct Scrape(String);

impl Scrape {
    /// The value of a series, by its name and its labels as they are written.
    fn value(&self, series: &str) -> Option<f64> {
        let line = self.0.lines().find_map(|line| line.strip_prefix(series));
        line?.strip_prefix(' ')?.parse().ok()
    }

    /// The value of a counter of the disk by operation.
    fn counted(&self, name: &str, operation: &str) -> Option<f64> {
        self.value(&format!(
            "{name}{{disk=\"disk\",operation=\"{operation}\"}}"
        ))
    }
}
