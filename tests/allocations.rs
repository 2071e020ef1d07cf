//! An ordinary request allocates nothing: neither the chain nor the pipeline nor the cipher asks the
//! allocator for anything once the queue has seen a request of its kind.

// Clippy exempts only functions with #[test], and helpers of tests panic as tests do.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use test_support::request_path::{Load, RequestPath};
use xts::DataUnit;

thread_local! {
    /// Allocations of this thread so far. The test harness has threads of its own.
    static COUNT: Cell<u64> = const { Cell::new(0) };
}

struct Counting;

fn count() {
    COUNT.with(|count| count.set(count.get() + 1));
}

// SAFETY: everything is done by the system's allocator, as its own contract says; counting needs
// no allocation, since the counter has no destructor and a constant initial value.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: the caller keeps the contract of `alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: the caller keeps the contract of `alloc_zeroed`.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, ptr: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        count();
        // SAFETY: the caller keeps the contract of `realloc`.
        unsafe { System.realloc(ptr, layout, new_size) }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        // SAFETY: the caller keeps the contract of `dealloc`.
        unsafe { System.dealloc(ptr, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn allocations(run: impl FnOnce()) -> u64 {
    let before = COUNT.get();
    run();
    COUNT.get() - before
}

/// Rounds after which every list has the length that it needs.
const WARM_UP: u32 = 8;
const ROUNDS: u32 = 200;

fn assert_allocates_nothing(load: Load) {
    for (unit, mapped) in [
        (DataUnit::B512, false),
        (DataUnit::B4096, false),
        (DataUnit::B4096, true),
    ] {
        assert_rounds_allocate_nothing(load, (unit, mapped), ROUNDS);
    }
}

fn assert_rounds_allocate_nothing(load: Load, (unit, mapped): (DataUnit, bool), rounds: u32) {
    let mut path = RequestPath::new(unit, mapped);
    path.prepare(&load);
    (0..WARM_UP).for_each(|_| path.round(&load));
    let counted = allocations(|| (0..rounds).for_each(|_| path.round(&load)));
    assert_eq!(
        counted, 0,
        "allocations in {rounds} rounds of {load:?}, {unit:?}, mapped: {mapped}"
    );
}

fn both_ways(bytes: u32, segments: u32, depth: u64, shift: u64) {
    for write in [false, true] {
        assert_allocates_nothing(Load {
            write,
            bytes,
            segments,
            depth,
            shift,
        });
    }
}

#[test]
fn the_counter_sees_an_allocation() {
    let counted = allocations(|| drop(std::hint::black_box(Box::new(7))));
    assert_eq!(counted, 1);
}

#[test]
fn a_block_allocates_nothing() {
    both_ways(4096, 1, 1, 0);
    both_ways(4096, 1, 32, 0);
}

/// As many as QEMU's largest queue has entries.
#[test]
fn a_full_queue_allocates_nothing() {
    for write in [false, true] {
        let load = Load {
            write,
            bytes: 4096,
            segments: 1,
            depth: 1024,
            shift: 0,
        };
        assert_rounds_allocate_nothing(load, (DataUnit::B4096, false), 8);
    }
}

#[test]
fn a_part_of_a_block_allocates_nothing() {
    both_ways(512, 1, 8, 3);
    both_ways(4096, 2, 8, 5);
}

#[test]
fn a_large_request_in_many_segments_allocates_nothing() {
    both_ways(64 << 10, 16, 8, 0);
    both_ways(1 << 20, 128, 8, 0);
}
