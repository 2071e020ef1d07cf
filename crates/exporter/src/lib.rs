//! The metrics of a host for Prometheus: one exporter over the control sockets of all attached disks, and over the keys
//! and vaults of an installation.
//!
//! ```text
//! scrape ──► http ──► scrape ──► disks: all control sockets at once, each with a deadline
//!                        └─────► installed: what a thread of its own saw last of keys and vaults
//! ```
//!
//! [`catalogue`] has every metric; docs/metrics.md explains them.

pub mod catalogue;
mod disks;
mod error;
mod http;
mod installed;
mod protobuf;
mod samples;
mod scrape;
mod text;

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::net::{TcpListener, UnixListener};
use tokio::signal::unix::{SignalKind, signal};

pub use error::ExporterError;

use crate::http::Connections;
use crate::scrape::Scraper;
use installation::files::bind_private;

/// Where scrapers come in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Listen {
    /// An address.
    Tcp(SocketAddr),
    /// A socket that this user alone may use.
    Unix(PathBuf),
}

impl fmt::Display for Listen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => write!(f, "http://{address}/metrics"),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// How to serve.
#[derive(Debug)]
pub struct ServeOptions {
    /// Where.
    pub listen: Listen,
    /// Where the control sockets of attached disks are.
    pub runtime_dir: PathBuf,
    /// The installation.
    pub state_dir: PathBuf,
    /// How long a disk may take to answer.
    pub patience: Duration,
    /// How often keys and vaults are looked at.
    pub period: Duration,
}

enum Listener {
    Tcp(TcpListener),
    /// With its path, which goes in the end.
    Unix(UnixListener, PathBuf),
}

/// Serves metrics until SIGTERM or SIGINT. `ready` is called with the address, once it is listened on.
///
/// # Errors
/// [`ExporterError`]: they were not served.
pub fn serve(options: ServeOptions, ready: impl FnOnce(&Listen)) -> Result<(), ExporterError> {
    // Each disk takes one.
    attach::raise_file_limit();
    let ServeOptions {
        listen,
        runtime_dir,
        state_dir,
        patience,
        period,
    } = options;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(system("start the exporter"))?;
    runtime.block_on(async {
        // Before anybody can connect, who may then end this at once: the socket is to go with it.
        let mut terminate = signal(SignalKind::terminate()).map_err(system("handle signals"))?;
        let mut interrupt = signal(SignalKind::interrupt()).map_err(system("handle signals"))?;
        let (listener, listening) = Listener::open(listen).await?;
        let seen = installed::watch(state_dir, runtime_dir.clone(), period)
            .map_err(system("start the thread that looks at keys and vaults"))?;
        let scraper = Scraper::new(runtime_dir, patience, seen, period);
        let connections = Connections::new(scraper);
        ready(&listening);
        tokio::select! {
            () = listener.accept_all(&connections) => {}
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        Ok(())
    })
}

impl Listener {
    /// Listens, and where that is: a port may be chosen by the system.
    async fn open(listen: Listen) -> Result<(Self, Listen), ExporterError> {
        let told = listen.to_string();
        let fail = |source| ExporterError::Listen {
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
                remove_dead(&path);
                let listener = bind_private(&path)?;
                listener.set_nonblocking(true)?;
                let listener = UnixListener::from_std(listener)?;
                Ok((Self::Unix(listener, path.clone()), Listen::Unix(path)))
            }
        }
    }

    async fn accept_all(&self, connections: &Connections) {
        loop {
            let place = connections.place().await;
            let accepted = match self {
                Self::Tcp(listener) => listener
                    .accept()
                    .await
                    .map(|(stream, _)| connections.serve(place, stream)),
                Self::Unix(listener, _) => listener
                    .accept()
                    .await
                    .map(|(stream, _)| connections.serve(place, stream)),
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
            // The next exporter removes one that stays.
            let _ = std::fs::remove_file(path);
        }
    }
}

/// Removes a socket that nobody listens on any more.
fn remove_dead(path: &Path) {
    let connected = std::os::unix::net::UnixStream::connect(path);
    if connected.is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused) {
        // What it cannot be replaced for is said by who binds.
        let _ = std::fs::remove_file(path);
    }
}

fn system(what: &'static str) -> impl Fn(io::Error) -> ExporterError {
    move |source| ExporterError::System { what, source }
}
