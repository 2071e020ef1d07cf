//! What a queue counts of its requests, in memory that outlives the process ([`protocol::io_counters`]).
//!
//! Each word has one writer, the thread of the queue, so that a count is a load and a store: no lock, and no
//! instruction that others wait for. The words of a queue have pages of their own.
//!
//! Nobody asks the clock for each request. A turn begins with a moment, which is that of all requests that it takes, and
//! what is completed together has one more: so a latency is too long by what the turn did before it took the request,
//! which the guest waited for as well, and right to that. The moment at which a turn begins is in most turns one that
//! the wait before it knows already.

#![deny(clippy::disallowed_types)]

use std::fs::File;
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use nix::time::{ClockId, clock_gettime};
use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN,
    VIRTIO_BLK_T_OUT, VIRTIO_BLK_T_WRITE_ZEROES,
};

use protocol::io_counters::{
    OpWord, QUEUE_LEN, QUEUES_AT, SIGNATURE, SIGNS_AT, Word, bucket_of, counters_len, ticks_since,
};
use protocol::{Operation, counters_at};
use volume::{HeldWords, Mapped};

/// The counters of all queues.
pub struct Counters {
    words: Arc<Mapped>,
    /// Where they begin.
    at: usize,
}

impl Counters {
    /// Those in the memory that the attach process keeps. Where that has no room for them, as one that an older version
    /// made, or another layout, what is counted is seen by nobody.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn kept(region: &File, queues: u16) -> io::Result<Self> {
        let (at, len) = (counters_at(queues), counters_len(queues));
        if region.metadata()?.len() < at + len {
            return Self::unseen(queues);
        }
        let words = Mapped::file(region, (at + len) as usize)?;
        let signature = words.words(at as usize, 1)[0].load(Ordering::Relaxed);
        match u64::from_le(signature) == SIGNATURE {
            true => Ok(Self {
                words: Arc::new(words),
                at: at as usize,
            }),
            false => Self::unseen(queues),
        }
    }

    /// Those that nobody sees.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn unseen(queues: u16) -> io::Result<Self> {
        Ok(Self {
            words: Arc::new(Mapped::private(counters_len(queues) as usize)?),
            at: 0,
        })
    }

    /// Gives a sign of life, for the first thread alone.
    pub fn sign_of_life(&self) {
        let sign = &self.words.words(self.at + SIGNS_AT as usize, 1)[0];
        sign.store(
            sign.load(Ordering::Relaxed).wrapping_add(1),
            Ordering::Relaxed,
        );
    }

    /// Those of a queue, for its thread alone.
    pub fn queue(&self, index: usize) -> QueueCounters {
        QueueCounters {
            words: self
                .words
                .held(self.at + QUEUES_AT as usize + index * QUEUE_LEN),
            now: now(),
        }
    }
}

/// The moment that it is, in ticks since the host was started. To subtract one [`Instant`](std::time::Instant) from
/// another takes half as long as to read the clock.
#[inline]
pub fn now() -> u64 {
    // There is such a clock, so this never fails.
    clock_gettime(ClockId::CLOCK_MONOTONIC).map_or(0, |now| {
        ticks_since(now.tv_sec().cast_unsigned(), now.tv_nsec().cast_unsigned())
    })
}

/// What a guest asks for by the type of a request.
#[inline]
pub fn operation_of(kind: u32) -> Operation {
    /// As in `request::interpret`: a barrier is no other request, and a flush may be called a write.
    const BARRIER: u32 = 1 << 31;
    const FLUSH_OUT: u32 = VIRTIO_BLK_T_FLUSH | VIRTIO_BLK_T_OUT;
    /// By type, since a chain of comparisons takes twice as long.
    const OF_TYPE: [Operation; 16] = {
        let mut all = [Operation::Other; 16];
        all[VIRTIO_BLK_T_IN as usize] = Operation::Read;
        all[VIRTIO_BLK_T_OUT as usize] = Operation::Write;
        all[VIRTIO_BLK_T_FLUSH as usize] = Operation::Flush;
        all[FLUSH_OUT as usize] = Operation::Flush;
        all[VIRTIO_BLK_T_GET_ID as usize] = Operation::GetId;
        all[VIRTIO_BLK_T_DISCARD as usize] = Operation::Discard;
        all[VIRTIO_BLK_T_WRITE_ZEROES as usize] = Operation::WriteZeroes;
        all
    };
    let known = OF_TYPE.get((kind & !BARRIER) as usize);
    known.copied().unwrap_or(Operation::Other)
}

/// What is kept of a request until it is counted.
#[derive(Debug, Clone, Copy)]
pub struct Asked {
    operation: Operation,
    /// The moment at which it was taken, in ticks.
    taken: u64,
}

/// What became of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It was done, for so many bytes.
    Done(u64),
    /// It failed or was refused.
    Failed,
}

/// The counters of one queue.
pub struct QueueCounters {
    words: HeldWords<{ QUEUE_LEN / 8 }>,
    /// The moment of what is being done, in ticks.
    now: u64,
}

impl QueueCounters {
    /// It is this moment, in ticks of [`now`].
    #[inline]
    pub fn at(&mut self, moment: u64) {
        self.now = moment;
    }

    /// The moment of what is being done.
    #[inline]
    pub fn moment(&self) -> u64 {
        self.now
    }

    /// It is now.
    #[inline]
    pub fn look_at_clock(&mut self) {
        self.at(now());
    }

    /// A request of that type is taken.
    #[inline]
    pub fn taken(&self, kind: u32) -> Asked {
        Asked {
            operation: operation_of(kind),
            taken: self.now,
        }
    }

    /// A request is answered.
    #[inline]
    pub fn answered(&self, asked: Asked, outcome: Outcome) {
        match outcome {
            Outcome::Done(bytes) => self.count_one(asked, OpWord::Bytes, bytes),
            Outcome::Failed => self.count_one(asked, OpWord::Errors, 1),
        }
    }

    /// Counts a request, and so much more in a word of its operation. It is never inlined: its callers are long, and with
    /// it in them the compiler would inline less of what they do for each request.
    #[inline(never)]
    fn count_one(&self, asked: Asked, word: OpWord, more: u64) {
        let latency = self.now.saturating_sub(asked.taken);
        let at = asked.operation.at();
        self.add(at + word as usize, more);
        self.add(at + OpWord::LatencyTicks as usize, latency);
        self.add(at + OpWord::Buckets as usize + bucket_of(latency), 1);
    }

    /// A chain is returned that is no request.
    pub fn not_understood(&self) {
        self.answered(self.taken(u32::MAX), Outcome::Failed);
    }

    /// So many chains are in flight, of which so many wait for space on the host.
    #[inline]
    pub fn in_flight(&self, all: usize, wait_for_space: usize) {
        let set =
            |word: Word, to: usize| self.words[word as usize].store(to as u64, Ordering::Relaxed);
        set(Word::InFlight, all);
        set(Word::WaitForSpace, wait_for_space);
    }

    /// A request waits for a limit from now on; what is to be told when it has waited.
    pub fn limit_wait(&self) -> u64 {
        self.count(Word::LimitWaits, 1);
        self.now
    }

    /// A request has waited for a limit since then.
    pub fn limit_waited(&self, since: u64) {
        self.count(Word::LimitWaitTicks, self.now.saturating_sub(since));
    }

    /// A request waits for space on the host.
    pub fn space_wait(&self) {
        self.count(Word::SpaceWaits, 1);
    }

    /// The queue has lost its key; what is to be told when it has it again.
    pub fn key_lost(&mut self) -> u64 {
        self.look_at_clock();
        self.count(Word::KeyWaits, 1);
        self.now
    }

    /// It has its key again, which it has lost then.
    pub fn key_back(&mut self, since: u64) {
        self.look_at_clock();
        self.count(Word::KeyWaitTicks, self.now.saturating_sub(since));
    }

    /// The queue has busy-polled for so many ticks.
    #[inline]
    pub fn polled(&self, ticks: u64) {
        self.count(Word::PollTicks, ticks);
    }

    #[inline]
    fn count(&self, word: Word, more: u64) {
        self.add(word as usize, more);
    }

    /// Nobody else writes the word.
    #[inline]
    fn add(&self, at: usize, more: u64) {
        if let Some(word) = self.words.get(at) {
            let sum = word.load(Ordering::Relaxed).wrapping_add(more);
            word.store(sum, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;
    use std::time::Duration;

    use protocol::{KeptRegion, OpCounters};

    use protocol::io_counters::ticks_of;

    use super::*;

    fn counters(region: &KeptRegion, queues: u16) -> Counters {
        let file = File::from(region.as_fd().try_clone_to_owned().unwrap());
        Counters::kept(&file, queues).unwrap()
    }

    #[test]
    fn what_queues_count_is_read_by_the_attach_process_and_counted_on() {
        let region = KeptRegion::create(2).unwrap();
        for life in 1..=2 {
            let all = counters(&region, 2);
            for (index, latency) in [(0, Duration::from_micros(500)), (1, Duration::ZERO)] {
                let mut queue = all.queue(index);
                let begin = queue.now;
                let asked = queue.taken(VIRTIO_BLK_T_OUT);
                queue.at(begin + ticks_of(latency));
                queue.answered(asked, Outcome::Done(4096));
                queue.answered(
                    asked,
                    match index {
                        0 => Outcome::Done(4096),
                        _ => Outcome::Failed,
                    },
                );
                queue.in_flight(3, 1);
                queue.not_understood();
            }
            let seen = region.counters().unwrap().unwrap();
            assert_eq!((seen.in_flight, seen.wait_for_space), (6, 2));
            let of = |operation| {
                let mut all = seen.operations.iter();
                all.find(|counted| counted.operation == operation).unwrap()
            };
            let writes: &OpCounters = of(Operation::Write);
            assert_eq!((writes.bytes, writes.errors), (3 * life * 4096, life));
            let (slow, fast) = (bucket_of(ticks_of(Duration::from_micros(500))), 0);
            assert_eq!(writes.buckets, [(fast, 2 * life), (slow as u16, 2 * life)]);
            let latencies = writes.latency_ticks as f64 / protocol::io_counters::TICKS as f64;
            assert!(
                (latencies - 0.001 * life as f64).abs() < 1e-6,
                "{latencies}"
            );
            assert_eq!(of(Operation::Other).errors, 2 * life);
        }
    }

    #[test]
    fn waits_are_counted_with_their_time() {
        let region = KeptRegion::create(1).unwrap();
        let mut queue = counters(&region, 1).queue(0);
        let held = queue.limit_wait();
        queue.at(queue.now + ticks_of(Duration::from_secs(2)));
        queue.limit_waited(held);
        queue.space_wait();
        let lost = queue.key_lost();
        queue.key_back(lost);
        queue.polled(ticks_of(Duration::from_secs(1)));
        let seen = region.counters().unwrap().unwrap();
        let second = protocol::io_counters::TICKS;
        assert_eq!((seen.limit_waits, seen.limit_wait_ticks), (1, 2 * second));
        assert_eq!((seen.space_waits, seen.key_waits), (1, 1));
        assert_eq!(seen.poll_ticks, second);
    }

    #[test]
    fn signs_of_life_are_seen() {
        let region = KeptRegion::create(1).unwrap();
        let counters = counters(&region, 1);
        counters.sign_of_life();
        counters.sign_of_life();
        assert_eq!(region.counters().unwrap().unwrap().signs_of_life, 2);
        assert_eq!(
            region
                .renewed()
                .unwrap()
                .counters()
                .unwrap()
                .unwrap()
                .signs_of_life,
            2
        );
    }

    #[test]
    fn a_region_without_room_is_counted_past() {
        let short = protocol::sealed_memory("test", counters_at(1)).unwrap();
        let queue = Counters::kept(&short, 1).unwrap().queue(0);
        queue.not_understood();
        let other = protocol::sealed_memory("test", counters_at(1) + counters_len(1)).unwrap();
        let queue = Counters::kept(&other, 1).unwrap().queue(0);
        queue.not_understood();
        let region = KeptRegion::adopt(other.into(), 1);
        assert_eq!(region.counters().unwrap(), None);
    }

    #[test]
    fn each_type_of_request_has_its_operation() {
        for (kind, operation) in [
            (0, Operation::Read),
            (1, Operation::Write),
            (1 << 31 | 1, Operation::Write),
            (4, Operation::Flush),
            (5, Operation::Flush),
            (8, Operation::GetId),
            (11, Operation::Discard),
            (13, Operation::WriteZeroes),
            (2, Operation::Other),
            (u32::MAX, Operation::Other),
        ] {
            assert_eq!(operation_of(kind), operation, "{kind}");
        }
    }
}
