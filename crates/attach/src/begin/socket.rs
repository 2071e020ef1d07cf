//! The socket on which the virtual machine monitor connects.

use std::fs::{Metadata, Permissions};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use rustix::io::{FdFlags, fcntl_setfd};
use rustix::net::sockopt::socket_acceptconn;

use crate::error::AttachError;
use installation::files::{bind_private, rename_new};

/// The permission to connect of a socket that this process made: that to write (unix(7)).
const OWNER_ONLY: u32 = 0o600;
/// The same for a group too, which is what naming one is for.
const OWNER_AND_GROUP: u32 = 0o660;

/// Bytes of the path of a socket at most, beside the zero at its end (unix(7)).
const MAX_PATH: usize = 107;

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
    pub(crate) fn is_for_others(&self) -> bool {
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
    pub(crate) fn is_for_others_in(&self, directory: &Path) -> bool {
        match self {
            Self::Path(path, access) => {
                let parent = path.parent().and_then(|parent| parent.canonicalize().ok());
                access.is_for_others() && parent == directory.canonicalize().ok()
            }
            Self::Fd(_) => false,
        }
    }

    /// Keeps one that was inherited from what is started from now on.
    ///
    /// # Errors
    /// [`AttachError::Fd`].
    pub(crate) fn keep_private(&self) -> Result<(), AttachError> {
        match self {
            Self::Path(..) => Ok(()),
            Self::Fd(number) => look_at(*number).map(drop),
        }
    }
}

/// The descriptor of that number, which no program gets that is started from now on.
fn look_at(number: i32) -> Result<BorrowedFd<'static>, AttachError> {
    let fail = |e: rustix::io::Errno| AttachError::Fd {
        fd: number,
        source: e.into(),
    };
    if number <= 2 {
        return Err(fail(rustix::io::Errno::BADF));
    }
    // SAFETY: only a look at whether the number is an open descriptor; nobody closes it before it is taken over.
    let look = unsafe { BorrowedFd::borrow_raw(number) };
    fcntl_setfd(look, FdFlags::CLOEXEC).map_err(fail)?;
    Ok(look)
}

/// An open socket. One that was bound is removed again at the end.
pub struct Socket {
    fd: OwnedFd,
    listening: bool,
    bound: Option<Bound>,
}

/// A socket in the file system.
struct Bound {
    /// Where frontends are to find it.
    path: PathBuf,
    /// Where it is now: beside that, under a name that nobody knows, until there is something to connect to.
    at: PathBuf,
    /// Its device and its number there.
    made: (u64, u64),
}

impl Socket {
    /// Binds or takes over the socket. One that is bound has its name only after [`Socket::publish`].
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
        make_way(&path)?;
        let fail = |source| AttachError::Socket {
            path: path.clone(),
            source,
        };
        if path.as_os_str().len() > MAX_PATH {
            let why =
                format!("the path of a socket has {MAX_PATH} bytes at most: choose a shorter one");
            return Err(fail(io::Error::new(io::ErrorKind::InvalidInput, why)));
        }
        let (listener, at) = bind_beside(&path).map_err(&fail)?;
        let made = place_of(&std::fs::symlink_metadata(&at).map_err(&fail)?);
        let this = Self {
            fd: listener.into(),
            listening: true,
            bound: Some(Bound {
                path: path.clone(),
                at: at.clone(),
                made,
            }),
        };
        access.grant(&at).map(|()| this)
    }

    /// Gives a socket that was bound its name: from now on frontends find it.
    ///
    /// # Errors
    /// [`AttachError::SocketInUse`] when somebody else's has come there meanwhile, or
    /// [`AttachError::Socket`].
    pub fn publish(&mut self) -> Result<(), AttachError> {
        let Some(bound) = self.bound.as_mut().filter(|bound| bound.at != bound.path) else {
            return Ok(());
        };
        let path = bound.path.clone();
        rename_new(&bound.at, &path).map_err(|source| match source.kind() {
            io::ErrorKind::AlreadyExists => AttachError::SocketInUse { path: path.clone() },
            _ => AttachError::Socket {
                path: path.clone(),
                source,
            },
        })?;
        bound.at = path;
        Ok(())
    }

    fn inherit(number: i32) -> Result<Self, AttachError> {
        let fail = |e: rustix::io::Errno| AttachError::Fd {
            fd: number,
            source: e.into(),
        };
        let listening = socket_acceptconn(look_at(number)?).map_err(fail)?;
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

    /// One that the program before this one had in this process, and that has its name.
    pub(crate) fn adopt(fd: OwnedFd, listening: bool, bound: Option<(PathBuf, u64, u64)>) -> Self {
        Self {
            fd,
            listening,
            bound: bound.map(|(path, device, number)| Bound {
                at: path.clone(),
                path,
                made: (device, number),
            }),
        }
    }

    /// Where it is in the file system, with its device and its number there, if it was bound.
    pub(crate) fn bound(&self) -> Option<(PathBuf, u64, u64)> {
        let Bound { at, made, .. } = self.bound.as_ref()?;
        Some((at.clone(), made.0, made.1))
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

/// The device of a file, and its number there.
fn place_of(file: &Metadata) -> (u64, u64) {
    (file.dev(), file.ino())
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Drop for Socket {
    /// Removes the socket from the file system, unless somebody else's is there by now.
    fn drop(&mut self) {
        if let Some(Bound { at, made, .. }) = &self.bound
            && let Ok(now) = std::fs::symlink_metadata(at)
            && place_of(&now) == *made
            && let Err(error) = std::fs::remove_file(at)
        {
            log::warn!("cannot remove {}: {error}", at.display());
        }
    }
}

/// Removes a socket that a process left behind which was killed.
fn make_way(path: &Path) -> Result<(), AttachError> {
    let in_use = || AttachError::SocketInUse {
        path: path.to_owned(),
    };
    match std::fs::symlink_metadata(path) {
        Ok(found) if !found.file_type().is_socket() => Err(AttachError::NotASocket {
            path: path.to_owned(),
        }),
        Ok(_) => match UnixStream::connect(path) {
            // Nobody listens there any more.
            Err(e) if e.kind() == io::ErrorKind::ConnectionRefused => std::fs::remove_file(path)
                .map_err(|source| AttachError::Socket {
                    path: path.to_owned(),
                    source,
                }),
            Ok(_) | Err(_) => Err(in_use()),
        },
        Err(_) => Ok(()),
    }
}

/// A listener in the same directory, under a name of the same length: paths of sockets are short.
fn bind_beside(path: &Path) -> io::Result<(UnixListener, PathBuf)> {
    const TRIES: u32 = 64;
    let len = path.file_name().map_or(0, |name| name.len());
    if len == 0 {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let mut last = io::Error::from(io::ErrorKind::AddrInUse);
    for _ in 0..TRIES {
        let mut name: String = (0..len)
            .map(|_| char::from(rand::random_range(b'a'..=b'z')))
            .collect();
        if len > 4 {
            name.replace_range(..1, ".");
        }
        let at = path.with_file_name(name);
        if at == path {
            continue;
        }
        match bind_private(&at) {
            Ok(listener) => return Ok((listener, at)),
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => last = error,
            Err(error) => return Err(error),
        }
    }
    Err(last)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_has_its_name_only_when_it_is_published() {
        let directory = tempfile::tempdir().unwrap();
        for name in ["s", "disk.sock"] {
            let path = directory.path().join(name);
            let source = SocketSource::Path(path.clone(), SocketAccess::default());
            let mut socket = Socket::open(&source).unwrap();
            assert!(UnixStream::connect(&path).is_err());
            socket.publish().unwrap();
            socket.publish().unwrap();
            UnixStream::connect(&path).unwrap();
            assert!(matches!(
                Socket::open(&source),
                Err(AttachError::SocketInUse { .. })
            ));
            assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 1);
            drop(socket);
            assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0);
        }
    }

    #[test]
    fn a_path_that_is_too_long_for_a_socket_is_refused_with_the_reason() {
        let path = Path::new("/run").join("d".repeat(103));
        let refused = Socket::open(&SocketSource::Path(path, SocketAccess::default()));
        let message = refused.err().unwrap().to_string();
        assert!(message.contains("107 bytes at most"), "{message}");
    }

    #[test]
    fn what_came_there_meanwhile_stays() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("disk.sock");
        let mut socket =
            Socket::open(&SocketSource::Path(path.clone(), SocketAccess::default())).unwrap();
        let other = UnixListener::bind(&path).unwrap();
        assert!(matches!(
            socket.publish(),
            Err(AttachError::SocketInUse { .. })
        ));
        drop(socket);
        UnixStream::connect(&path).unwrap();
        drop(other);
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 1);
    }
}
