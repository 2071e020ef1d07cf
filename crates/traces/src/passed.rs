//! Spans on their way to the process that sends them: requests of the OTLP exporter, put into a socket.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use async_trait::async_trait;
use opentelemetry_http::{Bytes, HttpClient, HttpError, Request, Response};
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, Shutdown, SocketFlags, SocketType, recv, send, shutdown,
    socketpair,
};
use serde::{Deserialize, Serialize};

/// Bytes of a request at most; what is longer is lost. A span of ours has some hundreds.
const MAX_LEN: usize = 64 * 1024;

/// Where a request is to go.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Head {
    pub(crate) address: String,
    pub(crate) headers: Vec<(String, String)>,
}

/// The client of the OTLP exporter: it passes requests on, and has an answer at once.
#[derive(Debug, Clone)]
pub(crate) struct Passing(Arc<OwnedFd>);

impl Passing {
    /// That, and the end where [`Passed::read`] reads.
    ///
    /// # Errors
    /// What the kernel says.
    pub(crate) fn pair() -> io::Result<(Self, OwnedFd)> {
        let (ours, theirs) = socketpair(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC,
            None,
        )?;
        Ok((Self(Arc::new(ours)), theirs))
    }

    /// Nothing comes any more.
    pub(crate) fn end(&self) {
        // Who reads may have ended.
        let _ = shutdown(&*self.0, Shutdown::Write);
    }
}

#[async_trait]
impl HttpClient for Passing {
    async fn send_bytes(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let headers = request.headers().iter().filter_map(|(name, value)| {
            let value = value.to_str().ok()?;
            Some((name.to_string(), value.to_owned()))
        });
        let head = Head {
            address: request.uri().to_string(),
            headers: headers.collect(),
        };
        let mut message = serde_json::to_vec(&head)?;
        message.push(b'\n');
        message.extend_from_slice(request.body());
        if message.len() <= MAX_LEN {
            // It is never waited for. What does not fit is lost, and so is all when who reads has ended.
            let _ = send(
                &*self.0,
                &message,
                SendFlags::DONTWAIT | SendFlags::NOSIGNAL,
            );
        }
        Ok(Response::new(Bytes::new()))
    }
}

/// A request that was passed on.
pub(crate) struct Passed {
    pub(crate) head: Head,
    pub(crate) body: Vec<u8>,
}

impl Passed {
    /// Waits for the next one; `None` when nothing comes any more.
    ///
    /// # Errors
    /// What the kernel says, or [`io::ErrorKind::InvalidData`].
    pub(crate) fn read(from: impl AsFd) -> io::Result<Option<Self>> {
        let mut message = vec![0; MAX_LEN];
        let len = loop {
            match recv(&from, &mut *message, RecvFlags::empty()) {
                Err(rustix::io::Errno::INTR) => {}
                read => break read?.0,
            }
        };
        if len == 0 {
            return Ok(None);
        }
        message.truncate(len);
        let end = message.iter().position(|byte| *byte == b'\n');
        let end = end.ok_or(io::ErrorKind::InvalidData)?;
        Ok(Some(Self {
            head: serde_json::from_slice(&message[..end])?,
            body: message.split_off(end + 1),
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_passed_on_is_read_and_nobody_waits_for_who_reads() {
        let (passing, read) = Passing::pair().unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().build();
        let runtime = runtime.unwrap();
        let send = |body: Vec<u8>| {
            let request = Request::post("http://localhost:4318/v1/traces")
                .header("authorization", "Bearer t")
                .body(Bytes::from(body));
            let answer = runtime.block_on(passing.send_bytes(request.unwrap()));
            assert!(answer.unwrap().status().is_success());
        };
        // More than a socket holds, of which nobody reads anything yet; and what is no span of ours.
        send(b"first\nbody".to_vec());
        send(vec![7; MAX_LEN]);
        for _ in 0..1000 {
            send(vec![7; 1000]);
        }
        passing.end();
        let first = Passed::read(&read).unwrap().unwrap();
        assert_eq!(first.body, b"first\nbody");
        assert_eq!(first.head.address, "http://localhost:4318/v1/traces");
        let token = ("authorization".to_owned(), "Bearer t".to_owned());
        assert_eq!(first.head.headers, [token]);
        let mut rest = 0;
        while let Some(next) = Passed::read(&read).unwrap() {
            assert_eq!(next.body.len(), 1000);
            rest += 1;
        }
        assert!((1..1000).contains(&rest), "{rest}");
        drop(read);
        send(vec![7; 10]);
    }
}
