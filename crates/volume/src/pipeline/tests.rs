//! What a pipeline does between two looks at what has completed.

use std::io;
use std::ptr::NonNull;
use std::sync::Arc;

use uuid::Uuid;

use super::*;
use crate::store::{ReadAt, Store, StoreCompletion, StoreOp, Tag};
use crate::{BlockState, Geometry, LayerMap, Volume, format};
use keys::Dek;
use keys::units::{BLOCK_SIZE, ByteOffset};
use xts::{CipherStack, DataUnit, SharedSlice};

/// Completes everything at once.
#[derive(Default)]
struct Instant(Vec<StoreCompletion>);

impl Store for Instant {
    fn alignment(&self) -> u64 {
        512
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
        self.0.push(StoreCompletion {
            tag,
            result,
            buffer,
        });
    }

    fn reap(&mut self, into: &mut Vec<StoreCompletion>) {
        into.append(&mut self.0);
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
