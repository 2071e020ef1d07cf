//! Memory for secrets: its own pages, `mlock`ed, `MADV_DONTDUMP`, zeroed before unmapping.

use std::collections::BTreeMap;
use std::ffi::c_void;
use std::io;
use std::marker::PhantomData;
use std::mem::ManuallyDrop;
use std::ops::Deref;
use std::ptr::{self, NonNull};
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustix::mm::{
    Advice, MapFlags, MlockFlags, ProtFlags, madvise, mlock_with, mmap_anonymous, munlock, munmap,
};
use zeroize::Zeroize;

use super::KeyError;
use super::call_stack::wipe_call_stack;

/// A fixed number of secret bytes on pages of their own.
///
/// The pages are locked into memory (never swapped), excluded from core dumps, not inherited by
/// `fork`, and zeroed on drop. There is deliberately no `Clone`, no `Debug` and no comparison:
/// a secret is moved, or borrowed for one call.
pub struct LockedBytes {
    // Taken out when it is dropped only.
    pages: ManuallyDrop<Pages>,
    len: usize,
    /// Where the pages go when it is dropped.
    spare: Option<&'static SparePages>,
}

/// Pages of their own that are locked, unmapped on drop.
struct Pages {
    ptr: NonNull<u8>,
    mapped: usize,
}

// SAFETY: the mapping is private to this value and is reached only through `&self`/`&mut self`,
// as a `Box<[u8]>` would be.
unsafe impl Send for Pages {}
// SAFETY: `&Pages` gives nothing, and `&LockedBytes`, which has one, only `&[u8]`.
unsafe impl Sync for Pages {}

impl Pages {
    fn map(len: usize) -> Result<Self, KeyError> {
        let page = rustix::param::page_size();
        let mapped = len.max(1).div_ceil(page) * page;
        let fail = |call| {
            move |e: rustix::io::Errno| KeyError::Lock {
                call,
                source: io::Error::from(e),
            }
        };
        // SAFETY: a fresh anonymous mapping at an address that the kernel chooses aliases nothing.
        let raw = unsafe {
            mmap_anonymous(
                ptr::null_mut(),
                mapped,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::PRIVATE,
            )
        }
        .map_err(fail("map"))?;
        let Some(ptr) = NonNull::new(raw.cast::<u8>()) else {
            return Err(fail("map")(rustix::io::Errno::NOMEM));
        };
        // From here on drop unmaps, whatever fails below.
        let this = Self { ptr, mapped };
        // SAFETY: the range is the mapping just made.
        unsafe { mlock_with(raw, mapped, MlockFlags::empty()) }.map_err(fail("lock"))?;
        for advice in [Advice::LinuxDontDump, Advice::LinuxDontFork] {
            // SAFETY: the range is the mapping just made; neither advice changes its content here.
            unsafe { madvise(raw, mapped, advice) }.map_err(fail("mark"))?;
        }
        Ok(this)
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        // SAFETY: the mapping was made by `map` with this length and nothing borrows it now; unmapping
        // unlocks it too. A failure would leave zeroed memory mapped, which is harmless.
        let _ = unsafe { munmap(self.ptr.as_ptr().cast(), self.mapped) };
    }
}

impl LockedBytes {
    /// `len` zero bytes.
    ///
    /// # Errors
    /// [`KeyError::Lock`] when the kernel refuses to map, lock or mark the pages: a secret is never
    /// kept in memory that could be swapped or dumped.
    pub fn zeroed(len: usize) -> Result<Self, KeyError> {
        Ok(Self {
            pages: ManuallyDrop::new(Pages::map(len)?),
            len,
            spare: None,
        })
    }

    /// Keeps the first `len` bytes and zeroes the others. What is shorter already stays as it is.
    pub fn truncate(&mut self, len: usize) {
        if let Some(rest) = self.as_mut_slice().get_mut(len..) {
            rest.zeroize();
            self.len = len;
        }
    }

    /// The secret, for as long as the borrow lasts.
    pub fn as_slice(&self) -> &[u8] {
        // SAFETY: `ptr` maps at least `len` initialised bytes for the life of `self`, and they are
        // written only through `&mut self`.
        unsafe { std::slice::from_raw_parts(self.pages.ptr.as_ptr(), self.len) }
    }

    /// The secret, to be filled in.
    pub fn as_mut_slice(&mut self) -> &mut [u8] {
        // SAFETY: as in `as_slice`, and `&mut self` makes the borrow unique.
        unsafe { std::slice::from_raw_parts_mut(self.pages.ptr.as_ptr(), self.len) }
    }
}

impl Drop for LockedBytes {
    fn drop(&mut self) {
        self.as_mut_slice().zeroize();
        // SAFETY: it is taken once, and nothing uses it after this.
        let pages = unsafe { ManuallyDrop::take(&mut self.pages) };
        if let Some(spare) = self.spare {
            spare.put(pages);
        }
    }
}

/// Locked pages that are free, for secrets of a page at most that come one after another: mapping and
/// locking a page for each costs more than what is done with many a secret. They hold zeros.
///
/// A process that forks has none of them in its child, which must not use them.
pub struct SparePages {
    most: usize,
    free: Mutex<Vec<Pages>>,
}

impl SparePages {
    /// At most that many.
    pub const fn new(most: usize) -> Self {
        Self {
            most,
            free: Mutex::new(Vec::new()),
        }
    }

    /// As [`LockedBytes::zeroed`], on a page that was used before when there is one.
    ///
    /// # Errors
    /// As [`LockedBytes::zeroed`].
    pub fn zeroed(&'static self, len: usize) -> Result<LockedBytes, KeyError> {
        let one = len <= rustix::param::page_size();
        let spare = one.then(|| self.pages().pop()).flatten();
        let pages = match spare {
            Some(pages) => pages,
            None => Pages::map(len)?,
        };
        Ok(LockedBytes {
            pages: ManuallyDrop::new(pages),
            len,
            spare: one.then_some(self),
        })
    }

    fn put(&self, pages: Pages) {
        let mut free = self.pages();
        if free.len() < self.most {
            free.push(pages);
        }
    }

    fn pages(&self) -> MutexGuard<'_, Vec<Pages>> {
        self.free.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A value that holds key material, such as an expanded key schedule, in [`LockedBytes`].
pub struct Locked<T> {
    // Boxed-like: the value sits at the start of the pages, which never move.
    pages: LockedBytes,
    value: PhantomData<T>,
}

impl<T> Locked<T> {
    /// Makes the value and moves it into locked memory.
    ///
    /// The value passes over the stack on its way; that part of the stack is wiped.
    ///
    /// # Errors
    /// [`KeyError::Lock`].
    pub fn new_with(make: impl FnOnce() -> T) -> Result<Self, KeyError> {
        const {
            assert!(
                align_of::<T>() <= 4096,
                "a page is the strongest alignment there is"
            )
        }
        let pages = LockedBytes::zeroed(size_of::<T>())?;
        Self::place(pages.pages.ptr.cast::<T>(), make);
        wipe_call_stack();
        Ok(Self {
            pages,
            value: PhantomData,
        })
    }

    #[inline(never)]
    fn place(at: NonNull<T>, make: impl FnOnce() -> T) {
        // SAFETY: the pages are at least `size_of::<T>()` long, page-aligned, and hold no value yet.
        unsafe { at.as_ptr().write(make()) };
    }
}

impl<T> Deref for Locked<T> {
    type Target = T;

    fn deref(&self) -> &T {
        // SAFETY: `new_with` put a value there, and only drop takes it out.
        unsafe { self.pages.pages.ptr.cast::<T>().as_ref() }
    }
}

impl<T> Drop for Locked<T> {
    fn drop(&mut self) {
        // SAFETY: the value is there and nothing can use it after this; the pages are wiped next.
        unsafe { self.pages.pages.ptr.cast::<T>().as_ptr().drop_in_place() };
    }
}

/// How many [`PageLock`]s there are on each page: allocations of a library may share one.
static LOCKED_PAGES: Mutex<BTreeMap<usize, usize>> = Mutex::new(BTreeMap::new());

/// Keeps memory that a library allocated for key material in RAM and out of core dumps.
///
/// The owner of the memory drops this after it is freed; the library must have wiped it by then.
pub struct PageLock {
    start: usize,
    len: usize,
}

impl PageLock {
    /// Locks the pages of `len` bytes at `ptr`, which must be allocated.
    ///
    /// # Errors
    /// [`KeyError::Lock`].
    pub fn new(ptr: NonNull<u8>, len: usize) -> Result<Self, KeyError> {
        let page = rustix::param::page_size();
        let start = ptr.as_ptr() as usize / page * page;
        let len = (ptr.as_ptr() as usize + len).next_multiple_of(page) - start;
        let fail = |call| {
            move |e: rustix::io::Errno| KeyError::Lock {
                call,
                source: io::Error::from(e),
            }
        };
        let mut pages = LOCKED_PAGES.lock().unwrap_or_else(PoisonError::into_inner);
        let at: *mut c_void = ptr::with_exposed_provenance_mut(start);
        // SAFETY: locking changes no content; a page of the range that is not mapped makes it fail.
        unsafe { mlock_with(at, len, MlockFlags::empty()) }.map_err(fail("lock"))?;
        // SAFETY: the advice changes no content and concerns core dumps only.
        unsafe { madvise(at, len, Advice::LinuxDontDump) }.map_err(fail("mark"))?;
        for page in (start..start + len).step_by(page) {
            *pages.entry(page).or_default() += 1;
        }
        Ok(Self { start, len })
    }
}

impl Drop for PageLock {
    fn drop(&mut self) {
        let page = rustix::param::page_size();
        let mut pages = LOCKED_PAGES.lock().unwrap_or_else(PoisonError::into_inner);
        for at in (self.start..self.start + self.len).step_by(page) {
            let left = pages.get_mut(&at).map_or(0, |count| {
                *count -= 1;
                *count
            });
            if left == 0 {
                pages.remove(&at);
                let at: *mut c_void = ptr::with_exposed_provenance_mut(at);
                // SAFETY: unlocking changes no content. Failing, or locking a page that has been
                // unmapped and mapped anew meanwhile, does no harm.
                let _ = unsafe { munlock(at, page) };
                // SAFETY: the advice changes no content.
                let _ = unsafe { madvise(at, page, Advice::LinuxDoDump) };
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_stays_locked_until_its_last_lock_is_gone() {
        let memory = LockedBytes::zeroed(4096).unwrap();
        let page = memory.pages.ptr.as_ptr() as usize;
        let count = || LOCKED_PAGES.lock().unwrap().get(&page).copied();
        let first = PageLock::new(memory.pages.ptr, 100).unwrap();
        let second = PageLock::new(memory.pages.ptr, 4096).unwrap();
        assert_eq!(count(), Some(2));
        drop(first);
        assert_eq!(count(), Some(1));
        drop(second);
        assert_eq!(count(), None);
    }

    #[test]
    fn a_page_is_used_again_and_holds_zeros_then() {
        static SPARE: SparePages = SparePages::new(1);
        let mut first = SPARE.zeroed(512).unwrap();
        let second = SPARE.zeroed(8).unwrap();
        first.as_mut_slice().fill(7);
        first.truncate(64);
        assert_eq!(first.as_slice(), [7; 64]);
        let page = first.pages.ptr;
        drop(first);
        drop(second);
        assert_eq!(SPARE.pages().len(), 1, "the second was unmapped");
        let again = SPARE.zeroed(4096).unwrap();
        assert_eq!(again.pages.ptr, page);
        assert!(again.as_slice().iter().all(|byte| *byte == 0));
        assert!(SPARE.pages().is_empty());
    }

    #[test]
    fn holds_what_was_written_and_is_marked_dont_dump() {
        let mut secret = LockedBytes::zeroed(64).unwrap();
        secret.as_mut_slice().copy_from_slice(&[7; 64]);
        assert_eq!(secret.as_slice(), &[7; 64]);
        let smaps = std::fs::read_to_string("/proc/self/smaps").unwrap();
        let address = format!("{:x}-", secret.pages.ptr.as_ptr() as usize);
        let flags = smaps
            .lines()
            .skip_while(|line| !line.contains(&address))
            .find(|line| line.starts_with("VmFlags"))
            .unwrap();
        for flag in [" lo", " dd", " dc"] {
            assert!(flags.contains(flag), "{flag} is missing in {flags}");
        }
    }
}
