//! The connections of a server.
//!
//! Each connection has one request and a time within which all of it has to be over, and there are few at once: who
//! connects and says nothing keeps nobody out for long.

use std::convert::Infallible;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

/// Connections at once; more wait to be accepted.
const MAX_CONNECTIONS: usize = 32;
/// How long a client may take to say what it wants, and to take the answer.
const PATIENCE: Duration = Duration::from_secs(5);
/// Most bytes of a request's head.
const HEAD_LIMIT: usize = 16 * 1024;

/// What a server answers.
pub type Answer = Response<Full<Bytes>>;

/// What answers requests.
pub trait Service: Send + Sync + 'static {
    /// How long an answer takes to make at most.
    fn patience(&self) -> Duration;

    /// The answer to a request.
    fn answer(&self, request: Request<Incoming>) -> impl Future<Output = Answer> + Send;
}

/// An answer with a body of that type.
pub fn answer(status: StatusCode, content_type: &'static str, body: impl Into<Bytes>) -> Answer {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    let content_type = HeaderValue::from_static(content_type);
    response.headers_mut().insert(CONTENT_TYPE, content_type);
    response
}

/// The connections that are served.
pub(crate) struct Connections<S> {
    service: Arc<S>,
    places: Arc<Semaphore>,
}

impl<S: Service> Connections<S> {
    pub(crate) fn new(service: S) -> Self {
        Self {
            service: Arc::new(service),
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
        let service = self.service.clone();
        tokio::spawn(async move {
            let most = PATIENCE * 2 + service.patience();
            let service = service_fn(move |request| {
                let service = service.clone();
                async move { Ok::<_, Infallible>(service.answer(request).await) }
            });
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
