//! The copying of a guest's memory while the guest goes on, as QEMU does it: page by page, as the dirty log names them.

use std::sync::Arc;
use std::time::{Duration, Instant};

use test_support::Disk;
use test_support::frontend::dirty_log::{DirtyLog, LOG_PAGE};
use test_support::frontend::memory::GuestMemory;
use test_support::frontend::vmm::Vmm;
use test_support::rng::Rng;
use test_support::{data_plane_of, kill};

use super::super::supervise::settle;
use super::load::{self, Mix, World};
use super::{is_qsd, migrations, setup};

/// How long nothing more is logged before a difference counts.
const QUIET: Duration = Duration::from_secs(1);
/// Bytes of memory that are copied: the rings and buffers of all queues.
const COPIED: u64 = 128 << 20;

/// What a migration's destination has of the memory of the guest.
struct Copy {
    memory: Arc<GuestMemory>,
    log: Arc<DirtyLog>,
    /// Pages that the guest writes in ways that are not logged here: its avail rings.
    skipped: Vec<u64>,
    bytes: Vec<u8>,
}

impl Copy {
    /// Copies everything once.
    fn new(memory: &Arc<GuestMemory>, log: &Arc<DirtyLog>, skipped: &[u64]) -> Self {
        Self {
            memory: memory.clone(),
            log: log.clone(),
            skipped: skipped.to_vec(),
            bytes: memory.read(0, COPIED as usize),
        }
    }

    /// Copies what was written since the last time; whether that was anything.
    fn pass(&mut self) -> bool {
        let pages = self.log.take();
        for page in &pages {
            let at = (page * LOG_PAGE) as usize;
            if let Some(bytes) = self.bytes.get_mut(at..at + LOG_PAGE as usize) {
                self.memory.read_into(page * LOG_PAGE, bytes);
            }
        }
        !pages.is_empty()
    }

    /// Pages that are not what they are in the guest.
    fn stale(&self) -> Vec<u64> {
        let mut now = [0; LOG_PAGE as usize];
        let pages = (0..).zip(self.bytes.chunks(LOG_PAGE as usize));
        let stale = pages.filter(|(page, copied)| {
            self.memory.read_into(page * LOG_PAGE, &mut now);
            now != *copied && !self.skipped.contains(page)
        });
        stale.map(|(page, _)| page).collect()
    }

    /// The rings are stopped: copies what is left. The threads that play the guest's processors may still be writing.
    fn finish(&mut self) {
        let mut since = Instant::now();
        loop {
            self.pass();
            let stale = self.stale();
            if stale.is_empty() {
                return;
            }
            // Of what was written while it was looked that is logged by now.
            if self.pass() {
                since = Instant::now();
            }
            assert!(
                since.elapsed() < QUIET,
                "pages {stale:x?} were written and not logged"
            );
        }
    }
}

/// Copies the memory of a guest under load again and again, and each time has all of it in the end.
fn memory_is_copied(deaths: bool) {
    if is_qsd() {
        return;
    }
    let mut rng = super::super::crash::random();
    let disk = Disk::new(load::DISK_BYTES);
    let mut world = World::new();
    let source = disk.attach_with("disk", &[]);
    for round in 0..2 {
        let setup = setup(round);
        let (mut vmm, queues) = Vmm::of(source.connect_with(&setup), &setup);
        let avail: Vec<_> = queues.iter().map(|queue| queue.avail / LOG_PAGE).collect();
        let memory = vmm.frontend.mem.clone();
        let log = DirtyLog::new(COPIED);
        memory.log_own_writes(&log);
        let done = world.run_across(queues, Mix::All, rng.next(), |progress| {
            for _ in 0..migrations() {
                std::thread::sleep(Duration::from_millis(rng.within(5..50)));
                vmm.log_writes(&log).unwrap();
                let mut copy = Copy::new(&memory, &log, &avail);
                pre_copy(&mut copy, &mut rng, || {
                    if deaths && let Some(data_plane) = data_plane_of(source.pid()) {
                        settle(data_plane);
                        kill(data_plane);
                    }
                });
                let bases = vmm.suspend().unwrap();
                copy.finish();
                vmm.frontend.stop_log().unwrap();
                vmm.resume(&bases).unwrap();
                if !progress.await_those_in_flight() {
                    return;
                }
            }
        });
        eprintln!("round {round}: {done} requests");
        drop(vmm);
        world.verify(&source);
    }
    source.stop();
}

/// Copies while the guest goes on, without a rest: what is written after the last pass and before the rings are
/// stopped is not much, so that a page that is not logged is not logged for the sake of another write.
fn pre_copy(copy: &mut Copy, rng: &mut Rng, strike: impl Fn()) {
    for _ in 0..2 {
        let end = Instant::now() + Duration::from_millis(rng.within(1..60));
        while Instant::now() < end {
            copy.pass();
        }
        strike();
    }
    // Its successor serves.
    for _ in 0..rng.within(1..200) {
        copy.pass();
    }
}

#[test]
fn the_copied_memory_of_a_guest_under_load_is_the_guests() {
    memory_is_copied(false);
}

#[test]
fn it_is_whoever_of_the_data_planes_wrote_it() {
    memory_is_copied(true);
}
