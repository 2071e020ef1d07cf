//! A scrape: all attached disks are asked, and what was last seen of keys and vaults is added.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::Mutex;

use crate::catalogue as metric;
use crate::disks;
use crate::installed::{LastSeen, last};
use crate::samples::Samples;

/// Scrapes that come together, as of two scrapers, ask the disks once.
const FRESH: Duration = Duration::from_millis(500);

/// What scrapes.
pub(crate) struct Scraper {
    runtime_dir: PathBuf,
    patience: Duration,
    seen: LastSeen,
    /// How old what was seen may be.
    seen_patience: Duration,
    /// The last scrape. One that is under way is waited for.
    last: Mutex<Option<(Instant, Arc<Samples>)>>,
}

impl Scraper {
    /// Gives each disk `patience` to answer; `period` is that in which keys and vaults are looked at.
    pub(crate) fn new(
        runtime_dir: PathBuf,
        patience: Duration,
        seen: LastSeen,
        period: Duration,
    ) -> Self {
        Self {
            runtime_dir,
            patience,
            seen,
            seen_patience: period * 3 + Duration::from_secs(30),
            last: Mutex::default(),
        }
    }

    /// How long a disk may take to answer.
    pub(crate) fn disk_patience(&self) -> Duration {
        self.patience
    }

    /// Why a scrape would not have everything, if it would not.
    pub(crate) fn is_ready(&self) -> Result<(), String> {
        if let Err(error) = self.runtime_dir() {
            let dir = self.runtime_dir.display();
            return Err(format!("{dir} cannot be read: {error}"));
        }
        match last(&self.seen).is_stale(self.seen_patience) {
            Some(why) => Err(why),
            None => Ok(()),
        }
    }

    /// Whether it is there and can be read: without it no disk is seen, however many are attached.
    fn runtime_dir(&self) -> io::Result<()> {
        std::fs::read_dir(&self.runtime_dir).map(drop)
    }

    /// The metrics as they are now. Disks get no more than `most` to answer.
    pub(crate) async fn scrape(&self, most: Option<Duration>) -> Arc<Samples> {
        let patience = most.map_or(self.patience, |most| most.min(self.patience));
        let mut last_scrape = self.last.lock().await;
        if let Some((at, samples)) = &*last_scrape
            && at.elapsed() < FRESH
        {
            return samples.clone();
        }
        let started = Instant::now();
        let asked = live::ask_all(&self.runtime_dir, patience).await;
        let asked = asked.unwrap_or_else(|error| {
            log::warn!("{} cannot be read: {error}", self.runtime_dir.display());
            Vec::new()
        });
        let seen = last(&self.seen);
        let mut samples = Samples::default();
        disks::add(&mut samples, &asked, &seen.names);
        if let Some(catalog) = seen.catalog() {
            disks::add_known(&mut samples, &asked, catalog);
        }
        let is_there = disks::flag(self.runtime_dir().is_ok());
        samples.put(&metric::RUNTIME_UP, &[], is_there);
        samples.add_all(&seen.samples);
        let version = env!("CARGO_PKG_VERSION");
        samples.put(&metric::EXPORTER_INFO, &[version], 1.0);
        let took = started.elapsed().as_secs_f64();
        samples.put(&metric::EXPORTER_SECONDS, &[], took);
        let samples = Arc::new(samples);
        *last_scrape = Some((Instant::now(), samples.clone()));
        samples
    }
}
