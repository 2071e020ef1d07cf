//! Copies into memory that is not looked at again soon: past the caches of the processor, where it has such stores.
//!
//! An ordinary store fetches its line into the caches first, and sends what was there before back to memory. A
//! non-temporal one does neither. Others see it late, so that the thread has to [`publish`] before it tells anybody of
//! the copy.

use std::ptr::NonNull;

/// Bytes of which addresses and lengths have to be multiples.
const UNIT: usize = 16;

/// Copies `len` bytes.
///
/// # Safety
/// `from` must be readable and `into` writable for `len` bytes, apart from each other; all three must be multiples of
/// [`UNIT`]. [`publish`] must follow in this thread before anybody reads or writes what is at `into`.
pub(super) unsafe fn copy(from: NonNull<u8>, into: NonNull<u8>, len: usize) {
    debug_assert!((from.addr().get() | into.addr().get() | len).is_multiple_of(UNIT));
    #[cfg(target_arch = "x86_64")]
    for at in 0..len / UNIT {
        use std::arch::x86_64::{__m128i, _mm_load_si128, _mm_stream_si128};
        let (from, into) = (from.cast::<__m128i>(), into.cast::<__m128i>());
        // SAFETY: both have `len` bytes and are aligned (the caller's promise); it publishes before they are used.
        unsafe { _mm_stream_si128(into.add(at).as_ptr(), _mm_load_si128(from.add(at).as_ptr())) };
    }
    // There are no stores past the caches that could be used here.
    #[cfg(not(target_arch = "x86_64"))]
    // SAFETY: the caller's promise.
    unsafe {
        std::ptr::copy_nonoverlapping(from.as_ptr(), into.as_ptr(), len);
    }
}

/// Has others see this thread's copies before anything that it stores after.
pub(super) fn publish() {
    // SAFETY: every x86-64 processor has the instruction.
    #[cfg(target_arch = "x86_64")]
    unsafe {
        std::arch::x86_64::_mm_sfence();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_copied_is_what_was_there() {
        #[repr(align(64))]
        struct Aligned([u8; 4096]);
        let mut from = Box::new(Aligned([0; 4096]));
        for (byte, i) in from.0.iter_mut().zip(0u32..) {
            *byte = ((i * 7) >> 3) as u8;
        }
        for (at, len) in [(0, 4096), (512, 1024), (4096 - UNIT, UNIT), (0, 0)] {
            let mut into = Box::new(Aligned([0xee; 4096]));
            let start = |of: &mut Aligned| NonNull::from(&mut of.0[at..at + len]).cast();
            // SAFETY: both have these bytes, at multiples of the unit, and it is published at once.
            unsafe { copy(start(&mut from), start(&mut into), len) };
            publish();
            assert_eq!(into.0[at..at + len], from.0[at..at + len]);
            let is_left = |rest: &[u8]| rest.iter().all(|byte| *byte == 0xee);
            assert!(is_left(&into.0[..at]) && is_left(&into.0[at + len..]));
        }
    }
}
