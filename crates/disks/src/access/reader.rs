//! A disk or a snapshot that is open for readers.

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use uuid::Uuid;

use crate::access::footer::{FOOTER_LEN, footer};
use crate::access::page_list::{Page, PageList};
use crate::resource::disk::Disk;
use crate::resource::error::DiskError;
use crate::resource::key_watch::KeyWatch;
use crate::resource::offline::{open_existing, open_maps};
use crate::transfer::layers_above;
use installation::Installation;
use installation::envelope::{Header, ResourceKind};
use keys::{DekStack, sha256, with_wiped_call_stack};
use volume::pipeline::{DiskIo, PipelineError};
use volume::store::LayerFile;

const SECTOR: u64 = 512;

/// A disk or a snapshot whose keys are unwrapped, and which stays as it is for as long as this is there. Several may
/// read it.
pub struct Reader {
    disk: Disk,
    header: Header,
    deks: DekStack,
    keys: KeyWatch,
    claim: LayerFile,
    runtime_dir: PathBuf,
}

impl Reader {
    /// Opens what has that name, if it is the one of that id.
    ///
    /// # Errors
    /// That it is in use, or what its keys cannot be unwrapped for.
    pub fn open(
        installation: &Installation,
        (kind, name, id): (ResourceKind, &str, Uuid),
        runtime_dir: &Path,
    ) -> Result<Self, DiskError> {
        let disk = Disk::of_kind(installation, kind, name)?;
        let claim = disk.claim_to_read()?;
        let found = disk.header_file()?.read()?;
        if disk.id() != id {
            return Err(disk.in_use());
        }
        if found.claims().upload.is_some() {
            return Err(disk.uploading());
        }
        disk.refuse_unsynced(found.claims(), runtime_dir)?;
        let (header, deks) = with_wiped_call_stack(|| disk.unlock_all(installation, found))?;
        Ok(Self {
            keys: KeyWatch::of(installation, &disk)?,
            disk,
            header,
            deks,
            claim,
            runtime_dir: runtime_dir.into(),
        })
    }

    /// Bytes of the disk. A footer follows them.
    pub fn size(&self) -> u64 {
        self.header.size
    }

    /// Bytes of a sector as guests see it.
    pub fn logical_sector_size(&self) -> u32 {
        self.header.logical_sector_size
    }

    /// Changes with the content, as far as it can change at all.
    pub fn version(&self) -> u64 {
        version(&self.header)
    }

    /// When its data was changed last.
    pub fn modified(&self) -> SystemTime {
        modified(&self.claim)
    }

    /// Whether its keys are still granted.
    pub fn keys(&self) -> &KeyWatch {
        &self.keys
    }

    pub(super) fn footer(&self) -> [u8; FOOTER_LEN] {
        footer(self.size(), self.disk.id(), self.header.created)
    }

    /// What of a range has data.
    ///
    /// # Errors
    /// [`DiskError`] when a map cannot be read.
    pub fn pages(&self, range: Range<u64>) -> Result<PageList, DiskError> {
        let (io, range) = (self.maps()?, in_sectors(range));
        let mut list = PageList::default();
        each(
            &range,
            self.size(),
            |at| io.next_data(at),
            |data| {
                list.add(Page::Data(data));
                Ok(())
            },
        )?;
        self.add_footer(&range, &mut list);
        Ok(list)
    }

    /// What of a range is another than in a snapshot of that name, on which this lies.
    ///
    /// # Errors
    /// [`DiskError::Argument`] where it does not lie on it; others when a map or the snapshot cannot be read.
    pub fn pages_since(
        &self,
        installation: &Installation,
        snapshot: &str,
        range: Range<u64>,
    ) -> Result<PageList, DiskError> {
        let layers = layers_above(installation, &self.disk, &self.header, snapshot)?;
        let (io, range) = (self.maps()?, in_sectors(range));
        let mut list = PageList::default();
        each(
            &range,
            self.size(),
            |at| io.next_held(at, layers),
            |held| {
                let mut at = held.start;
                each(
                    &held,
                    self.size(),
                    |at| io.next_data(at),
                    |data| {
                        list.add(Page::Clear(at..data.start));
                        at = data.end;
                        list.add(Page::Data(data));
                        Ok(())
                    },
                )?;
                list.add(Page::Clear(at..held.end));
                Ok(())
            },
        )?;
        self.add_footer(&range, &mut list);
        Ok(list)
    }

    fn add_footer(&self, range: &Range<u64>, list: &mut PageList) {
        let end = self.size() + FOOTER_LEN as u64;
        list.add(Page::Data(range.start.max(self.size())..range.end.min(end)));
    }

    /// The disk, for the calling thread alone.
    pub(super) fn io(&self) -> Result<DiskIo, DiskError> {
        let claim = self.claim.try_clone().map_err(PipelineError::from)?;
        open_existing(
            &self.disk,
            claim,
            &self.header,
            &self.deks,
            &self.runtime_dir,
        )
    }

    /// Its maps, without any key.
    fn maps(&self) -> Result<DiskIo, DiskError> {
        let claim = self.claim.try_clone().map_err(PipelineError::from)?;
        open_maps(&self.disk, claim, &self.header, &self.runtime_dir)
    }
}

fn in_sectors(range: Range<u64>) -> Range<u64> {
    range.start / SECTOR * SECTOR..range.end.next_multiple_of(SECTOR)
}

/// Tells `take` of each range that `next` finds in one of a disk.
fn each(
    range: &Range<u64>,
    size: u64,
    next: impl Fn(u64) -> Result<Option<Range<u64>>, PipelineError>,
    mut take: impl FnMut(Range<u64>) -> Result<(), DiskError>,
) -> Result<(), DiskError> {
    let end = range.end.min(size);
    let mut at = range.start;
    while at < end
        && let Some(found) = next(at)?
        && found.start < end
    {
        at = found.end;
        take(found.start..found.end.min(end))?;
    }
    Ok(())
}

pub(super) fn version(header: &Header) -> u64 {
    let top = header.top().map(|top| top.id).unwrap_or_default();
    let hash = sha256(&[top.as_bytes().as_slice(), header.attach.as_bytes()].concat());
    hash.iter()
        .take(8)
        .fold(0, |n, byte| n << 8 | u64::from(*byte))
}

pub(super) fn modified(data: &LayerFile) -> SystemTime {
    let metadata = data.file().metadata();
    let modified = metadata.and_then(|metadata| metadata.modified());
    modified.unwrap_or(SystemTime::UNIX_EPOCH)
}
