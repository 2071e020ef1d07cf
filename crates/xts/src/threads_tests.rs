//! Pieces that several threads work on are as one thread alone makes them.

use std::ptr::NonNull;
use std::sync::Arc;

use keys::Dek;
use keys::units::ByteOffset;
use test_support::rng::Rng;

use super::*;
use crate::{Cipher, CipherStack};

/// A guest's memory, cut anywhere.
struct Scattered {
    parts: Vec<Vec<u8>>,
}

impl Scattered {
    fn of(bytes: &[u8], cuts: &mut Rng) -> Self {
        let (mut parts, mut left) = (Vec::new(), bytes);
        while !left.is_empty() {
            let (part, rest) = left.split_at((1 + cuts.within(0..40_000) as usize).min(left.len()));
            parts.push(part.to_vec());
            left = rest;
        }
        Self { parts }
    }

    fn slices(&mut self) -> Vec<SharedSlice> {
        let slice = |part: &mut Vec<u8>| {
            let start = NonNull::from(&mut part[..]).cast();
            // SAFETY: the parts outlive the slices, and nobody else uses them meanwhile.
            unsafe { SharedSlice::new(start, part.len()) }
        };
        self.parts.iter_mut().map(slice).collect()
    }
}

/// A piece of a disk there and back: as one thread makes it.
fn there_and_back(alone: &mut Cipher, helped: &mut Cipher, rng: &mut Rng) {
    let len = LEAST + 16 * rng.within(0..4096) as usize;
    let at = ByteOffset(16 * rng.within(0..1 << 20));
    let plain = rng.bytes(len);
    let mut guest = Scattered::of(&plain, rng);
    let (mut expected, mut found) = (vec![0; len], vec![0; len]);
    alone.encrypt(at, &guest.slices(), Cursor::default(), &mut expected);
    helped.encrypt(at, &guest.slices(), Cursor::default(), &mut found);
    assert!(
        found == expected,
        "{len} bytes at {at:?} are encrypted in another way"
    );
    guest.parts.iter_mut().for_each(|part| part.fill(0));
    helped.decrypt(at, &expected, &guest.slices(), Cursor::default());
    assert!(
        guest.parts.concat() == plain,
        "{len} bytes at {at:?} are decrypted in another way"
    );
}

#[test]
fn shared_pieces_are_as_one_thread_makes_them() {
    let threads = Arc::new(CryptoThreads::start(3).unwrap());
    // Queues that come at the same time: one has the helpers, the others do it alone.
    let queue = |seed: u64, unit: DataUnit| {
        let mut rng = Rng::new(seed);
        let dek = Dek::generate().unwrap();
        let mut alone = Cipher::new(&dek, unit).unwrap();
        let mut helped = Cipher::with_threads(&dek, unit, &threads).unwrap();
        for _ in 0..40 {
            there_and_back(&mut alone, &mut helped, &mut rng);
        }
    };
    thread::scope(|scope| {
        for seed in 1..=3 {
            let unit = [DataUnit::B512, DataUnit::B4096][seed as usize % 2];
            scope.spawn(move || queue(seed, unit));
        }
    });
}

#[test]
fn helpers_do_their_part() {
    let threads = Arc::new(CryptoThreads::start(1).unwrap());
    let dek = Dek::generate().unwrap();
    let helpers = Helpers::new(&threads, &dek, DataUnit::B4096).unwrap();
    let mut guest = Scattered {
        parts: vec![vec![7; LEAST]],
    };
    let slices = guest.slices();
    let mut expected = vec![0; LEAST];
    let mut alone = Cipher::new(&dek, DataUnit::B4096).unwrap();
    alone.encrypt(ByteOffset(0), &slices, Cursor::default(), &mut expected);
    // A helper that looks for work, and one that sleeps.
    for _ in 0..3 {
        let mut host = vec![0; LEAST];
        let job = helpers.job(&Piece {
            direction: Direction::Encrypt,
            at: ByteOffset(0),
            slices: &slices,
            cursor: Cursor::default(),
            host: host.as_mut_ptr(),
            len: host.len(),
        });
        let leave_all = |job: &Job| {
            while job.next.load(Ordering::SeqCst) < LEAST {
                thread::yield_now();
            }
            true
        };
        let meeting = &threads.shared.meeting;
        assert!(meeting.share(job, || threads.wake(usize::MAX), leave_all));
        assert!(host == expected, "the helper has done it all");
        thread::sleep(2 * LOOKS);
    }
}

#[test]
fn threads_end_with_their_last_user() {
    let threads = Arc::new(CryptoThreads::start(2).unwrap());
    let shared = Arc::downgrade(&threads.shared);
    let dek = Dek::generate().unwrap();
    let stack = CipherStack::with_threads(&dek.into(), &[DataUnit::B4096], &threads).unwrap();
    drop(threads);
    assert!(shared.upgrade().is_some(), "a cipher uses them");
    drop(stack);
    assert!(shared.upgrade().is_none());
}

#[test]
fn a_thread_that_had_to_wait_works_alone_for_a_while() {
    let (long, short) = (Duration::from_micros(90), Duration::from_micros(10));
    let mut alone = Alone::default();
    let pieces_alone = |alone: &mut Alone| (0..1 << 20).take_while(|_| alone.is_next()).count();
    alone.note(long, short);
    assert_eq!(pieces_alone(&mut alone), 0);
    for expected in [64, 128, 256] {
        alone.note(short, long);
        assert_eq!(pieces_alone(&mut alone), expected);
    }
    (0..20).for_each(|_| alone.note(short, long));
    assert_eq!(pieces_alone(&mut alone), 16 * 1024);
    (0..20).for_each(|_| alone.note(long, short));
    alone.note(short, long);
    assert_eq!(
        pieces_alone(&mut alone),
        64,
        "it is forgotten after a while"
    );
}
