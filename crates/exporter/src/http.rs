//! What a scraper asks for over HTTP, and how it is answered.

use std::sync::Arc;
use std::time::{Duration, Instant};

use hyper::body::{Bytes, Incoming};
use hyper::header::{ACCEPT, ALLOW, HeaderValue};
use hyper::{Method, Request, StatusCode};
use web::{Answer, Service, answer};

use crate::scrape::Scraper;
use crate::{plain, protobuf, text};

const SAID: &str = "text/plain; charset=utf-8";

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
            "/metrics" => metrics(self, deadline(&request), wanted(&request)).await,
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

/// How long a scraper waits for its answer, as Prometheus says it with each scrape.
const SCRAPE_TIMEOUT: &str = "x-prometheus-scrape-timeout-seconds";

/// What a disk has at least to answer in, whatever a scraper says: one that has no time at all would be told that all
/// disks are down, and so would those who ask right after it.
const LEAST_PATIENCE: Duration = Duration::from_millis(500);

/// How long disks may take at most to answer, that the scraper still gets what the others have answered.
fn deadline(request: &Request<Incoming>) -> Option<Duration> {
    patience(request.headers().get(SCRAPE_TIMEOUT)?.to_str().ok()?)
}

fn patience(said: &str) -> Option<Duration> {
    let whole = Duration::try_from_secs_f64(said.parse().ok()?).ok()?;
    Some((whole / 2).max(LEAST_PATIENCE))
}

async fn metrics(scraper: &Scraper, most: Option<Duration>, format: Format) -> Answer {
    let started = Instant::now();
    let samples = scraper.scrape(most).await;
    log::debug!("a scrape took {:?}", started.elapsed());
    match format {
        Format::Protobuf => {
            let encoded = protobuf::encode(&samples);
            answer(StatusCode::OK, protobuf::CONTENT_TYPE, encoded)
        }
        Format::Plain => answer(StatusCode::OK, plain::CONTENT_TYPE, plain::encode(&samples)),
        Format::OpenMetrics => match text::encode(Arc::unwrap_or_clone(samples)) {
            Ok(text) => answer(StatusCode::OK, text::CONTENT_TYPE, text),
            Err(error) => said(StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")),
        },
    }
}

/// In which format metrics are told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Format {
    /// Prometheus' text, which everybody reads.
    Plain,
    OpenMetrics,
    /// Prometheus' own, with native histograms.
    Protobuf,
}

/// The format that a scraper wants most, and the text where it does not say.
fn wanted(request: &Request<Incoming>) -> Format {
    let accepted = request.headers().get(ACCEPT);
    let accepted = accepted.and_then(|accepted| accepted.to_str().ok());
    preferred(accepted.unwrap_or_default())
}

/// Of two that are wanted as much, the one that is named first.
fn preferred(accepted: &str) -> Format {
    let mut best = (0.0, Format::Plain);
    for one in accepted.split(',') {
        let mut parts = one.split(';').map(str::trim);
        let name = parts.next().unwrap_or_default();
        let parameters: Vec<&str> = parts.collect();
        let has = |wanted: &str| parameters.contains(&wanted);
        let format = match name {
            "application/vnd.google.protobuf"
                if has("proto=io.prometheus.client.MetricFamily") && has("encoding=delimited") =>
            {
                Format::Protobuf
            }
            "application/openmetrics-text" => Format::OpenMetrics,
            "text/plain" | "text/*" | "*/*" => Format::Plain,
            _ => continue,
        };
        let weight = parameters.iter().find_map(|part| part.strip_prefix("q="));
        let weight = weight.map_or(1.0, |weight| weight.parse().unwrap_or(0.0));
        if weight > best.0 {
            best = (weight, format);
        }
    }
    best.1
}

fn said(status: StatusCode, text: impl Into<Bytes>) -> Answer {
    answer(status, SAID, text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scraper_without_time_takes_none_from_the_disks() {
        assert_eq!(patience("10"), Some(Duration::from_secs(5)));
        for little in ["0", "-0", "0.001", "1", "1e-300"] {
            assert_eq!(patience(little), Some(LEAST_PATIENCE), "{little}");
        }
        for nothing in ["", "-1", "NaN", "inf", "-inf", "1e300", "ten"] {
            assert_eq!(patience(nothing), None, "{nothing}");
        }
    }

    #[test]
    fn the_format_is_that_which_a_scraper_wants_most() {
        // As Prometheus asks with native histograms, and without.
        let native = "application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=delimited,application/openmetrics-text;version=1.0.0;q=0.8,text/plain;version=0.0.4;q=0.5,*/*;q=0.1";
        let text = "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,text/plain;version=0.0.4;q=0.5,*/*;q=0.1";
        let later = "text/plain;q=0.2, application/openmetrics-text; q=0.9";
        assert_eq!(preferred(native), Format::Protobuf);
        assert_eq!(preferred(text), Format::OpenMetrics);
        assert_eq!(preferred(later), Format::OpenMetrics);
        // curl, a browser, and who says nothing.
        let browser = "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8";
        for plain in [
            "",
            "*/*",
            browser,
            "text/plain",
            "application/json",
            "application/openmetrics-text;q=0",
        ] {
            assert_eq!(preferred(plain), Format::Plain, "{plain}");
        }
    }
}
