//! I/O on files of this host: what a store process does where there is no cluster, and what tests run everything on.
//!
//! Each operation blocks one of some threads, so they end in any order.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};

use rustix::fs::{FallocateFlags, fallocate};
use store_ring::{Operation, Target};

use crate::backend::{Backend, Bytes, Outcome, Token};
use crate::eventfd::{Alarm, quiet};

/// Threads that do I/O.
const THREADS: usize = 4;

/// A file that is one of a disk's, and how long it is.
#[derive(Debug, Clone)]
struct DiskFile {
    file: Arc<File>,
    len: u64,
}

/// The files of a disk's layers.
pub struct FileBackend {
    /// From the top down.
    data: Vec<DiskFile>,
    /// Of the top layer.
    map: DiskFile,
    read_only: bool,
    jobs: Sender<Job>,
    done: Receiver<(Token, Outcome)>,
    alarm: Alarm,
}

/// What a thread is to do.
struct Job {
    token: Token,
    file: Arc<File>,
    what: What,
}

enum What {
    Read(Bytes, u64),
    Write(Bytes, u64, bool),
    Sync,
    Punch(u64, u64),
    /// It was refused, with the number of an error.
    Nothing(i32),
}

impl FileBackend {
    /// Works on these files, the data of the layers from the top down. Only the first of them, and the map, are written
    /// to, and neither if the disk is only read.
    ///
    /// # Errors
    /// What the kernel says, also of a disk without layers.
    pub fn new(data: Vec<File>, map: File, read_only: bool) -> io::Result<Self> {
        if data.is_empty() {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let measured = |file: File| {
            let len = file.metadata()?.len();
            Ok::<_, io::Error>(DiskFile {
                file: Arc::new(file),
                len,
            })
        };
        let (data, map) = (
            data.into_iter().map(measured).collect::<Result<_, _>>()?,
            measured(map)?,
        );
        let (jobs, todo) = channel();
        let (tell, done) = channel();
        let (todo, alarm) = (Arc::new(Mutex::new(todo)), Alarm::new()?);
        for number in 0..THREADS {
            let (todo, tell, alarm) = (todo.clone(), tell.clone(), alarm.clone());
            std::thread::Builder::new()
                .name(format!("files {number}"))
                .spawn(move || work(&todo, &tell, &alarm))?;
        }
        Ok(Self {
            data,
            map,
            read_only,
            jobs,
            done,
            alarm,
        })
    }

    fn file(&self, target: Target) -> Option<&DiskFile> {
        match target {
            Target::Data(layer) => self.data.get(usize::from(layer)),
            Target::Map => Some(&self.map),
        }
    }

    /// The file, and what is to be done with it.
    ///
    /// # Errors
    /// The number of the error for who asks for what is not the disk's, or may not be done.
    fn checked(
        &self,
        operation: Operation,
        bytes: Option<Bytes>,
    ) -> Result<(Arc<File>, What), i32> {
        let (target, range, writes) = match operation {
            Operation::Read { target, at, data } => (target, Some((at, data.len as u64)), false),
            Operation::Write {
                target, at, data, ..
            } => (target, Some((at, data.len as u64)), true),
            Operation::Sync { target } => (target, None, true),
            Operation::Punch { at, len } => (Target::TOP, Some((at, len)), true),
        };
        let found = self.file(target).ok_or(libc::EBADF)?;
        if writes && (self.read_only || !matches!(target, Target::TOP | Target::Map)) {
            return Err(libc::EROFS);
        }
        let lies_within =
            |(at, len): (u64, u64)| at.checked_add(len).is_some_and(|end| end <= found.len);
        if !range.is_none_or(lies_within) {
            return Err(libc::EINVAL);
        }
        let what = match (operation, bytes) {
            (Operation::Read { at, .. }, Some(bytes)) => What::Read(bytes, at),
            (Operation::Write { at, durable, .. }, Some(bytes)) => What::Write(bytes, at, durable),
            (Operation::Sync { .. }, _) => What::Sync,
            (Operation::Punch { at, len }, _) => What::Punch(at, len),
            (Operation::Read { .. } | Operation::Write { .. }, None) => return Err(libc::EFAULT),
        };
        Ok((found.file.clone(), what))
    }
}

impl Backend for FileBackend {
    fn begin(&mut self, token: Token, operation: Operation, bytes: Option<Bytes>) {
        let job = match self.checked(operation, bytes) {
            Ok((file, what)) => Job { token, file, what },
            Err(errno) => Job {
                token,
                file: self.map.file.clone(),
                what: What::Nothing(errno),
            },
        };
        // The threads live for as long as this does.
        let _ = self.jobs.send(job);
    }

    fn ended(&mut self, into: &mut Vec<(Token, Outcome)>) {
        quiet(self.alarm.as_fd());
        into.extend(self.done.try_iter());
    }

    fn woken_by(&self) -> BorrowedFd<'_> {
        self.alarm.as_fd()
    }
}

fn work(todo: &Mutex<Receiver<Job>>, tell: &Sender<(Token, Outcome)>, alarm: &Alarm) {
    loop {
        // Nothing is guarded but the turn.
        let job = todo.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok(Job { token, file, what }) = job else {
            return;
        };
        let outcome = what.be_done(&file).map_err(errno_of);
        if tell.send((token, outcome)).is_err() {
            return;
        }
        alarm.ring();
    }
}

impl What {
    fn be_done(self, file: &File) -> io::Result<()> {
        match self {
            Self::Read(bytes, at) => all_of(&bytes, at, |start, count, at| {
                // SAFETY: `count` bytes from `start` on are mapped for as long as `bytes` is there. Who else may be
                // at them is another process, and no reference to them is made.
                unsafe { libc::pread(file.as_raw_fd(), start.cast(), count, at) }
            }),
            Self::Write(bytes, at, durable) => all_of(&bytes, at, |start, count, at| {
                let part = libc::iovec {
                    iov_base: start.cast(),
                    iov_len: count,
                };
                let flags = if durable { libc::RWF_DSYNC } else { 0 };
                // SAFETY: as above; the only element lives through the call.
                unsafe { libc::pwritev2(file.as_raw_fd(), &part, 1, at, flags) }
            }),
            Self::Sync => file.sync_data(),
            Self::Punch(at, len) => {
                let mode = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
                Ok(fallocate(file, mode, at, len)?)
            }
            Self::Nothing(errno) => Err(io::Error::from_raw_os_error(errno)),
        }
    }
}

/// Reads or writes all of some bytes, by calls that do a part each.
fn all_of(
    bytes: &Bytes,
    at: u64,
    call: impl Fn(*mut u8, usize, libc::off_t) -> isize,
) -> io::Result<()> {
    let mut done = 0;
    while done < bytes.count() {
        let place = libc::off_t::try_from(at + done as u64).map_err(io::Error::other)?;
        let start = bytes.start().as_ptr().wrapping_add(done);
        match call(start, bytes.count() - done, place) {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            -1 => {
                let error = io::Error::last_os_error();
                if error.kind() != io::ErrorKind::Interrupted {
                    return Err(error);
                }
            }
            some => done += usize::try_from(some).map_err(io::Error::other)?,
        }
    }
    Ok(())
}

fn errno_of(error: io::Error) -> i32 {
    error.raw_os_error().unwrap_or(libc::EIO)
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use store_ring::{LaneMemory, Layout, SMALL_LEN};

    use super::*;

    const LAYOUT: Layout = Layout {
        lanes: 1,
        small: 1,
        chunks: 0,
    };

    fn file(len: u64) -> File {
        let file = tempfile::tempfile().unwrap();
        file.set_len(len).unwrap();
        file
    }

    /// How one operation ends.
    fn outcome(on: &mut FileBackend, operation: Operation, bytes: Option<Bytes>) -> Outcome {
        let token = Token {
            group: 1,
            lane: 2,
            slot: 3,
        };
        on.begin(token, operation, bytes);
        let (mut ended, end) = (Vec::new(), Instant::now() + Duration::from_secs(60));
        while ended.is_empty() {
            assert!(Instant::now() < end, "it does not end");
            std::thread::yield_now();
            on.ended(&mut ended);
        }
        assert_eq!((ended.len(), ended[0].0), (1, token));
        ended[0].1
    }

    #[test]
    fn what_is_the_disks_is_done_and_all_else_is_refused() {
        let memory = LaneMemory::map(&LaneMemory::make(LAYOUT).unwrap(), LAYOUT).unwrap();
        let lent = memory.lend_small(SMALL_LEN).unwrap();
        let data = memory.data_of(lent.start().as_ptr(), 4096).unwrap();
        let bytes = || Some(Bytes::new(memory.clone(), data));
        let write = |target, at, durable| Operation::Write {
            target,
            at,
            data,
            durable,
        };
        let read = |target, at| Operation::Read { target, at, data };
        // SAFETY: they are lent, and nothing is under way.
        let fill = |byte| unsafe { lent.start().as_ptr().write_bytes(byte, 4096) };
        // SAFETY: as above.
        let first = || unsafe { lent.start().as_ptr().read_volatile() };
        let layers = || vec![file(1 << 20), file(8192)];
        let mut on = FileBackend::new(layers(), file(4096), false).unwrap();
        for (target, at) in [(Target::TOP, 4096), (Target::Map, 0)] {
            fill(7);
            assert_eq!(
                outcome(&mut on, write(target, at, at == 0), bytes()),
                Ok(())
            );
            assert_eq!(outcome(&mut on, Operation::Sync { target }, None), Ok(()));
            fill(0);
            assert_eq!(outcome(&mut on, read(target, at), bytes()), Ok(()));
            assert_eq!(first(), 7);
        }
        let beneath = Target::Data(1);
        assert_eq!(outcome(&mut on, read(beneath, 4096), bytes()), Ok(()));
        assert_eq!(first(), 0);
        for (operation, errno) in [
            (write(beneath, 0, false), libc::EROFS),
            (Operation::Sync { target: beneath }, libc::EROFS),
            (read(Target::Data(2), 0), libc::EBADF),
            (read(beneath, 8192), libc::EINVAL),
            (read(Target::TOP, u64::MAX / 512 * 512), libc::EINVAL),
            (write(Target::TOP, (1 << 20) - 512, false), libc::EINVAL),
        ] {
            let found = outcome(&mut on, operation, bytes());
            assert_eq!(found, Err(errno), "{operation:?}");
        }
        let len = 1 << 20;
        let punch = |at| Operation::Punch { at, len };
        assert_eq!(outcome(&mut on, punch(512), None), Err(libc::EINVAL));
        let mut only_read = FileBackend::new(layers(), file(4096), true).unwrap();
        for operation in [write(Target::TOP, 0, false), punch(0)] {
            let found = outcome(&mut only_read, operation, bytes());
            assert_eq!(found, Err(libc::EROFS));
        }
        assert!(FileBackend::new(Vec::new(), file(0), false).is_err());
    }
}
