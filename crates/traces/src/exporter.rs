//! The process that sends the spans of another one to a collector.
//!
//! It is started before that one has a key, and gets nothing but what is to be sent, with the headers that the
//! environment has for it. A thread reads, so that the other process never finds the socket full for long; another sends.
//! Of an answer only the status is read.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use reqwest::{Certificate, Client, StatusCode};
use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM};
use signal_hook::flag;
use tokio::runtime::{Builder, Runtime};
use url::Url;

use crate::outgoing;
use crate::passed::{Head, Passed};

/// The subcommand that is this process.
pub const TRACE_EXPORTER: &str = "trace-exporter";

/// Bytes that wait at most; what does not fit replaces the oldest.
const ROOM: usize = 4 << 20;
/// Bytes of one request at most, unless one span has more.
const AT_ONCE: usize = 512 * 1024;
/// How long one try may take, unless the environment says.
const TRY_LIMIT: Duration = Duration::from_secs(10);
/// Tries of one request.
const TRIES: u32 = 4;
/// How long the first pause between two tries is; each next one is twice as long.
const PAUSE: Duration = Duration::from_millis(500);
/// How long the last spans have when no more come. The other process may wait for it.
const FAREWELL: Duration = Duration::from_millis(700);
/// How often it is looked at the end whether all is sent.
const LOOK: Duration = Duration::from_millis(5);

/// Starts the process, which reads what is to be sent from `input`. One that is quiet tells nobody what it meets.
///
/// # Errors
/// What the kernel says.
pub(crate) fn spawn(input: OwnedFd, is_quiet: bool) -> io::Result<Child> {
    // The program that runs, whatever is at its path by now.
    let mut command = Command::new("/proc/self/exe");
    command
        .arg(TRACE_EXPORTER)
        .stdin(Stdio::from(input))
        .stdout(Stdio::null());
    if is_quiet {
        command.stderr(Stdio::null());
    }
    command.spawn()
}

/// Is that process: sends what is read, until its end.
///
/// # Errors
/// What the kernel says.
pub fn send_on(input: impl AsFd) -> io::Result<()> {
    // The last span is about what a signal has ended.
    let heard = Arc::new(AtomicBool::new(false));
    for signal in [SIGHUP, SIGINT, SIGQUIT, SIGTERM] {
        flag::register(signal, heard.clone())?;
    }
    let queue = Arc::new(Queue::default());
    let taken = queue.clone();
    let sending = Sending {
        runtime: Builder::new_current_thread().enable_all().build()?,
        client: None,
        limit: limit(),
        is_failing: false,
    };
    let thread = std::thread::Builder::new().name("collector".into());
    let thread = thread.spawn(move || sending.work(&taken))?;
    let read = loop {
        match Passed::read(&input) {
            Ok(Some(passed)) => queue.put(passed),
            Ok(None) => break Ok(()),
            Err(error) if error.kind() == io::ErrorKind::InvalidData => {}
            Err(error) => break Err(error),
        }
    };
    let end = Instant::now() + FAREWELL;
    queue.close(end);
    // A try that is under way goes with the process.
    while !thread.is_finished() && Instant::now() < end {
        std::thread::sleep(LOOK);
    }
    read
}

/// What is to be sent.
#[derive(Default)]
struct Queue {
    content: Mutex<Content>,
    changed: Condvar,
}

#[derive(Default)]
struct Content {
    waiting: VecDeque<Passed>,
    /// Bytes of these.
    len: usize,
    /// Those that did not fit.
    lost: u64,
    /// No more come, and those that are there have time until then.
    end: Option<Instant>,
}

impl Queue {
    fn put(&self, passed: Passed) {
        let mut content = self.content();
        content.len += passed.body.len();
        content.waiting.push_back(passed);
        while content.len > ROOM {
            let Some(oldest) = content.waiting.pop_front() else {
                break;
            };
            content.len -= oldest.body.len();
            content.lost += 1;
        }
        drop(content);
        self.changed.notify_all();
    }

    /// Waits for what is to be sent next, which may be several spans; `None` at the end.
    fn take(&self) -> Option<Passed> {
        let mut content = self.content();
        loop {
            if content.end.is_some_and(|end| Instant::now() >= end) {
                return None;
            }
            if let Some(first) = content.waiting.pop_front() {
                return Some(content.with_more(first));
            }
            if content.end.is_some() {
                return None;
            }
            let waited = self.changed.wait(content);
            content = waited.unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// How many were lost since this was asked.
    fn lost(&self) -> u64 {
        std::mem::take(&mut self.content().lost)
    }

    fn close(&self, end: Instant) {
        self.content().end = Some(end);
        self.changed.notify_all();
    }

    /// Waits that long, but not beyond the end. Whether there is time for another try.
    fn pause(&self, pause: Duration) -> bool {
        let until = Instant::now() + pause;
        let is_early = |content: &mut Content| {
            Instant::now() < until && content.end.is_none_or(|end| end > until)
        };
        let waited = self
            .changed
            .wait_timeout_while(self.content(), pause, is_early);
        let (content, _) = waited.unwrap_or_else(PoisonError::into_inner);
        content.end.is_none_or(|end| end > until)
    }

    fn content(&self) -> MutexGuard<'_, Content> {
        // Nothing is half changed at any point where a holder could panic.
        self.content.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Content {
    /// Adds what waits for the same address. Messages of protobuf that follow each other are one: what they have
    /// several of, as a request has spans, is put together.
    fn with_more(&mut self, first: Passed) -> Passed {
        let mut all = first;
        self.len -= all.body.len();
        while let Some(next) = self.waiting.front() {
            if next.head != all.head || all.body.len() + next.body.len() > AT_ONCE {
                break;
            }
            if let Some(next) = self.waiting.pop_front() {
                self.len -= next.body.len();
                all.body.extend_from_slice(&next.body);
            }
        }
        all
    }
}

/// What sends.
struct Sending {
    runtime: Runtime,
    /// For the address that it was made for.
    client: Option<(String, Client)>,
    limit: Duration,
    /// The last request was not taken, which the log has.
    is_failing: bool,
}

impl Sending {
    fn work(mut self, queue: &Queue) {
        while let Some(passed) = queue.take() {
            let sent = self.send(&passed, queue);
            match (sent, queue.lost()) {
                (Ok(()), 0) => self.is_failing = false,
                (Ok(()), lost) => {
                    log::warn!("the collector of traces was too slow: {lost} spans are lost");
                }
                (Err(why), _) if !std::mem::replace(&mut self.is_failing, true) => {
                    log::warn!("spans are lost, the collector of traces did not take them: {why}");
                }
                (Err(why), _) => log::debug!("spans are lost: {why}"),
            }
        }
    }

    /// Sends a request, several times if need be.
    fn send(&mut self, passed: &Passed, queue: &Queue) -> Result<(), String> {
        let client = self.client(&passed.head)?;
        let mut pause = PAUSE;
        let mut number = 1;
        loop {
            let (why, again) = match self.post(&client, passed) {
                Ok(()) => return Ok(()),
                Err(failed) => failed,
            };
            if !again || number == TRIES || !queue.pause(pause) {
                return Err(why);
            }
            log::debug!("spans are sent again: {why}");
            (pause, number) = (pause * 2, number + 1);
        }
    }

    /// Sends a request once; why it was not taken, and whether another try makes sense.
    fn post(&self, client: &Client, passed: &Passed) -> Result<(), (String, bool)> {
        let Head { address, headers } = &passed.head;
        let mut request = client.post(address).timeout(self.limit);
        for (name, value) in headers {
            request = request.header(name, value);
        }
        let request = request.body(passed.body.clone());
        let answer = async { Ok(request.send().await?.status()) };
        let status = self.runtime.block_on(answer);
        let status = status.map_err(|error| (outgoing::reason(error), true))?;
        match status.is_success() {
            true => Ok(()),
            false => Err((format!("the answer is {status}"), may_change(status))),
        }
    }

    fn client(&mut self, head: &Head) -> Result<Client, String> {
        match &self.client {
            Some((address, client)) if *address == head.address => Ok(client.clone()),
            _ => {
                let client = client(&head.address)?;
                self.client = Some((head.address.clone(), client.clone()));
                Ok(client)
            }
        }
    }
}

/// Which answers another try may change, by the specification of OTLP.
fn may_change(status: StatusCode) -> bool {
    [
        StatusCode::TOO_MANY_REQUESTS,
        StatusCode::BAD_GATEWAY,
        StatusCode::SERVICE_UNAVAILABLE,
        StatusCode::GATEWAY_TIMEOUT,
    ]
    .contains(&status)
}

fn client(address: &str) -> Result<Client, String> {
    let url = Url::parse(address).map_err(|e| format!("it has no address: {e}"))?;
    let mut builder = outgoing::client(&url);
    if let Some(file) = setting("CERTIFICATE") {
        let bad = |why: String| format!("OTEL_EXPORTER_OTLP_CERTIFICATE={file}: {why}");
        let pem = std::fs::read(&file).map_err(|e| bad(e.to_string()))?;
        let known = Certificate::from_pem_bundle(&pem).map_err(|e| bad(e.to_string()))?;
        builder = builder.tls_certs_only(known);
    }
    builder.build().map_err(outgoing::reason)
}

/// How long one try may take.
fn limit() -> Duration {
    let said = setting("TIMEOUT").and_then(|millis| millis.parse().ok());
    said.map_or(TRY_LIMIT, Duration::from_millis)
}

/// A setting of the exporter for traces, or else for all that is exported.
fn setting(name: &str) -> Option<String> {
    let of = |prefix: &str| std::env::var(format!("{prefix}_{name}")).ok();
    let said = of("OTEL_EXPORTER_OTLP_TRACES").or_else(|| of("OTEL_EXPORTER_OTLP"));
    said.filter(|value| !value.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn passed(to: &str, len: usize) -> Passed {
        Passed {
            head: Head {
                address: to.into(),
                headers: Vec::new(),
            },
            body: vec![7; len],
        }
    }

    #[test]
    fn what_does_not_fit_replaces_the_oldest_and_is_counted() {
        let queue = Queue::default();
        for _ in 0..ROOM / 1000 + 10 {
            queue.put(passed("http://a/", 1000));
        }
        assert!((9..=11).contains(&queue.lost()));
        assert_eq!(queue.lost(), 0);
        queue.close(Instant::now() + Duration::from_secs(3600));
        let mut sent = 0;
        while let Some(all) = queue.take() {
            assert!(all.body.len() <= AT_ONCE);
            sent += all.body.len();
        }
        assert!(sent <= ROOM && sent > ROOM - 2000, "{sent}");
        assert_eq!(queue.content().len, 0);
    }

    #[test]
    fn what_is_for_one_address_goes_together() {
        let queue = Queue::default();
        for (to, len) in [("http://a/", 1), ("http://a/", 2), ("http://b/", 4)] {
            queue.put(passed(to, len));
        }
        let lens = [3, 4].map(|_| queue.take().unwrap().body.len());
        assert_eq!(lens, [3, 4]);
    }

    #[test]
    fn nothing_is_waited_for_beyond_the_end() {
        let queue = Queue::default();
        queue.put(passed("http://a/", 1));
        queue.close(Instant::now());
        assert!(queue.take().is_none());
        assert!(!queue.pause(Duration::from_secs(3600)));
    }
}
