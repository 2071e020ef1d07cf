//! Where a database is, and how it is known to be the right one.
//!
//! `postgres://USER@HOST:PORT/DATABASE?OPTION=VALUE&…`, as libpq has it, with several hosts, or `host=/run/postgresql` for a
//! socket. Over the network the server shows a certificate for its name (`sslmode=verify-full`, which is the default);
//! there is nothing less but `disable`. No secret is in it: a password is in a password file (`passfile`, `PGPASSFILE`, a
//! credential of systemd's or `~/.pgpass`, in libpq's form), a key in the file that `sslkey` names.

use std::path::PathBuf;
use std::time::Duration;

use percent_encoding::percent_decode_str;
use postgres::Config;
use postgres::config::{Host, SslMode, TargetSessionAttrs};
use rustls::ClientConfig;

use super::{password_file, tls};

/// How long the server may take to be reached, and to say that it is still there.
const REACHED_WITHIN: Duration = Duration::from_secs(10);

/// As long as a process waits for others in SQLite; a server that fails over takes less.
const PATIENCE: Duration = Duration::from_secs(30);

/// Where a database is.
pub(super) struct Address {
    pub(super) config: Config,
    /// `None` for sockets, and where TLS is disabled.
    pub(super) tls: Option<ClientConfig>,
    /// For messages.
    pub(super) place: String,
    /// How long others may be faster, or the server be away, until that is an error.
    pub(super) patience: Duration,
}

/// The options that are ours and not the client's.
#[derive(Default)]
pub(super) struct Options {
    sslmode: Option<String>,
    sslrootcert: Option<PathBuf>,
    sslcert: Option<PathBuf>,
    sslkey: Option<PathBuf>,
    passfile: Option<PathBuf>,
}

impl Address {
    /// Of a URL; the error says what is wrong with it.
    pub(super) fn parse(url: &str) -> Result<Self, String> {
        let (mut config, options) = read(url)?;
        let place = place(&config)?;
        let all_sockets = is_local(&config);
        let tls = match options.sslmode.as_deref() {
            Some("disable") => None,
            None | Some("verify-full") if all_sockets => None,
            None | Some("verify-full") => Some(tls::client(
                options.sslrootcert.as_deref(),
                options.sslcert.as_deref(),
                options.sslkey.as_deref(),
            )?),
            Some(other) => {
                return Err(format!(
                    "sslmode={other} does not make sure who the server is: use verify-full, with sslrootcert=FILE for \
                     an authority of your own, or disable"
                ));
            }
        };
        if let Some(password) = password_file::find(&config, options.passfile)? {
            config.password(password);
        }
        let session = session_options(config.get_options());
        config
            .ssl_mode(match tls {
                Some(_) => SslMode::Require,
                None => SslMode::Disable,
            })
            .options(&session)
            .connect_timeout(REACHED_WITHIN)
            .tcp_user_timeout(REACHED_WITHIN * 3)
            .keepalives_idle(REACHED_WITHIN)
            .keepalives_interval(REACHED_WITHIN)
            .keepalives_retries(2)
            // Of several servers the one that is not a standby.
            .target_session_attrs(TargetSessionAttrs::ReadWrite);
        if config.get_application_name().is_none() {
            config.application_name("sealdisk");
        }
        Ok(Self {
            config,
            tls,
            place,
            patience: PATIENCE,
        })
    }
}

/// What a URL says, before anything is looked at that it names. The error does not repeat what may be a secret.
pub(super) fn read(url: &str) -> Result<(Config, Options), String> {
    let scheme = ["postgres://", "postgresql://"];
    if !scheme.iter().any(|scheme| url.starts_with(scheme)) {
        return Err("it does not begin with postgres://".into());
    }
    let (rest, options) = take_options(url)?;
    let config: Config = rest.parse().map_err(|e: postgres::Error| said(&e))?;
    if config.get_password().is_some() {
        return Err(
            "it has a password in it, which everybody sees who lists processes: put the password into a \
             password file (~/.pgpass, PGPASSFILE or passfile=FILE)"
                .into(),
        );
    }
    let is_socket = |host: &Host| matches!(host, Host::Unix(_));
    let hosts = config.get_hosts();
    if hosts.iter().any(is_socket) && !is_local(&config) {
        return Err("it names sockets and hosts: name either".into());
    }
    Ok((config, options))
}

/// Whether all servers are sockets of this host.
pub(super) fn is_local(config: &Config) -> bool {
    let mut hosts = config.get_hosts().iter();
    hosts.all(|host| matches!(host, Host::Unix(_)))
}

/// What holds for a session, before what the operator says: no statement, no wait for a lock and no transaction whose
/// client is away holds others up for ever. A host that is gone says nothing, and what its sessions have locked is given
/// up after 25 s; PostgreSQL would wait for hours.
fn session_options(given: Option<&str>) -> String {
    let own = "-c statement_timeout=30s -c lock_timeout=30s -c idle_in_transaction_session_timeout=60s \
               -c tcp_keepalives_idle=10 -c tcp_keepalives_interval=5 -c tcp_keepalives_count=3 \
               -c client_min_messages=error";
    match given {
        Some(given) => format!("{own} {given}"),
        None => own.into(),
    }
}

/// The URL without the options that are ours, and these.
fn take_options(url: &str) -> Result<(String, Options), String> {
    let mut options = Options::default();
    let Some((before, all)) = url.split_once('?') else {
        return Ok((url.into(), options));
    };
    let mut rest = Vec::new();
    for option in all.split('&').filter(|option| !option.is_empty()) {
        let (name, value) = option
            .split_once('=')
            .ok_or_else(|| format!("its option '{option}' has no value"))?;
        let decoded = percent_decode_str(value).decode_utf8();
        let value = decoded.map_err(|_| format!("its option '{name}' is not UTF-8"))?;
        match name {
            "sslmode" => options.sslmode = Some(value.into_owned()),
            "sslrootcert" => options.sslrootcert = Some(value.as_ref().into()),
            "sslcert" => options.sslcert = Some(value.as_ref().into()),
            "sslkey" => options.sslkey = Some(value.as_ref().into()),
            "passfile" => options.passfile = Some(value.as_ref().into()),
            _ => rest.push(option),
        }
    }
    let rest = rest.join("&");
    Ok((
        format!("{before}?{rest}").trim_end_matches('?').into(),
        options,
    ))
}

/// The database and its servers, without what else the URL says.
pub(super) fn place(config: &Config) -> Result<String, String> {
    if config.get_hosts().is_empty() {
        return Err("it names no host: for a socket add ?host=/run/postgresql".into());
    }
    let ports = config.get_ports();
    let mut hosts = Vec::new();
    for (at, host) in config.get_hosts().iter().enumerate() {
        let name = match host {
            Host::Tcp(name) => name.clone(),
            Host::Unix(path) => path.display().to_string(),
        };
        hosts.push(match ports.get(at).or(ports.first()) {
            Some(port) if *port != 5432 => format!("{name}:{port}"),
            _ => name,
        });
    }
    let database = config
        .get_dbname()
        .or(config.get_user())
        .unwrap_or_default();
    Ok(format!("postgres://{}/{database}", hosts.join(",")))
}

/// An error with its causes.
fn said(error: &dyn std::error::Error) -> String {
    match error.source() {
        Some(source) => format!("{error}: {}", said(source)),
        None => error.to_string(),
    }
}
