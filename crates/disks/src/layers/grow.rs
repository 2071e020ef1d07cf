//! Growing a disk: its files and its header.
//!
//! # Order of steps
//!
//! The first two under the header's exclusive lock:
//!
//! 1. the layer's files are made longer and synced, by nothing but holes;
//! 2. the header says the new size, one copy after the other: this alone decides;
//! 3. the catalog's row follows;
//! 4. the disk's user serves the new size.
//!
//! A crash after 1 leaves files that are longer than the disk, which is taken as it is; between the
//! copies the newer one counts; after 2, the next command corrects the row. So the disk has its old or
//! its new size, and all of it can be repeated. Whoever serves the disk meanwhile knows of the new size only
//! by 4, which is why nothing of the runtime map changes before (see [`volume`]).

use crate::layers::swap_volume::SwapVolume;
use crate::resource::disk::Disk;
use crate::resource::error::DiskError;
use crate::resource::lookup::lookup;
use crate::resource::open::geometry;
use crate::resource::reconcile::described;
use installation::Installation;
use installation::catalog::CatalogError;
use installation::envelope::{Header, HeaderPayload, MAX_DISK_SIZE};
use volume::grow_layer;

/// A step of [`grow`] that is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    Files,
    FirstCopy,
    Header,
}

/// Makes a disk, whose user is `volume`, `size` bytes large. A disk that has that size already stays as it is,
/// and its user is told again.
///
/// # Errors
/// [`DiskError::Argument`] for a size that the disk cannot have; [`DiskError::SizeNotServed`], after which it
/// has its new size; others, after which it has its old size, or, when only the catalog failed, its new one.
pub(super) fn grow(
    installation: &Installation,
    disk: &Disk,
    volume: &mut dyn SwapVolume,
    size: u64,
) -> Result<(), DiskError> {
    let has = |header: &HeaderPayload| volume.still_has(header);
    let header = grow_by_steps(installation, disk, size, has, |_| Ok(()))?;
    volume.grow(&header)
}

fn grow_by_steps(
    installation: &Installation,
    disk: &Disk,
    size: u64,
    mut still_has: impl FnMut(&HeaderPayload) -> Result<(), DiskError>,
    done: impl Fn(Step) -> Result<(), DiskError>,
) -> Result<Header, DiskError> {
    let file = disk.header_file()?;
    let mut lock = file.lock()?;
    let (mut header, dek) = disk.unlock(installation, lock.read()?)?;
    still_has(&header)?;
    disk.refuse_failed_sync(&header)?;
    let top = header.top().ok_or_else(|| disk.no_layer())?.clone();
    let unit = top.data_unit.max(header.logical_sector_size);
    check_size(disk.name(), header.size, size, u64::from(unit))?;
    if size > header.size {
        let grown = grow_layer(&disk.layer_paths(&top), &geometry(&header, &top)?, size);
        grown
            .map_err(DiskError::from)
            .inspect_err(|error| disk.keep_failed_sync(installation, &mut lock, error))?;
        done(Step::Files)?;
        header.size = size;
        if let Some(top) = header.layers.last_mut() {
            top.size = size;
        }
        lock.write(&header, &dek)?;
        done(Step::FirstCopy)?;
        lock.write(&header, &dek)?;
        done(Step::Header)?;
    }
    drop(lock);
    let row = lookup(installation, disk.kind(), disk.name())?;
    let record = described(&row.record, &header);
    match installation.catalog().update_disk(row.rev, &record) {
        Err(CatalogError::Changed { .. }) => disk.note(installation)?,
        result => drop(result?),
    }
    Ok(header)
}

fn check_size(name: &str, now: u64, size: u64, unit: u64) -> Result<(), DiskError> {
    let refuse = |why: String| Err(DiskError::Argument(why));
    if size < now {
        return refuse(format!(
            "the disk {name} has {now} bytes; a disk is not made smaller, since what is at its end \
             would be lost"
        ));
    }
    if size > MAX_DISK_SIZE {
        return refuse(format!(
            "the size {size} is not possible; a disk has 64 TiB ({MAX_DISK_SIZE} bytes) at most"
        ));
    }
    if !size.is_multiple_of(unit) {
        return refuse(format!(
            "the size {size} is not a multiple of the disk's sector size, {unit}; {} is the next one",
            size.next_multiple_of(unit)
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::import::Cancel;
    use crate::layers::op::{Applied, LayerOp};
    use crate::layers::swap_volume::Unattached;
    use crate::lifecycle::create::{CreateRequest, create};
    use crate::resource::offline::open_existing;
    use crate::show;
    use volume::pipeline::DiskIo;

    /// The last block is not whole.
    const OLD: u64 = (3 << 20) + 3 * 512;
    const NEW: u64 = 40 << 20;

    fn make(installation: &Installation) -> Disk {
        let request = CreateRequest {
            name: "d".into(),
            size: Some(OLD),
            source: None,
            disk_encryption_set: None,
            sector_size: 512,
            logical_sector_size: None,
            data_dir: None,
        };
        create(installation, &request, &Cancel::default(), |_| |_| {}).unwrap();
        Disk::find(installation, "d").unwrap()
    }

    /// The disk as nobody has it attached, and its size by the header.
    fn open(installation: &Installation, disk: &Disk) -> (DiskIo, u64) {
        let file = disk.header_file().unwrap();
        let claim = disk.claim().unwrap();
        let (header, deks) = disk.unlock_all(installation, file.read().unwrap()).unwrap();
        let nothing = Path::new("/dev/shm/there-is-no-such-directory");
        let io = open_existing(disk, claim, &header, &deks, nothing).unwrap();
        (io, header.size)
    }

    /// Grows the disk as nobody has it attached.
    fn grow(installation: &Installation, disk: &Disk, size: u64) -> Result<Applied, DiskError> {
        let claim = disk.claim()?;
        let nothing = Path::new("/dev/shm/there-is-no-such-directory");
        let mut volume = Unattached::settled(installation, disk, claim, nothing)?;
        LayerOp::Grow { size }.apply(installation, disk, &mut volume)
    }

    fn read(io: &mut DiskIo, at: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0xee; len];
        io.read_at(at, &mut bytes).unwrap();
        bytes
    }

    #[test]
    fn a_crash_after_any_step_leaves_the_old_or_the_new_size_and_the_content() {
        let dir = tempfile::tempdir().unwrap();
        for crash in [Step::Files, Step::FirstCopy, Step::Header] {
            let installation = Installation::open(dir.path().join(format!("{crash:?}"))).unwrap();
            let disk = make(&installation);
            let (mut io, _) = open(&installation, &disk);
            io.write_at(0, &[1; 4096]).unwrap();
            io.write_at(OLD - 512, &[2; 512]).unwrap();
            io.flush().unwrap();
            drop(io);

            let dies = |step: Step| match step == crash {
                true => Err(DiskError::Terminal),
                false => Ok(()),
            };
            let died = grow_by_steps(&installation, &disk, NEW, |_| Ok(()), dies);
            assert!(died.is_err());
            let (mut io, size) = open(&installation, &disk);
            assert_eq!(
                size,
                if crash == Step::Files { OLD } else { NEW },
                "{crash:?}"
            );
            assert_eq!(read(&mut io, 0, 4096), [1; 4096]);
            assert_eq!(read(&mut io, OLD - 512, 512), [2; 512]);
            drop(io);
            assert_eq!(
                show(
                    &installation,
                    installation::envelope::ResourceKind::Disk,
                    "d"
                )
                .unwrap()
                .disk_size_bytes,
                size
            );

            assert_eq!(grow(&installation, &disk, NEW).unwrap(), Applied::Done);
            let (mut io, size) = open(&installation, &disk);
            assert_eq!(size, NEW);
            // The rest of the block that was not whole, and everything after it.
            assert_eq!(read(&mut io, OLD - 512, 512), [2; 512]);
            let behind = (NEW - OLD) as usize;
            assert!(
                read(&mut io, OLD, behind).iter().all(|b| *b == 0),
                "{crash:?}"
            );
            io.write_at(NEW - 512, &[3; 512]).unwrap();
            io.write_at(OLD, &[4; 512]).unwrap();
            io.flush().unwrap();
            drop(io);
            let (mut io, _) = open(&installation, &disk);
            assert_eq!(read(&mut io, NEW - 512, 512), [3; 512]);
            assert_eq!(read(&mut io, OLD - 512, 512), [2; 512]);
            assert_eq!(read(&mut io, OLD, 512), [4; 512]);
            assert_eq!(read(&mut io, OLD + 512, 512), [0; 512]);
        }
    }

    #[test]
    fn sizes_that_a_disk_cannot_have_are_refused_and_its_own_is_no_change() {
        let dir = tempfile::tempdir().unwrap();
        let installation = Installation::open(dir.path().join("state")).unwrap();
        let disk = make(&installation);
        for (size, why) in [
            (OLD - 512, "not made smaller"),
            (0, "not made smaller"),
            (NEW + 1, "multiple"),
            (MAX_DISK_SIZE + 512, "64 TiB"),
        ] {
            let error = grow(&installation, &disk, size).unwrap_err().to_string();
            assert!(error.contains(why), "{size}: {error}");
        }
        assert_eq!(grow(&installation, &disk, OLD).unwrap(), Applied::Done);
        assert_eq!(open(&installation, &disk).1, OLD);
    }
}
