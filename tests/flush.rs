//! Flushes, write-through and discards, on a store that fails as it is told: what the guest is promised,
//! and what it costs.

// Clippy exempts only functions with #[test], and helpers of tests panic as tests do.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "support/logged_store.rs"]
mod logged_store;

use std::path::PathBuf;
use std::ptr::NonNull;
use std::sync::Arc;

use logged_store::{Asked, LoggedStore, SharedMedium};
use sealdisk::cipher::{CipherStack, DataUnit, SharedSlice};
use sealdisk::keys::{Dek, DekStack};
use sealdisk::pipeline::{GuestBuffer, Op, OpError, OpKind, Pipeline, Token};
use sealdisk::units::ByteOffset;
use sealdisk::volume::{FailedSync, Geometry, LayerMap, RuntimeMap, Volume};
use uuid::Uuid;

const BLOCK: u64 = 4096;
const BLOCKS: u64 = 5000;

/// A disk with queues, each driven by hand.
struct Rig {
    geometry: Geometry,
    medium: SharedMedium,
    runtime: RuntimeMap,
    runtime_path: PathBuf,
    volume: Arc<Volume>,
    queues: Vec<Pipeline<LoggedStore>>,
    deks: DekStack,
    next: u64,
}

impl Drop for Rig {
    fn drop(&mut self) {
        std::fs::remove_file(&self.runtime_path).unwrap();
    }
}

impl Rig {
    fn new(queues: usize) -> Self {
        let geometry = Geometry {
            disk: Uuid::new_v4(),
            layer: Uuid::new_v4(),
            size: BLOCKS * BLOCK,
            data_unit: DataUnit::B4096,
        };
        let medium = SharedMedium::new(&geometry);
        let runtime_path = PathBuf::from(format!("/dev/shm/sealdisk-flush-{}", Uuid::new_v4()));
        let (runtime, _) =
            RuntimeMap::open(&runtime_path, &geometry, Uuid::nil(), Uuid::nil()).unwrap();
        let volume = open(&geometry, &medium, &runtime);
        let mut rig = Self {
            geometry,
            medium,
            runtime,
            runtime_path,
            volume,
            queues: Vec::new(),
            deks: Dek::generate().unwrap().into(),
            next: 0,
        };
        rig.make_queues(queues);
        rig
    }

    fn make_queues(&mut self, count: usize) {
        self.queues = (0..count)
            .map(|_| {
                let ciphers = CipherStack::new(&self.deks, &[DataUnit::B4096]).unwrap();
                let store = LoggedStore::new(&self.medium);
                Pipeline::new(self.volume.clone(), store, ciphers).unwrap()
            })
            .collect();
    }

    /// The process dies, and another takes over the runtime map.
    fn restart(&mut self) {
        let queues = self.queues.len();
        self.queues.clear();
        let (runtime, _) =
            RuntimeMap::open(&self.runtime_path, &self.geometry, Uuid::nil(), Uuid::nil()).unwrap();
        self.runtime = runtime;
        self.volume = open(&self.geometry, &self.medium, &self.runtime);
        self.make_queues(queues);
    }

    fn submit(&mut self, queue: usize, kind: OpKind, blocks: std::ops::Range<u64>) -> Token {
        self.next += 1;
        let (token, len) = (Token(self.next), (blocks.end - blocks.start) * BLOCK);
        let slices = match kind {
            OpKind::Write { .. } | OpKind::Read => {
                let bytes: &'static mut [u8] = vec![7; len as usize].leak();
                let start = NonNull::from(&mut *bytes).cast();
                // SAFETY: the bytes are never freed, and nobody else knows of them.
                vec![unsafe { SharedSlice::new(start, bytes.len()) }]
            }
            OpKind::Zero { .. } | OpKind::Raise { .. } | OpKind::Flush => vec![],
        };
        self.queues[queue].submit(Op {
            kind,
            at: ByteOffset(blocks.start * BLOCK),
            len,
            memory: GuestBuffer {
                slices,
                owner: None,
            },
            token,
        });
        token
    }

    /// Carries a queue on; what is finished.
    fn poll(&mut self, queue: usize) -> Vec<(Token, Result<(), OpError>)> {
        let mut finished = Vec::new();
        self.queues[queue].poll();
        self.queues[queue].take_finished(&mut finished);
        finished
            .into_iter()
            .map(|done| (done.token, done.result))
            .collect()
    }

    /// Carries a queue on until nothing of it is under way.
    fn settle(&mut self, queue: usize) -> Vec<(Token, Result<(), OpError>)> {
        let mut all = self.poll(queue);
        while !self.queues[queue].is_idle() {
            all.extend(self.poll(queue));
        }
        all
    }

    /// Does one thing alone.
    fn run(&mut self, kind: OpKind, blocks: std::ops::Range<u64>) -> Result<(), OpError> {
        let token = self.submit(0, kind, blocks);
        let mut done = self.settle(0);
        assert_eq!(done.len(), 1);
        let (found, result) = done.remove(0);
        assert_eq!(found, token);
        result
    }

    fn write(&mut self, blocks: std::ops::Range<u64>) -> Result<(), OpError> {
        self.run(OpKind::Write { durable: false }, blocks)
    }

    fn write_through(&mut self, blocks: std::ops::Range<u64>) -> Result<(), OpError> {
        self.run(OpKind::Write { durable: true }, blocks)
    }

    fn flush(&mut self) -> Result<(), OpError> {
        self.run(OpKind::Flush, 0..0)
    }
}

fn open(geometry: &Geometry, medium: &SharedMedium, runtime: &RuntimeMap) -> Arc<Volume> {
    let top = LayerMap::new(geometry.clone(), medium.clone());
    Arc::new(Volume::open_runtime(top, vec![], runtime).unwrap())
}

/// Fails what `which` names, the first time only, as Linux does with a sync.
fn fail_once(medium: &SharedMedium, which: Asked, number: i32) {
    let mut failed = false;
    medium.fail(move |asked| {
        (asked == which && !std::mem::replace(&mut failed, true)).then_some(number)
    });
}

#[test]
fn a_sync_that_failed_once_fails_every_later_flush() {
    for (which, file) in [
        (Asked::SyncData, FailedSync::Data),
        (Asked::SyncMap, FailedSync::Map),
    ] {
        for number in [libc::EIO, libc::ENOSPC] {
            let mut rig = Rig::new(2);
            rig.write(0..3).unwrap();
            fail_once(&rig.medium, which, number);
            let error = rig.flush().unwrap_err();
            assert!(matches!(error, OpError::SyncFailed { .. }), "{error:?}");
            // The first error stays, whatever space there may be again.
            assert!(!error.is_no_space());
            for _ in 0..3 {
                let error = rig.flush().unwrap_err();
                assert_eq!(error.failed_sync(), Some(file), "{which:?}: {error}");
            }
            // What is not promised to be durable goes on; what is, fails.
            rig.write(3..4).unwrap();
            rig.run(OpKind::Read, 0..4).unwrap();
            let durable = [
                OpKind::Write { durable: true },
                OpKind::Zero {
                    release: true,
                    durable: true,
                },
            ];
            for kind in durable {
                let error = rig.run(kind, 1..2).unwrap_err();
                assert_eq!(error.failed_sync(), Some(file));
            }
            // In another queue as well.
            rig.submit(1, OpKind::Flush, 0..0);
            let done = rig.settle(1);
            assert!(matches!(done[..], [(_, Err(OpError::Lost(_)))]));
            assert_eq!(rig.volume.failed_sync(), Some(file));
        }
    }
}

#[test]
fn a_sync_that_failed_is_remembered_by_the_next_process_until_the_disk_was_checked() {
    let mut rig = Rig::new(1);
    rig.write(0..1).unwrap();
    rig.flush().unwrap();
    assert_eq!(rig.runtime.failed_sync().unwrap(), None);
    rig.write(3000..3001).unwrap();
    fail_once(&rig.medium, Asked::SyncMap, libc::EIO);
    rig.flush().unwrap_err();
    assert_eq!(rig.runtime.failed_sync().unwrap(), Some(FailedSync::Map));
    for _ in 0..2 {
        rig.restart();
        let error = rig.flush().unwrap_err();
        assert!(matches!(error, OpError::Lost(FailedSync::Map)), "{error}");
    }

    rig.runtime.forget_failed_sync().unwrap();
    rig.restart();
    rig.medium.take_log();
    rig.flush().unwrap();
    // The map file says already what it is to say, but maybe only in the page cache.
    let log = rig.medium.take_log();
    let written: usize = log.iter().map(map_bytes).sum();
    assert!(written >= 2 * 512, "{log:?}");
    rig.restart();
    rig.medium.take_log();
    rig.flush().unwrap();
    let log = rig.medium.take_log();
    assert_eq!(log.iter().map(map_bytes).sum::<usize>(), 0, "{log:?}");
}

fn map_bytes(asked: &Asked) -> usize {
    match asked {
        Asked::WriteMap { len, .. } => *len,
        _ => 0,
    }
}

#[test]
fn a_map_that_cannot_be_written_fails_its_flush_alone() {
    let mut rig = Rig::new(1);
    rig.write(0..1).unwrap();
    rig.medium
        .fail(|asked| (map_bytes(&asked) > 0).then_some(libc::ENOSPC));
    for _ in 0..2 {
        assert!(rig.flush().unwrap_err().is_no_space());
    }
    let error = rig.write_through(0..1).unwrap_err();
    assert!(error.is_no_space());
    rig.medium.fail(|_| None);
    rig.medium.take_log();
    rig.flush().unwrap();
    assert!(
        rig.medium
            .take_log()
            .iter()
            .any(|asked| map_bytes(asked) == 512)
    );
}
