//! What all changes have in common: names are locked, what passes by is waited for, and layers are changed
//! whoever has the disk.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::error::ArmError;
use crate::operations::{Going, Owners};
use attach::LayerChanges;
use disks::import::Cancel;
use disks::{Disk, DiskError, JobProgress, LayerOp};
use installation::{Installation, Place};

/// How long a change waits for what passes by: a merge, and a command.
const MERGING: Duration = Duration::from_secs(30);
const CHANGING: Duration = Duration::from_secs(3);
/// How long a name is waited for: longer than anything that is done with one, of which a snapshot of an attached disk may
/// take five minutes. Whoever has it then hangs, and is not to hang all others. Only an import shares the name of its
/// group for longer: whoever deletes the group, which alone waits for that, cancels it first.
const HELD: Duration = Duration::from_secs(600);
/// So many of those who have a name are told.
const TOLD: usize = 3;
/// How often it is tried meanwhile.
const LOOK: Duration = Duration::from_millis(50);

/// Changes of one server.
pub struct Changes {
    /// Where attached disks are reached.
    pub(crate) runtime_dir: PathBuf,
    place: Place,
    /// From below where images of this host are imported; from nowhere, if there is none.
    pub(crate) import_dir: Option<PathBuf>,
    locked: Mutex<HashMap<String, Holders>>,
    unlocked: Condvar,
    /// How long a name is waited for.
    patience: Duration,
    /// The id of whoever has a name next.
    next: AtomicU64,
    merging: Arc<Merging>,
    /// What goes on and outlives its request.
    pub(crate) going: Going,
    /// Whose that is, of several servers.
    pub(crate) owners: Owners,
}

/// Merges in the background: one thread at a time, which looks again when more is wanted.
#[derive(Default)]
struct Merging {
    runs: AtomicBool,
    wanted: AtomicBool,
}

/// Who has a name, and who waits for it.
#[derive(Default)]
struct Holders {
    /// One has it alone.
    alone: bool,
    /// So many have it together.
    shared: usize,
    /// So many wait to have it alone: nobody else joins those who share it meanwhile, who would never end else.
    waiting: usize,
    /// Who they are.
    by: Vec<Holder>,
}

/// Who has a name.
struct Holder {
    id: u64,
    /// What it does: a method, and a path.
    what: String,
    since: Instant,
}

impl Holders {
    fn are_none(&self) -> bool {
        !self.alone && self.shared == 0 && self.waiting == 0
    }

    /// Why whoever has waited for the name waits no more.
    fn refusal(&self, name: &str) -> ArmError {
        log::warn!(
            "'{name}' is being changed by another request, which does not come to its end: {}",
            self.told(|what| what)
        );
        // Paths name what whoever waits may not be allowed to know of.
        let message = format!(
            "'{name}' is being changed by another request, which does not come to its end: {}. Try again when it has; \
             if it never does, the storage or the vault that it waits for is to be looked at, and the server restarted.",
            self.told(|what| what.split_whitespace().next().unwrap_or_default())
        );
        ArmError {
            retry_after: Some(60),
            ..ArmError::new(409, "AnotherOperationInProgress", message)
        }
    }

    /// Some of those who have the name, by what is `shown` of what they do.
    fn told(&self, shown: impl Fn(&str) -> &str) -> String {
        let who = self.by.iter().take(TOLD).map(|holder| {
            let seconds = holder.since.elapsed().as_secs();
            format!("{} (for {seconds} s)", shown(&holder.what))
        });
        let mut who: Vec<_> = who.collect();
        if self.by.len() > TOLD {
            who.push(format!("and {} more", self.by.len() - TOLD));
        }
        who.join(", ")
    }
}

/// The lock of a name, until it is dropped.
pub struct NameLock<'a> {
    changes: &'a Changes,
    name: String,
    id: u64,
}

impl Drop for NameLock<'_> {
    fn drop(&mut self) {
        let mut locked = self
            .changes
            .locked
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if let Some(holders) = locked.get_mut(&self.name) {
            match holders.alone {
                true => holders.alone = false,
                false => holders.shared = holders.shared.saturating_sub(1),
            }
            holders.by.retain(|holder| holder.id != self.id);
            if holders.are_none() {
                locked.remove(&self.name);
            }
        }
        drop(locked);
        self.changes.unlocked.notify_all();
    }
}

impl Changes {
    /// In the installation at that place.
    pub fn new(place: impl Into<Place>, runtime_dir: PathBuf) -> Self {
        let place = place.into();
        Self {
            runtime_dir,
            owners: Owners::of(&place),
            place,
            import_dir: None,
            locked: Mutex::default(),
            unlocked: Condvar::new(),
            patience: HELD,
            next: AtomicU64::new(0),
            merging: Arc::default(),
            going: Going::default(),
        }
    }

    /// With images of this host, if they may be imported.
    pub(crate) fn importing_from(self, import_dir: Option<PathBuf>) -> Self {
        Self { import_dir, ..self }
    }

    /// Waits until nobody else changes what has that name: of two requests at once the second finds what the
    /// first has left. `what` is done with it, for those who wait.
    ///
    /// # Errors
    /// 409, and how long others have had it: it was waited for long enough.
    pub(crate) fn lock(
        &self,
        name: &str,
        what: impl Into<String>,
    ) -> Result<NameLock<'_>, ArmError> {
        self.hold(name, true, what.into())
    }

    /// Waits until nobody has that name alone or waits for that, and keeps it from that: a group, while something is put
    /// into it. Whoever needs both takes the name of a group before that of a resource, and nobody shares the same name
    /// twice.
    ///
    /// # Errors
    /// As [`Changes::lock`].
    pub(crate) fn share(
        &self,
        name: &str,
        what: impl Into<String>,
    ) -> Result<NameLock<'_>, ArmError> {
        self.hold(name, false, what.into())
    }

    fn hold(&self, name: &str, alone: bool, what: String) -> Result<NameLock<'_>, ArmError> {
        let name = name.to_ascii_lowercase();
        let (since, id) = (Instant::now(), self.next.fetch_add(1, Ordering::Relaxed));
        let deadline = since + self.patience;
        let mut locked = self.locked.lock().unwrap_or_else(PoisonError::into_inner);
        let mut waits = false;
        loop {
            let holders = locked.entry(name.clone()).or_default();
            if waits && alone {
                holders.waiting -= 1;
            }
            let is_free = match alone {
                true => !holders.alone && holders.shared == 0,
                false => !holders.alone && holders.waiting == 0,
            };
            if is_free {
                match alone {
                    true => holders.alone = true,
                    false => holders.shared += 1,
                }
                let since = Instant::now();
                holders.by.push(Holder { id, what, since });
                break;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                let refusal = holders.refusal(&name);
                drop(locked);
                // Those who have waited behind this one need not any more.
                self.unlocked.notify_all();
                return Err(refusal);
            }
            if alone {
                holders.waiting += 1;
            }
            waits = true;
            let woken = self.unlocked.wait_timeout(locked, left);
            (locked, _) = woken.unwrap_or_else(PoisonError::into_inner);
        }
        drop(locked);
        Ok(NameLock {
            changes: self,
            name,
            id,
        })
    }

    /// Makes a change, again and again for a while when what keeps it from being made passes by: a merge in the
    /// background has the disk, or somebody else has changed it at the same time.
    pub(crate) fn retrying<T>(
        &self,
        mut change: impl FnMut() -> Result<T, ArmError>,
    ) -> Result<T, ArmError> {
        let begun = Instant::now();
        loop {
            match change() {
                Err(error) if error.status == 409 && error.retry_after.is_some() => {
                    let merging = self.merging.runs.load(Ordering::Acquire);
                    let patience = if merging { MERGING } else { CHANGING };
                    if begun.elapsed() > patience {
                        return Err(error);
                    }
                }
                done => return done,
            }
            std::thread::sleep(LOOK);
        }
    }

    /// Applies an operation to a disk, whoever has it.
    pub(crate) fn change_layers(
        &self,
        installation: &Installation,
        disk: &Disk,
        op: &LayerOp,
    ) -> Result<(), ArmError> {
        // Nobody can stop a request.
        let cancel = Cancel::default();
        let changes = layer_changes(installation, &self.runtime_dir, &cancel);
        changes.change_layers(disk, op, &mut |_| {})?;
        Ok(())
    }

    /// Goes on with the job of a disk that nobody has, as [`LayerChanges::go_on`] does.
    pub(crate) fn go_on(
        &self,
        installation: &Installation,
        disk: &Disk,
        cancel: &Cancel,
        progress: &mut dyn FnMut(JobProgress),
    ) -> Result<(), DiskError> {
        layer_changes(installation, &self.runtime_dir, cancel).go_on(disk, progress)
    }

    /// How far whoever has a disk attached is with its job, if somebody has, and knows that.
    pub(crate) fn progress_of_attach(&self, disk: &Disk) -> Option<JobProgress> {
        let status = attach::key_status(&self.runtime_dir, disk.id()).ok()?;
        let job = status.job.filter(|job| job.bytes_total > 0)?;
        Some(JobProgress {
            done: job.bytes_done,
            total: job.bytes_total,
        })
    }

    /// Merges in the background what deleted snapshots have left. It is noted in the catalog what that is:
    /// what a kill keeps from being done is done by the next deletion.
    pub(crate) fn merge_later(&self) {
        let merging = Arc::clone(&self.merging);
        merging.wanted.store(true, Ordering::Release);
        if merging.runs.swap(true, Ordering::AcqRel) {
            return;
        }
        let (place, runtime_dir) = (self.place.clone(), self.runtime_dir.clone());
        let work = move || {
            while merging.wanted.swap(false, Ordering::AcqRel) {
                if let Err(error) = merge_all(&place, &runtime_dir) {
                    log::error!("layers of deleted snapshots are not merged yet: {error}");
                }
            }
            merging.runs.store(false, Ordering::Release);
        };
        let started = std::thread::Builder::new().name("merge".into()).spawn(work);
        if let Err(error) = started {
            self.merging.runs.store(false, Ordering::Release);
            log::error!("layers of deleted snapshots are not merged yet: {error}");
        }
    }
}

fn merge_all(place: &Place, runtime_dir: &Path) -> Result<(), DiskError> {
    let (installation, cancel) = (Installation::open_existing(place)?, Cancel::default());
    let changes = LayerChanges {
        wait: true,
        ..layer_changes(&installation, runtime_dir, &cancel)
    };
    changes.merge_all(&mut |_, _| {})
}

/// Changes of layers that wait for no job.
fn layer_changes<'a>(
    installation: &'a Installation,
    runtime_dir: &'a Path,
    cancel: &'a Cancel,
) -> LayerChanges<'a> {
    LayerChanges {
        installation,
        runtime_dir,
        cancel,
        wait: false,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[test]
    fn who_shares_a_name_keeps_it_from_who_wants_it_alone() {
        let changes = Changes::new(PathBuf::new(), PathBuf::new());
        let first = changes.share("rg", "first").unwrap();
        let second = changes.share("RG", "second").unwrap();
        let (told, tells) = mpsc::channel();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let _alone = changes.lock("rg", "alone").unwrap();
                let _ = told.send(());
            });
            let waits =
                |tells: &mpsc::Receiver<()>| tells.recv_timeout(Duration::from_millis(50)).is_err();
            assert!(waits(&tells));
            drop(first);
            assert!(waits(&tells), "one is still there");
            drop(second);
            tells.recv_timeout(Duration::from_secs(30)).unwrap();
        });
        drop(changes.lock("rg", "alone").unwrap());
        drop(changes.share("rg", "shared").unwrap());
    }

    #[test]
    fn who_hangs_with_a_name_is_told_and_hangs_nobody_else_for_ever() {
        let changes = Changes {
            patience: Duration::from_millis(50),
            ..Changes::new(PathBuf::new(), PathBuf::new())
        };
        let hangs = changes.lock("Disks/d", "DELETE /disks/d").unwrap();
        for refused in [
            changes.lock("disks/d", "PUT /disks/d").err().unwrap(),
            changes.share("disks/D", "GET").err().unwrap(),
        ] {
            assert_eq!(refused.code, "AnotherOperationInProgress");
            assert!(refused.status == 409 && refused.retry_after.is_some());
            let message = refused.message;
            assert!(
                message.starts_with("'disks/d' is being changed"),
                "{message}"
            );
            assert!(message.contains(": DELETE (for "), "{message}");
            assert!(!message.contains("/disks/d"), "a path: {message}");
        }
        drop(changes.lock("disks/e", "another").unwrap());
        drop(hangs);
        drop(changes.lock("disks/d", "next").unwrap());
        assert!(changes.locked.lock().unwrap().is_empty());
    }

    #[test]
    fn who_gives_up_waiting_keeps_nobody_out() {
        let changes = Changes {
            patience: Duration::from_millis(300),
            ..Changes::new(PathBuf::new(), PathBuf::new())
        };
        let all: Vec<_> = (0..TOLD + 2)
            .map(|n| changes.share("rg", format!("PUT /groups/{n}")).unwrap())
            .collect();
        let refused = std::thread::scope(|scope| {
            let alone = scope.spawn(|| changes.lock("rg", "alone").err().unwrap());
            alone.join().unwrap()
        });
        let message = refused.message;
        assert!(message.contains(": PUT (for 0 s), PUT (for "), "{message}");
        assert!(!message.contains("/groups"), "{message}");
        assert!(message.contains("and 2 more"), "{message}");
        drop(changes.share("rg", "shared").unwrap());
        drop(all);
        assert!(changes.locked.lock().unwrap().is_empty());
    }

    #[test]
    fn who_waits_to_be_alone_is_not_overtaken() {
        let changes = Changes::new(PathBuf::new(), PathBuf::new());
        let first = changes.share("rg", "first").unwrap();
        let (told, tells) = mpsc::channel();
        let waits = || {
            let locked = changes.locked.lock().unwrap();
            locked.get("rg").is_some_and(|holders| holders.waiting > 0)
        };
        std::thread::scope(|scope| {
            let (alone, shared) = (told.clone(), told);
            let changes = &changes;
            scope.spawn(move || {
                let _alone = changes.lock("rg", "alone").unwrap();
                let _ = alone.send("alone");
            });
            while !waits() {
                std::thread::yield_now();
            }
            scope.spawn(move || {
                let _shared = changes.share("rg", "shared").unwrap();
                let _ = shared.send("shared");
            });
            assert!(tells.recv_timeout(Duration::from_millis(50)).is_err());
            drop(first);
            let patience = Duration::from_secs(30);
            assert_eq!(tells.recv_timeout(patience), Ok("alone"));
            assert_eq!(tells.recv_timeout(patience), Ok("shared"));
        });
        assert!(changes.locked.lock().unwrap().is_empty());
    }
}
