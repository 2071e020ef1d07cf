//! Goes through the map of a disk that was just opened, in the background: finds space that a former process
//! had not given back, of discarded blocks and of those that nothing speaks of (a write that failed, or that the
//! power took), and damage, so that an operator hears of it before a guest does. A disk is served
//! before its maps were read, however large it is.

use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use keys::units::BLOCK_SIZE;
use volume::format::BLOCKS_PER_SECTOR;
use volume::store::{next_extent, tells_holes};
use volume::{BlockMap, VolumeError};

use crate::disk::shared::{Extent, Shared};

/// A rest between two chunks of the map, 64 KiB of its file and 1 GiB of the disk: guests go first.
const REST: Duration = Duration::from_millis(1);

/// The thread that does it; it ends with this.
pub(crate) struct MapScan {
    pace: Arc<Pace>,
    thread: Option<JoinHandle<()>>,
}

impl MapScan {
    /// Starts it for a disk that is written to.
    ///
    /// # Errors
    /// When there can be no further thread.
    pub(crate) fn spawn(shared: Arc<Shared>) -> io::Result<Self> {
        let pace = Arc::new(Pace::default());
        let told = pace.clone();
        let thread = thread::Builder::new()
            .name("map-scan".into())
            .spawn(move || {
                scan(&shared, &told);
                find_strays(&shared, &told);
            })?;
        Ok(Self {
            pace,
            thread: Some(thread),
        })
    }

    /// Ends it, after it had a moment to come to its end.
    pub(crate) fn finish(self) {
        self.pace.hurries.store(true, Ordering::Release);
        let deadline = Instant::now() + PATIENCE;
        while let Some(thread) = &self.thread
            && !thread.is_finished()
            && Instant::now() < deadline
        {
            thread.thread().unpark();
            thread::sleep(REST);
        }
    }
}

/// How the thread goes on.
#[derive(Default)]
struct Pace {
    stop: AtomicBool,
    hurries: AtomicBool,
}

impl Pace {
    fn is_stopped(&self) -> bool {
        self.stop.load(Ordering::Acquire)
    }

    fn rest(&self) {
        if !self.hurries.load(Ordering::Acquire) {
            thread::park_timeout(REST);
        }
    }
}

impl Drop for MapScan {
    fn drop(&mut self) {
        self.pace.stop.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            // A panic of any thread ends the process.
            let _ = thread.join();
        }
    }
}

/// Ranges of the data file between two rests.
const EXTENTS: u32 = 256;

/// How long the end of the process waits for a scan: so that a disk which was attached for a moment is left
/// without what a former process had not given back.
const PATIENCE: Duration = Duration::from_secs(2);

fn scan(shared: &Shared, pace: &Pace) {
    let (mut from, mut damaged) = (0, 0);
    while !pace.is_stopped() {
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
        pace.rest();
    }
    if damaged > 1 {
        log::error!("{damaged} parts of the map are damaged");
    }
}

/// Notes where the data file has space that the map speaks of nowhere, so that it is given back.
fn find_strays(shared: &Shared, pace: &Pace) {
    loop {
        let extent = shared.extent();
        // What is noted of a volume is not seen by the one that follows it, when the disk has grown or has
        // got another top layer: then it is all looked for again.
        let is_current = || Arc::ptr_eq(&extent, &shared.extent());
        let goes_on = || !pace.is_stopped() && is_current();
        if let Err(error) = find_in_file(&extent, pace, &goes_on) {
            log::warn!("space that nothing needs may not be found: {error}");
        }
        extent.volume.flushes().set_holes_due();
        if pace.is_stopped() || is_current() {
            return;
        }
    }
}

fn find_in_file(extent: &Extent, pace: &Pace, goes_on: &dyn Fn() -> bool) -> io::Result<()> {
    let (map, data) = (extent.volume.map(), extent.files.data.file());
    let len = extent.volume.geometry().data_len();
    if !tells_holes(data)? {
        return Ok(());
    }
    let (mut at, mut since) = (0, 0);
    while let Some(range) = next_extent(data, at, len)?.filter(|_| goes_on()) {
        let blocks = range.start / BLOCK_SIZE..range.end.div_ceil(BLOCK_SIZE);
        find_in(map, blocks, goes_on).map_err(io::Error::other)?;
        at = range.end;
        since += 1;
        if since % EXTENTS == 0 {
            pace.rest();
        }
    }
    Ok(())
}

/// Looks at blocks that have space, a sector of the map at a time.
fn find_in(
    map: &BlockMap,
    mut blocks: Range<u64>,
    goes_on: &dyn Fn() -> bool,
) -> Result<(), VolumeError> {
    while !blocks.is_empty() && goes_on() {
        let end = (blocks.start / BLOCKS_PER_SECTOR + 1) * BLOCKS_PER_SECTOR;
        let end = end.min(blocks.end);
        // What is damaged was told already, and is not touched.
        match map.find_strays(blocks.start..end) {
            Err(VolumeError::MapDamaged { .. }) | Ok(()) => {}
            Err(error) => return Err(error),
        }
        blocks.start = end;
    }
    Ok(())
}
