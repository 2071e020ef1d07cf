//! Where clients come in.

use std::fmt;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use tokio::net::{TcpListener, UnixListener};

use crate::ServeError;
use crate::connections::{Connections, Service};
use installation::files::bind_private;

/// Where clients come in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Listen {
    /// An address.
    Tcp(SocketAddr),
    /// A socket that this user alone may use.
    Unix(PathBuf),
}

impl FromStr for Listen {
    type Err = String;

    /// An address, or `unix:PATH`.
    fn from_str(text: &str) -> Result<Self, String> {
        match text.strip_prefix("unix:") {
            Some("") => Err("a path follows unix:".into()),
            Some(path) => Ok(Self::Unix(PathBuf::from(path))),
            None => text.parse().map(Self::Tcp).map_err(|_| {
                let example = SocketAddr::new(Ipv4Addr::LOCALHOST.into(), 9301);
                format!("it is neither an address such as {example} nor unix:PATH")
            }),
        }
    }
}

impl fmt::Display for Listen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => write!(f, "http://{address}"),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

impl Listen {
    /// The address, where it is one.
    pub fn address(&self) -> Option<SocketAddr> {
        match self {
            Self::Tcp(address) => Some(*address),
            Self::Unix(_) => None,
        }
    }

    /// The path of the socket, where it is one.
    pub fn socket(&self) -> Option<&Path> {
        match self {
            Self::Tcp(_) => None,
            Self::Unix(path) => Some(path),
        }
    }
}

pub(crate) enum Listener {
    Tcp(TcpListener),
    /// With its path, which goes in the end.
    Unix(UnixListener, PathBuf),
}

impl Listener {
    /// Listens, and where that is: a port may be chosen by the system.
    pub(crate) async fn open(listen: Listen) -> Result<(Self, Listen), ServeError> {
        let told = listen.to_string();
        let fail = |source| ServeError::Listen {
            listen: told,
            source,
        };
        Self::bind(listen).await.map_err(fail)
    }

    async fn bind(listen: Listen) -> io::Result<(Self, Listen)> {
        match listen {
            Listen::Tcp(address) => {
                let listener = TcpListener::bind(address).await?;
                let address = listener.local_addr()?;
                Ok((Self::Tcp(listener), Listen::Tcp(address)))
            }
            Listen::Unix(path) => {
                make_way(&path)?;
                let listener = bind_private(&path)?;
                listener.set_nonblocking(true)?;
                let listener = UnixListener::from_std(listener)?;
                Ok((Self::Unix(listener, path.clone()), Listen::Unix(path)))
            }
        }
    }

    pub(crate) async fn accept_all<S: Service>(&self, connections: &Connections<S>) {
        loop {
            // The place comes after the connection: nobody gives way to one that does not come.
            let accepted = match self {
                Self::Tcp(listener) => match listener.accept().await {
                    Ok((stream, _)) => {
                        connections.serve(connections.place().await, stream);
                        Ok(())
                    }
                    Err(error) => Err(error),
                },
                Self::Unix(listener, _) => match listener.accept().await {
                    Ok((stream, _)) => {
                        connections.serve(connections.place().await, stream);
                        Ok(())
                    }
                    Err(error) => Err(error),
                },
            };
            if let Err(error) = accepted {
                log::warn!("a connection is lost: {error}");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if let Self::Unix(_, path) = self {
            // The next server removes one that stays. What somebody has put there instead is theirs.
            if is_socket(path).unwrap_or(false) {
                let _ = std::fs::remove_file(path);
            }
        }
    }
}

/// Removes a socket that nobody listens on any more. Whatever else is there stays: to connect to a file is refused
/// as to a dead socket.
///
/// # Errors
/// Something is there that is not a socket, or it cannot be looked at.
fn make_way(path: &Path) -> io::Result<()> {
    match is_socket(path) {
        Ok(true) => {}
        Ok(false) => {
            return Err(io::Error::new(
                io::ErrorKind::AlreadyExists,
                "it exists and is not a socket; choose another path",
            ));
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    }
    let connected = std::os::unix::net::UnixStream::connect(path);
    if connected.is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused) {
        std::fs::remove_file(path)?;
    }
    Ok(())
}

/// Whether a socket is there itself; a link to one is not.
fn is_socket(path: &Path) -> io::Result<bool> {
    Ok(std::fs::symlink_metadata(path)?.file_type().is_socket())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_or_a_path_is_taken() {
        let tcp: Listen = "127.0.0.1:80".parse().unwrap();
        assert_eq!(tcp.address(), Some(([127, 0, 0, 1], 80).into()));
        let unix: Listen = "unix:/run/x.sock".parse().unwrap();
        assert_eq!(unix.socket(), Some(Path::new("/run/x.sock")));
        for wrong in ["", "80", "localhost:80", "unix:", "/run/x.sock"] {
            assert!(wrong.parse::<Listen>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn only_a_dead_socket_makes_way() {
        let dir = tempfile::tempdir().unwrap();
        let (file, link) = (dir.path().join("file"), dir.path().join("link"));
        std::fs::write(&file, "kept").unwrap();
        std::os::unix::fs::symlink(&file, &link).unwrap();
        for path in [&file, &link, &dir.path().to_owned()] {
            let error = make_way(path).unwrap_err();
            assert!(error.to_string().contains("not a socket"), "{error}");
        }
        assert_eq!(std::fs::read_to_string(&link).unwrap(), "kept");

        let socket = dir.path().join("socket");
        let listener = bind_private(&socket).unwrap();
        make_way(&socket).unwrap();
        assert!(socket.exists(), "somebody listens there");
        drop(listener);
        make_way(&socket).unwrap();
        assert!(!socket.exists());
        make_way(&socket).unwrap();
    }
}
