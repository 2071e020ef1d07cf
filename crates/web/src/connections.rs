//! The connections of a server.
//!
//! Each connection has one request and a time within which all of it has to be over, and there are few at once. Who
//! connects and says nothing, or does not take the answer, keeps nobody out: when all places are taken, the oldest such
//! connection gives way to the next one.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::future::Future;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

/// Connections at once; one more waits until another one ends or gives way.
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
    open: Arc<Mutex<VecDeque<Arc<Open>>>>,
}

/// A connection that has a place.
#[derive(Default)]
struct Open {
    /// Its request is being answered, which nobody interrupts.
    is_answered: AtomicBool,
    gives_way: Notify,
}

impl<S: Service> Connections<S> {
    pub(crate) fn new(service: S) -> Self {
        Self {
            service: Arc::new(service),
            places: Arc::new(Semaphore::new(MAX_CONNECTIONS)),
            open: Arc::default(),
        }
    }

    /// Waits for a place for another connection.
    pub(crate) async fn place(&self) -> Place {
        let permit = match self.places.clone().try_acquire_owned() {
            Ok(permit) => Some(permit),
            Err(_) => {
                let idle = |open: &&Arc<Open>| !open.is_answered.load(Ordering::Relaxed);
                if let Some(oldest) = locked(&self.open).iter().find(idle) {
                    oldest.gives_way.notify_one();
                }
                self.places.clone().acquire_owned().await.ok()
            }
        };
        let open = Arc::new(Open::default());
        locked(&self.open).push_back(open.clone());
        Place {
            _permit: permit,
            open,
            all: self.open.clone(),
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
            let open = place.open.clone();
            let service = service_fn(move |request| {
                let (service, open) = (service.clone(), open.clone());
                async move {
                    open.is_answered.store(true, Ordering::Relaxed);
                    let answer = service.answer(request).await;
                    open.is_answered.store(false, Ordering::Relaxed);
                    Ok::<_, Infallible>(answer)
                }
            });
            let connection = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(PATIENCE)
                .max_buf_size(HEAD_LIMIT)
                .keep_alive(false)
                .serve_connection(TokioIo::new(stream), service);
            tokio::select! {
                ended = timeout(most, connection) => match ended {
                    Ok(Ok(())) => {}
                    Ok(Err(error)) => log::debug!("a connection ended: {error}"),
                    Err(_) => log::debug!("a connection took longer than {most:?}"),
                },
                () = place.open.gives_way.notified() => {
                    log::debug!("a connection that said nothing gives way to another one");
                }
            }
            drop(place);
        });
    }
}

/// A connection's place among the others.
pub(crate) struct Place {
    _permit: Option<OwnedSemaphorePermit>,
    open: Arc<Open>,
    all: Arc<Mutex<VecDeque<Arc<Open>>>>,
}

impl Drop for Place {
    fn drop(&mut self) {
        locked(&self.all).retain(|open| !Arc::ptr_eq(open, &self.open));
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing is half changed at any point where a holder could panic.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};

    use super::*;

    /// Answers after a while.
    struct Slow(Duration);

    impl Service for Slow {
        fn patience(&self) -> Duration {
            PATIENCE
        }

        async fn answer(&self, _: Request<Incoming>) -> Answer {
            tokio::time::sleep(self.0).await;
            answer(StatusCode::OK, "text/plain", "here")
        }
    }

    async fn connect(connections: &Connections<Slow>) -> DuplexStream {
        let (client, server) = duplex(1 << 16);
        connections.serve(connections.place().await, server);
        client
    }

    async fn asked(connections: &Connections<Slow>) -> DuplexStream {
        let mut client = connect(connections).await;
        client
            .write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            .await
            .unwrap();
        client
    }

    async fn answered(mut client: DuplexStream) -> bool {
        let mut text = String::new();
        client.read_to_string(&mut text).await.unwrap();
        text.ends_with("here")
    }

    fn run(test: impl Future<Output = ()>) {
        let mut runtime = tokio::runtime::Builder::new_current_thread();
        runtime.enable_all().build().unwrap().block_on(test);
    }

    #[test]
    fn who_says_nothing_holds_up_nobody() {
        run(async {
            let connections = Connections::new(Slow(Duration::ZERO));
            let mut silent = Vec::new();
            for _ in 0..3 * MAX_CONNECTIONS {
                silent.push(connect(&connections).await);
            }
            let began = Instant::now();
            assert!(answered(asked(&connections).await).await);
            assert!(began.elapsed() < PATIENCE / 2, "{:?}", began.elapsed());
        });
    }

    #[test]
    fn who_is_being_answered_does_not_give_way() {
        run(async {
            let connections = Connections::new(Slow(Duration::from_millis(200)));
            let mut clients = Vec::new();
            for _ in 0..MAX_CONNECTIONS {
                clients.push(asked(&connections).await);
            }
            // All of them are with the service.
            tokio::time::sleep(Duration::from_millis(50)).await;
            clients.push(asked(&connections).await);
            for client in clients {
                assert!(answered(client).await);
            }
        });
    }
}
