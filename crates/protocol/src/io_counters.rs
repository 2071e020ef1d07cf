//! What the queues of a disk count: the words in memory that outlives a data plane, and what is read of them.
//!
//! Behind the in-flight region the memory of a [`KeptRegion`](crate::KeptRegion) has, in pages of their own, so that
//! queues do not take lines of the cache from each other:
//!
//! | Offset | Bytes | What |
//! |---|---|---|
//! | 0 | 8 | [`SIGNATURE`], or zeros where nothing is counted |
//! | [`SIGNS_AT`] | 8 | how often the data plane has given a sign of life, by its first thread; 0 in older versions |
//! | 4096 | [`QUEUE_LEN`] for each queue | its words of 64 bits |
//!
//! Of each queue these are the words of [`Word`], and from [`OPERATIONS_AT`] on for each [`Operation`] its
//! [`OpWord`]s and a histogram of its latencies. Times are in ticks of 2^-30 s. Each word has one writer, the thread of
//! the queue; whoever reads sees each as it was at some moment, and none ever goes back.
//!
//! # The histogram
//!
//! Bucket 0 has latencies of up to 2^-20 s (0.95 µs), bucket `i` those of up to 2^(i/4 - 20) s, and the last one all
//! that are over 64 s. Four buckets for each power of two are within 19 % of any latency, and are those of Prometheus'
//! native histograms of schema 2: to the tick up to 4 s, to a part in 2^32 over that.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Says that the words are there, and in which layout.
pub const SIGNATURE: u64 = u64::from_le_bytes(*b"SDCOUNT1");
/// Ticks of a second.
pub const TICKS: u64 = 1 << 30;
/// Buckets of a histogram.
pub const BUCKETS: usize = 106;
/// Bytes of the words of a queue.
pub const QUEUE_LEN: usize = 8192;
/// Where the word of the signs of life is.
pub const SIGNS_AT: u64 = 8;
/// Where the words of the first queue begin.
pub const QUEUES_AT: u64 = 4096;
/// Where the words of the first operation begin, in words of the queue.
pub const OPERATIONS_AT: usize = 16;
/// Words of an operation.
pub const OPERATION_WORDS: usize = OpWord::Buckets as usize + BUCKETS;

/// The power of two that is the highest latency of bucket 0, in ticks.
const FIRST: u32 = 10;
/// Which quarter of its power of two a latency is in, by the first four bits of its 32-bit mantissa, of which the first
/// is set. An eighth of a power of two has one border of a quarter at most. The high half of an entry is the quarter in
/// which it begins; to the low half the mantissa is added, and carries over when it is behind the border.
const QUARTERS: [u64; 16] = {
    /// `2^31` times the fourth root of 2, its square and its cube, rounded down: the last mantissas of the first three
    /// quarters.
    const LAST: [u64; 3] = [0x9837_f051, 0xb504_f333, 0xd744_fcca];
    let mut all = [0; 16];
    let (mut eighth, mut quarter) = (8, 0);
    while eighth < 16 {
        let end = (eighth as u64 + 1) << 28;
        all[eighth] = (quarter as u64) << 32;
        if quarter < 3 && LAST[quarter] < end {
            all[eighth] += u32::MAX as u64 - LAST[quarter];
            quarter += 1;
        }
        eighth += 1;
    }
    all
};

// Panics: the compiler, which looks at it.
const _: () = assert!((OPERATIONS_AT + Operation::ALL.len() * OPERATION_WORDS) * 8 <= QUEUE_LEN);

/// A word of a queue, by its place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Word {
    /// Chains taken and not returned, now.
    InFlight = 0,
    /// Of these, those that wait for space on the host, now.
    WaitForSpace,
    /// How often a request had to wait for a limit of the disk.
    LimitWaits,
    /// Ticks that requests waited for a limit.
    LimitWaitTicks,
    /// How many requests had to wait for space on the host.
    SpaceWaits,
    /// How often the queue lost its key.
    KeyWaits,
    /// Ticks that the queue was without a key, of those times that are over.
    KeyWaitTicks,
    /// Ticks that the queue has busy-polled.
    PollTicks,
}

/// A word of an operation, by its place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OpWord {
    /// Bytes of requests that were done.
    Bytes = 0,
    /// Requests that failed or were refused.
    Errors,
    /// The sum of all latencies, in ticks.
    LatencyTicks,
    /// The first bucket. All of them together are the requests.
    Buckets,
}

/// What a guest asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Operation {
    /// Reads.
    Read = 0,
    /// Writes.
    Write,
    /// Flushes.
    Flush,
    /// Discards.
    Discard,
    /// Zeros to be written.
    WriteZeroes,
    /// What the disk is called.
    GetId,
    /// What no request is, or none that is offered.
    Other,
}

impl Operation {
    /// All of them, in the order of their places.
    pub const ALL: [Self; 7] = [
        Self::Read,
        Self::Write,
        Self::Flush,
        Self::Discard,
        Self::WriteZeroes,
        Self::GetId,
        Self::Other,
    ];

    /// Its name, as in JSON and in labels.
    pub fn name(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write",
            Self::Flush => "flush",
            Self::Discard => "discard",
            Self::WriteZeroes => "write-zeroes",
            Self::GetId => "get-id",
            Self::Other => "other",
        }
    }

    /// Where its words begin, in words of the queue.
    pub fn at(self) -> usize {
        OPERATIONS_AT + self as usize * OPERATION_WORDS
    }
}

/// The bucket of a latency in ticks.
#[inline]
pub fn bucket_of(ticks: u64) -> usize {
    if ticks <= 1 << FIRST {
        return 0;
    }
    // The highest latency of a bucket belongs to it.
    let below = ticks - 1;
    let mantissa = (below << below.leading_zeros()) >> 32;
    let quarter = (mantissa + QUARTERS[(mantissa >> 28) as usize % 16]) >> 32;
    let bucket = 4 * (below.ilog2() - FIRST) + quarter as u32 + 1;
    (bucket as usize).min(BUCKETS - 1)
}

/// The highest latency of a bucket, in seconds; that of the last one has no end.
pub fn bucket_end(bucket: usize) -> f64 {
    match bucket {
        last if last >= BUCKETS - 1 => f64::INFINITY,
        bucket => (bucket as f64 / 4.0 - 20.0).exp2(),
    }
}

/// A time in ticks.
#[inline]
pub fn ticks_of(time: Duration) -> u64 {
    ticks_since(time.as_secs(), time.subsec_nanos().into())
}

/// Seconds and nanoseconds, less than a second of these, in ticks.
#[inline]
pub fn ticks_since(seconds: u64, nanoseconds: u64) -> u64 {
    /// `2^60 / 10^9`.
    const PER_NANOSECOND: u64 = 0x44b8_2fa1;
    (seconds << 30) + ((nanoseconds * PER_NANOSECOND) >> 30)
}

/// Ticks as a time.
#[inline]
pub fn time_of(ticks: u64) -> Duration {
    let nanoseconds = ((ticks % TICKS) * 1_000_000_000) >> 30;
    // Less than a second of them.
    Duration::new(ticks / TICKS, nanoseconds as u32)
}

/// What a disk has counted since it was attached, over all queues.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct IoCounters {
    /// For each operation that there was.
    pub operations: Vec<OpCounters>,
    /// Requests taken and not returned, now.
    pub in_flight: u64,
    /// Of these, those that wait for space on the host, now.
    pub wait_for_space: u64,
    /// How often a request had to wait for a limit.
    pub limit_waits: u64,
    /// Ticks that requests waited for a limit.
    pub limit_wait_ticks: u64,
    /// How many requests had to wait for space on the host.
    pub space_waits: u64,
    /// How often a queue lost its key.
    pub key_waits: u64,
    /// Ticks that queues were without a key, of those times that are over.
    pub key_wait_ticks: u64,
    /// Ticks that queues have busy-polled.
    pub poll_ticks: u64,
    /// How often the data plane has given a sign of life; none if it is of a version that gives none.
    #[serde(default)]
    pub signs_of_life: u64,
}

/// What was counted of one operation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct OpCounters {
    /// Which.
    pub operation: Operation,
    /// Bytes of requests that were done.
    pub bytes: u64,
    /// Requests that failed or were refused.
    pub errors: u64,
    /// The sum of all latencies, in ticks.
    pub latency_ticks: u64,
    /// Each bucket that is not empty, with how many requests it has, in their order.
    pub buckets: Vec<(u16, u64)>,
}

impl OpCounters {
    /// How many requests there were.
    pub fn requests(&self) -> u64 {
        let counts = self.buckets.iter().map(|(_, count)| *count);
        counts.fold(0, u64::wrapping_add)
    }
}

impl IoCounters {
    /// Reads the words of so many queues, which begin at `at` of the file; `None` where nothing is counted.
    ///
    /// # Errors
    /// What the kernel says.
    pub(crate) fn read(file: &File, at: u64, queues: u16) -> io::Result<Option<Self>> {
        if file.metadata()?.len() < at + counters_len(queues) {
            return Ok(None);
        }
        let word = |place: u64| {
            let mut word = [0; 8];
            file.read_exact_at(&mut word, at + place)?;
            io::Result::Ok(word)
        };
        if u64::from_le_bytes(word(0)?) != SIGNATURE {
            return Ok(None);
        }
        let mut sums = [0u64; QUEUE_LEN / 8];
        let mut bytes = [0; QUEUE_LEN];
        for queue in 0..u64::from(queues) {
            file.read_exact_at(&mut bytes, at + QUEUES_AT + queue * QUEUE_LEN as u64)?;
            let (words, _) = bytes.as_chunks::<8>();
            for (sum, word) in sums.iter_mut().zip(words) {
                // The data plane writes them, which a guest may have taken over: any number may be there.
                *sum = sum.wrapping_add(u64::from_ne_bytes(*word));
            }
        }
        let signs_of_life = u64::from_ne_bytes(word(SIGNS_AT)?);
        Ok(Some(Self::of(&sums, signs_of_life)))
    }

    fn of(words: &[u64; QUEUE_LEN / 8], signs_of_life: u64) -> Self {
        let word = |word: Word| words[word as usize];
        Self {
            operations: Operation::ALL
                .into_iter()
                .map(|operation| OpCounters::of(operation, &words[operation.at()..]))
                .filter(|counted| !counted.buckets.is_empty())
                .collect(),
            in_flight: word(Word::InFlight),
            wait_for_space: word(Word::WaitForSpace),
            limit_waits: word(Word::LimitWaits),
            limit_wait_ticks: word(Word::LimitWaitTicks),
            space_waits: word(Word::SpaceWaits),
            key_waits: word(Word::KeyWaits),
            key_wait_ticks: word(Word::KeyWaitTicks),
            poll_ticks: word(Word::PollTicks),
            signs_of_life,
        }
    }
}

impl OpCounters {
    fn of(operation: Operation, words: &[u64]) -> Self {
        let buckets = (0u16..).zip(words.iter().skip(OpWord::Buckets as usize).take(BUCKETS));
        let word = |word: OpWord| words.get(word as usize).copied().unwrap_or_default();
        Self {
            operation,
            bytes: word(OpWord::Bytes),
            errors: word(OpWord::Errors),
            latency_ticks: word(OpWord::LatencyTicks),
            buckets: buckets
                .filter(|(_, count)| **count > 0)
                .map(|(bucket, count)| (bucket, *count))
                .collect(),
        }
    }
}

/// Bytes of the counters of so many queues.
pub fn counters_len(queues: u16) -> u64 {
    QUEUES_AT + u64::from(queues) * QUEUE_LEN as u64
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_borders_of_buckets_are_those_of_schema_2() {
        assert_eq!(bucket_of(0), 0);
        for bucket in 0..BUCKETS - 1 {
            let end = bucket_end(bucket) * TICKS as f64;
            let end = end as u64;
            assert_eq!(bucket_of(end), bucket, "{end}");
            // Ticks are whole, and most borders are not; over 4 s it is a part in 2^32.
            assert_eq!(bucket_of(end + 2 + (end >> 31)), bucket + 1, "{end}");
        }
        assert!((bucket_end(80) - 1.0).abs() < 1e-12 && (bucket_end(104) - 64.0).abs() < 1e-9);
        assert_eq!(bucket_of(64 * TICKS), BUCKETS - 2);
        assert_eq!(bucket_of(u64::MAX), BUCKETS - 1);
    }

    #[test]
    fn ticks_are_exact_to_a_nanosecond() {
        assert_eq!(ticks_of(Duration::from_secs(3)), 3 * TICKS);
        for nanoseconds in [1, 999, 1000, 123_456_789, 999_999_999] {
            let ticks = ticks_of(Duration::from_nanos(nanoseconds)) as f64;
            let back = ticks * 1e9 / TICKS as f64;
            assert!(
                (back - nanoseconds as f64).abs() < 1.0,
                "{nanoseconds}: {back}"
            );
        }
    }

    #[test]
    fn ticks_are_a_time_again() {
        for nanoseconds in [0, 1, 999, 1_000_000_007, u64::from(u32::MAX)] {
            let time = time_of(ticks_of(Duration::from_nanos(nanoseconds)));
            assert!(
                nanoseconds - time.as_nanos() as u64 <= 1,
                "{nanoseconds}: {time:?}"
            );
        }
    }

    proptest! {
        #[test]
        fn a_latency_is_in_the_bucket_that_ends_next(ticks in any::<u64>()) {
            let bucket = bucket_of(ticks);
            let seconds = |ticks: u64| ticks as f64 / TICKS as f64;
            // To a tick, and to what a floating-point number is exact.
            prop_assert!(seconds(ticks.saturating_sub(1)) <= bucket_end(bucket) * (1.0 + 1e-9));
            prop_assert!(bucket == 0 || seconds(ticks) >= bucket_end(bucket - 1) * (1.0 - 1e-9));
        }
    }

    #[test]
    fn the_encoding_of_counters_has_no_empty_bucket() {
        let mut words = [0; QUEUE_LEN / 8];
        words[Word::SpaceWaits as usize] = 3;
        let write = Operation::Write.at();
        words[write + OpWord::Bytes as usize] = 4096;
        words[write + OpWord::Buckets as usize + 7] = 2;
        words[write + OpWord::Buckets as usize + 105] = 1;
        let counters = IoCounters::of(&words, 0);
        assert_eq!(counters.operations[0].requests(), 3);
        let json = serde_json::to_string(&counters).unwrap();
        let expected = r#"{"operations":[{"operation":"write","bytes":4096,"errors":0,"latencyTicks":0,"buckets":[[7,2],[105,1]]}],"inFlight":0,"waitForSpace":0,"limitWaits":0,"limitWaitTicks":0,"spaceWaits":3,"keyWaits":0,"keyWaitTicks":0,"pollTicks":0,"signsOfLife":0}"#;
        assert_eq!(json, expected, "old exporters read it");
        assert_eq!(serde_json::from_str::<IoCounters>(&json).unwrap(), counters);
    }
}
