//! What threads meet by. The crate `models` compiles the files that use it with loom's in its place, which goes
//! through all that threads may see.

pub(crate) use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

/// [`std::cell::UnsafeCell`] with loom's methods.
pub(crate) struct UnsafeCell<T>(std::cell::UnsafeCell<T>);

impl<T> UnsafeCell<T> {
    pub(crate) fn new(value: T) -> Self {
        Self(std::cell::UnsafeCell::new(value))
    }

    /// Where the value is, for reading.
    pub(crate) fn with<R>(&self, read: impl FnOnce(*const T) -> R) -> R {
        read(self.0.get().cast_const())
    }

    /// Where the value is, for writing.
    pub(crate) fn with_mut<R>(&self, write: impl FnOnce(*mut T) -> R) -> R {
        write(self.0.get())
    }
}

/// A moment's wait for another thread that runs. One that does not run gets this processor.
pub(crate) fn pause(turn: u32) {
    /// Some 10 µs: as long as a thread takes for its part.
    const SPINS: u32 = 256;
    if turn < SPINS {
        std::hint::spin_loop();
    } else {
        std::thread::yield_now();
    }
}
