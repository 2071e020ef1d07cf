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
mod http;
mod installed;
mod plain;
mod protobuf;
mod samples;
mod scrape;
mod text;

use std::path::PathBuf;
use std::time::Duration;

use installation::Place;
use web::{Listen, ServeError};

use crate::scrape::Scraper;

/// How to serve.
#[derive(Debug)]
pub struct ServeOptions {
    /// Where.
    pub listen: Listen,
    /// Where the control sockets of attached disks are.
    pub runtime_dir: PathBuf,
    /// The installation.
    pub place: Place,
    /// How long a disk may take to answer.
    pub patience: Duration,
    /// How often keys and vaults are looked at.
    pub period: Duration,
}

/// Serves metrics until SIGTERM or SIGINT. `ready` is called with the address, once it is listened on.
///
/// # Errors
/// [`ServeError`]: they were not served.
pub fn serve(options: ServeOptions, ready: impl FnOnce(&Listen)) -> Result<(), ServeError> {
    // Each disk takes one.
    attach::raise_file_limit();
    let ServeOptions {
        listen,
        runtime_dir,
        place,
        patience,
        period,
    } = options;
    let scraper = |_: &Listen| {
        let seen = installed::watch(place, runtime_dir.clone(), period).map_err(
            ServeError::system("start the thread that looks at keys and vaults"),
        )?;
        Ok(Scraper::new(runtime_dir, patience, seen, period))
    };
    web::serve(listen, scraper, ready)
}
