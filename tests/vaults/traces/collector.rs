//! A collector of traces: OTLP over HTTP, as OpenTelemetry's own definition of the messages has it.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue};
use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use opentelemetry_proto::tonic::trace::v1::status::StatusCode;
use prost::Message;
use rustls::{ServerConfig, ServerConnection, StreamOwned};
use test_support::PATIENCE;

/// What it does with a request.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Manner {
    /// Takes it.
    Takes,
    /// Never answers.
    Hangs,
    /// Answers what is no HTTP, and a lot of it.
    Babbles,
    /// Sends its client elsewhere.
    Redirects,
    /// Is always too busy.
    IsBusy,
}

/// A span as it came.
#[derive(Debug, Clone)]
pub(super) struct Seen {
    pub(super) service: String,
    pub(super) name: String,
    pub(super) trace: Vec<u8>,
    pub(super) id: Vec<u8>,
    pub(super) parent: Vec<u8>,
    pub(super) kind: SpanKind,
    /// The code of an error.
    pub(super) error: Option<String>,
    pub(super) attributes: Vec<(String, String)>,
}

/// A request as it came.
#[derive(Debug, Clone)]
pub(super) struct Request {
    pub(super) path: String,
    pub(super) headers: Vec<String>,
    body: Vec<u8>,
}

/// A collector that runs in this process.
pub(super) struct Collector {
    address: SocketAddr,
    scheme: &'static str,
    requests: Arc<Mutex<Vec<Request>>>,
}

impl Collector {
    pub(super) fn new() -> Self {
        Self::that(Manner::Takes)
    }

    pub(super) fn that(manner: Manner) -> Self {
        Self::start(manner, None)
    }

    /// Over TLS.
    pub(super) fn over_tls(config: ServerConfig) -> Self {
        Self::start(Manner::Takes, Some(Arc::new(config)))
    }

    fn start(manner: Manner, tls: Option<Arc<ServerConfig>>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let collector = Self {
            address: listener.local_addr().unwrap(),
            scheme: if tls.is_some() { "https" } else { "http" },
            requests: Arc::default(),
        };
        let requests = collector.requests.clone();
        std::thread::spawn(move || {
            for client in listener.incoming() {
                let (client, requests, tls) = (client.unwrap(), requests.clone(), tls.clone());
                std::thread::spawn(move || match tls {
                    None => answer(client, manner, &requests),
                    Some(tls) => {
                        let connection = ServerConnection::new(tls).unwrap();
                        answer(StreamOwned::new(connection, client), manner, &requests);
                    }
                });
            }
        });
        collector
    }

    /// What `OTEL_EXPORTER_OTLP_ENDPOINT` is for it.
    pub(super) fn endpoint(&self) -> String {
        format!("{}://localhost:{}", self.scheme, self.address.port())
    }

    pub(super) fn requests(&self) -> Vec<Request> {
        self.requests.lock().unwrap().clone()
    }

    /// All that came, byte by byte.
    pub(super) fn bytes(&self) -> Vec<u8> {
        let requests = self.requests();
        requests.into_iter().flat_map(|r| r.body).collect()
    }

    /// All spans that came.
    pub(super) fn spans(&self) -> Vec<Seen> {
        self.requests().iter().flat_map(spans_of).collect()
    }

    /// Waits until the spans that came are what is asked for.
    pub(super) fn wait(&self, what: &str, is_there: impl Fn(&[Seen]) -> bool) -> Vec<Seen> {
        let end = Instant::now() + PATIENCE;
        loop {
            let spans = self.spans();
            if is_there(&spans) {
                return spans;
            }
            assert!(Instant::now() < end, "{what} does not come: {spans:#?}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

fn answer(client: impl Read + Write, manner: Manner, requests: &Mutex<Vec<Request>>) {
    let mut client = BufReader::new(client);
    while let Some(request) = read(&mut client) {
        let takes = manner == Manner::Takes;
        requests.lock().unwrap().push(request);
        let said: &[u8] = match manner {
            Manner::Takes => b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n",
            Manner::Hangs => loop {
                std::thread::park();
            },
            Manner::Babbles => &[b'x'; 1 << 20],
            Manner::Redirects => {
                b"HTTP/1.1 307 Temporary Redirect\r\nlocation: http://localhost:1/\r\ncontent-length: 0\r\n\r\n"
            }
            Manner::IsBusy => {
                b"HTTP/1.1 503 Service Unavailable\r\nretry-after: 3600\r\ncontent-length: 0\r\n\r\n"
            }
        };
        // A client that has heard enough goes.
        if client.get_mut().write_all(said).is_err() || client.get_mut().flush().is_err() {
            return;
        }
        if !takes {
            return;
        }
    }
}

fn read(client: &mut impl BufRead) -> Option<Request> {
    let mut lines = Vec::new();
    loop {
        let mut line = String::new();
        if client.read_line(&mut line).ok()? == 0 {
            return None;
        }
        match line.trim_end() {
            "" => break,
            line => lines.push(line.to_owned()),
        }
    }
    let path = lines.first()?.split(' ').nth(1)?.to_owned();
    let headers = lines.split_off(1);
    let length = headers.iter().find_map(|header| {
        let (name, value) = header.split_once(": ")?;
        name.eq_ignore_ascii_case("content-length")
            .then(|| value.parse::<usize>().unwrap())
    });
    let mut body = vec![0; length.unwrap_or_default()];
    client.read_exact(&mut body).ok()?;
    Some(Request {
        path,
        headers,
        body,
    })
}

fn spans_of(request: &Request) -> Vec<Seen> {
    let request = ExportTraceServiceRequest::decode(&*request.body).unwrap();
    let mut seen = Vec::new();
    for of_resource in request.resource_spans {
        let resource = of_resource.resource.unwrap().attributes;
        let service = resource.iter().find(|a| a.key == "service.name").unwrap();
        let service = text(service);
        for span in of_resource.scope_spans.into_iter().flat_map(|s| s.spans) {
            let kind = span.kind();
            let failed = span.status.filter(|s| s.code() == StatusCode::Error);
            seen.push(Seen {
                service: service.clone(),
                name: span.name,
                trace: span.trace_id,
                id: span.span_id,
                parent: span.parent_span_id,
                kind,
                error: failed.map(|status| status.message),
                attributes: span
                    .attributes
                    .iter()
                    .map(|a| (a.key.clone(), text(a)))
                    .collect(),
            });
        }
    }
    seen
}

fn text(attribute: &KeyValue) -> String {
    match &attribute.value {
        Some(AnyValue {
            value: Some(Value::StringValue(text)),
        }) => text.clone(),
        Some(AnyValue {
            value: Some(Value::IntValue(number)),
        }) => number.to_string(),
        other => panic!("{}: {other:?}", attribute.key),
    }
}
