//! `sealdisk version`, and what `sealdisk --version` says.

use std::fs;

use clap::Args;
use serde::Serialize;

use super::doctor::LEAST_KERNEL;
use super::{CliError, Context};
use dataplane::cipher_engine;
use keys::{FIPS, crypto_module};

/// Arguments of `version`.
#[derive(Args)]
#[command(after_help = "Example:
  sealdisk version -o json")]
pub struct VersionArgs {}

/// This program, and the host as far as it depends on it.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct VersionView {
    version: &'static str,
    /// What does RSA, TLS and random numbers.
    crypto_module: String,
    /// Features that it was built with, beside what it always has.
    features: Vec<&'static str>,
    /// What encrypts disks on this CPU.
    engine: String,
    needs: String,
    host: String,
    guests: &'static str,
}

impl VersionView {
    fn new() -> Self {
        let (major, minor) = LEAST_KERNEL;
        let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
        Self {
            version: env!("CARGO_PKG_VERSION"),
            crypto_module: crypto_module(),
            features: if FIPS { vec!["fips"] } else { Vec::new() },
            engine: match cipher_engine() {
                Ok(engine) => format!("AES-256-XTS by {engine}"),
                Err(error) => format!("none: {error}"),
            },
            needs: format!("Linux {major}.{minor} or newer with io_uring"),
            host: format!("Linux {} {}", release.trim(), std::env::consts::ARCH),
            guests: "any system with a virtio-blk driver",
        }
    }
}

/// The lines of `--version`.
pub(super) fn text() -> String {
    let view = VersionView::new();
    let features = match view.features.as_slice() {
        [] => "none".into(),
        features => features.join(" "),
    };
    format!(
        "sealdisk {} ({})\nfeatures: {features}\nengine: {}\nneeds: {}\nhost: {}\nguests: {}",
        view.version, view.crypto_module, view.engine, view.needs, view.host, view.guests
    )
}

pub(super) fn run(context: &Context) -> Result<(), CliError> {
    context.output.show(&VersionView::new())
}
