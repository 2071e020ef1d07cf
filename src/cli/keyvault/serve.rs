//! `sealdisk keyvault serve`, and what `sealdisk serve` has of it.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use nix::unistd::User;
use serde::Serialize;
use uuid::Uuid;

use super::alarm_watch::VaultWatch;
use crate::cli::{CliError, Context, ids};
use alarms::notify::Target;
use arm::Api;
use attach::{tell_systemd, tell_watchdog};
use installation::{Installation, InstallationError, runtime_dir};
use server::{
    CertificateSource, DEFAULT_DOMAIN, Front, Imds, MAX_LIFETIME, MIN_LIFETIME, Pulse,
    ServeOptions, ServerError, Serving, ensure_ca, serve,
};

/// Where Azure's own SDKs look for nothing, so that nothing else is in the way.
const LISTEN: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 8443);

/// What the authority's key is among the keys of an installation, and the directory of its certificate.
const TLS: &str = "tls";

/// Arguments of `keyvault serve`.
#[derive(Args)]
pub struct ServeArgs {
    /// The address to serve all vaults on; clients choose one by its host name
    #[arg(long, value_name = "ADDR", default_value_t = LISTEN)]
    listen: SocketAddr,
    /// TLS certificate chain (PEM) [default: generated]; reloaded when it changes
    #[arg(long, value_name = "PEM", requires = "key")]
    cert: Option<PathBuf>,
    /// Private key (PEM) of --cert
    #[arg(long, value_name = "PEM", requires = "cert")]
    key: Option<PathBuf>,
    /// Another domain of the vaults' host names, besides vault.localhost
    #[arg(long, value_name = "NAME")]
    domain: Vec<String>,
    /// Print the CA certificate that clients must trust, and exit
    #[arg(long)]
    print_ca: bool,
    /// Serve tokens like Azure's instance metadata service (IMDS) on this loopback address
    #[arg(long, value_name = "ADDR", requires = "imds_identity")]
    imds_listen: Option<SocketAddr>,
    /// Identities that --imds-listen issues tokens for, to every process of the users in --allow-user:
    /// names, or disk-encryption-set/SET
    #[arg(long, value_name = "NAME", requires = "imds_listen", num_args = 1..)]
    imds_identity: Vec<String>,
    /// Serve IDENTITY_ENDPOINT without TLS on this loopback address too
    #[arg(long, value_name = "ADDR")]
    identity_listen: Option<SocketAddr>,
    /// The only users, by name or uid, whose processes may use --imds-listen and --identity-listen
    /// [default: root and the current user]. Never the user of a VMM with user networking: its guests
    /// act as that user
    #[arg(long, alias = "allow-uid", value_name = "USER", num_args = 1.., value_parser = user)]
    allow_user: Vec<u32>,
    /// Tell a program or a webhook of alarms of the vaults: an absolute path with arguments, which gets the event as
    /// JSON on stdin, or an http:// or https:// address, to which it is sent with POST
    #[arg(long, value_name = "COMMAND|URL")]
    on_event: Vec<Target>,
    /// Lifetime of tokens, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 3600,
          value_parser = clap::value_parser!(u64)
              .range(MIN_LIFETIME.as_secs()..=MAX_LIFETIME.as_secs()))]
    token_lifetime: u64,
    /// Maximum number of connections; a new one replaces the one that is idle for longest
    #[arg(long, value_name = "N", default_value_t = 1024,
          value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    max_connections: u32,
    /// Seconds that a client may take to send a request, or keep an idle connection
    #[arg(long, value_name = "SECONDS", default_value_t = 60,
          value_parser = clap::value_parser!(u64).range(1..=3600))]
    client_timeout: u64,
}

/// The uid of a user of this host.
fn user(text: &str) -> Result<u32, String> {
    if let Ok(uid) = text.parse() {
        return ids::id(uid);
    }
    match User::from_name(text) {
        Ok(Some(user)) => Ok(user.uid.as_raw()),
        Ok(None) => Err("there is no such user on this host".into()),
        Err(e) => Err(format!("the users of this host cannot be looked up: {e}")),
    }
}

/// What is served, for programs that wait for it.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ServingView {
    listen: SocketAddr,
    vault_uri_template: String,
    vaults: Vec<VaultUriView>,
    ca_file: Option<PathBuf>,
    identity_endpoint: String,
    local_identity_endpoint: Option<String>,
    imds_endpoint: Option<String>,
    #[serde(flatten)]
    management: Option<ManagementView>,
}

/// What is served besides vaults.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ManagementView {
    resource_manager: String,
    tenant_id: Uuid,
    subscription_id: Uuid,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct VaultUriView {
    name: String,
    vault_uri: String,
}

impl ServingView {
    fn new(serving: &Serving, domain: &str, names: Vec<String>) -> Self {
        let port = port(serving);
        let uri = |name: &str| format!("https://{name}.{domain}{port}");
        Self {
            listen: serving.vaults,
            vault_uri_template: uri("NAME"),
            vaults: names
                .into_iter()
                .map(|name| VaultUriView {
                    vault_uri: uri(&name),
                    name,
                })
                .collect(),
            ca_file: serving.ca_file.clone(),
            identity_endpoint: format!("https://localhost{port}/msi/token"),
            local_identity_endpoint: serving.identity.map(|a| format!("http://{a}/msi/token")),
            imds_endpoint: serving.imds.map(|address| format!("http://{address}")),
            management: None,
        }
    }

    fn line(&self) -> String {
        let mut line = format!(
            "serving {} (listening on {}), tokens at {}",
            self.vault_uri_template, self.listen, self.identity_endpoint
        );
        let also = [&self.local_identity_endpoint, &self.imds_endpoint];
        for endpoint in also.into_iter().flatten() {
            line += &format!(", {endpoint}");
        }
        if let Some(management) = &self.management {
            line += &format!(
                "; Azure Resource Manager at {} (tenant {})",
                management.resource_manager, management.tenant_id
            );
        }
        if let Some(file) = &self.ca_file {
            line += &format!("; clients trust {}", file.display());
        }
        line
    }
}

/// What the management API is served with.
pub struct Management {
    /// The names under which other hosts know it.
    pub hosts: Vec<String>,
    /// From where images of this host are imported.
    pub import_dir: Option<PathBuf>,
}

/// Serves the vaults, and the management API too where it is said how.
pub fn run(
    context: &Context,
    installation: Installation,
    args: ServeArgs,
    management: Option<Management>,
) -> Result<(), CliError> {
    let tls = installation.state_dir().join(TLS);
    let vault_domains = domains(&args.domain)?;
    let hosts = match &management {
        Some(management) => names(&management.hosts)?,
        None => Vec::new(),
    };
    let certified = [vault_domains.as_slice(), &hosts].concat();
    if args.print_ca {
        let keys = installation.key_store(TLS)?;
        let path = ensure_ca(&keys, &tls, &certified, args.listen.ip())?;
        let pem = std::fs::read_to_string(&path).map_err(|source| ServerError::File {
            what: "read",
            path,
            source,
        })?;
        return context.output.text(&pem);
    }
    let watch = VaultWatch {
        place: installation.place().clone(),
        certificate: args.cert.clone(),
    };
    let certificate = match (args.cert, args.key) {
        (Some(certificate), Some(key)) => CertificateSource::Files { certificate, key },
        _ => CertificateSource::Generated {
            keys: installation.key_store(TLS)?,
            dir: tls,
            domains: certified,
            address: args.listen.ip(),
        },
    };
    let kept_here = installation.vaults_here()?.into_iter();
    let vaults = kept_here.map(|record| record.name).collect();
    // The operator's own domain is the one that clients on other hosts know.
    let domain = vault_domains.last().cloned().unwrap_or_default();
    let api = management.as_ref().map(|management| {
        Api::new(
            &hosts,
            args.listen.ip(),
            installation.place().clone(),
            runtime_dir(context.runtime_dir.as_deref()),
            management.import_dir.clone(),
        )
    });
    let ids = (installation.id(), arm::subscription(&installation));
    let options = ServeOptions {
        address: args.listen,
        certificate,
        domains: vault_domains,
        imds: args.imds_listen.map(|address| Imds {
            address,
            identities: args.imds_identity,
        }),
        identity_address: args.identity_listen,
        users: match args.allow_user.is_empty() {
            true => vec![0, rustix::process::geteuid().as_raw()],
            false => args.allow_user,
        },
        token_lifetime: Duration::from_secs(args.token_lifetime),
        max_connections: args.max_connections as usize,
        client_timeout: Duration::from_secs(args.client_timeout),
        pulse: sd_notify::watchdog_enabled().map(|patience| Pulse {
            every: patience / 4,
            beat: tell_watchdog,
        }),
        front: api.map(|api| Arc::new(api) as Arc<dyn Front>),
    };
    watch.spawn(&args.on_event)?;
    serve(installation, options, |serving| {
        let view = ServingView::new(serving, &domain, vaults);
        let host = hosts.last().map_or("localhost", String::as_str);
        let (tenant_id, subscription_id) = ids;
        let management = management.as_ref().map(|_| ManagementView {
            resource_manager: format!("https://{host}{}", port(serving)),
            tenant_id,
            subscription_id,
        });
        announce(context, &ServingView { management, ..view });
    })?;
    Ok(())
}

fn announce(context: &Context, view: &ServingView) {
    // Nobody may be reading; the vaults are served all the same.
    let _ = context.output.announce(&view.line(), view);
    tell_systemd(&[sd_notify::NotifyState::Ready]);
}

/// The port of a URL, where that has one.
fn port(serving: &Serving) -> String {
    match serving.vaults.port() {
        443 => String::new(),
        port => format!(":{port}"),
    }
}

/// The domains in lower case, the default first.
fn domains(given: &[String]) -> Result<Vec<String>, ServerError> {
    let mut domains = vec![DEFAULT_DOMAIN.to_owned()];
    let given = names(given)?.into_iter();
    domains.extend(given.filter(|domain| domain != DEFAULT_DOMAIN));
    Ok(domains)
}

/// Names of hosts or domains in lower case, each once.
fn names(given: &[String]) -> Result<Vec<String>, ServerError> {
    let mut domains = Vec::new();
    for domain in given {
        let normal = domain.trim_end_matches('.').to_ascii_lowercase();
        let is_label = |label: &str| {
            (1..=63).contains(&label.len())
                && label
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || b == b'-')
        };
        let is_address = normal.parse::<std::net::IpAddr>().is_ok();
        if is_address || !normal.split('.').all(is_label) || normal.len() > 200 {
            return Err(ServerError::Domain {
                domain: domain.clone(),
            });
        }
        if !domains.contains(&normal) {
            domains.push(normal);
        }
    }
    Ok(domains)
}

impl From<ServerError> for CliError {
    fn from(error: ServerError) -> Self {
        match error {
            ServerError::Installation(error) => InstallationError::into(error),
            ServerError::NotLoopback { .. } | ServerError::Domain { .. } => {
                Self::usage(error.to_string())
            }
            ServerError::Listen { .. } => Self::new("ListenFailed", error.to_string()),
            ServerError::SigningKey { .. }
            | ServerError::Certificate { .. }
            | ServerError::File { .. }
            | ServerError::System { .. } => Self::new("ServeFailed", error.to_string()),
        }
    }
}
