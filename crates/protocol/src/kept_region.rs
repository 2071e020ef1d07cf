//! Memory that an attach process shares with its data plane, and that outlives it.
//!
//! | Offset | Bytes | What |
//! |---|---|---|
//! | 0 | 4 | 1 while a message of the frontend is being handled, else 0 |
//! | 4096 | [`inflight_len`] | the in-flight region of frontends that keep none themselves |
//! | [`counters_at`] | [`counters_len`] | what the queues count ([`IoCounters`]) |
//!
//! Older versions made it without the last part. A data plane that finds it too short for that counts for itself alone.
//!
//! A data plane that dies while a message is handled leaves nobody who knows how far that got: whether it
//! was read, had its effect, or was answered. The frontend has to connect anew then. At any other moment
//! what is kept of the connection ([`Kept`](crate::Kept)) is complete.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create};

use crate::io_counters::{IoCounters, SIGNATURE, counters_len};

/// Entries of a queue at most. QEMU's virtio-mmio machines ask for this many, and so does its
/// `queue-size=1024`; vhost-user has no message that would have them ask for fewer.
pub const MAX_QUEUE_SIZE: u16 = 1024;
/// Bytes of a queue's part of an in-flight region before its first entry.
pub const INFLIGHT_HEADER: usize = 16;
/// Bytes of an entry.
pub const INFLIGHT_ENTRY: usize = 16;
/// Where a queue's part has the index of the used ring with which it last agreed.
pub const INFLIGHT_USED_IDX: usize = 14;
/// Where the in-flight region begins.
pub const INFLIGHT_AT: u64 = 4096;

/// The parts of the queues begin at multiples of this, as those of other back-ends do: one of these
/// may have made the region, or get it next.
const ALIGNMENT: u64 = 64;

/// Bytes from the part of one queue to that of the next, in an in-flight region with so many entries each.
pub fn inflight_part_len(entries: u16) -> u64 {
    ((INFLIGHT_HEADER + INFLIGHT_ENTRY * usize::from(entries)) as u64).next_multiple_of(ALIGNMENT)
}

/// Bytes of an in-flight region.
pub fn inflight_len(queues: u16, entries: u16) -> u64 {
    u64::from(queues) * inflight_part_len(entries)
}

/// Where the counters of a device with so many queues begin.
pub fn counters_at(queues: u16) -> u64 {
    (INFLIGHT_AT + inflight_len(queues, MAX_QUEUE_SIZE)).next_multiple_of(4096)
}

/// Makes a file in memory of so many zeros. Nobody can make it shorter, which would kill whoever has it mapped.
///
/// # Errors
/// What the kernel says.
pub fn sealed_memory(name: &str, len: u64) -> io::Result<File> {
    let file = memfd_create(name, MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
    ftruncate(&file, len)?;
    fcntl_add_seals(&file, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)?;
    Ok(file.into())
}

/// The attach process's side of the memory.
#[derive(Debug)]
pub struct KeptRegion {
    file: File,
    queues: u16,
}

impl KeptRegion {
    /// For a device of so many queues.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn create(queues: u16) -> io::Result<Self> {
        let len = counters_at(queues) + counters_len(queues);
        let file = sealed_memory("sealdisk-kept", len)?;
        file.write_all_at(&SIGNATURE.to_le_bytes(), counters_at(queues))?;
        Ok(Self { file, queues })
    }

    /// Another one, in which nothing is in flight, and which counts on from this one. No data plane may have it.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn renewed(&self) -> io::Result<Self> {
        let next = Self::create(self.queues)?;
        if self.counters()?.is_some() {
            let mut counters = vec![0; counters_len(self.queues) as usize];
            let at = counters_at(self.queues);
            self.file.read_exact_at(&mut counters, at)?;
            next.file.write_all_at(&counters, at)?;
        }
        Ok(next)
    }

    /// What the queues have counted; `None` where nothing is.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn counters(&self) -> io::Result<Option<IoCounters>> {
        IoCounters::read(&self.file, counters_at(self.queues), self.queues)
    }

    /// One that the program before this one has made, for so many queues.
    pub fn adopt(file: OwnedFd, queues: u16) -> Self {
        Self {
            file: file.into(),
            queues,
        }
    }

    /// Whether a message was being handled when the data plane died.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn is_busy(&self) -> io::Result<bool> {
        let mut word = [0; 4];
        self.file.read_exact_at(&mut word, 0)?;
        Ok(word != [0; 4])
    }

    /// How far the queues were: it is another value after any request was returned.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn progress(&self) -> io::Result<Vec<u16>> {
        inflight_progress(&self.file, INFLIGHT_AT, self.queues, MAX_QUEUE_SIZE)
    }
}

impl AsFd for KeptRegion {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// The used index of each queue, as an in-flight region has it that begins at `offset` of the file.
///
/// # Errors
/// What the kernel says, of a file that is too short as well.
pub fn inflight_progress(
    file: &File,
    offset: u64,
    queues: u16,
    entries: u16,
) -> io::Result<Vec<u16>> {
    let part = |queue: u16| {
        let at = u64::from(queue) * inflight_part_len(entries) + INFLIGHT_USED_IDX as u64;
        let at = offset.checked_add(at).ok_or(io::ErrorKind::InvalidInput)?;
        let mut index = [0; 2];
        file.read_exact_at(&mut index, at)?;
        Ok(u16::from_ne_bytes(index))
    };
    (0..queues).map(part).collect()
}

#[cfg(test)]
mod tests {
    use crate::io_counters::{QUEUE_LEN, QUEUES_AT, Word};

    use super::*;

    #[test]
    fn the_region_tells_of_a_message_and_of_progress() {
        let region = KeptRegion::create(3).unwrap();
        assert_eq!(region.progress().unwrap(), [0, 0, 0]);
        assert!(!region.is_busy().unwrap());
        region.file.write_all_at(&1u32.to_ne_bytes(), 0).unwrap();
        assert!(region.is_busy().unwrap());
        let second = INFLIGHT_AT + inflight_part_len(MAX_QUEUE_SIZE) + 14;
        region
            .file
            .write_all_at(&7u16.to_ne_bytes(), second)
            .unwrap();
        assert_eq!(region.progress().unwrap(), [0, 7, 0]);
        assert!(region.file.set_len(0).is_err(), "it is sealed");
    }

    #[test]
    fn counters_go_over_from_one_region_to_the_next() {
        let region = KeptRegion::create(2).unwrap();
        assert_eq!(region.counters().unwrap(), Some(IoCounters::default()));
        let put = |queue: u64, word: Word, value: u64| {
            let at = counters_at(2) + QUEUES_AT + queue * QUEUE_LEN as u64 + word as u64 * 8;
            region.file.write_all_at(&value.to_ne_bytes(), at).unwrap();
        };
        put(0, Word::SpaceWaits, 3);
        put(1, Word::SpaceWaits, 4);
        put(1, Word::PollTicks, u64::MAX);
        region.file.write_all_at(&1u32.to_ne_bytes(), 0).unwrap();
        let next = region.renewed().unwrap();
        assert!(!next.is_busy().unwrap());
        for region in [&region, &next] {
            let counters = region.counters().unwrap().unwrap();
            assert_eq!((counters.space_waits, counters.poll_ticks), (7, u64::MAX));
        }
    }

    #[test]
    fn a_region_of_a_version_that_did_not_count_has_no_counters() {
        let len = INFLIGHT_AT + inflight_len(3, MAX_QUEUE_SIZE);
        let old = sealed_memory("test", len).unwrap();
        let region = KeptRegion::adopt(old.into(), 3);
        assert_eq!(region.counters().unwrap(), None);
        assert_eq!(
            region.renewed().unwrap().counters().unwrap(),
            Some(IoCounters::default())
        );
        let other = sealed_memory("test", counters_at(3) + counters_len(3)).unwrap();
        other.write_all_at(b"SDCOUNT9", counters_at(3)).unwrap();
        let region = KeptRegion::adopt(other.into(), 3);
        assert_eq!(
            region.counters().unwrap(),
            None,
            "of a layout that is not known"
        );
    }

    #[test]
    fn a_region_that_is_not_there_has_no_progress() {
        let file = tempfile::tempfile().unwrap();
        assert!(inflight_progress(&file, 0, 1, 8).is_err());
        assert!(inflight_progress(&file, u64::MAX, 1, 8).is_err());
    }
}
