//! Sockets for qemu-nbd, which takes a listening one from who starts it (`sd_listen_fds(3)`) and nothing
//! else: no connected one, and no pair.
//!
//! The socket has a name of Linux's abstract space, so no file system has to have room, or a way, to make
//! a socket. Everybody on the host may connect to such a name. So there is room for one connection only,
//! which is ours: whoever comes first takes the only place (`unix_recvq_full` in the kernel's
//! net/unix/af_unix.c), and if that is somebody else, our attempt fails and the socket is given up. Whoever
//! comes later is not accepted, since qemu-nbd serves one client (`--shared=1`) and ends with it.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;

use rustix::io::Errno;
use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, connect, getsockname, listen,
    socket_with,
};

/// How often somebody else may be first.
const ATTEMPTS: usize = 16;

/// A listening socket, and a connection to it that it has not accepted yet.
///
/// # Errors
/// What the system said.
pub(super) fn connected() -> io::Result<(OwnedFd, UnixStream)> {
    for _ in 0..ATTEMPTS {
        let listener = unix_socket(SocketFlags::CLOEXEC)?;
        // Without a name, the kernel finds one.
        bind(&listener, &SocketAddrUnix::new_unnamed())?;
        listen(&listener, 0)?;
        // Would wait for a place otherwise.
        let stream = unix_socket(SocketFlags::CLOEXEC | SocketFlags::NONBLOCK)?;
        match connect(&stream, &getsockname(&listener)?) {
            Ok(()) => {
                let stream = UnixStream::from(stream);
                stream.set_nonblocking(false)?;
                return Ok((listener, stream));
            }
            Err(Errno::AGAIN) => log::warn!("another process connected to the socket of an image"),
            Err(e) => return Err(e.into()),
        }
    }
    Err(io::Error::other(
        "another process connects to every such socket; end it",
    ))
}

fn unix_socket(flags: SocketFlags) -> io::Result<OwnedFd> {
    Ok(socket_with(
        AddressFamily::UNIX,
        SocketType::STREAM,
        flags,
        None,
    )?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_is_no_second_client() {
        let (listener, _stream) = connected().unwrap();
        let other = unix_socket(SocketFlags::CLOEXEC | SocketFlags::NONBLOCK).unwrap();
        let address = getsockname(&listener).unwrap();
        assert_eq!(connect(&other, &address), Err(Errno::AGAIN));
    }
}
