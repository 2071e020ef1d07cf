//! What being durable costs: one flush against many at once, writes through on two queues, and flushes
//! while discarded space is given back.
//!
//! Medians, since other work on the machine only makes things slower.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use test_support::frontend::client::{Status, kind};
use test_support::frontend::device::Config;
use test_support::frontend::queue::Queue;
use test_support::rng::Rng;

use crate::backends::{Backend, Kind, Place};
use crate::load::{Load, Until};
use crate::pattern::{Pattern, Work};

const DISK: &str = "flushed";
/// As many as the memory of this guest has room for.
const QUEUES: u32 = 8;
const ROUNDS: usize = 300;
/// Bytes that are written in full for flushes and writes through.
const WRITTEN: u64 = 64 << 20;
/// How long two queues write through.
const WRITING: Duration = Duration::from_secs(5);
/// Bytes of a discard.
const DISCARD: u64 = 128 << 20;
/// How long discarded space is waited for.
const MAX_WAIT: Duration = Duration::from_secs(120);

pub fn measure(place: &Place, cpu: usize) {
    let mut backend = Backend::start_with(Kind::Sealdisk, place, DISK, cpu, (QUEUES, 0));
    set_writeback(&backend, true);
    fill(&mut backend.frontend.queues[0], WRITTEN);
    together(&mut backend);
    set_writeback(&backend, false);
    write_through(&mut backend);
    set_writeback(&backend, true);
    trim(&mut backend, place);
}

fn set_writeback(backend: &Backend, on: bool) {
    let frontend = &backend.frontend;
    let byte = [u8::from(on)];
    frontend.set_config(Config::WRITEBACK, &byte).unwrap();
}

fn fill(queue: &mut Queue, bytes: u64) {
    Load::new(queue, Pattern::FILL, bytes, Duration::ZERO).run(Until::Requests(bytes >> 20));
    queue.flush().unwrap();
}

fn median(mut times: Vec<Duration>) -> f64 {
    times.sort_unstable();
    ms(times[times.len() / 2])
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

/// A block is written over, then flushes come: one, many in one queue, one in each of many queues.
fn together(backend: &mut Backend) {
    let block = Rng::new(3).bytes(4096);
    let mut rounds = |counts: &[usize]| {
        let mut times = Vec::new();
        for _ in 0..ROUNDS {
            let queues = &mut backend.frontend.queues[..];
            queues[0].write(0, &block).unwrap();
            let start = Instant::now();
            let mut pending = Vec::new();
            for (index, count) in counts.iter().enumerate() {
                queues[index].arena.reset();
                for _ in 0..*count {
                    pending.push((index, queues[index].request(kind::FLUSH, 0, &[])));
                }
            }
            for (index, pending) in pending {
                assert_eq!(queues[index].complete(pending).status, Status::Ok);
            }
            times.push(start.elapsed());
        }
        median(times)
    };
    let one = rounds(&[1]);
    let (in_one, in_each) = (rounds(&[16]), rounds(&[1; QUEUES as usize]));
    println!(
        "a flush: {one:.3} ms; 16 at once in one queue: {in_one:.3} ms, {:.1} x; one in each of \
         {QUEUES} queues: {in_each:.3} ms, {:.1} x",
        in_one / one,
        in_each / one
    );
}

/// One queue writes through with 16 requests in flight, another with one.
fn write_through(backend: &mut Backend) {
    let pattern = |depth| Pattern::small(Work::Write, depth);
    let [busy, calm, ..] = &mut backend.frontend.queues[..] else {
        unreachable!("there are more")
    };
    let (busy, calm) = thread::scope(|scope| {
        let load = |queue, depth| {
            let mut load = Load::new(queue, pattern(depth), WRITTEN, Duration::ZERO);
            load.run(Until::Elapsed(WRITING))
        };
        let busy = scope.spawn(move || load(busy, 16));
        let calm = load(calm, 1);
        (busy.join().unwrap(), calm)
    });
    for (name, outcome) in [("16 in flight", busy), ("1 in flight", calm)] {
        println!(
            "write-through, {name}: {:.0} writes/s, median {:.2} ms, at most {:.1} ms",
            outcome.requests as f64 / outcome.elapsed.as_secs_f64(),
            outcome.latency.value_at_quantile(0.5) as f64 / 1e6,
            outcome.latency.max() as f64 / 1e6
        );
    }
}

/// The whole disk is discarded, and a guest goes on flushing what it writes.
fn trim(backend: &mut Backend, place: &Place) {
    let queue = &mut backend.frontend.queues[0];
    fill(queue, place.size);
    let data = data_file(place, DISK);
    let allocated = || fs::metadata(&data).unwrap().blocks() * 512;
    let full = allocated();
    let block = Rng::new(4).bytes(4096);
    let flush = |queue: &mut Queue| {
        queue.write(0, &block).unwrap();
        let start = Instant::now();
        queue.flush().unwrap();
        start.elapsed()
    };
    let before = median((0..100).map(|_| flush(queue)).collect());
    let start = Instant::now();
    for at in (DISCARD..place.size).step_by(DISCARD as usize) {
        let sectors = DISCARD.min(place.size - at) / 512;
        queue.discard(&[(at / 512, sectors as u32, 0)]).unwrap();
    }
    let discarded = start.elapsed();
    let first = flush(queue);
    let start = Instant::now();
    let mut times = Vec::new();
    while start.elapsed() < MAX_WAIT && allocated() >= DISCARD * 2 {
        times.push(flush(queue));
        thread::sleep(Duration::from_millis(2));
    }
    let gib = |bytes: u64| bytes as f64 / f64::from(1 << 30);
    println!(
        "{:.1} GiB discarded in {:.0} ms, {:.1} GiB of them free after {:.1} s; a flush: {before:.2} ms \
         before, {:.2} ms that of the discards, {:.2} ms the median and {:.2} ms the longest \
         of {} until then",
        gib(place.size - DISCARD),
        ms(discarded),
        gib(full - allocated()),
        start.elapsed().as_secs_f64(),
        ms(first),
        median(if times.is_empty() {
            vec![first]
        } else {
            times.clone()
        }),
        ms(times.iter().copied().max().unwrap_or_default()),
        times.len()
    );
}

/// The data file of a disk with one layer.
pub fn data_file(place: &Place, disk: &str) -> PathBuf {
    let directory = place.dir.join("state/disks").join(disk);
    let mut files = fs::read_dir(directory).unwrap().flatten();
    let data = files.find(|file| file.path().extension().is_some_and(|e| e == "data"));
    data.unwrap().path()
}
