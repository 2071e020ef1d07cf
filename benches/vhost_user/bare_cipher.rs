//! The cipher by itself: what encrypting or decrypting as many bytes costs, without a request.

use std::ptr::NonNull;
use std::thread;
use std::time::{Duration, Instant};

use keys::Dek;
use keys::units::ByteOffset;
use xts::{Cipher, Cursor, DataUnit, SharedSlice};

use crate::machine::{busy_time, pin, thread_time};
use crate::pattern::{Pattern, Work};
use crate::report::Measured;

/// Bytes of each buffer of the guest, and of a data unit.
const UNIT: usize = 4096;
/// No longer is needed: nothing waits for anything here.
const LIMIT: Duration = Duration::from_millis(500);
/// Bytes between two looks at the clock.
const BATCH: usize = 1 << 20;

/// What is to be measured.
pub struct BareCipher {
    bytes: usize,
    depth: usize,
    encrypts: bool,
}

/// What the bare cipher does for a pattern, where that is nothing but whole data units of one
/// direction.
pub fn of(pattern: &Pattern) -> Option<BareCipher> {
    let bytes = pattern.bytes as usize;
    let one_way = matches!(pattern.work, Work::Read | Work::Write);
    (one_way && bytes.is_multiple_of(UNIT)).then_some(BareCipher {
        bytes,
        depth: usize::from(pattern.depth),
        encrypts: pattern.work == Work::Write,
    })
}

impl BareCipher {
    /// Goes round as many buffers as the pattern has requests in flight, so that the caches hold no
    /// more than under a load, on the CPU of the back-ends.
    pub fn measure(&self, limit: Duration, cpu: usize) -> Measured {
        thread::scope(|scope| {
            let thread = scope.spawn(|| {
                pin(cpu);
                self.measure_here(limit.min(LIMIT))
            });
            thread.join().unwrap()
        })
    }

    fn measure_here(&self, limit: Duration) -> Measured {
        let dek = Dek::generate().unwrap();
        let mut cipher = Cipher::new(&dek, DataUnit::B4096).unwrap();
        let mut guest = vec![0x5a_u8; self.bytes * self.depth];
        let mut host = guest.clone();
        let requests: Vec<Vec<SharedSlice>> = guest
            .chunks_mut(self.bytes)
            .map(|request| {
                request
                    .chunks_mut(UNIT)
                    // SAFETY: `guest` outlives the slices and is used by nothing else meanwhile.
                    .map(|unit| unsafe { SharedSlice::new(NonNull::from(&mut unit[0]), UNIT) })
                    .collect()
            })
            .collect();
        let mut round = || {
            let buffers = host.chunks_mut(self.bytes);
            for (at, (slices, buffer)) in (0_u64..).zip(requests.iter().zip(buffers)) {
                let at = ByteOffset(at * self.bytes as u64);
                if self.encrypts {
                    cipher.encrypt(at, slices, Cursor::default(), buffer);
                } else {
                    cipher.decrypt(at, buffer, slices, Cursor::default());
                }
            }
        };
        let rounds = (BATCH / (self.bytes * self.depth)).max(1);
        round();
        let (start, before, mut done) = (Instant::now(), (thread_time(), busy_time()), 0);
        while start.elapsed() < limit {
            (0..rounds).for_each(|_| round());
            done += rounds * self.depth;
        }
        let (elapsed, cpu) = (start.elapsed().as_secs_f64(), thread_time() - before.0);
        let others = (busy_time() - before.1).saturating_sub(cpu);
        Measured {
            requests: done as u64,
            // What it took without the time in which it did not run.
            seconds: cpu.as_secs_f64(),
            cpu_seconds: cpu.as_secs_f64(),
            latency: Vec::new(),
            others: others.as_secs_f64() / elapsed,
        }
    }
}
