//! The socket on which the virtual machine monitor connects.

use std::fs::{Metadata, Permissions};
use std::io;
use std::os::fd::{BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use rustix::io::{FdFlags, fcntl_setfd};
use rustix::net::sockopt::socket_acceptconn;

use super::AttachError;
use crate::control::files::bind_private;

/// The permission to connect of a socket that this process made: that to write (unix(7)).
const OWNER_ONLY: u32 = 0o600;
/// The same for a group too, which is what naming one is for.
const OWNER_AND_GROUP: u32 = 0o660;

/// Who may connect to a socket that is made; only this process's user when nothing is said.
#[derive(Debug, Clone, Copy, Default)]
pub struct SocketAccess {
    /// Its permission bits (`--socket-mode`).
    pub mode: Option<u32>,
    /// The id of the group that it gets (`--socket-group`).
    pub group: Option<u32>,
}

impl SocketAccess {
    /// Whether anybody else is to connect.
    pub(super) fn is_for_others(&self) -> bool {
        self.mode.is_some() || self.group.is_some()
    }

    /// Gives a socket, which is nobody else's so far, to those who may connect.
    fn grant(self, path: &Path) -> Result<(), AttachError> {
        if let Some(group) = self.group {
            std::os::unix::fs::chown(path, None, Some(group)).map_err(|source| {
                AttachError::SocketGroup {
                    path: path.into(),
                    group,
                    source,
                }
            })?;
        }
        let default = match self.group {
            Some(_) => OWNER_AND_GROUP,
            None => OWNER_ONLY,
        };
        let mode = Permissions::from_mode(self.mode.unwrap_or(default));
        std::fs::set_permissions(path, mode).map_err(|source| AttachError::Socket {
            path: path.into(),
            source,
        })
    }
}

/// Where the socket comes from.
pub enum SocketSource {
    /// Bind it here (`--socket-path`), for these.
    Path(PathBuf, SocketAccess),
    /// It was inherited, listening or connected (`--fd`).
    Fd(i32),
}

impl SocketSource {
    /// Whether others are to reach the socket in `directory`.
    pub(super) fn is_for_others_in(&self, directory: &Path) -> bool {
        match self {
            Self::Path(path, access) => {
                let parent = path.parent().and_then(|parent| parent.canonicalize().ok());
                access.is_for_others() && parent == directory.canonicalize().ok()
            }
            Self::Fd(_) => false,
        }
    }
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
            SocketSource::Path(path, access) => Self::bind(path.clone(), *access),
            SocketSource::Fd(fd) => Self::inherit(*fd),
        }
    }

    fn bind(path: PathBuf, access: SocketAccess) -> Result<Self, AttachError> {
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
        let bound = bind_private(&path)
            .and_then(|listener| Ok((listener, std::fs::symlink_metadata(&path)?)));
        match bound {
            Ok((listener, made)) => {
                let this = Self {
                    fd: listener.into(),
                    listening: true,
                    bound: Some((path.clone(), made)),
                };
                access.grant(&path).map(|()| this)
            }
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
