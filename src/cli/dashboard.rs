//! `sealdisk dashboard`.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use serde::Serialize;

use super::{CliError, Context};
use dashboard::{DashboardError, DashboardOptions, PublicUrl, Serving, serve};
use installation::runtime_dir;
use web::Listen;

/// Arguments of `dashboard`.
#[derive(Args)]
#[command(after_help = "Examples:
  sealdisk dashboard
  sealdisk dashboard --listen 127.0.0.1:8080
  ssh -L 9302:127.0.0.1:9302 host

Open the address in a browser and log in with the token in the file. Nothing can be changed there, no vault is opened and
no key used. It speaks no TLS: from elsewhere it is reached through ssh, or a proxy with TLS (--public-url).")]
pub struct DashboardArgs {
    /// The address to serve on, or unix:PATH for a socket of the current user
    #[arg(long, value_name = "ADDR|unix:PATH", default_value = "127.0.0.1:9302")]
    listen: Listen,
    /// Serve on an address that other hosts reach, without TLS
    #[arg(long)]
    allow_remote: bool,
    /// Where a proxy serves it, such as `https://dashboard.example.com`
    #[arg(long, value_name = "URL")]
    public_url: Option<PublicUrl>,
    /// The file with the token to log in with; made when it is not there [default: dashboard.token in the state directory]
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// An earlier export of audit logs, kept elsewhere, to verify the logs against
    #[arg(long, value_name = "FILE")]
    checkpoint: Option<PathBuf>,
    /// Seconds between two looks at disks, keys and vaults
    #[arg(long, value_name = "SECONDS", default_value_t = 5,
          value_parser = clap::value_parser!(u64).range(1..=3600))]
    interval: u64,
}

/// What is served, for programs that wait for it.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ServingView {
    url: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    listen: Option<SocketAddr>,
    #[serde(skip_serializing_if = "Option::is_none")]
    socket: Option<PathBuf>,
    token_file: PathBuf,
}

pub(super) fn run(context: &Context, args: DashboardArgs) -> Result<(), CliError> {
    let place = context.place()?;
    let options = DashboardOptions {
        listen: args.listen,
        allow_remote: args.allow_remote,
        public_url: args.public_url,
        token_file: args
            .token_file
            .unwrap_or_else(|| place.state_dir.join("dashboard.token")),
        checkpoint: args.checkpoint,
        runtime_dir: runtime_dir(context.runtime_dir.as_deref()),
        place,
        period: Duration::from_secs(args.interval),
    };
    Ok(serve(options, |serving| announce(context, serving))?)
}

fn announce(context: &Context, serving: &Serving<'_>) {
    let address = serving.listening.address();
    if let Some(address) = address.filter(|address| !address.ip().is_loopback()) {
        context.output.note(&format!(
            "there is no TLS at {address}: whoever is on the way can read the token"
        ));
    }
    let file = serving.token_file.display();
    let sentence = format!(
        "serving the dashboard at {}; the token to log in with is in {file}",
        serving.url
    );
    let view = ServingView {
        url: serving.url.clone(),
        listen: address,
        socket: serving.listening.socket().map(Into::into),
        token_file: serving.token_file.into(),
    };
    // Nobody may be reading; it is served all the same.
    let _ = context.output.announce(&sentence, &view);
    // Only systemd sets the socket's name in the environment; without it this does nothing.
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Ready]);
}

impl From<DashboardError> for CliError {
    fn from(error: DashboardError) -> Self {
        if let DashboardError::Serve(error) = error {
            return error.into();
        }
        let code = match error {
            DashboardError::Exposed(_) | DashboardError::Checkpoint { .. } => "BadParameter",
            _ => "SecretFile",
        };
        Self::new(code, error.to_string())
    }
}
