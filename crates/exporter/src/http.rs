//! What a scraper asks for over HTTP, and how it is answered.

use std::sync::Arc;
use std::time::{Duration, Instant};

use hyper::body::{Bytes, Incoming};
use hyper::header::{ACCEPT, ALLOW, HeaderValue};
use hyper::{Method, Request, StatusCode};
use web::{Answer, Service, answer};

use crate::scrape::Scraper;
use crate::{protobuf, text};

const PLAIN: &str = "text/plain; charset=utf-8";

impl Service for Scraper {
    fn patience(&self) -> Duration {
        // One scrape may have to wait for another.
        self.disk_patience() * 2
    }

    async fn answer(&self, request: Request<Incoming>) -> Answer {
        let is_read = [Method::GET, Method::HEAD].contains(request.method());
        match request.uri().path() {
            _ if !is_read => {
                let mut refused = said(StatusCode::METHOD_NOT_ALLOWED, "only GET is served\n");
                let allowed = HeaderValue::from_static("GET, HEAD");
                refused.headers_mut().insert(ALLOW, allowed);
                refused
            }
            "/metrics" => metrics(self, wants_protobuf(&request)).await,
            "/healthz" => said(StatusCode::OK, "ok\n"),
            "/readyz" => match self.is_ready() {
                Ok(()) => said(StatusCode::OK, "ok\n"),
                Err(why) => said(StatusCode::SERVICE_UNAVAILABLE, format!("{why}\n")),
            },
            "/" => said(StatusCode::OK, "/metrics\n/healthz\n/readyz\n"),
            _ => said(
                StatusCode::NOT_FOUND,
                "there is /metrics, /healthz and /readyz\n",
            ),
        }
    }
}

async fn metrics(scraper: &Scraper, protobuf: bool) -> Answer {
    let started = Instant::now();
    let samples = scraper.scrape().await;
    log::debug!("a scrape took {:?}", started.elapsed());
    if protobuf {
        let encoded = protobuf::encode(&samples);
        return answer(StatusCode::OK, protobuf::CONTENT_TYPE, encoded);
    }
    match text::encode(Arc::unwrap_or_clone(samples)) {
        Ok(text) => answer(StatusCode::OK, text::CONTENT_TYPE, text),
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

fn said(status: StatusCode, text: impl Into<Bytes>) -> Answer {
    answer(status, PLAIN, text)
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
