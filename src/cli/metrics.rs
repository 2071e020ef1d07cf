//! `sealdisk metrics`.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand};
use serde::Serialize;

use super::{CliError, Context};
use exporter::{ServeOptions, serve};
use installation::runtime_dir;
use web::{Listen, ServeError};

/// Arguments of `metrics`.
#[derive(Args)]
pub struct MetricsArgs {
    #[command(subcommand)]
    command: MetricsCommand,
}

#[derive(Subcommand)]
enum MetricsCommand {
    /// Serve the metrics of this host over HTTP
    #[command(after_help = "Examples:
  sealdisk metrics serve
  sealdisk metrics serve --listen 127.0.0.1:9300
  sealdisk metrics serve --listen unix:/run/sealdisk/metrics.sock

/metrics is for Prometheus (also OpenMetrics, and native histograms where they are asked for), /healthz says whether the
exporter runs, /readyz whether it sees everything. Nobody has to log in, and nothing is encrypted: what is told are names
of disks, URLs of keys and numbers.")]
    Serve(ServeArgs),
}

/// Arguments of `metrics serve`.
#[derive(Args)]
struct ServeArgs {
    /// The address to serve on, or unix:PATH for a socket of the current user
    #[arg(long, value_name = "ADDR|unix:PATH", default_value = "127.0.0.1:9301")]
    listen: Listen,
    /// Seconds that each attached disk may take to answer; one that does not has sealdisk_disk_up 0
    #[arg(long, value_name = "SECONDS", default_value_t = 2,
          value_parser = clap::value_parser!(u64).range(1..=60))]
    timeout: u64,
    /// Seconds between two looks at keys and vaults
    #[arg(long, value_name = "SECONDS", default_value_t = 15,
          value_parser = clap::value_parser!(u64).range(1..=3600))]
    interval: u64,
}

/// What is served, for programs that wait for it.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ServingView {
    #[serde(skip_serializing_if = "Option::is_none")]
    listen: Option<SocketAddr>,
    #[serde(skip_serializing_if = "Option::is_none")]
    socket: Option<PathBuf>,
}

pub(super) fn run(context: &Context, args: MetricsArgs) -> Result<(), CliError> {
    let MetricsCommand::Serve(args) = args.command;
    let options = ServeOptions {
        listen: args.listen,
        runtime_dir: runtime_dir(context.runtime_dir.as_deref()),
        place: context.place()?,
        patience: Duration::from_secs(args.timeout),
        period: Duration::from_secs(args.interval),
    };
    Ok(serve(options, |listening| announce(context, listening))?)
}

fn announce(context: &Context, listening: &Listen) {
    let address = listening.address();
    if let Some(address) = address.filter(|address| !address.ip().is_loopback()) {
        context.output.note(&format!(
            "whoever reaches {address} can read the names of disks and the URLs of keys"
        ));
    }
    let sentence = match listening {
        Listen::Tcp(_) => format!("serving metrics at {listening}/metrics"),
        Listen::Unix(_) => format!("serving metrics at {listening}"),
    };
    let view = ServingView {
        listen: address,
        socket: listening.socket().map(Into::into),
    };
    // Nobody may be reading; metrics are served all the same.
    let _ = context.output.announce(&sentence, &view);
    // Only systemd sets the socket's name in the environment; without it this does nothing.
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Ready]);
}

impl From<ServeError> for CliError {
    fn from(error: ServeError) -> Self {
        let code = match error {
            ServeError::Listen { .. } => "ListenFailed",
            ServeError::System { .. } => "ServeFailed",
        };
        Self::new(code, error.to_string())
    }
}
