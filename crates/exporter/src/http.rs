//! What a scraper asks for over HTTP, and how it is answered.
//!
//! Each connection has one request and a time within which all of it has to be over, and there are few at once: who
//! connects and says nothing keeps nobody out for long.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{ACCEPT, ALLOW, CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

use crate::scrape::Scraper;
use crate::{protobuf, text};

/// Connections at once; more wait to be accepted.
const MAX_CONNECTIONS: usize = 32;
/// How long a client may take to say what it wants, and to take the answer.
const PATIENCE: Duration = Duration::from_secs(5);
/// Most bytes of a request's head.
const HEAD_LIMIT: usize = 16 * 1024;

const PLAIN: &str = "text/plain; charset=utf-8";

/// The connections that are served.
pub(crate) struct Connections {
    scraper: Arc<Scraper>,
    places: Arc<Semaphore>,
}

impl Connections {
    pub(crate) fn new(scraper: Scraper) -> Self {
        Self {
            scraper: Arc::new(scraper),
            places: Arc::new(Semaphore::new(MAX_CONNECTIONS)),
        }
    }

    /// Waits until another connection may be accepted.
    pub(crate) async fn place(&self) -> Place {
        Place {
            _permit: self.places.clone().acquire_owned().await.ok(),
        }
    }

    /// Serves a connection beside the others.
    pub(crate) fn serve(
        &self,
        place: Place,
        stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
    ) {
        let scraper = self.scraper.clone();
        tokio::spawn(async move {
            let most = PATIENCE * 2 + scraper.patience();
            let service = service_fn(move |request| answer(scraper.clone(), request));
            let connection = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(PATIENCE)
                .max_buf_size(HEAD_LIMIT)
                .keep_alive(false)
                .serve_connection(TokioIo::new(stream), service);
            match timeout(most, connection).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => log::debug!("a connection ended: {error}"),
                Err(_) => log::debug!("a connection took longer than {most:?}"),
            }
            drop(place);
        });
    }
}

/// A connection's place among the others.
pub(crate) struct Place {
    _permit: Option<OwnedSemaphorePermit>,
}

async fn answer(
    scraper: Arc<Scraper>,
    request: Request<Incoming>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let is_read = [Method::GET, Method::HEAD].contains(request.method());
    let response = match request.uri().path() {
        _ if !is_read => {
            let mut refused = said(StatusCode::METHOD_NOT_ALLOWED, "only GET is served\n");
            let allowed = HeaderValue::from_static("GET, HEAD");
            refused.headers_mut().insert(ALLOW, allowed);
            refused
        }
        "/metrics" => metrics(&scraper, wants_protobuf(&request)).await,
        "/healthz" => said(StatusCode::OK, "ok\n"),
        "/readyz" => match scraper.is_ready() {
            Ok(()) => said(StatusCode::OK, "ok\n"),
            Err(why) => said(StatusCode::SERVICE_UNAVAILABLE, format!("{why}\n")),
        },
        "/" => said(StatusCode::OK, "/metrics\n/healthz\n/readyz\n"),
        _ => said(
            StatusCode::NOT_FOUND,
            "there is /metrics, /healthz and /readyz\n",
        ),
    };
    Ok(response)
}

async fn metrics(scraper: &Scraper, protobuf: bool) -> Response<Full<Bytes>> {
    let started = Instant::now();
    let samples = scraper.scrape().await;
    log::debug!("a scrape took {:?}", started.elapsed());
    if protobuf {
        return response(
            StatusCode::OK,
            protobuf::CONTENT_TYPE,
            protobuf::encode(&samples),
        );
    }
    match text::encode(Arc::unwrap_or_clone(samples)) {
        Ok(text) => response(StatusCode::OK, text::CONTENT_TYPE, text),
        Err(error) => said(StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")),
    }
}

/// Whether a scraper prefers Prometheus' own format: one that takes it names it first.
fn wants_protobuf(request: &Request<Incoming>) -> bool {
    let accepted = request.headers().get(ACCEPT);
    let accepted = accepted.and_then(|accepted| accepted.to_str().ok());
    prefers_protobuf(accepted.unwrap_or_default())
}

fn prefers_protobuf(accepted: &str) -> bool {
    let first = accepted.split(',').next().unwrap_or_default();
    first.contains("application/vnd.google.protobuf")
        && first.contains("proto=io.prometheus.client.MetricFamily")
        && first.contains("encoding=delimited")
}

fn said(status: StatusCode, text: impl Into<Bytes>) -> Response<Full<Bytes>> {
    response(status, PLAIN, text)
}

fn response(
    status: StatusCode,
    content_type: &'static str,
    body: impl Into<Bytes>,
) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    let content_type = HeaderValue::from_static(content_type);
    response.headers_mut().insert(CONTENT_TYPE, content_type);
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_format_is_that_which_a_scraper_names_first() {
        // As Prometheus asks with native histograms, and without.
        let native = "application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=delimited,application/openmetrics-text;version=1.0.0;q=0.8,text/plain;version=0.0.4;q=0.5,*/*;q=0.1";
        let text = "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,text/plain;version=0.0.4;q=0.5,*/*;q=0.1";
        assert!(prefers_protobuf(native));
        assert!(!prefers_protobuf(text) && !prefers_protobuf("") && !prefers_protobuf("*/*"));
    }
}
