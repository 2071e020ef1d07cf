//! What it costs two queues, on two CPUs, that they mark blocks near to each other.
//!
//! Each thread marks a block, shared, and releases it, as a request of 4 KiB does, over and over. What differs is which
//! blocks the two threads have: the same ones, neighbours, blocks whose marks are in the same cache line, and
//! blocks that have nothing to do with each other. Rounds take turns, and medians count.
//!
//! Usage: cargo bench --bench marks

// Clippy exempts only functions with #[test], and this program has nobody to report an error to.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::hint::black_box;
use std::sync::Barrier;
use std::thread;
use std::time::{Duration, Instant};

use rustix::thread::{CpuSet, sched_setaffinity};
use volume::{BlockMarks, MAX_BLOCKS};

const MARKS: u64 = 2_000_000;
const ROUNDS: usize = 9;
/// Blocks that a thread goes through, again and again: few, so that two threads meet.
const BLOCKS: u64 = 16;

/// Which block a thread marks at a step.
type Choice = fn(thread: u64, step: u64) -> u64;

const CASES: [(&str, Choice); 4] = [
    ("apart", |thread, step| 100 * thread + step),
    ("neighbours", |thread, step| 2 * step + thread),
    ("in one line", |thread, step| step + thread * MAX_BLOCKS),
    ("the same block", |_, step| step),
];

fn main() {
    let cpus = thread::available_parallelism().unwrap().get();
    assert!(cpus > 1, "this takes two CPUs");
    let marks = BlockMarks::default();
    let alone = median(|| time(&marks, 1, |_, step| step));
    println!("one thread alone: {:.1} ns for each mark", nanos(alone));
    for (name, choice) in CASES {
        let both = median(|| time(&marks, 2, choice));
        let ratio = both.as_secs_f64() / alone.as_secs_f64();
        println!(
            "two threads, blocks {name}: {:.1} ns, {ratio:.2} x",
            nanos(both)
        );
    }
}

fn nanos(time: Duration) -> f64 {
    time.as_secs_f64() * 1e9 / MARKS as f64
}

fn median(one: impl Fn() -> Duration) -> Duration {
    let mut all: Vec<Duration> = (0..ROUNDS).map(|_| one()).collect();
    all.sort_unstable();
    all[ROUNDS / 2]
}

/// Until the last of `threads` is done.
fn time(marks: &BlockMarks, threads: u64, choice: Choice) -> Duration {
    let start = Barrier::new(threads as usize);
    let work = |thread: u64| {
        let mut cpu = CpuSet::new();
        cpu.set(thread as usize);
        sched_setaffinity(None, &cpu).unwrap();
        start.wait();
        let begin = Instant::now();
        for step in 0..MARKS {
            let block = choice(thread, step % BLOCKS);
            if let Some(mark) = black_box(marks.try_shared(block..block + 1)) {
                marks.release(mark);
            }
        }
        begin.elapsed()
    };
    thread::scope(|scope| {
        let all: Vec<_> = (0..threads)
            .map(|thread| scope.spawn(move || work(thread)))
            .collect();
        all.into_iter()
            .map(|one| one.join().unwrap())
            .max()
            .unwrap()
    })
}
