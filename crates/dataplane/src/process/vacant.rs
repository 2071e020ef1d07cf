//! Letting go of the disk while its rings rest, and taking it when one is to run.
//!
//! # Order
//!
//! To let go: flush while frontends go on speaking; then under the handler's lock, so that no ring begins: quiesce,
//! flush what is left, destroy the keys, and put what is vacant behind the queues. Nothing of the disk is open then
//! but what the attach process has, which writes the header and gives up the claim after the answer.
//!
//! To take: put the disk behind the queues, give them the keys, then start what waits.

use rustix::fs::{FlockOperation, flock};

use protocol::{Cargo, DataPlaneEnd, Event, Reply, Setup};

use crate::DataplaneError;

use super::map_scan::MapScan;
use super::open::{NO_DISK, WITHOUT, files_and_keys, open_extent};
use super::quiesce::{PATIENCE, flush};
use super::serve::Server;

/// Why the disk is not let go of.
const A_RING_RUNS: &str = "a ring runs";

impl Server {
    /// Lets go of the disk.
    pub(crate) fn let_disk_go(&mut self) -> Reply {
        if self.is_vacant {
            return Reply::refused(&NO_DISK);
        }
        if self.handler().is_running() {
            return Reply::refused(&A_RING_RUNS);
        }
        let copy = self.copier.stop();
        // It would hold what it looks through.
        self.scan = None;
        match self.try_to_let_it_go() {
            Ok(()) => {
                log::info!("the disk was let go of, with everything durable");
                Reply::DiskLetGo
            }
            Err(why) => {
                self.scan_again();
                self.copy_again(copy);
                Reply::refused(&why)
            }
        }
    }

    fn try_to_let_it_go(&mut self) -> Result<(), String> {
        let shared = self.shared.clone();
        let old = shared.extent();
        let vacant = self.vacant.clone();
        vacant.runtime.forget_cache().map_err(|e| e.to_string())?;
        flush(&shared, None).map_err(|e| e.to_string())?;
        let mut handler = self.handler();
        if handler.is_running() {
            return Err(A_RING_RUNS.into());
        }
        let queues = handler.quiesce(PATIENCE)?;
        flush(&shared, None).map_err(|e| e.to_string())?;
        queues.destroy_key(WITHOUT);
        shared.key.destroy(WITHOUT);
        shared.replace(vacant.clone());
        queues.serve(&vacant);
        handler.set_vacant(true);
        drop(handler);
        // The rings have its file closed later, and nothing is under way that the lock would tell of.
        if let Err(error) = flock(old.files.map.file(), FlockOperation::Unlock) {
            log::warn!("the map stays locked for a while: {error}");
        }
        self.is_vacant = true;
        Ok(())
    }

    /// Serves the disk that came.
    pub(crate) fn take_disk(&mut self, setup: &Setup, cargo: Cargo) -> Reply {
        if !self.is_vacant {
            return Reply::refused(&"it has its disk");
        }
        match self.try_to_take(setup, cargo) {
            Ok(()) => {
                self.is_vacant = false;
                self.scan_again();
                Reply::DiskTaken
            }
            Err(error) => Reply::refused(&error),
        }
    }

    fn try_to_take(&self, setup: &Setup, cargo: Cargo) -> Result<(), DataplaneError> {
        let (opened, deks) = files_and_keys(setup, cargo)?;
        if let Some(chosen) = self.vacant.runtime.cache()? {
            opened.runtime.set_cache(chosen)?;
        }
        let cache = opened.runtime.cache()?;
        let extent = open_extent(setup, opened)?;
        let fail = DataplaneError::Setup;
        let mut handler = self.handler();
        let queues = handler.quiesce(PATIENCE).map_err(fail)?;
        self.shared.replace(extent.clone());
        queues.serve(&extent);
        drop(queues);
        match (deks, setup.revoked) {
            (Some(deks), _) => handler.resume(deks).map_err(fail)?,
            (None, mode) => handler.suspend(mode.unwrap_or(WITHOUT)),
        }
        if let Some(cache) = cache {
            handler.set_cache(cache);
        }
        handler.set_vacant(false);
        if handler.set_size(setup.size()) {
            handler.tell_of_new_size();
        }
        handler.start_what_waits();
        handler.tell_rings();
        Ok(())
    }

    /// Looks through the map of the disk, if it is written to.
    pub(crate) fn scan_again(&mut self) {
        if self.read_only || self.is_vacant {
            return;
        }
        match MapScan::spawn(self.shared.clone()) {
            Ok(scan) => self.scan = Some(scan),
            Err(error) => log::warn!("space that was discarded may not be found: {error}"),
        }
    }

    /// Tells what the rings do, if that is new.
    pub(crate) fn tell_rings(&self, control: &DataPlaneEnd) {
        if let Some(rings) = self.shared.ring_news.take() {
            let connection = self.connections;
            // When the attach process is gone its end of the socket says so next.
            let _ = control.tell(Event::Rings { rings, connection });
        }
    }
}
