//! Whether the frontend shares the guest's memory with this process.
//!
//! A private mapping of a file looks to the VMM like its guest's memory, and to whoever maps the same
//! file like an empty one: the guest's rings never have anything, and the guest waits for ever. That
//! can be seen in one place only, the VMM's own table of mappings, which the control process reads
//! ([`FrontendMemory::private`]); this process may open nothing. So it tells the control process which
//! files a frontend announced, and may be told to end that connection. Memory without a file is never
//! announced: then a ring is where no memory is, which is seen here.

use std::fs::{File, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::{FRONTEND_MEMORY, MEMORY_NOT_SHARED};

/// A file, by the numbers of its device and its inode.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileId {
    device: u64,
    inode: u64,
}

impl FileId {
    pub(super) fn of(metadata: &Metadata) -> Self {
        Self {
            device: metadata.dev(),
            inode: metadata.ino(),
        }
    }
}

/// What a frontend announced as the guest's memory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FrontendMemory {
    /// Which connection it was, of those of this process.
    pub connection: u64,
    /// The process that connected.
    pub process: u32,
    /// The files of the memory.
    pub files: Vec<FileId>,
}

impl FrontendMemory {
    /// Whether the frontend has a part of it mapped, but for itself alone. Not if that cannot be found
    /// out: the process may be another user's, or only have passed the connection on.
    pub fn is_private(&self) -> bool {
        match std::fs::read_to_string(format!("/proc/{}/maps", self.process)) {
            Ok(maps) => self.is_private_in(&maps),
            Err(error) => {
                log::debug!("the frontend's mappings cannot be seen: {error}");
                false
            }
        }
    }

    /// `maps` is a `/proc/PID/maps`, see proc_pid_maps(5).
    fn is_private_in(&self, maps: &str) -> bool {
        let mappings: Vec<_> = maps.lines().filter_map(mapping).collect();
        self.files.iter().any(|file| {
            let mut of_file = mappings.iter().filter(|(mapped, _)| mapped == file);
            of_file.clone().next().is_some() && !of_file.any(|(_, shared)| *shared)
        })
    }
}

/// The file of a mapping, and whether it is a shared one.
fn mapping(line: &str) -> Option<(FileId, bool)> {
    let mut fields = line.split_ascii_whitespace().skip(1);
    let shared = fields.next()?.ends_with('s');
    let (major, minor) = fields.nth(1)?.split_once(':')?;
    let number = |text| u32::from_str_radix(text, 16).ok();
    let device = rustix::fs::makedev(number(major)?, number(minor)?);
    let inode = fields.next()?.parse().ok()?;
    Some((FileId { device, inode }, shared))
}

/// What the thread of a connection has for the main thread to tell the control process.
pub(super) struct MemoryNews {
    content: Mutex<Content>,
    changed: EventFd,
}

#[derive(Default)]
struct Content {
    files: Option<Vec<FileId>>,
    not_shared: bool,
}

impl MemoryNews {
    pub(super) fn new() -> io::Result<Self> {
        Ok(Self {
            content: Mutex::default(),
            changed: EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?,
        })
    }

    /// Has something to read when there are news.
    pub(super) fn changed(&self) -> &EventFd {
        &self.changed
    }

    /// The frontend has announced memory in these files.
    pub(super) fn announced(&self, files: Vec<FileId>) {
        self.content().files = Some(files);
        self.tell();
    }

    /// A queue of the frontend's is in memory that it has not announced.
    pub(super) fn not_shared(&self) {
        self.content().not_shared = true;
        self.tell();
    }

    /// The lines that are to be sent now.
    pub(super) fn take(&self, connection: u64, process: u32) -> Vec<String> {
        // There is nothing to read when there are none.
        let _ = self.changed.read();
        let Content { files, not_shared } = std::mem::take(&mut *self.content());
        let memory = files.and_then(|files| {
            let memory = FrontendMemory {
                connection,
                process,
                files,
            };
            serde_json::to_string(&memory).ok()
        });
        let memory = memory.map(|json| format!("{FRONTEND_MEMORY}{json}"));
        let not_shared = not_shared.then(|| MEMORY_NOT_SHARED.to_owned());
        memory.into_iter().chain(not_shared).collect()
    }

    fn tell(&self) {
        // It cannot overflow: it is read whenever it is not zero.
        let _ = self.changed.write(1);
    }

    fn content(&self) -> MutexGuard<'_, Content> {
        // Nothing is half changed at any point where a holder could panic.
        self.content.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The process at the other end of a connection; 0 when the kernel does not tell.
pub(super) fn peer(stream: &UnixStream) -> u32 {
    let credentials = rustix::net::sockopt::socket_peercred(stream);
    credentials.map_or(0, |peer| peer.pid.as_raw_pid().unsigned_abs())
}

/// The file behind a piece of guest memory.
pub(super) fn file_id(file: &File) -> io::Result<FileId> {
    file.metadata().map(|metadata| FileId::of(&metadata))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAPS: &str = "\
7f1fd7fff000-7f1fe7fff000 rw-p 00000000 00:01 1030                       /memfd:memory-backend-memfd (deleted)
7f2db7fff000-7f2dc7fff000 rw-s 00000000 00:01 10                         /memfd:shared one (deleted)
7f2dc7fff000-7f2dd7fff000 rw-p 00000000 00:01 10                         /memfd:shared one (deleted)
7f2dd7fff000-7f2de7fff000 rw-p 00000000 fe:00 1030                       /on another device
7ffc00000000-7ffc00001000 rw-p 00000000 00:00 0
not a mapping
";

    fn is_private(files: &[(u32, u32, u64)]) -> bool {
        let id = |&(major, minor, inode): &(u32, u32, u64)| FileId {
            device: rustix::fs::makedev(major, minor),
            inode,
        };
        let memory = FrontendMemory {
            connection: 1,
            process: 0,
            files: files.iter().map(id).collect(),
        };
        memory.is_private_in(MAPS)
    }

    #[test]
    fn only_what_is_mapped_and_never_shared_is_private() {
        assert!(is_private(&[(0, 1, 1030)]));
        assert!(!is_private(&[(0, 1, 10)]), "it is shared somewhere");
        assert!(is_private(&[(0, 1, 10), (0, 1, 1030)]), "one of two");
        assert!(is_private(&[(0xfe, 0, 1030)]));
        assert!(!is_private(&[(0, 1, 99)]), "it is not mapped at all");
        assert!(!is_private(&[]));
    }

    #[test]
    fn news_are_told_once() {
        let news = MemoryNews::new().unwrap();
        assert!(news.take(1, 2).is_empty());
        news.announced(vec![file_id(&tempfile::tempfile().unwrap()).unwrap()]);
        news.not_shared();
        let lines = news.take(1, 2);
        let json = lines[0].strip_prefix(FRONTEND_MEMORY).unwrap();
        let memory: FrontendMemory = serde_json::from_str(json).unwrap();
        assert_eq!((memory.connection, memory.process), (1, 2));
        assert_eq!(lines[1], MEMORY_NOT_SHARED);
        assert!(news.take(1, 2).is_empty() && news.changed().read().is_err());
    }
}
