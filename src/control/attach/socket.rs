//! The socket on which the virtual machine monitor connects.

use std::fs::Metadata;
use std::io;
use std::os::fd::{BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;

use rustix::io::{FdFlags, fcntl_setfd};
use rustix::net::sockopt::socket_acceptconn;

use super::AttachError;

/// Where the socket comes from.
pub enum SocketSource {
    /// Bind it here (`--socket-path`).
    Path(PathBuf),
    /// It was inherited, listening or connected (`--fd`).
    Fd(i32),
}

/// An open socket. One that was bound is removed again at the end.
pub struct Socket {
    fd: OwnedFd,
    listening: bool,
    bound: Option<(PathBuf, Metadata)>,
}

impl Socket {
    /// Binds or takes over the socket.
    ///
    /// # Errors
    /// [`AttachError::SocketInUse`], [`AttachError::NotASocket`], [`AttachError::Socket`] or
    /// [`AttachError::Fd`].
    pub fn open(source: &SocketSource) -> Result<Self, AttachError> {
        match source {
            SocketSource::Path(path) => Self::bind(path.clone()),
            SocketSource::Fd(fd) => Self::inherit(*fd),
        }
    }

    fn bind(path: PathBuf) -> Result<Self, AttachError> {
        match std::fs::symlink_metadata(&path) {
            Ok(found) if !found.file_type().is_socket() => {
                return Err(AttachError::NotASocket { path });
            }
            Ok(_) => match UnixStream::connect(&path) {
                // Left behind by a process that was killed: nobody listens there any more.
                Err(e) if e.kind() == io::ErrorKind::ConnectionRefused => {
                    std::fs::remove_file(&path).map_err(|source| AttachError::Socket {
                        path: path.clone(),
                        source,
                    })?;
                }
                Ok(_) | Err(_) => return Err(AttachError::SocketInUse { path }),
            },
            Err(_) => {}
        }
        let bound = UnixListener::bind(&path)
            .and_then(|listener| Ok((listener, std::fs::symlink_metadata(&path)?)));
        match bound {
            Ok((listener, made)) => Ok(Self {
                fd: listener.into(),
                listening: true,
                bound: Some((path, made)),
            }),
            Err(e) if e.kind() == io::ErrorKind::AddrInUse => {
                Err(AttachError::SocketInUse { path })
            }
            Err(source) => Err(AttachError::Socket { path, source }),
        }
    }

    fn inherit(number: i32) -> Result<Self, AttachError> {
        let fail = |e: rustix::io::Errno| AttachError::Fd {
            fd: number,
            source: e.into(),
        };
        if number <= 2 {
            return Err(fail(rustix::io::Errno::BADF));
        }
        // SAFETY: only a look at whether the number is an open descriptor.
        let look = unsafe { BorrowedFd::borrow_raw(number) };
        fcntl_setfd(look, FdFlags::CLOEXEC).map_err(fail)?;
        let listening = socket_acceptconn(look).map_err(fail)?;
        // SAFETY: it is an open socket (just seen). The parent process left it open for us and
        // named it on the command line; nothing else in this process knows the number, which is
        // taken over once, before anything else was opened.
        let fd = unsafe { OwnedFd::from_raw_fd(number) };
        Ok(Self {
            fd,
            listening,
            bound: None,
        })
    }

    /// Whether it listens; else it is connected.
    pub fn is_listening(&self) -> bool {
        self.listening
    }

    /// A duplicate for the data plane.
    ///
    /// # Errors
    /// [`AttachError::Process`].
    pub fn duplicate(&self) -> Result<OwnedFd, AttachError> {
        let what = "duplicate the socket";
        self.fd
            .try_clone()
            .map_err(|source| AttachError::Process { what, source })
    }
}

impl Drop for Socket {
    /// Removes the socket from the file system, unless somebody else's is there by now.
    fn drop(&mut self) {
        if let Some((path, made)) = &self.bound
            && let Ok(now) = std::fs::symlink_metadata(path)
            && (now.dev(), now.ino()) == (made.dev(), made.ino())
            && let Err(error) = std::fs::remove_file(path)
        {
            log::warn!("cannot remove {}: {error}", path.display());
        }
    }
}
