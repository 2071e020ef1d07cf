//! Bytes of disks: answers that are no JSON, and are longer than memory has room for.
//!
//! A thread reads the next bytes only when the client has taken those before, so a slow client keeps none waiting. One
//! that takes nothing or too little for long, or whose access is over, loses its connection.

use std::io;
use std::net::SocketAddr;
use std::ops::Range;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use axum::body::{Body, Bytes, HttpBody};
use axum::http::StatusCode;
use hyper::body::{Frame, SizeHint};
use tokio::task::{AbortHandle, JoinHandle, spawn_blocking};
use zeroize::Zeroizing;

use super::connections::{Connections, Working};
use super::reply::Reply;

/// How often it is looked whether access is over.
const LOOK: Duration = Duration::from_millis(250);
/// Bytes in a second that a client takes at least: whoever takes less keeps others out.
const LOWEST_RATE: u64 = 32 << 10;
/// Zeros that are sent at a time.
static ZEROS: [u8; 256 << 10] = [0; 256 << 10];

/// What a request for the bytes of a disk is answered with.
pub struct TransferReply {
    /// The HTTP status.
    pub status: u16,
    /// Headers, whose names are in lower case.
    pub headers: Vec<(&'static str, String)>,
    /// The body.
    pub body: TransferBody,
}

/// The body of a [`TransferReply`].
pub enum TransferBody {
    /// None.
    Empty,
    /// A short one.
    Bytes(Vec<u8>),
    /// One that is read as it is sent.
    Stream(Box<dyn ByteStream>),
}

/// Bytes that are read as they are sent.
pub trait ByteStream: Send {
    /// How many are left.
    fn left(&self) -> u64;

    /// The next ones; `None` after the last. It may block.
    ///
    /// # Errors
    /// Any: the connection ends.
    fn next_chunk(&mut self) -> io::Result<Option<Chunk>>;

    /// Tells again and again whether they may still be sent. It must not block.
    fn permission(&self) -> Arc<dyn Fn() -> bool + Send + Sync>;
}

/// Some bytes.
pub enum Chunk {
    /// So many zeros.
    Zeros(usize),
    /// These of a buffer, which is wiped when it was sent.
    Data(Zeroizing<Vec<u8>>, Range<usize>),
}

/// A buffer that is sent, and wiped after that.
struct Owned(Zeroizing<Vec<u8>>);

impl AsRef<[u8]> for Owned {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl TransferReply {
    /// As the server sends it on the connection from `peer`.
    pub(crate) fn into_reply(
        self,
        connections: &Connections,
        peer: SocketAddr,
        patience: Duration,
    ) -> Reply {
        let body = match self.body {
            TransferBody::Empty => Body::empty(),
            TransferBody::Bytes(bytes) => bytes.into(),
            TransferBody::Stream(stream) => {
                Body::new(Streaming::new(stream, connections, peer, patience))
            }
        };
        let status = StatusCode::from_u16(self.status);
        Reply {
            status: status.unwrap_or(StatusCode::INTERNAL_SERVER_ERROR),
            headers: self.headers,
            raw: Some(body),
            ..Reply::default()
        }
    }
}

/// A body that is being sent.
struct Streaming {
    state: State,
    left: u64,
    taken: Arc<AtomicU64>,
    watch: AbortHandle,
    connection: (Connections, SocketAddr),
    _working: Working,
}

type Read = (Box<dyn ByteStream>, io::Result<Option<Chunk>>);

enum State {
    Begun(Box<dyn ByteStream>),
    Reading(JoinHandle<Read>),
    Ended,
}

impl Streaming {
    fn new(
        stream: Box<dyn ByteStream>,
        connections: &Connections,
        peer: SocketAddr,
        patience: Duration,
    ) -> Self {
        let taken = Arc::new(AtomicU64::new(0));
        let watching = watch(
            stream.permission(),
            Arc::clone(&taken),
            patience,
            (connections.clone(), peer),
        );
        Self {
            left: stream.left(),
            state: State::Begun(stream),
            taken,
            watch: tokio::spawn(watching).abort_handle(),
            connection: (connections.clone(), peer),
            _working: connections.begin(peer),
        }
    }

    /// Ends the connection with what the kernel has of it, which may be megabytes: a body that ends with an error would
    /// be sent as far as it came, as slowly as the client takes it.
    fn failed(&self, error: io::Error) -> io::Error {
        let (connections, peer) = &self.connection;
        connections.end(*peer);
        error
    }

    /// What is to be sent of what was read; the next read has begun then.
    fn took(&mut self, (stream, read): Read) -> Option<io::Result<Frame<Bytes>>> {
        let bytes = match read {
            Err(error) => return Some(Err(error)),
            Ok(None) if self.left == 0 => return None,
            Ok(None) => return Some(Err(io::ErrorKind::UnexpectedEof.into())),
            Ok(Some(chunk)) => chunk.into_bytes(),
        };
        let Some(left) = self.left.checked_sub(bytes.len() as u64) else {
            return Some(Err(io::ErrorKind::InvalidData.into()));
        };
        self.left = left;
        self.taken.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        if left > 0 {
            self.state = State::Reading(spawn_blocking(|| read_next(stream)));
        }
        Some(Ok(Frame::data(bytes)))
    }
}

fn read_next(mut stream: Box<dyn ByteStream>) -> Read {
    let read = stream.next_chunk();
    (stream, read)
}

impl Chunk {
    /// How many bytes it is.
    pub fn len(&self) -> usize {
        match self {
            Self::Zeros(len) => *len,
            Self::Data(_, range) => range.len(),
        }
    }

    /// Whether it is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn into_bytes(self) -> Bytes {
        match self {
            Self::Zeros(len) if len <= ZEROS.len() => Bytes::from_static(&ZEROS[..len]),
            Self::Zeros(len) => vec![0; len].into(),
            Self::Data(buffer, range) => {
                let range = range.start..range.end.min(buffer.len());
                Bytes::from_owner(Owned(buffer)).slice(range)
            }
        }
    }
}

impl HttpBody for Streaming {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        let mut reading = match std::mem::replace(&mut self.state, State::Ended) {
            State::Begun(stream) => spawn_blocking(|| read_next(stream)),
            State::Reading(reading) => reading,
            State::Ended => return Poll::Ready(None),
        };
        let Poll::Ready(read) = Pin::new(&mut reading).poll(cx) else {
            self.state = State::Reading(reading);
            return Poll::Pending;
        };
        Poll::Ready(match read {
            Ok(read) => self.took(read),
            Err(failed) => Some(Err(io::Error::other(failed))),
        })
        .map_err(|error| self.failed(error))
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left)
    }
}

impl Drop for Streaming {
    fn drop(&mut self) {
        self.watch.abort();
    }
}

/// Whether a client takes what is sent fast enough.
struct Pace {
    patience: Duration,
    /// How much was taken, and when that became so much.
    last: (u64, Instant),
    /// How much was taken when this time began in which enough has to be.
    since: (u64, Instant),
}

impl Pace {
    fn new(patience: Duration, now: Instant) -> Self {
        Self {
            patience,
            last: (0, now),
            since: (0, now),
        }
    }

    /// Notes how much was taken until now; whether that is enough.
    fn is_kept(&mut self, taken: u64, now: Instant) -> bool {
        if taken != self.last.0 {
            self.last = (taken, now);
        }
        if now.saturating_duration_since(self.since.1) >= self.patience {
            let enough = LOWEST_RATE.saturating_mul(self.patience.as_secs());
            if taken - self.since.0 < enough {
                return false;
            }
            self.since = (taken, now);
        }
        now.saturating_duration_since(self.last.1) <= self.patience
    }
}

/// Ends the connection when what is sent may not be sent any more, or when the client has taken too little for too long.
async fn watch(
    may_go_on: Arc<dyn Fn() -> bool + Send + Sync>,
    taken: Arc<AtomicU64>,
    patience: Duration,
    (connections, peer): (Connections, SocketAddr),
) {
    let mut tick = tokio::time::interval(LOOK);
    let mut pace = Pace::new(patience, Instant::now());
    loop {
        tick.tick().await;
        let is_kept = pace.is_kept(taken.load(Ordering::Relaxed), Instant::now());
        if !may_go_on() || !is_kept {
            return connections.end(peer);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Numbers(u64, u64);

    impl ByteStream for Numbers {
        fn left(&self) -> u64 {
            self.1
        }

        fn next_chunk(&mut self) -> io::Result<Option<Chunk>> {
            self.0 += 1;
            Ok(match self.0 {
                1 => Some(Chunk::Data(vec![1, 2, 3, 4].into(), 1..3)),
                2 => Some(Chunk::Zeros(3)),
                3 if self.1 > 5 => None,
                _ => Some(Chunk::Zeros(ZEROS.len() + 1)),
            })
        }

        fn permission(&self) -> Arc<dyn Fn() -> bool + Send + Sync> {
            Arc::new(|| true)
        }
    }

    #[test]
    fn who_takes_a_little_now_and_then_is_too_slow() {
        let begun = Instant::now();
        let patience = Duration::from_secs(60);
        // Until when somebody is kept who takes so much each second.
        let kept = |rate: u64| {
            let mut pace = Pace::new(patience, begun);
            let mut seconds = 1..600;
            let slow =
                |second: &u64| !pace.is_kept(rate * second, begun + Duration::from_secs(*second));
            seconds.find(slow)
        };
        assert_eq!(kept(0), Some(60));
        assert_eq!(kept(LOWEST_RATE - 1), Some(60));
        assert_eq!(kept(LOWEST_RATE), None);
    }

    async fn read(length: u64) -> (Vec<u8>, bool) {
        let peer = SocketAddr::from(([127, 0, 0, 1], 1));
        let hour = Duration::from_secs(3600);
        let stream = Box::new(Numbers(0, length));
        let mut body = Streaming::new(stream, &Connections::new(1), peer, hour);
        let mut all = Vec::new();
        loop {
            let frame = std::future::poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await;
            match frame {
                None => return (all, true),
                Some(Ok(frame)) => all.extend_from_slice(&frame.into_data().unwrap()),
                Some(Err(_)) => return (all, false),
            }
        }
    }

    #[tokio::test]
    async fn what_was_announced_is_sent_and_nothing_else() {
        assert_eq!(read(5).await, (vec![2, 3, 0, 0, 0], true));
        assert_eq!(read(6).await, (vec![2, 3, 0, 0, 0], false), "too little");
        assert_eq!(read(4).await, (vec![2, 3], false), "too much");
    }
}
