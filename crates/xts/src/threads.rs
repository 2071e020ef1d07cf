//! Threads that help with large pieces: where AES is slower than the storage, a large request of a disk that has
//! little else to do is encrypted by more than one processor.
//!
//! A piece is cut into chunks, which its own thread and those that help take in turn until none is left; then the
//! thread goes on as if it had done all of them. So the order in which requests complete stays. A helper
//! that wakes late finds no chunk left. One that has a chunk, or is about to take one, and loses its CPU to something else holds
//! the piece up; after that the thread works alone for a while, twice as long each time. A piece that is small, or that
//! comes while another thread has the helpers, is done by its own thread alone.
//!
//! A helper holds no key: each [`Cipher`](super::Cipher) has, for each of them, a cipher of its own for it to use, which goes with it.

use std::cell::UnsafeCell;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use keys::units::ByteOffset;
use keys::{Dek, QUEUE_STACK, spawn_with_keys};

use super::meeting::Meeting;
use super::shared::{Cursor, SharedSlice};
use super::thread_cipher::{Piece, ThreadCipher};
use super::{CipherError, DataUnit, Direction};

/// Bytes from which on a piece is shared. Less is done before another thread has woken.
pub(super) const LEAST: usize = 64 * 1024;
/// Bytes of a chunk: whole data units.
const CHUNK: usize = 16 * 1024;
/// How long a helper looks for the next piece before it sleeps: a large request comes as many pieces, and
/// to wake a thread takes as long as to encrypt some of them.
const LOOKS: Duration = Duration::from_micros(100);
/// Pieces that a thread does alone at least, and at most, after it had to wait for helpers longer than it worked itself.
const ALONE: std::ops::RangeInclusive<u32> = 64..=16 * 1024;

/// How many of the next pieces a thread does alone.
#[derive(Debug, Default)]
struct Alone {
    left: u32,
    /// How many there were the last time.
    last: u32,
}

impl Alone {
    /// Whether the next piece is one of them.
    fn is_next(&mut self) -> bool {
        let alone = self.left > 0;
        self.left = self.left.saturating_sub(1);
        alone
    }

    /// Notes how long the thread worked on a piece, and how long it waited then for those that helped.
    fn note(&mut self, worked: Duration, waited: Duration) {
        if waited <= worked {
            self.last /= 2;
            return;
        }
        self.last = (self.last * 2).clamp(*ALONE.start(), *ALONE.end());
        self.left = self.last;
    }
}

/// A piece that several threads work on.
struct Job {
    direction: Direction,
    at: ByteOffset,
    slices: *const [SharedSlice],
    cursor: Cursor,
    host: *mut u8,
    len: usize,
    /// The first byte that nobody has taken.
    next: AtomicUsize,
    /// A cipher for each helper.
    ciphers: *const [OneUser],
}

// SAFETY: the addresses are good until the job has ended, for whom is known in `Helpers::share`; each byte of the piece is
// in one chunk, which one thread takes; each helper uses its own cipher.
unsafe impl Send for Job {}
// SAFETY: as above.
unsafe impl Sync for Job {}

impl Job {
    /// Takes chunks until none is left; whether there was any.
    fn work(&self, cipher: &mut ThreadCipher) -> bool {
        // SAFETY: who shares the piece has the slices until the job has ended.
        let slices = unsafe { &*self.slices };
        // Relaxed: what a chunk is worked on with is known from before the job was open, and who waits for its end
        // sees what was written by the count of those inside.
        let take = || self.next.fetch_add(CHUNK, Ordering::Relaxed);
        let mut start = take();
        let any = start < self.len;
        while start < self.len {
            let mut cursor = self.cursor;
            cursor.advance(slices, start);
            cipher.walk_alone(&Piece {
                direction: self.direction,
                at: self.at.plus(start as u64),
                slices,
                cursor,
                // SAFETY: `start` is less than the length of the host's memory.
                host: unsafe { self.host.add(start) },
                len: CHUNK.min(self.len - start),
            });
            start = take();
        }
        any
    }

    /// Works on it with the cipher of a helper.
    fn help(&self, place: usize) -> bool {
        // SAFETY: who shares the piece has the ciphers until the job has ended.
        let ciphers = unsafe { &*self.ciphers };
        let Some(OneUser(cipher)) = ciphers.get(place) else {
            return false;
        };
        // SAFETY: only the helper of this place uses it, and only within a job; their owner does not touch them.
        self.work(unsafe { &mut *cipher.get() })
    }
}

/// A cipher that one helper uses while its owner has a job.
struct OneUser(UnsafeCell<ThreadCipher>);

// SAFETY: it goes between threads as a `ThreadCipher` may, and only the helper of its place uses it, within a job.
unsafe impl Sync for OneUser {}

/// What a [`Cipher`](super::Cipher) has to be helped.
pub(super) struct Helpers {
    threads: Arc<CryptoThreads>,
    ciphers: Box<[OneUser]>,
    alone: Alone,
}

impl Helpers {
    /// A cipher for each of the threads.
    pub(super) fn new(
        threads: &Arc<CryptoThreads>,
        dek: &Dek,
        unit: DataUnit,
    ) -> Result<Self, CipherError> {
        let one = |_| Ok(OneUser(UnsafeCell::new(ThreadCipher::new(dek, unit)?)));
        Ok(Self {
            threads: threads.clone(),
            alone: Alone::default(),
            ciphers: (0..threads.count())
                .map(one)
                .collect::<Result<_, CipherError>>()?,
        })
    }

    /// Has `piece` done by the caller, with `cipher`, and by the helpers; `false` while they help another thread, and
    /// for a while after they have held a piece up.
    pub(super) fn share(&mut self, piece: &Piece<'_>, cipher: &mut ThreadCipher) -> bool {
        if self.alone.is_next() {
            return false;
        }
        let meeting = &self.threads.shared.meeting;
        let wake = || self.threads.wake(piece.len.div_ceil(CHUNK) - 1);
        let (start, mut worked) = (Instant::now(), Duration::ZERO);
        let shared = meeting.share(self.job(piece), wake, |job| {
            let any = job.work(cipher);
            worked = start.elapsed();
            any
        });
        if shared {
            self.alone
                .note(worked, start.elapsed().saturating_sub(worked));
        }
        shared
    }

    fn job(&self, piece: &Piece<'_>) -> Job {
        Job {
            direction: piece.direction,
            at: piece.at,
            slices: piece.slices,
            cursor: piece.cursor,
            host: piece.host,
            len: piece.len,
            next: AtomicUsize::new(0),
            ciphers: &raw const *self.ciphers,
        }
    }
}

/// Threads that help the ciphers of one disk. They sleep while there is nothing large to do.
pub struct CryptoThreads {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

#[derive(Default)]
struct Shared {
    meeting: Meeting<Job>,
    /// One for each: whether it sleeps, or is about to.
    asleep: Box<[AtomicBool]>,
    is_over: AtomicBool,
}

impl CryptoThreads {
    /// Starts `count` of them.
    ///
    /// # Errors
    /// [`CipherError::Key`] when there can be no more threads, or their stacks cannot be locked.
    pub fn start(count: usize) -> Result<Self, CipherError> {
        let shared = Arc::new(Shared {
            asleep: (0..count).map(|_| AtomicBool::new(false)).collect(),
            ..Shared::default()
        });
        // What has started before one that cannot is ended by the drop.
        let mut this = Self {
            shared,
            threads: Vec::new(),
        };
        for place in 0..count {
            let shared = this.shared.clone();
            let name = format!("crypto-{place}");
            let thread = spawn_with_keys(name, QUEUE_STACK, move || shared.serve(place))?;
            this.threads.push(thread);
        }
        Ok(this)
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.threads.len()
    }

    /// Wakes at most so many that sleep.
    fn wake(&self, most: usize) {
        let sleepers = self.threads.iter().zip(&self.shared.asleep);
        let sleepers = sleepers.filter(|(_, asleep)| asleep.load(Ordering::SeqCst));
        for (thread, _) in sleepers.take(most) {
            thread.thread().unpark();
        }
    }
}

impl Drop for CryptoThreads {
    fn drop(&mut self) {
        self.shared.is_over.store(true, Ordering::SeqCst);
        for thread in self.threads.drain(..) {
            thread.thread().unpark();
            // One that has panicked has ended, too.
            let _ = thread.join();
        }
    }
}

impl Shared {
    /// Helps until all is over.
    fn serve(&self, place: usize) {
        let mut last = Instant::now();
        while !self.is_over.load(Ordering::SeqCst) {
            if self.meeting.is_open() && self.meeting.help(|job| job.help(place)) {
                last = Instant::now();
            } else if last.elapsed() < LOOKS {
                std::hint::spin_loop();
            } else {
                self.sleep(place);
                last = Instant::now();
            }
        }
    }

    /// Sleeps until a job is brought, unless one was while this was decided.
    fn sleep(&self, place: usize) {
        let Some(asleep) = self.asleep.get(place) else {
            return;
        };
        // Sequentially consistent, as is what a job is opened with: its owner sees that this thread sleeps, or this
        // thread sees the job.
        asleep.store(true, Ordering::SeqCst);
        if !self.meeting.is_open() && !self.is_over.load(Ordering::SeqCst) {
            thread::park();
        }
        asleep.store(false, Ordering::SeqCst);
    }
}

#[cfg(test)]
#[path = "threads_tests.rs"]
mod tests;
