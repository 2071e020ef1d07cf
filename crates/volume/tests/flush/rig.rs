//! A disk with queues, each driven by hand, on a store that fails as it is told.

use std::path::PathBuf;
use std::ptr::NonNull;
use std::sync::Arc;

use super::logged_store::{Asked, LoggedStore, SharedMedium};
use keys::units::ByteOffset;
use keys::{Dek, DekStack};
use uuid::Uuid;
use volume::pipeline::{
    BlockRequest, Finished, GuestBuffer, Pipeline, RequestError, RequestKind, Submission, Token,
};
use volume::{Geometry, LayerMap, RuntimeMap, Volume};
use xts::{CipherStack, DataUnit, SharedSlice};

pub const BLOCK: u64 = 4096;
pub const BLOCKS: u64 = 5000;

/// A disk with queues, each driven by hand.
pub struct Rig {
    pub geometry: Geometry,
    pub medium: SharedMedium,
    pub runtime: RuntimeMap,
    pub runtime_path: PathBuf,
    pub volume: Arc<Volume>,
    pub queues: Vec<Pipeline<LoggedStore>>,
    pub deks: DekStack,
    pub next: u64,
}

impl Drop for Rig {
    fn drop(&mut self) {
        std::fs::remove_file(&self.runtime_path).unwrap();
    }
}

impl Rig {
    pub fn new(queues: usize) -> Self {
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

    pub fn make_queues(&mut self, count: usize) {
        self.queues = (0..count)
            .map(|_| {
                let ciphers = CipherStack::new(&self.deks, &[DataUnit::B4096]).unwrap();
                let store = LoggedStore::new(&self.medium);
                Pipeline::new(self.volume.clone(), store, ciphers).unwrap()
            })
            .collect();
    }

    /// The process dies, and another takes over the runtime map.
    pub fn restart(&mut self) {
        let queues = self.queues.len();
        self.queues.clear();
        let (runtime, _) =
            RuntimeMap::open(&self.runtime_path, &self.geometry, Uuid::nil(), Uuid::nil()).unwrap();
        self.runtime = runtime;
        self.volume = open(&self.geometry, &self.medium, &self.runtime);
        self.make_queues(queues);
    }

    pub fn submit(
        &mut self,
        queue: usize,
        kind: RequestKind,
        blocks: std::ops::Range<u64>,
    ) -> Token {
        self.next += 1;
        let (token, len) = (Token(self.next), (blocks.end - blocks.start) * BLOCK);
        let slices = match kind {
            RequestKind::Write { .. } | RequestKind::Read => {
                let bytes: &'static mut [u8] = vec![7; len as usize].leak();
                let start = NonNull::from(&mut *bytes).cast();
                // SAFETY: the bytes are never freed, and nobody else knows of them.
                vec![unsafe { SharedSlice::new(start, bytes.len()) }]
            }
            RequestKind::Zero { .. } | RequestKind::CopyUp { .. } | RequestKind::Flush => vec![],
        };
        let at = ByteOffset(blocks.start * BLOCK);
        let owner = None;
        let memory = GuestBuffer { slices, owner };
        let request = BlockRequest { kind, at, len };
        self.queues[queue].submit(Submission::new(token, request, memory));
        token
    }

    /// Carries a queue on; what is finished.
    pub fn poll(&mut self, queue: usize) -> Vec<(Token, Result<(), RequestError>)> {
        let mut finished = Vec::new();
        self.queues[queue].poll();
        self.queues[queue].take_finished(&mut finished);
        finished
            .into_iter()
            .map(Finished::take)
            .map(|(token, result, _)| (token, result))
            .collect()
    }

    /// Carries a queue on until nothing of it is under way.
    pub fn settle(&mut self, queue: usize) -> Vec<(Token, Result<(), RequestError>)> {
        let mut all = self.poll(queue);
        while !self.queues[queue].is_idle() {
            all.extend(self.poll(queue));
        }
        all
    }

    /// Does one thing alone.
    pub fn run(
        &mut self,
        kind: RequestKind,
        blocks: std::ops::Range<u64>,
    ) -> Result<(), RequestError> {
        let token = self.submit(0, kind, blocks);
        let mut done = self.settle(0);
        assert_eq!(done.len(), 1);
        let (found, result) = done.remove(0);
        assert_eq!(found, token);
        result
    }

    pub fn write(&mut self, blocks: std::ops::Range<u64>) -> Result<(), RequestError> {
        self.run(RequestKind::Write { durable: false }, blocks)
    }

    pub fn write_through(&mut self, blocks: std::ops::Range<u64>) -> Result<(), RequestError> {
        self.run(RequestKind::Write { durable: true }, blocks)
    }

    pub fn flush(&mut self) -> Result<(), RequestError> {
        self.run(RequestKind::Flush, 0..0)
    }
}

pub fn open(geometry: &Geometry, medium: &SharedMedium, runtime: &RuntimeMap) -> Arc<Volume> {
    let top = LayerMap::new(geometry.clone(), medium.clone());
    Arc::new(Volume::open_runtime(top, vec![], runtime).unwrap())
}

/// Fails what `which` names, the first time only, as Linux does with a sync.
pub fn fail_once(medium: &SharedMedium, which: Asked, number: i32) {
    let mut failed = false;
    medium.fail(move |asked| {
        (asked == which && !std::mem::replace(&mut failed, true)).then_some(number)
    });
}

pub fn map_bytes(asked: &Asked) -> usize {
    match asked {
        Asked::WriteMap { len, .. } => *len,
        _ => 0,
    }
}

pub const DISCARD: RequestKind = RequestKind::Zero {
    release: true,
    durable: false,
};

pub fn count(log: &[Asked], is_meant: impl Fn(&Asked) -> bool) -> usize {
    log.iter().filter(|asked| is_meant(asked)).count()
}
