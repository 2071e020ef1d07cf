//! Goes through the map of a disk that was just opened, in the background: finds space that a former process
//! had not given back, and damage, so that an operator hears of it before a guest does. A disk is served
//! before its maps were read, however large it is.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use super::shared::Shared;

/// A rest between two chunks of the map, 64 KiB of its file and 1 GiB of the disk: guests go first.
const REST: Duration = Duration::from_millis(1);

/// The thread that does it; it ends with this.
pub(super) struct MapScan {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl MapScan {
    /// Starts it for a disk that is written to.
    ///
    /// # Errors
    /// When there can be no further thread.
    pub(super) fn spawn(shared: Arc<Shared>) -> io::Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let told = stop.clone();
        let thread = thread::Builder::new()
            .name("map-scan".into())
            .spawn(move || scan(&shared, &told))?;
        Ok(Self {
            stop,
            thread: Some(thread),
        })
    }
}

impl Drop for MapScan {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            // A panic of any thread ends the process.
            let _ = thread.join();
        }
    }
}

fn scan(shared: &Shared, stop: &AtomicBool) {
    let (mut from, mut damaged) = (0, 0);
    while !stop.load(Ordering::Acquire) {
        // Another one, when the disk has grown or has got another top layer.
        let volume = shared.extent().volume.clone();
        let map = volume.map();
        let chunk = match map.next_chunk(from) {
            Ok(Some(chunk)) => chunk,
            Ok(None) => break,
            Err(error) => return log::warn!("the map cannot be looked through: {error}"),
        };
        if let Err(error) = map.find_held(chunk) {
            damaged += 1;
            if damaged == 1 {
                log::error!("{error}; what it says of is not served: run `disk check`");
            }
        }
        from = chunk + 1;
        thread::park_timeout(REST);
    }
    if damaged > 1 {
        log::error!("{damaged} parts of the map are damaged");
    }
}
