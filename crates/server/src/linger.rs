//! What a client still sends when it was answered already.
//!
//! A connection that is closed while something that has come on it was not read is reset, and with that the answer is
//! lost that the client has not read yet: one that sends all before it reads is never told why it was refused, and tries
//! again. So what is left of a request's body is read and thrown away behind the answer, within bounds: the connection
//! waits meanwhile as one without a request does, and goes first when its place is needed.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::{Body, Bytes, HttpBody};
use axum::http::HeaderMap;
use axum::http::header::EXPECT;
use hyper::body::{Frame, SizeHint};
use tokio::runtime::Handle;
use tokio::time::timeout;

/// Most bytes that are thrown away: what clients send at once, and some more.
const MOST: u64 = 16 << 20;
/// For how long at most.
const LONGEST: Duration = Duration::from_secs(30);
/// For how long nothing may come.
const IDLE: Duration = Duration::from_secs(5);

/// A request's body of which nothing stays unread when it is dropped.
struct Lingering(Option<Body>);

/// The body of a request with these headers, of which what nobody has read is thrown away.
pub(crate) fn lingering(headers: &HeaderMap, body: Body) -> Body {
    // Who waits for `100 Continue` sends nothing after a refusal, and may send the next request instead.
    if body.is_end_stream() || headers.contains_key(EXPECT) {
        return body;
    }
    Body::new(Lingering(Some(body)))
}

impl HttpBody for Lingering {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let Some(body) = &mut self.0 else {
            return Poll::Ready(None);
        };
        let polled = Pin::new(body).poll_frame(cx);
        if matches!(polled, Poll::Ready(None | Some(Err(_)))) {
            self.0 = None;
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.0.as_ref().is_none_or(HttpBody::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.0
            .as_ref()
            .map_or_else(|| SizeHint::with_exact(0), HttpBody::size_hint)
    }
}

impl Drop for Lingering {
    fn drop(&mut self) {
        let left = self.0.take().filter(|body| !body.is_end_stream());
        if let (Some(body), Ok(runtime)) = (left, Handle::try_current()) {
            runtime.spawn(throw_away(body));
        }
    }
}

/// Reads a body to its end, or as far as that goes: what is left then resets the connection.
async fn throw_away(mut body: Body) {
    let all = async {
        let mut left = MOST;
        loop {
            let next = std::future::poll_fn(|cx| Pin::new(&mut body).poll_frame(cx));
            let Ok(Some(Ok(frame))) = timeout(IDLE, next).await else {
                return;
            };
            let length = frame.data_ref().map_or(0, |data| data.len() as u64);
            match left.checked_sub(length) {
                Some(rest) => left = rest,
                None => return,
            }
        }
    };
    // Either way nothing more is read.
    let _ = timeout(LONGEST, all).await;
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU64, Ordering};

    use axum::http::HeaderValue;

    use super::*;

    const PIECE: u64 = 64 << 10;

    /// A body of so many pieces; how many were read.
    struct Pieces(u64, Arc<AtomicU64>);

    impl HttpBody for Pieces {
        type Data = Bytes;
        type Error = axum::Error;

        fn poll_frame(
            mut self: Pin<&mut Self>,
            _cx: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
            let Some(left) = self.0.checked_sub(1) else {
                return Poll::Ready(None);
            };
            self.0 = left;
            self.1.fetch_add(1, Ordering::Relaxed);
            let piece = vec![0; PIECE as usize];
            Poll::Ready(Some(Ok(Frame::data(piece.into()))))
        }
    }

    /// How many of so many pieces are read when somebody drops a body after one.
    async fn read(pieces: u64, headers: &HeaderMap) -> u64 {
        let count = Arc::new(AtomicU64::new(0));
        let body = Body::new(Pieces(pieces, Arc::clone(&count)));
        let mut body = lingering(headers, body);
        let frame = std::future::poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await;
        assert!(frame.is_some());
        drop(body);
        // It is dropped when nothing more is read of it.
        while Arc::strong_count(&count) > 1 {
            tokio::task::yield_now().await;
        }
        count.load(Ordering::Relaxed)
    }

    #[tokio::test]
    async fn what_is_left_of_a_body_is_read_within_bounds() {
        let none = HeaderMap::new();
        assert_eq!(read(10, &none).await, 10);
        // Whoever sends without end is not listened to without end.
        let most = MOST / PIECE;
        let endless = read(u64::MAX, &none).await;
        assert!((most..=most + 2).contains(&endless), "{endless}");
        let mut waits = HeaderMap::new();
        waits.insert(EXPECT, HeaderValue::from_static("100-continue"));
        assert_eq!(read(10, &waits).await, 1);
    }
}
