//! How many connections there may be, and which one goes when there are too many.
//!
//! A connection that does nothing costs memory and a descriptor, and a client can open thousands.
//! So their number is limited, and a new one takes the place of the one that has waited longest
//! without a request. Waiting counts from the connection's beginning or from the end of its last
//! request, not from its last byte: who sends a header byte by byte gets no longer than who sends
//! nothing, and a client that works is never the one that has waited longest.

use std::collections::HashMap;
use std::future::{Future, Ready, ready};
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Instant;

use axum_server::accept::Accept;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::oneshot;

/// The connections of one listener.
#[derive(Clone)]
pub struct Connections {
    table: Arc<Mutex<Table>>,
}

struct Table {
    limit: usize,
    admitted: u64,
    /// By the peer's address, which no two connections of one listener share.
    open: HashMap<SocketAddr, Connection>,
}

struct Connection {
    /// Tells it from a later one of the same address.
    id: u64,
    /// Since when it has had no request.
    since: Instant,
    /// Requests under way: one at most, as long as only HTTP/1 is spoken.
    busy: usize,
    /// Ends it when dropped, and at once when used.
    end: oneshot::Sender<()>,
}

impl Connections {
    /// At most `limit` at a time.
    pub fn new(limit: usize) -> Self {
        Self {
            table: Arc::new(Mutex::new(Table {
                limit,
                admitted: 0,
                open: HashMap::new(),
            })),
        }
    }

    /// Marks the connection from `peer` as one that works, until the guard is dropped.
    pub fn begin(&self, peer: SocketAddr) -> Working {
        if let Some(connection) = self.table().open.get_mut(&peer) {
            connection.busy += 1;
        }
        Working {
            connections: self.clone(),
            peer,
        }
    }

    /// Ends the connection from `peer` at once, with what is still to be sent on it.
    pub fn end(&self, peer: SocketAddr) {
        if let Some(connection) = self.table().open.remove(&peer) {
            // It may have ended before.
            let _ = connection.end.send(());
        }
    }

    fn admit(&self, stream: TcpStream) -> io::Result<Guarded> {
        let peer = stream.peer_addr()?;
        stream.set_nodelay(true)?;
        let (end, ended) = oneshot::channel();
        let mut table = self.table();
        if table.open.len() >= table.limit && !table.make_room() {
            return Err(io::Error::other("every connection is at work"));
        }
        table.admitted += 1;
        let id = table.admitted;
        let connection = Connection {
            id,
            since: Instant::now(),
            busy: 0,
            end,
        };
        table.open.insert(peer, connection);
        Ok(Guarded {
            stream,
            ended: Some(ended),
            _entry: Entry {
                connections: self.clone(),
                peer,
                id,
            },
        })
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        // Nothing that can panic happens while it is held.
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Table {
    /// Ends the connection that has waited longest; false when none waits.
    fn make_room(&mut self) -> bool {
        let waiting = self.open.iter().filter(|(_, c)| c.busy == 0);
        let longest = waiting.min_by_key(|(_, c)| c.since).map(|(peer, _)| *peer);
        match longest {
            Some(peer) => self.open.remove(&peer).is_some(),
            None => false,
        }
    }
}

/// A request under way.
pub struct Working {
    connections: Connections,
    peer: SocketAddr,
}

impl Drop for Working {
    fn drop(&mut self) {
        if let Some(connection) = self.connections.table().open.get_mut(&self.peer) {
            connection.busy = connection.busy.saturating_sub(1);
            connection.since = Instant::now();
        }
    }
}

/// Takes the connection out of the table at its end.
struct Entry {
    connections: Connections,
    peer: SocketAddr,
    id: u64,
}

impl Drop for Entry {
    fn drop(&mut self) {
        let mut table = self.connections.table();
        if table.open.get(&self.peer).is_some_and(|c| c.id == self.id) {
            table.open.remove(&self.peer);
        }
    }
}

impl<S> Accept<TcpStream, S> for Connections {
    type Stream = Guarded;
    type Service = S;
    type Future = Ready<io::Result<(Guarded, S)>>;

    fn accept(&self, stream: TcpStream, service: S) -> Self::Future {
        ready(self.admit(stream).map(|stream| (stream, service)))
    }
}

/// A connection that ends when its place is needed.
pub struct Guarded {
    stream: TcpStream,
    /// None when it has.
    ended: Option<oneshot::Receiver<()>>,
    _entry: Entry,
}

impl Guarded {
    fn check(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        let Some(ended) = &mut self.ended else {
            return Err(io::ErrorKind::ConnectionAborted.into());
        };
        let Poll::Ready(end) = Pin::new(ended).poll(cx) else {
            return Ok(());
        };
        self.ended = None;
        if end.is_ok() {
            // What the kernel has not sent yet is not to be sent. Where that cannot be said, it is, and no more.
            let _ = self.stream.set_zero_linger();
        }
        Err(io::ErrorKind::ConnectionAborted.into())
    }
}

impl AsyncRead for Guarded {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.check(cx)?;
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Guarded {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.check(cx)?;
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.check(cx)?;
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    struct Pair {
        client: TcpStream,
        server: io::Result<Guarded>,
        peer: SocketAddr,
    }

    async fn connect(listener: &TcpListener, connections: &Connections) -> Pair {
        let client = TcpStream::connect(listener.local_addr().unwrap())
            .await
            .unwrap();
        let (stream, peer) = listener.accept().await.unwrap();
        Pair {
            client,
            server: connections.admit(stream),
            peer,
        }
    }

    #[tokio::test]
    async fn the_one_that_waited_longest_makes_room_and_workers_stay() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let connections = Connections::new(2);
        let mut first = connect(&listener, &connections).await;
        let mut second = connect(&listener, &connections).await;
        // The first one works, so the second has waited longest, however recent it is.
        let working = connections.begin(first.peer);
        let third = connect(&listener, &connections).await;
        let mut buffer = [0; 1];
        let error = second.server.as_mut().unwrap().read(&mut buffer).await;
        assert_eq!(error.unwrap_err().kind(), io::ErrorKind::ConnectionAborted);
        drop(second);
        let _also_working = connections.begin(third.peer);
        let refused = connect(&listener, &connections).await;
        assert!(refused.server.is_err(), "both work");
        drop(working);
        first.client.write_all(b"x").await.unwrap();
        let read = first.server.as_mut().unwrap().read(&mut buffer).await;
        assert_eq!(read.unwrap(), 1);
        let fourth = connect(&listener, &connections).await;
        assert!(fourth.server.is_ok(), "the first waits now");
        connections.end(first.peer);
        for _ in 0..2 {
            let error = first.server.as_mut().unwrap().read(&mut buffer).await;
            assert_eq!(error.unwrap_err().kind(), io::ErrorKind::ConnectionAborted);
        }
        drop((first, third, fourth));
        assert!(connections.table().open.is_empty());
    }
}
