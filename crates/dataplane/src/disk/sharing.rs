//! Whether the frontend shares the guest's memory with this process.
//!
//! A private mapping of a file looks to the VMM like its guest's memory, and to whoever maps the same
//! file like an empty one: the guest's rings never have anything, and the guest waits for ever. That
//! can be seen in one place only, the VMM's own table of mappings, which the attach process reads
//! ([`FrontendMemory::is_private`]); this process may open nothing. So it tells the attach process which
//! files a frontend announced, and may be told to end that connection. Memory without a file is never
//! announced: then a ring is where no memory is, which is seen here.

use std::fs::File;
use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError};

use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use protocol::{FileId, FrontendMemory};

/// What the thread of a connection has for the main thread to tell the attach process.
pub(crate) struct MemoryNews {
    content: Mutex<Content>,
    changed: EventFd,
}

#[derive(Default)]
struct Content {
    files: Option<Vec<FileId>>,
    not_shared: bool,
}

impl MemoryNews {
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self {
            content: Mutex::default(),
            changed: EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?,
        })
    }

    /// Has something to read when there are news.
    pub(crate) fn changed(&self) -> &EventFd {
        &self.changed
    }

    /// The frontend has announced memory in these files.
    pub(crate) fn announced(&self, files: Vec<FileId>) {
        self.content().files = Some(files);
        self.tell();
    }

    /// A queue of the frontend's is in memory that it has not announced.
    pub(crate) fn not_shared(&self) {
        self.content().not_shared = true;
        self.tell();
    }

    /// What the attach process is to be told now: of memory that was announced on the connection of that
    /// number, and whether a queue is in none.
    pub(crate) fn take(&self, connection: u64) -> (Option<FrontendMemory>, bool) {
        // There is nothing to read when there are none.
        let _ = self.changed.read();
        let Content { files, not_shared } = std::mem::take(&mut *self.content());
        let memory = files.map(|files| FrontendMemory { connection, files });
        (memory, not_shared)
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

/// The file behind a piece of guest memory.
pub(crate) fn file_id(file: &File) -> io::Result<FileId> {
    file.metadata().map(|metadata| FileId::of(&metadata))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn news_are_told_once() {
        let news = MemoryNews::new().unwrap();
        assert_eq!(news.take(1), (None, false));
        let files = vec![file_id(&tempfile::tempfile().unwrap()).unwrap()];
        news.announced(files.clone());
        news.not_shared();
        let memory = FrontendMemory {
            connection: 1,
            files,
        };
        assert_eq!(news.take(1), (Some(memory), true));
        assert_eq!(news.take(1), (None, false));
        assert!(news.changed().read().is_err());
    }
}
