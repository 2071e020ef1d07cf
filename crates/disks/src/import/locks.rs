//! QEMU's locks of image files, so that an image is not read while a guest writes to it.
//!
//! QEMU's processes tell each other what they do to an image by locks of single bytes of its file
//! (block/file-posix.c, *raw_apply_lock_bytes*): a shared lock of byte 100 + N says "I do N", one of
//! byte 200 + N says "nobody else may do N". The locks are those of open file descriptions, and nobody
//! ever writes to the bytes. N is a bit of `BLK_PERM_*`: 0 reads consistently, 1 writes, 2 writes what
//! is there already, 3 resizes.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::path::Path;

use super::ImportError;

const DOES: i64 = 100;
const FORBIDS: i64 = 200;

const CONSISTENT_READ: i64 = 0;
const WRITE: i64 = 1;
const RESIZE: i64 = 3;

/// Tells QEMU that the image is being read and may neither be written to nor resized, for as long as
/// the file is open; as `qemu-img convert` does.
///
/// # Errors
/// [`ImportError::Locked`] when a QEMU does just that, or forbids what is wanted.
pub(super) fn hold(file: &File, path: &Path) -> Result<(), ImportError> {
    let locked = |what| ImportError::Locked {
        path: path.into(),
        what,
    };
    for byte in [DOES + CONSISTENT_READ, FORBIDS + WRITE, FORBIDS + RESIZE] {
        match share(file, byte) {
            Ok(()) => {}
            Err(e) if is_conflict(&e) => return Err(locked("consistent read")),
            Err(e) => {
                // Some network file systems have no locks; then QEMU has none there either.
                log::warn!("cannot see whether QEMU uses {}: {e}", path.display());
                return Ok(());
            }
        }
    }
    for (byte, what) in [
        (DOES + WRITE, "write"),
        (DOES + RESIZE, "resize"),
        (FORBIDS + CONSISTENT_READ, "consistent read"),
    ] {
        match is_held_by_others(file, byte) {
            Ok(false) => {}
            Ok(true) => return Err(locked(what)),
            Err(source) => {
                return Err(ImportError::Io {
                    call: "look at the locks of",
                    path: path.into(),
                    source,
                });
            }
        }
    }
    Ok(())
}

fn is_conflict(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::EACCES))
}

fn share(file: &File, byte: i64) -> io::Result<()> {
    let mut lock = lock_of(libc::F_RDLCK, byte);
    call(file, libc::F_OFD_SETLK, &mut lock)
}

/// Whether somebody else has any lock of a byte.
fn is_held_by_others(file: &File, byte: i64) -> io::Result<bool> {
    let mut lock = lock_of(libc::F_WRLCK, byte);
    call(file, libc::F_OFD_GETLK, &mut lock)?;
    Ok(i32::from(lock.l_type) != libc::F_UNLCK)
}

fn lock_of(kind: i32, byte: i64) -> libc::flock {
    libc::flock {
        l_type: kind as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: byte,
        l_len: 1,
        // The kernel wants nothing else for locks of open file descriptions.
        l_pid: 0,
    }
}

fn call(file: &File, command: i32, lock: &mut libc::flock) -> io::Result<()> {
    // SAFETY: both commands take a `struct flock`, which `lock` is, for the time of the call; the
    // descriptor is that of an open file.
    match unsafe { libc::fcntl(file.as_raw_fd(), command, lock) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}
