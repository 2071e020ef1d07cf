//! Listening, serving, and ending.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use axum::Router;
use axum_server::tls_rustls::RustlsAcceptor;
use axum_server::{Handle, Server};
use hyper_util::rt::TokioTimer;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::net::{TcpListener, TcpSocket};
use tokio::runtime::Builder;
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinSet;
use tokio::time::MissedTickBehavior;

use super::ServerError;
use super::connections::Connections;
use super::front::Front;
use super::http::{Listener, Service, handle};
use super::local::LocalOnly;
use super::shared::{Shared, THREADS};
use super::tls::{CertificateSource, Tls};
use super::token::TokenService;
use installation::Installation;

/// How long requests under way may take after SIGTERM.
const DRAIN: Duration = Duration::from_secs(10);
/// How long threads have to end after that.
const LEFT: Duration = Duration::from_secs(2);
/// How long a TLS handshake may take.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// How often it is looked for what is due.
const TICK: Duration = Duration::from_secs(30);
/// How often a server asks whether it is the one that does what is due: another one takes over so soon when it ends.
const TURN: Duration = Duration::from_secs(2);
/// How often sets that follow their key's latest version look for it. Each look is in the audit log.
const FOLLOW: Duration = Duration::from_secs(300);
/// Most bytes of a request's head.
const HEAD_LIMIT: usize = 64 * 1024;
/// Connections that wait to be accepted.
const BACKLOG: u32 = 1024;
/// Connections of a listener that only gives tokens.
const TOKEN_CONNECTIONS: usize = 64;
/// Descriptors that are not connections: databases, listeners, the runtime's own.
const OTHER_DESCRIPTORS: u64 = 256;

/// What the keys that sign tokens are among those of an installation.
const TOKENS: &str = "tokens";

/// A listener that plays Azure's instance metadata service.
pub struct Imds {
    /// Where: on this host's loopback.
    pub address: SocketAddr,
    /// For which identities: names of users, or `disk-encryption-set/SET`.
    pub identities: Vec<String>,
}

/// What is called again and again, for as long as the server's threads come round to it.
#[derive(Debug, Clone, Copy)]
pub struct Pulse {
    /// How often.
    pub every: Duration,
    /// What is called; it must not block.
    pub beat: fn(),
}

/// How to serve.
pub struct ServeOptions {
    /// Where vaults are served.
    pub address: SocketAddr,
    /// With which certificate.
    pub certificate: CertificateSource,
    /// The domains below which vaults have their names.
    pub domains: Vec<String>,
    /// The instance metadata service.
    pub imds: Option<Imds>,
    /// Where `IDENTITY_ENDPOINT` is served without TLS.
    pub identity_address: Option<SocketAddr>,
    /// The users who may ask for tokens without TLS.
    pub users: Vec<u32>,
    /// How long a token lives.
    pub token_lifetime: Duration,
    /// Most connections to vaults at a time.
    pub max_connections: usize,
    /// How long a client may take to send a request, and keep a connection without one.
    pub client_timeout: Duration,
    /// Who is told that the server lives.
    pub pulse: Option<Pulse>,
    /// What is served besides vaults.
    pub front: Option<Arc<dyn Front>>,
}

/// What is served, once it is.
pub struct Serving {
    /// Where vaults are served.
    pub vaults: SocketAddr,
    /// The certificate to trust; `None` with the operator's own.
    pub ca_file: Option<PathBuf>,
    /// The instance metadata service.
    pub imds: Option<SocketAddr>,
    /// `IDENTITY_ENDPOINT` without TLS.
    pub identity: Option<SocketAddr>,
}

/// An address to be listened on.
struct Socket {
    listener: TcpListener,
    address: SocketAddr,
    service: Service,
    connections: Connections,
    local: Option<LocalOnly>,
}

/// Serves the vaults of an installation until SIGTERM or SIGINT. `ready` is called when every
/// address is listened on.
///
/// # Errors
/// [`ServerError`]: it was not served.
pub fn serve(
    installation: Installation,
    options: ServeOptions,
    ready: impl FnOnce(&Serving),
) -> Result<(), ServerError> {
    let limit = connection_limit(options.max_connections)?;
    let tokens = TokenService::open(
        &installation.key_store(TOKENS)?,
        installation.id(),
        options.token_lifetime,
        options.domains.clone(),
    )?;
    let tokens = match &options.front {
        Some(front) => tokens.for_management(&front.hosts()),
        None => tokens,
    };
    if let Some(imds) = &options.imds {
        // A slip of the pen shows at once and not with the first token.
        for name in &imds.identities {
            installation.find_identity(name)?;
        }
    }
    let tls = Arc::new(Tls::open(options.certificate)?);
    let shared = Shared::new(installation, tokens, options.domains);
    let shared = Arc::new(shared.with_front(options.front));
    shared.begin_front()?;
    let runtime = Builder::new_multi_thread()
        .max_blocking_threads(THREADS)
        .enable_all()
        .build()
        .map_err(|source| system("start threads", source))?;
    let ended: Result<(), ServerError> = runtime.block_on(async {
        let mut sockets = vec![Socket::open(options.address, Service::Vaults, limit)?];
        if let Some(Imds {
            address,
            identities,
        }) = options.imds
        {
            let service = Service::Imds(identities);
            let users = options.users.clone();
            sockets.push(Socket::open_local(
                "--imds-listen",
                address,
                service,
                users,
            )?);
        }
        if let Some(address) = options.identity_address {
            let service = Service::IdentityEndpoint;
            let users = options.users;
            sockets.push(Socket::open_local(
                "--identity-listen",
                address,
                service,
                users,
            )?);
        }
        let serving = serving(&sockets, &tls);
        let (mut terminate, mut interrupt) = signals()?;
        let handle = Handle::new();
        let mut servers = JoinSet::new();
        for socket in sockets {
            let patience = options.client_timeout;
            servers.spawn(socket.serve(Arc::clone(&shared), &tls, patience, handle.clone()));
        }
        ready(&serving);
        let recorder = record_refusals(&shared)?;
        let floods = shared.floods.clone();
        let due = tokio::spawn(keep_up(shared, Arc::clone(&tls)));
        if let Some(pulse) = options.pulse {
            // It ends with the runtime: also while requests under way are waited for, the server lives.
            tokio::spawn(beat(pulse));
        }
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
            // No server ends by itself but by an error.
            Some(Ok(Err(error))) = servers.join_next() => return Err(system("serve", error)),
        }
        log::info!("ending; requests under way have {} s", DRAIN.as_secs());
        due.abort();
        handle.graceful_shutdown(Some(DRAIN));
        while servers.join_next().await.is_some() {}
        floods.end();
        if recorder.join().is_err() {
            log::error!("what was refused last is not in the audit log");
        }
        Ok(())
    });
    // Who still works has had its time, and keeps the server from ending no longer: a kill would find no other state.
    runtime.shutdown_timeout(LEFT);
    ended
}

/// Starts the thread that records what is refused before it reaches a vault.
fn record_refusals(shared: &Arc<Shared>) -> Result<JoinHandle<()>, ServerError> {
    let shared = Arc::clone(shared);
    let work = move || {
        let floods = shared.floods.clone();
        floods.run(|record| {
            let log = shared.installation.audit_log().map_err(|e| e.to_string())?;
            log.append(record).map_err(|e| e.to_string())
        });
    };
    std::thread::Builder::new()
        .name("refusals".into())
        .spawn(work)
        .map_err(|source| system("start threads", source))
}

/// Tells that the server lives.
async fn beat(pulse: Pulse) {
    let mut tick = tokio::time::interval(pulse.every);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        (pulse.beat)();
    }
}

/// Does what is due, now and then.
async fn keep_up(shared: Arc<Shared>, tls: Arc<Tls>) {
    let mut tick = tokio::time::interval(TURN);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let upkeep = Arc::new(Mutex::new(Upkeep::default()));
    loop {
        tick.tick().await;
        let (shared, tls) = (Arc::clone(&shared), Arc::clone(&tls));
        let upkeep = Arc::clone(&upkeep);
        let work = move || {
            let mut upkeep = upkeep.lock().unwrap_or_else(PoisonError::into_inner);
            upkeep.look(&shared, &tls);
        };
        if let Err(error) = tokio::task::spawn_blocking(work).await {
            log::error!("looking for what is due failed: {error}");
        }
    }
}

/// When what is due was looked for.
#[derive(Default)]
struct Upkeep {
    /// For this server alone.
    own: Option<Instant>,
    /// For all that serve the installation, by the one whose turn it is.
    shared: Option<Instant>,
    followed: Option<Instant>,
}

impl Upkeep {
    fn look(&mut self, shared: &Arc<Shared>, tls: &Tls) {
        let is_due = |last: Option<Instant>, every| last.is_none_or(|last| last.elapsed() >= every);
        if is_due(self.own, TICK) {
            self.own = Some(Instant::now());
            shared.renew_token_keys();
            shared.watch_space();
            if let Err(error) = tls.run_due() {
                log::error!("the TLS certificate stays as it was: {error}");
            }
        }
        shared.keep_up_front();
        if !shared.has_turn() {
            // Whoever has it next looks at once.
            (self.shared, self.followed) = (None, None);
            return;
        }
        if is_due(self.shared, TICK) {
            self.shared = Some(Instant::now());
            shared.run_due();
        }
        if is_due(self.followed, FOLLOW) {
            self.followed = Some(Instant::now());
            shared.follow_latest_keys();
        }
    }
}

impl Socket {
    fn open(
        address: SocketAddr,
        service: Service,
        connections: usize,
    ) -> Result<Self, ServerError> {
        let fail = |source| ServerError::Listen { address, source };
        let listener = listen(address).map_err(fail)?;
        Ok(Self {
            address: listener.local_addr().map_err(fail)?,
            listener,
            service,
            connections: Connections::new(connections),
            local: None,
        })
    }

    fn open_local(
        option: &'static str,
        address: SocketAddr,
        service: Service,
        users: Vec<u32>,
    ) -> Result<Self, ServerError> {
        if !address.ip().is_loopback() {
            return Err(ServerError::NotLoopback { option, address });
        }
        let socket = Self::open(address, service, TOKEN_CONNECTIONS)?;
        let local = LocalOnly::new(socket.address, users).map_err(|source| {
            system(
                "read whose connections are whose (/proc/self/net/tcp)",
                source,
            )
        })?;
        Ok(Self {
            local: Some(local),
            ..socket
        })
    }

    fn serve(
        self,
        shared: Arc<Shared>,
        tls: &Tls,
        patience: Duration,
        ending: Handle<SocketAddr>,
    ) -> impl Future<Output = io::Result<()>> + Send + use<> {
        let encrypted = matches!(self.service, Service::Vaults).then(|| tls.config());
        let connections = self.connections.clone();
        let listener = Arc::new(Listener {
            shared,
            connections: self.connections,
            service: self.service,
            local: self.local,
            patience,
        });
        let app = Router::new()
            .fallback(handle)
            .with_state(listener)
            .into_make_service_with_connect_info::<SocketAddr>();
        async move {
            let mut server = Server::<SocketAddr>::from_listener(self.listener)
                .handle(ending)
                .acceptor(connections.clone());
            server
                .http_builder()
                .http1()
                .timer(TokioTimer::new())
                .header_read_timeout(patience)
                .max_buf_size(HEAD_LIMIT);
            match encrypted {
                None => server.http1_only().serve(app).await,
                Some(config) => {
                    let acceptor = RustlsAcceptor::new(config)
                        .handshake_timeout(HANDSHAKE.min(patience))
                        .acceptor(connections);
                    server.acceptor(acceptor).http1_only().serve(app).await
                }
            }
        }
    }
}

fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = match address {
        SocketAddr::V4(_) => TcpSocket::new_v4()?,
        SocketAddr::V6(_) => TcpSocket::new_v6()?,
    };
    // Connections of a server that just ended do not keep the next one from its address.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

fn serving(sockets: &[Socket], tls: &Tls) -> Serving {
    let address = |wanted: fn(&Service) -> bool| {
        let found = sockets.iter().find(|socket| wanted(&socket.service));
        found.map(|socket| socket.address)
    };
    Serving {
        vaults: sockets[0].address,
        ca_file: tls.ca_file(),
        imds: address(|service| matches!(service, Service::Imds(_))),
        identity: address(|service| matches!(service, Service::IdentityEndpoint)),
    }
}

fn signals() -> Result<(tokio::signal::unix::Signal, tokio::signal::unix::Signal), ServerError> {
    let on = |kind| signal(kind).map_err(|source| system("handle signals", source));
    Ok((on(SignalKind::terminate())?, on(SignalKind::interrupt())?))
}

/// Raises the limit of descriptors as far as it goes, and says how many connections that leaves.
fn connection_limit(wanted: usize) -> Result<usize, ServerError> {
    let limits = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limits.maximum,
        maximum: limits.maximum,
    };
    setrlimit(Resource::Nofile, raised)
        .map_err(|e| system("raise the limit of open files", e.into()))?;
    let files = limits.maximum.unwrap_or(u64::MAX);
    let possible = usize::try_from(files.saturating_sub(OTHER_DESCRIPTORS)).unwrap_or(usize::MAX);
    if possible < wanted {
        log::warn!("the limit of open files ({files}) allows for {possible} connections only");
    }
    Ok(wanted.min(possible.max(1)))
}

fn system(what: &'static str, source: io::Error) -> ServerError {
    ServerError::System { what, source }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::net::TcpStream;
    use std::path::Path;
    use std::sync::mpsc::{Receiver, Sender, channel};

    use rustix::process::{Signal, getpid, kill_process};
    use rustls::pki_types::pem::PemObject;
    use rustls::pki_types::{CertificateDer, ServerName};
    use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
    use zeroize::Zeroizing;

    use super::*;
    use crate::{Admitted, FrontReply, Head, Site, TransferReply};
    use installation::InstallationError;

    /// Answers nothing until it is let go.
    struct Hung {
        asked: Mutex<Sender<()>>,
        let_go: Mutex<Receiver<()>>,
    }

    impl Front for Hung {
        fn hosts(&self) -> Vec<String> {
            vec!["localhost".into()]
        }

        fn begin(&self, _site: &Site<'_>) -> Result<(), InstallationError> {
            Ok(())
        }

        fn name(&self, _head: &Head) -> &'static str {
            "hung"
        }

        fn admit(&self, _site: &Site<'_>, _head: &Head) -> Result<Admitted, Box<FrontReply>> {
            Ok(Admitted {
                body: 0,
                identity: None,
            })
        }

        fn answer(&self, _site: &Site<'_>, _head: &Head, _body: &[u8]) -> FrontReply {
            self.asked.lock().unwrap().send(()).unwrap();
            let _ = self.let_go.lock().unwrap().recv();
            FrontReply::default()
        }

        fn is_transfer(&self, _head: &Head) -> bool {
            false
        }

        fn admit_transfer(&self, _site: &Site<'_>, _head: &Head) -> Result<usize, TransferReply> {
            unreachable!("nothing is transferred")
        }

        fn transfer(
            &self,
            _site: &Site<'_>,
            _head: &Head,
            _body: Zeroizing<Vec<u8>>,
        ) -> TransferReply {
            unreachable!("nothing is transferred")
        }
    }

    fn connect(address: SocketAddr, ca: &Path) -> StreamOwned<ClientConnection, TcpStream> {
        let mut roots = RootCertStore::empty();
        roots
            .add(CertificateDer::from_pem_file(ca).unwrap())
            .unwrap();
        let config = ClientConfig::builder()
            .with_root_certificates(roots)
            .with_no_client_auth();
        let name = ServerName::try_from("localhost").unwrap();
        let client = ClientConnection::new(Arc::new(config), name).unwrap();
        StreamOwned::new(client, TcpStream::connect(address).unwrap())
    }

    #[test]
    fn a_request_that_never_ends_does_not_keep_the_server_from_ending() {
        const PATIENCE: Duration = Duration::from_secs(120);
        let dir = tempfile::tempdir().unwrap();
        let installation = Installation::open(dir.path()).unwrap();
        let address = SocketAddr::from(([127, 0, 0, 1], 0));
        let domains = vec!["vault.localhost".to_owned()];
        let (asked, is_asked) = channel();
        let (hangs, let_go) = channel();
        let front = Hung {
            asked: Mutex::new(asked),
            let_go: Mutex::new(let_go),
        };
        let options = ServeOptions {
            address,
            certificate: CertificateSource::Generated {
                keys: installation.key_store("tls").unwrap(),
                dir: dir.path().join("tls"),
                domains: domains.clone(),
                address: address.ip(),
            },
            domains,
            imds: None,
            identity_address: None,
            users: Vec::new(),
            token_lifetime: Duration::from_secs(3600),
            max_connections: 8,
            client_timeout: Duration::from_secs(60),
            pulse: None,
            front: Some(Arc::new(front)),
        };
        let (told, ready) = channel();
        let (ended, is_ended) = channel();
        std::thread::spawn(move || {
            let tell = |serving: &Serving| {
                told.send((serving.vaults, serving.ca_file.clone()))
                    .unwrap();
            };
            ended.send(serve(installation, options, tell).is_ok())
        });
        let (address, ca) = ready.recv_timeout(PATIENCE).unwrap();
        let mut client = connect(address, &ca.unwrap());
        let request = format!(
            "GET / HTTP/1.1\r\nHost: localhost:{}\r\n\r\n",
            address.port()
        );
        client.write_all(request.as_bytes()).unwrap();
        client.flush().unwrap();
        is_asked.recv_timeout(PATIENCE).unwrap();
        // The server has a handler for it, which the process keeps.
        kill_process(getpid(), Signal::TERM).unwrap();
        assert_eq!(is_ended.recv_timeout(PATIENCE), Ok(true));
        drop(hangs);
    }
}
