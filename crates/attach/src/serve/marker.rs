//! Writing into the header that a sync failed, while the disk is attached.
//!
//! The header may be locked by whoever changes the disk's layers, who may wait for the data plane. So a
//! thread of its own does it, again and again until it is done. The runtime map says it meanwhile.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::serve::attached_disk::AttachedDisk;
use installation::envelope::SyncedFile;

/// How long after a failure the mark is tried again.
const RETRY: Duration = Duration::from_secs(2);
/// How long the end of an attach waits for it.
const PATIENCE: Duration = Duration::from_secs(5);

/// A sync that failed: of which file, and what the kernel said.
type Failure = (SyncedFile, String);

pub(crate) struct Marker {
    failures: Sender<Failure>,
    /// How many the header does not say yet.
    waiting: Arc<AtomicUsize>,
    thread: JoinHandle<()>,
}

impl Marker {
    /// # Errors
    /// What the kernel says.
    pub(crate) fn spawn(attached_disk: Arc<AttachedDisk>) -> io::Result<Self> {
        let (failures, queue) = channel::<Failure>();
        let waiting = Arc::new(AtomicUsize::new(0));
        let left = waiting.clone();
        let thread = std::thread::Builder::new()
            .name("sync-marker".into())
            .spawn(move || {
                while let Ok((file, why)) = queue.recv() {
                    let mut known = false;
                    while let Err(error) = attached_disk.note_failed_sync(file, &why) {
                        if !std::mem::replace(&mut known, true) {
                            log::error!("the header does not say yet that a sync failed: {error}");
                        }
                        std::thread::sleep(RETRY);
                    }
                    left.fetch_sub(1, Ordering::AcqRel);
                }
            })?;
        Ok(Self {
            failures,
            waiting,
            thread,
        })
    }

    /// Whether the header says all of them.
    pub(crate) fn is_idle(&self) -> bool {
        self.waiting.load(Ordering::Acquire) == 0
    }

    pub(crate) fn put(&self, file: SyncedFile, why: &str) {
        self.waiting.fetch_add(1, Ordering::AcqRel);
        // The thread lives for as long as `self` does.
        let _ = self.failures.send((file, why.into()));
    }

    /// Waits for a while until the header says it. The runtime map says it in any case.
    pub(crate) fn finish(self) {
        let Self {
            failures, thread, ..
        } = self;
        drop(failures);
        let deadline = Instant::now() + PATIENCE;
        while !thread.is_finished() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}
