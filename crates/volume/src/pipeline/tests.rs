//! What a pipeline does between two looks at what has completed.

use std::collections::VecDeque;
use std::io;
use std::ptr::NonNull;
use std::sync::Arc;

use uuid::Uuid;

use super::*;
use crate::store::{ReadAt, Store, StoreCompletion, StoreOp, Tag};
use crate::{BlockState, Geometry, LayerMap, Volume, format};
use keys::Dek;
use keys::units::{BLOCK_SIZE, ByteOffset, LayerIndex};
use xts::{CipherStack, DataUnit, SharedSlice};

/// Completes everything at once.
#[derive(Default)]
struct Instant {
    done: VecDeque<StoreCompletion>,
    /// It tells of one operation at a look.
    one_by_one: bool,
    /// What a data file on tmpfs is mapped as.
    mapping: Vec<u8>,
}

impl Store for Instant {
    fn alignment(&self) -> u64 {
        512
    }

    fn mapped(&self, _: LayerIndex, at: u64, len: usize) -> Option<NonNull<u8>> {
        let bytes = self.mapping.get(at as usize..at as usize + len)?;
        Some(NonNull::from(bytes).cast())
    }

    fn has_room(&self) -> bool {
        true
    }

    fn submit(&mut self, tag: Tag, op: StoreOp) {
        let buffer = match op {
            StoreOp::Read { buffer, .. } | StoreOp::Write { buffer, .. } => Some(buffer),
            StoreOp::Sync { .. } | StoreOp::Punch { .. } => None,
        };
        let result = Ok(());
        self.done.push_back(StoreCompletion {
            tag,
            result,
            buffer,
        });
    }

    fn reap(&mut self, into: &mut Vec<StoreCompletion>) {
        let most = if self.one_by_one { 1 } else { usize::MAX };
        into.extend(self.done.drain(..most.min(self.done.len())));
    }
}

/// The map of a disk that was never written to.
struct FreshMap(Geometry);

impl ReadAt for FreshMap {
    fn size(&self) -> io::Result<u64> {
        Ok(format::file_len(self.0.blocks()))
    }

    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        buffer.fill(0);
        if let Some(rest) = format::encode_header(&self.0).get(offset as usize..) {
            let len = rest.len().min(buffer.len());
            buffer[..len].copy_from_slice(&rest[..len]);
        }
        Ok(())
    }
}

const GIB: u64 = 1 << 30;

fn pipeline(size: u64) -> Pipeline<Instant> {
    let geometry = Geometry {
        disk: Uuid::from_u128(1),
        layer: Uuid::from_u128(2),
        size,
        data_unit: DataUnit::B4096,
    };
    let map = LayerMap::new(geometry.clone(), FreshMap(geometry));
    let volume = Volume::open_private(map, vec![]).unwrap();
    let deks = Dek::generate().unwrap().into();
    let ciphers = CipherStack::new(&deks, &[DataUnit::B4096]).unwrap();
    Pipeline::new(Arc::new(volume), Instant::default(), ciphers).unwrap()
}

fn zero(at: u64, len: u64) -> Submission {
    let kind = RequestKind::Zero {
        release: true,
        durable: false,
    };
    let at = ByteOffset(at);
    let request = BlockRequest { kind, at, len };
    Submission::new(Token(at.0), request, GuestBuffer::default())
}

/// What is enough for the guest is told before more is decrypted, and nothing is forgotten.
#[test]
fn completions_are_looked_at_in_parts() {
    const LEN: usize = 32 << 10;
    let mut pipeline = pipeline(GIB);
    let mut memory = [0; LEN];
    let start = NonNull::from(&mut memory).cast();
    for number in 0..3 {
        let at = ByteOffset(number * LEN as u64);
        let kind = RequestKind::Write { durable: false };
        let len = LEN as u64;
        // SAFETY: `memory` lives until all of them have completed, and nobody looks at it meanwhile.
        let slices = vec![unsafe { SharedSlice::new(start, LEN) }];
        let owner = None;
        let memory = GuestBuffer { slices, owner };
        pipeline.submit(Submission::new(
            Token(number),
            BlockRequest { kind, at, len },
            memory,
        ));
    }
    let mut finished = Vec::new();
    let mut counts = Vec::new();
    loop {
        let more = pipeline.poll_part();
        pipeline.take_finished(&mut finished);
        counts.push(finished.len());
        if !more {
            break;
        }
        assert!(!pipeline.is_idle());
    }
    assert_eq!(counts, [1, 2, 3]);
    assert!(pipeline.is_idle());
    for done in finished {
        assert!(done.take().1.is_ok());
    }
}

/// While a gigabyte is discarded commands are looked at again and again, and no further request needs
/// to be taken.
#[test]
fn a_large_discard_is_done_in_slices() {
    let mut pipeline = pipeline(4 * GIB);
    pipeline.submit(zero(0, GIB));
    let mut finished = Vec::new();
    let mut turns = 0;
    loop {
        pipeline.take_finished(&mut finished);
        if !finished.is_empty() {
            break;
        }
        assert!(pipeline.is_zeroing() && pipeline.is_between_bursts());
        pipeline.poll();
        turns += 1;
    }
    assert!((10..100).contains(&turns), "{turns} turns");
    assert!(!pipeline.is_zeroing() && pipeline.is_idle());
    assert!(finished[0].result.is_ok());
    let map = pipeline.volume.map();
    assert_ne!(map.get(GIB / BLOCK_SIZE - 1), BlockState::Data);

    // Small ones are done at once.
    pipeline.poll();
    pipeline.submit(zero(0, 1 << 20));
    assert!(!pipeline.is_zeroing());
    pipeline.take_finished(&mut finished);
    assert_eq!(finished.len(), 2);
    finished.into_iter().for_each(|done| {
        let _ = done.take();
    });
}

/// A request with the memory of `bytes`, which is nobody else's until it has ended.
fn with_memory(kind: RequestKind, at: u64, bytes: &mut [u8]) -> Submission {
    let (start, len) = (NonNull::from(&mut *bytes).cast(), bytes.len());
    // SAFETY: each test keeps the bytes until its requests have ended, and looks at none before.
    let slices = vec![unsafe { SharedSlice::new(start, len) }];
    let owner = None;
    let request = BlockRequest {
        kind,
        at: ByteOffset(at),
        len: len as u64,
    };
    Submission::new(Token(at), request, GuestBuffer { slices, owner })
}

/// Reads that overlap each other without end do not keep out who is to have their block alone.
#[test]
fn a_discard_among_reads_without_end_is_done() {
    let mut pipeline = pipeline(GIB);
    pipeline.store_mut().one_by_one = true;
    assert!(pipeline.volume.map().ensure(0..1).unwrap());
    pipeline.volume.map().set_data(0..1);
    let mut memory = [0; 4096];
    for _ in 0..2 {
        pipeline.submit(with_memory(RequestKind::Read, 0, &mut memory));
    }
    pipeline.submit(zero(0, BLOCK_SIZE));
    let (mut finished, mut rounds, mut is_done) = (Vec::new(), 0, false);
    while !is_done {
        rounds += 1;
        assert!(rounds < 20, "the discard waits for ever");
        pipeline.poll();
        pipeline.take_finished(&mut finished);
        for done in finished.drain(..) {
            is_done |= done.request().kind != RequestKind::Read;
            assert!(done.take().1.is_ok());
            // Before the other one has ended.
            pipeline.submit(with_memory(RequestKind::Read, 0, &mut memory));
        }
    }
    while !pipeline.is_idle() {
        pipeline.poll();
    }
    pipeline.take_finished(&mut finished);
    for done in finished {
        assert!(done.take().1.is_ok());
    }
    let marks = pipeline.volume.marks();
    marks.release(marks.try_shared(0..1).expect("nobody wants it any more"));
}

/// A request that need not have its block alone any more is not kept out by itself.
#[test]
fn a_small_write_into_a_block_that_was_written_meanwhile_shares_it() {
    let mut pipeline = pipeline(GIB);
    let volume = pipeline.volume.clone();
    let marks = volume.marks();
    let busy = marks.try_shared(0..1).unwrap();
    let mut memory = [0; 512];
    let kind = RequestKind::Write { durable: false };
    pipeline.submit(with_memory(kind, 512, &mut memory));
    pipeline.poll();
    assert!(marks.try_shared(0..1).is_none(), "it is wanted alone");
    // As another queue does whose write of the whole block has ended.
    volume.map().set_data(0..1);
    let mut finished = Vec::new();
    for _ in 0..4 {
        pipeline.poll();
        pipeline.take_finished(&mut finished);
    }
    assert_eq!(finished.len(), 1);
    for done in finished {
        assert!(done.take().1.is_ok());
    }
    marks.release(marks.try_shared(0..1).expect("nobody wants it any more"));
    marks.release(busy);
}

/// A pipeline that is given up with a request that waits keeps no block from others.
#[test]
fn what_waits_in_a_pipeline_that_ends_wants_nothing_any_more() {
    let mut pipeline = pipeline(GIB);
    let volume = pipeline.volume.clone();
    let marks = volume.marks();
    let busy = marks.try_shared(0..1).unwrap();
    pipeline.submit(zero(0, BLOCK_SIZE));
    assert!(marks.try_shared(0..1).is_none(), "it is wanted alone");
    drop(pipeline);
    marks.release(marks.try_shared(0..1).expect("nobody wants it any more"));
    marks.release(busy);
}

/// Commands are looked at again and again while a guest reads what needs no operation: what was never written, and
/// what is in memory.
#[test]
fn reads_without_operations_are_done_in_slices() {
    const LEN: usize = 16 << 20;
    const READS: usize = 2;
    for is_mapped in [false, true] {
        let mut pipeline = pipeline(GIB);
        if is_mapped {
            let blocks = 0..LEN as u64 / BLOCK_SIZE;
            pipeline.store_mut().mapping = vec![0; LEN];
            assert!(pipeline.volume.map().ensure(blocks.clone()).unwrap());
            pipeline.volume.map().set_data(blocks);
        }
        let mut memory = vec![1; LEN];
        let mut finished = Vec::new();
        for _ in 0..READS {
            pipeline.submit(with_memory(RequestKind::Read, 0, &mut memory));
            pipeline.take_finished(&mut finished);
        }
        assert!(finished.is_empty(), "32 MiB in one turn");
        let mut turns = 0;
        while finished.len() < READS {
            assert!(pipeline.is_between_bursts());
            pipeline.poll();
            pipeline.take_finished(&mut finished);
            turns += 1;
        }
        assert!((4..100).contains(&turns), "{turns} turns");
        assert!(pipeline.is_idle());
        for done in finished {
            assert!(done.take().1.is_ok());
        }
        assert!(is_mapped || memory.iter().all(|byte| *byte == 0));
    }
}
