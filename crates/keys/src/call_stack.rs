//! The call stacks of threads that work with keys, and starting such threads.
//!
//! Ciphers and hashes of a library put parts of a secret on the stack of their caller: AWS-LC's
//! widest instructions take the round keys of AES from copies there, and leave them. Such a stack is
//! therefore locked (never swapped) and kept out of core dumps, like all other memory that a key is in,
//! and wiped where the key is to be gone.
//!
//! What a program cannot reach: the kernel keeps the registers of a thread that is not running in memory
//! of its own. The frame of a signal handler, which has them as well, is on this same stack; the
//! alternate one that Rust gives each thread is for faults only, after which the process ends.

use std::cell::Cell;
use std::ffi::c_void;
use std::io;
use std::mem::MaybeUninit;
use std::ops::Range;
use std::ptr;
use std::sync::mpsc::sync_channel;
use std::thread::JoinHandle;

use rustix::io::Errno;
use rustix::mm::{Advice, MlockFlags, madvise, mlock_with};
use rustix::process::getpid;
use rustix::thread::gettid;
use zeroize::Zeroize;

use super::KeyError;

/// Bytes of a stack below its user that are locked and wiped. No library that a DEK passes through uses
/// as many.
const DEPTH: usize = 256 * 1024;

/// Bytes of the stack of a thread that serves a queue: all of it is locked, for each queue. What is
/// used of it is less than a third, in builds without optimisation too.
pub const QUEUE_STACK: usize = 128 * 1024;
/// Bytes of the stack of a thread that may do everything that this program does with keys.
pub const ROOMY_STACK: usize = 2 << 20;

thread_local! {
    /// The lowest address of this thread's stack that is locked, if it is.
    static LOWEST: Cell<Option<usize>> = const { Cell::new(None) };
}

/// Locks the calling thread's stack and keeps it out of core dumps, to the end of the thread: what is in
/// use, and `DEPTH` bytes more where there are as many. Pages take memory only when they are used, but
/// all of them count against `RLIMIT_MEMLOCK`.
///
/// # Errors
/// [`KeyError::Lock`]: no key may pass over this stack.
pub fn lock_stack() -> Result<(), KeyError> {
    if LOWEST.get().is_some() {
        return Ok(());
    }
    let range = own_stack().map_err(|source| KeyError::Lock {
        call: "find",
        source,
    })?;
    let fail = |call| {
        move |e: Errno| KeyError::Lock {
            call,
            source: e.into(),
        }
    };
    let (start, len) = (
        ptr::with_exposed_provenance_mut::<c_void>(range.start),
        range.len(),
    );
    // SAFETY: the range is mapped in this process, and locking changes no content.
    unsafe { mlock_with(start, len, MlockFlags::ONFAULT) }.map_err(fail("lock"))?;
    // SAFETY: as above; the advice concerns core dumps only.
    unsafe { madvise(start, len, Advice::LinuxDontDump) }.map_err(fail("mark"))?;
    LOWEST.set(Some(range.start));
    Ok(())
}

/// The same in a process that was forked: it has the stack of its parent, and none of its locks.
///
/// # Errors
/// As [`lock_stack`].
pub fn lock_stack_again() -> Result<(), KeyError> {
    LOWEST.set(None);
    lock_stack()
}

fn own_stack() -> io::Result<Range<usize>> {
    let here = address_on_stack();
    let whole = match gettid() == getpid() {
        true => first_stack(here)?,
        false => thread_stack()?,
    };
    let page = rustix::param::page_size();
    let lowest = here.saturating_sub(DEPTH) / page * page;
    Ok(whole.start.max(lowest)..whole.end)
}

#[inline(never)]
fn address_on_stack() -> usize {
    let local = 0u8;
    std::hint::black_box(&raw const local).expose_provenance()
}

/// The mapping of the stack of the process's first thread. The kernel extends it downwards as it is used:
/// it is made longer here than what is locked of it, since a locked mapping that cannot be extended, as
/// locked memory is limited, would end the process.
fn first_stack(here: usize) -> io::Result<Range<usize>> {
    wipe::<{ DEPTH + 64 * 1024 }>();
    let maps = std::fs::read_to_string("/proc/self/maps")?;
    let range = |line: &str| {
        let (start, end) = line.split(' ').next()?.split_once('-')?;
        let address = |text| usize::from_str_radix(text, 16).ok();
        Some(address(start)?..address(end)?)
    };
    let found = maps
        .lines()
        .filter_map(range)
        .find(|range| range.contains(&here));
    found.ok_or_else(|| io::ErrorKind::NotFound.into())
}

/// The stack that the C library made for the calling thread, without its guard page.
fn thread_stack() -> io::Result<Range<usize>> {
    let check = |code| match code {
        0 => Ok(()),
        code => Err(io::Error::from_raw_os_error(code)),
    };
    let mut attributes = MaybeUninit::<libc::pthread_attr_t>::uninit();
    // SAFETY: the thread is the calling one, and the place is one for attributes.
    check(unsafe { libc::pthread_getattr_np(libc::pthread_self(), attributes.as_mut_ptr()) })?;
    let (mut start, mut len) = (ptr::null_mut::<c_void>(), 0);
    // SAFETY: the attributes were filled in just now.
    let got =
        unsafe { libc::pthread_attr_getstack(attributes.as_ptr(), &raw mut start, &raw mut len) };
    // SAFETY: as above, and nobody uses them any more.
    unsafe { libc::pthread_attr_destroy(attributes.as_mut_ptr()) };
    check(got)?;
    let start = start.expose_provenance();
    Ok(start..start + len)
}

/// Starts a thread that works with keys: its stack, of `stack` bytes, is locked before `f` runs, and wiped
/// afterwards.
///
/// # Errors
/// [`KeyError::Lock`], or [`KeyError::Thread`] when there can be no more threads.
pub fn spawn_with_keys(
    name: String,
    stack: usize,
    f: impl FnOnce() + Send + 'static,
) -> Result<JoinHandle<()>, KeyError> {
    let (locked, is_locked) = sync_channel(1);
    let work = move || {
        let result = lock_stack();
        let usable = result.is_ok();
        let _ = locked.send(result);
        if usable {
            with_wiped_call_stack(f);
        }
    };
    let builder = std::thread::Builder::new().name(name).stack_size(stack);
    let thread = builder.spawn(work).map_err(KeyError::Thread)?;
    let ended = |_| KeyError::Thread(io::ErrorKind::BrokenPipe.into());
    is_locked.recv().map_err(ended)??;
    Ok(thread)
}

/// Runs `f` and wipes the stack that it used: decryption and hashing leave parts of a secret there,
/// which would stay until something else happens to be written over them.
pub fn with_wiped_call_stack<T>(f: impl FnOnce() -> T) -> T {
    #[inline(never)]
    fn apart<T>(f: impl FnOnce() -> T) -> T {
        f()
    }
    // Where that fails no key is made: see `Dek`.
    let _ = lock_stack();
    let value = apart(f);
    wipe_call_stack();
    value
}

/// Overwrites the stack below the caller, as far as it is locked, or 256 KiB of it.
pub fn wipe_call_stack() {
    // What this needs for itself.
    const OWN: usize = 8 * 1024;
    const KIB: usize = 1024;
    let lowest = LOWEST.get().unwrap_or(0);
    let below = address_on_stack()
        .saturating_sub(lowest)
        .saturating_sub(OWN);
    match below / KIB {
        256.. => wipe::<{ 256 * KIB }>(),
        192.. => wipe::<{ 192 * KIB }>(),
        112.. => wipe::<{ 112 * KIB }>(),
        104.. => wipe::<{ 104 * KIB }>(),
        96.. => wipe::<{ 96 * KIB }>(),
        64.. => wipe::<{ 64 * KIB }>(),
        32.. => wipe::<{ 32 * KIB }>(),
        _ => wipe::<{ 4 * KIB }>(),
    }
}

/// Overwrites what a run of a cipher may have left in so many bytes below the caller. With some
/// thousand of them this is quick enough for each request: what lies on a stack does not stay there, since values are copied to the heap with the gaps in them.
#[inline(never)]
pub fn scrub_stack<const BYTES: usize>() {
    let below = [0u8; BYTES];
    std::hint::black_box(&below);
}

/// One frame, so that nothing is left between several.
#[inline(never)]
fn wipe<const LEN: usize>() {
    let mut below = [0u8; LEN];
    below.zeroize();
    std::hint::black_box(&below);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The flags of the mapping that an address is in.
    fn flags_at(address: usize) -> String {
        let smaps = std::fs::read_to_string("/proc/self/smaps").unwrap();
        let has = |line: &str| {
            let range = line.split(' ').next().and_then(|r| r.split_once('-'));
            range.is_some_and(|(start, end)| {
                let number = |text| usize::from_str_radix(text, 16);
                matches!((number(start), number(end)), (Ok(s), Ok(e)) if (s..e).contains(&address))
            })
        };
        let mut lines = smaps.lines().skip_while(|line| !has(line));
        lines
            .find(|line| line.starts_with("VmFlags"))
            .unwrap()
            .into()
    }

    #[test]
    fn a_thread_with_keys_has_a_locked_stack_that_is_not_dumped() {
        for stack in [QUEUE_STACK, ROOMY_STACK] {
            let (tell, told) = sync_channel(2);
            let thread = spawn_with_keys("with-keys".into(), stack, move || {
                let here = address_on_stack();
                // As deep as a queue's thread may go.
                for depth in [0, 96 * 1024] {
                    tell.send(flags_at(here - depth)).unwrap();
                }
            });
            thread.unwrap().join().unwrap();
            for flags in told {
                assert!(flags.contains(" lo") && flags.contains(" dd"), "{flags}");
            }
        }
    }

    #[test]
    fn a_stack_is_wiped_as_deep_as_it_is_locked() {
        #[inline(never)]
        fn dirty() -> usize {
            let mut secret = [0x5au8; 64 * 1024];
            std::hint::black_box(&mut secret);
            secret.as_ptr().expose_provenance()
        }
        let thread = spawn_with_keys("wiped".into(), QUEUE_STACK, || {
            let at = with_wiped_call_stack(dirty);
            let memory = std::fs::File::open("/proc/self/mem").unwrap();
            let mut bytes = vec![0; 64 * 1024];
            std::os::unix::fs::FileExt::read_exact_at(&memory, &mut bytes, at as u64).unwrap();
            let left = bytes.iter().filter(|byte| **byte == 0x5a).count();
            assert!(left < 64, "{left} bytes of the secret are left");
        });
        thread.unwrap().join().unwrap();
    }
}
