//! Writing into a pipe or a socket whose reader may be slow, or take nothing: whoever waits for it looks whether to stop.

use std::fs::File;
use std::io::{self, IoSlice, Write};
use std::os::unix::fs::FileTypeExt;
use std::path::PathBuf;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::{Errno, ReadWriteFlags, pwritev2};

use crate::import::Cancel;
use crate::resource::error::DiskError;
use crate::transfer::stream::LOOK;

/// Bytes that a pipe takes at once when it says that it takes any.
const PIPE_BUF: usize = 4096;

/// A file that is written in order.
pub(super) struct Patient {
    file: File,
    path: PathBuf,
    /// It is a pipe or a socket.
    waits: bool,
    /// It is a file or a device that keeps what is written.
    is_stored: bool,
    /// A single write can be told not to wait. The file itself cannot: its other users would not wait either.
    one_by_one: bool,
}

impl Patient {
    /// A file, with the name that errors have for it.
    pub(super) fn new(file: File, path: PathBuf) -> Result<Self, DiskError> {
        let kind = file.metadata().map_err(DiskError::file("inspect", &path))?;
        let kind = kind.file_type();
        Ok(Self {
            file,
            path,
            waits: kind.is_fifo() || kind.is_socket(),
            is_stored: kind.is_file() || kind.is_block_device(),
            one_by_one: true,
        })
    }

    /// Writes all of it.
    pub(super) fn write_all(&mut self, mut bytes: &[u8], cancel: &Cancel) -> Result<(), DiskError> {
        while !bytes.is_empty() {
            cancel.check()?;
            let written = self.write(bytes);
            let written = written.map_err(|e| DiskError::file("write to", &self.path)(e))?;
            bytes = bytes.get(written..).unwrap_or_default();
        }
        Ok(())
    }

    /// Has storage hold what was written, where it goes there: until then the kernel may have it alone, and tell nobody
    /// that it cannot be stored.
    pub(super) fn finish(&self) -> Result<(), DiskError> {
        match self.is_stored {
            true => self
                .file
                .sync_all()
                .map_err(DiskError::file("sync", &self.path)),
            false => Ok(()),
        }
    }

    /// Writes as much as there is room for within a moment.
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if !self.waits {
            return self.file.write(bytes).or_else(none_if_interrupted);
        }
        if !self.has_room()? {
            return Ok(0);
        }
        while self.one_by_one {
            // The largest offset is where the file is.
            let at = u64::MAX;
            match pwritev2(
                &self.file,
                &[IoSlice::new(bytes)],
                at,
                ReadWriteFlags::NOWAIT,
            ) {
                Ok(written) => return Ok(written),
                Err(Errno::AGAIN) => break,
                Err(Errno::INTR) => return Ok(0),
                Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL) => self.one_by_one = false,
                Err(error) => return Err(error.into()),
            }
        }
        let some = bytes.get(..PIPE_BUF).unwrap_or(bytes);
        self.file.write(some).or_else(none_if_interrupted)
    }

    /// Waits for room for a while. Without a reader there is some, so that the write fails.
    fn has_room(&self) -> io::Result<bool> {
        let mut polled = [PollFd::new(&self.file, PollFlags::OUT)];
        let most = Timespec {
            tv_sec: 0,
            tv_nsec: LOOK.as_nanos() as i64,
        };
        match poll(&mut polled, Some(&most)) {
            Ok(ready) => Ok(ready > 0),
            Err(Errno::INTR) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }
}

fn none_if_interrupted(error: io::Error) -> io::Result<usize> {
    match error.kind() {
        io::ErrorKind::Interrupted => Ok(0),
        _ => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::time::Duration;

    use test_support::seccomp::with_failing_syncs;

    use super::*;

    fn pipe() -> (io::PipeReader, Patient) {
        let (reader, writer) = io::pipe().unwrap();
        let file = File::from(std::os::fd::OwnedFd::from(writer));
        (reader, Patient::new(file, "pipe".into()).unwrap())
    }

    #[test]
    fn a_slow_reader_gets_all_of_it() {
        for one_by_one in [true, false] {
            let (mut reader, mut patient) = pipe();
            patient.one_by_one = one_by_one;
            let sent: Vec<u8> = (0..1 << 20)
                .map(|n: u32| n.to_le_bytes()[n as usize % 3])
                .collect();
            std::thread::scope(|scope| {
                let reading = scope.spawn(|| {
                    let mut got = vec![0; 1000];
                    reader.read_exact(&mut got).unwrap();
                    std::thread::sleep(Duration::from_millis(300));
                    reader.read_to_end(&mut got).unwrap();
                    got
                });
                patient.write_all(&sent, &Cancel::default()).unwrap();
                drop(patient);
                assert!(reading.join().unwrap() == sent);
            });
        }
    }

    #[test]
    fn what_is_not_stored_is_not_written() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("device");
        let mut patient = Patient::new(File::create(&path).unwrap(), path).unwrap();
        with_failing_syncs("device", |syncs| {
            patient.write_all(&[1; 4096], &Cancel::default()).unwrap();
            patient.finish().unwrap();
            syncs.allow(0);
            assert_eq!(patient.finish().unwrap_err().code(), "FileSystem");
        });
        let (_reader, pipe) = pipe();
        pipe.finish().unwrap();
    }

    #[test]
    fn who_waits_for_a_reader_can_be_stopped() {
        for one_by_one in [true, false] {
            let (reader, mut patient) = pipe();
            patient.one_by_one = one_by_one;
            let cancel = Cancel::default();
            std::thread::scope(|scope| {
                let writing = scope.spawn(|| patient.write_all(&[1; 1 << 20], &cancel));
                std::thread::sleep(Duration::from_millis(100));
                assert!(!writing.is_finished(), "nobody reads it");
                cancel.request();
                assert_eq!(writing.join().unwrap().unwrap_err().code(), "Cancelled");
            });
            drop(reader);
            let gone = patient.write_all(&[1; 1 << 20], &Cancel::default());
            assert_eq!(gone.unwrap_err().code(), "FileSystem");
        }
    }
}
