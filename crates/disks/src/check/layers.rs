//! The layers of a disk that is checked: each one's two files, and one against the other.

use std::fs::{File, OpenOptions};
use std::io;
use std::ops::Range;
use std::path::Path;

use rustix::fs::{Advice, FallocateFlags, FlockOperation, fadvise, fallocate, flock};
use rustix::io::Errno;

use crate::check::lost;
use crate::check::lost::GiveUp;
use crate::check::report::{CheckReport, ProblemKind, in_words};
use crate::resource::disk::Disk;
use crate::resource::error::DiskError;
use crate::resource::extents::{Mismatch, compare, has_content};
use crate::resource::open;
use installation::envelope::{HeaderPayload, LayerRecord};
use keys::units::BLOCK_SIZE;
use volume::store::{LayerFile, can_punch, tells_holes};
use volume::{
    BlockMap, FailedSync, Geometry, LayerMap, LayerPaths, RuntimeMap, Volume, VolumeError,
    check_data_file, examine_map, format,
};

/// What a data plane left that died, for the claim of a disk; in a repair it is made durable.
pub(crate) type LeftOver<'a> =
    dyn FnMut(&LayerFile, bool) -> Result<Option<RuntimeMap>, DiskError> + 'a;

/// The layers of a disk, a snapshot or an image.
pub(crate) struct Layers<'a> {
    pub(crate) disk: &'a Disk,
    pub(crate) header: &'a HeaderPayload,
    /// What is given up of the unflushed data.
    pub(crate) gives_up: GiveUp,
    /// What a data plane that died had completed and not flushed of the top layer, whose claim it is
    /// given; in a repair that is made durable, and there is nothing of it then.
    pub(crate) unflushed: &'a mut LeftOver<'a>,
}

/// One of them.
struct Layer<'a> {
    record: &'a LayerRecord,
    paths: LayerPaths,
    geometry: Geometry,
    /// Nobody else changes it while this is held.
    data: File,
    /// The disk's claim, of the top layer only.
    claim: Option<LayerFile>,
}

impl Layers<'_> {
    /// Checks all layers, from the bottom up: what an interrupted attach left of the top one is made
    /// durable only when those beneath it are whole.
    pub(crate) fn check(
        &mut self,
        claim: LayerFile,
        repair: bool,
        report: &mut CheckReport,
    ) -> Result<(), DiskError> {
        let (mut bytes, mut claim) = (Some(0), Some(claim));
        let count = self.header.layers.len();
        let header = self.header;
        for (place, record) in header.layers.iter().enumerate() {
            let before = report.problems.len();
            let claim = claim.take_if(|_| place + 1 == count);
            let of_layer = match self.open(record, claim, repair, report)? {
                Some(layer) => self.check_one(&layer, repair, report)?,
                None => None,
            };
            bytes = bytes.zip(of_layer).map(|(sum, bytes)| sum + bytes);
            if count > 1 {
                for problem in &mut report.problems[before..] {
                    problem.message = format!("layer {}: {}", record.id, problem.message);
                }
            }
        }
        report.data_bytes = bytes;
        Ok(())
    }

    /// A layer with its data file locked; `None` when that cannot be, which is in the report.
    fn open<'r>(
        &self,
        record: &'r LayerRecord,
        claim: Option<LayerFile>,
        repair: bool,
        report: &mut CheckReport,
    ) -> Result<Option<Layer<'r>>, DiskError> {
        let paths = self.disk.layer_paths(record);
        let data = match open_plain(&paths.data) {
            Ok(data) => data,
            Err(error) => {
                report.damage("data", error);
                return Ok(None);
            }
        };
        if claim.is_none() {
            // Clones that have it in common can be looked at side by side.
            let lock = match repair {
                true => FlockOperation::NonBlockingLockExclusive,
                false => FlockOperation::NonBlockingLockShared,
            };
            match flock(&data, lock) {
                Ok(()) => {}
                Err(Errno::WOULDBLOCK) => {
                    return Err(DiskError::InUse {
                        name: self.disk.name().into(),
                        path: paths.data,
                    });
                }
                Err(e) => return Err(DiskError::file("lock", &paths.data)(e.into())),
            }
        }
        Ok(Some(Layer {
            record,
            geometry: open::geometry(self.header, record)?,
            paths,
            data,
            claim,
        }))
    }

    /// Checks a layer; how many bytes of data it has, if its map can be read.
    fn check_one(
        &mut self,
        layer: &Layer<'_>,
        repair: bool,
        report: &mut CheckReport,
    ) -> Result<Option<u64>, DiskError> {
        let Layer {
            paths,
            geometry,
            data,
            ..
        } = layer;
        if let Err(error) = check_data_file(data, geometry) {
            report.damage("data", error);
        }
        let map = match open_plain(&paths.map) {
            Ok(map) => map,
            Err(error) => {
                report.damage("map", error);
                return Ok(None);
            }
        };
        // After a sync that failed the page cache may have more of it than the storage.
        fadvise(&map, 0, None, Advice::DontNeed)
            .map_err(|e| DiskError::file("read", &paths.map)(e.into()))?;
        if !is_sound(&map, geometry, report) {
            return Ok(None);
        }
        // A data file that was cut off gives no space back: what is missing may be put back.
        let repair = repair && report.remaining(ProblemKind::Damage) == 0;
        let durable = open::layer_map(self.header, layer.record, paths)?;
        let unflushed = match &layer.claim {
            Some(claim) => {
                let left = (self.unflushed)(claim, false)?;
                if let Some(left) = &left {
                    look_for_lost(layer, &durable, left, self.gives_up, report)?;
                }
                match repair && report.remaining(ProblemKind::Damage) == 0 {
                    true => (self.unflushed)(claim, true)?,
                    false => left,
                }
            }
            None => None,
        };
        let unflushed = match unflushed {
            Some(runtime) => Some(Volume::open_runtime(durable.clone(), Vec::new(), &runtime)?),
            None => None,
        };
        let durable = Volume::open_private(durable, Vec::new())?;
        if let Some(unflushed) = &unflushed {
            let ranges = lost::unflushed(&durable, unflushed)?;
            report.unflushed_bytes = Some(ranges.iter().map(|range| range.length).sum());
            report.unflushed_ranges = ranges;
        }
        let maps: Vec<&BlockMap> = [Some(&durable), unflushed.as_ref()]
            .into_iter()
            .flatten()
            .map(Volume::map)
            .collect();
        let compare = |maps: &[&BlockMap]| compare(data, &paths.data, geometry, maps);
        let mut mismatch = compare(&maps)?;
        if !report.lost_ranges.is_empty() {
            // Others are in the report already.
            mismatch.missing = compare(&maps[..1])?.missing;
        }
        report_mismatch(&mismatch, report);
        let repair = repair && report.remaining(ProblemKind::Damage) == 0;
        let is_top = layer.claim.is_some();
        let given = GiveBack {
            data,
            map: &map,
            paths,
            by_attach: is_top,
        };
        given.run(mismatch, repair, report)?;
        check_lengths((data, &map), paths, geometry, (is_top, repair), report)?;
        let newest = unflushed.as_ref().unwrap_or(&durable);
        Ok(Some(newest.map().data_blocks() * BLOCK_SIZE))
    }
}

/// Looks for unflushed data that the data file has not. They are given up when that is asked for and nothing else
/// is damaged: the runtime map says then what the durable one does.
fn look_for_lost(
    layer: &Layer<'_>,
    durable: &LayerMap,
    left: &RuntimeMap,
    gives_up: GiveUp,
    report: &mut CheckReport,
) -> Result<(), DiskError> {
    let current = Volume::open_runtime(durable.clone(), Vec::new(), left)?;
    let durable = Volume::open_private(durable.clone(), Vec::new())?;
    let lost = lost::lost(&layer.data, &lost::unflushed(&durable, &current)?);
    let lost = lost.map_err(DiskError::file("look for holes in", &layer.paths.data))?;
    let kinds = [
        (
            &lost.unreadable,
            GiveUp::Unreadable,
            "cannot be read",
            "mend the storage and check again; --repair --discard-unflushed gives them up, and has them read",
        ),
        (
            &lost.holes,
            GiveUp::Holes,
            "are lost, since the data file has holes there",
            "--repair has them read",
        ),
    ];
    for (ranges, needed, why, advice) in kinds {
        if ranges.is_empty() {
            continue;
        }
        let what = format!(
            "{} bytes that the guest wrote since the last flush {why}{}",
            lost::bytes_of(ranges),
            in_words(ranges)
        );
        if gives_up >= needed && report.remaining(ProblemKind::Damage) == 0 {
            // Should this process end before it prints the report.
            log::warn!("{what}; they are given up");
            lost::give_up(ranges, &durable, &current)?;
            let message =
                format!("{what}; they read as before these writes now: run fsck in the guest");
            report.repaired_damage("data", message);
        } else {
            report.damage("data", format!("{what}; {advice} as before these writes"));
        }
    }
    report.lost_ranges = lost.holes;
    report.unreadable_ranges = lost.unreadable;
    Ok(())
}

/// Whether header, length and all sectors of the map are as they should be.
fn is_sound(map: &File, geometry: &Geometry, report: &mut CheckReport) -> bool {
    let before = report.problems.len();
    let mut damaged = Vec::new();
    let examined = examine_map(map, geometry, |sector, states| {
        if states.is_err() {
            damaged.push(sector);
        }
        Ok(())
    });
    if let Err(error) = examined {
        report.damage("map", error);
    }
    if let Some(first) = damaged.first() {
        report.damage(
            "map",
            format!(
                "{} sectors of the map are damaged (checksum), the first is {first}, for the {} bytes \
                 from byte {} on: restore the map from a backup",
                damaged.len(),
                format::BLOCKS_PER_SECTOR * BLOCK_SIZE,
                first * format::BLOCKS_PER_SECTOR * BLOCK_SIZE,
            ),
        );
    }
    report.problems.len() == before
}

fn report_mismatch(mismatch: &Mismatch, report: &mut CheckReport) {
    if let Some(first) = mismatch.missing.first() {
        let bytes: u64 = mismatch
            .missing
            .iter()
            .map(|range| range.end - range.start)
            .sum();
        report.damage(
            "data",
            format!(
                "{bytes} bytes that the map calls data are holes, the first at byte {}: restore the \
                 data file from a backup",
                first.start
            ),
        );
    }
}

/// Giving back space of a layer that no map needs.
struct GiveBack<'a> {
    data: &'a File,
    map: &'a File,
    paths: &'a LayerPaths,
    /// The next attach gives them back by itself.
    by_attach: bool,
}

impl GiveBack<'_> {
    /// The map that says so is durable before.
    fn run(
        &self,
        mismatch: Mismatch,
        repair: bool,
        report: &mut CheckReport,
    ) -> Result<(), DiskError> {
        let Mismatch {
            leaked, held, kept, ..
        } = mismatch;
        let bytes = |ranges: &[Range<u64>]| -> u64 {
            ranges.iter().map(|range| range.end - range.start).sum()
        };
        let (leaks, discarded) = (bytes(&leaked), bytes(&held));
        if leaks + discarded + kept == 0 {
            return Ok(());
        }
        // Where all is said to be data, what was never written is too.
        let tells = tells_holes(self.data).map_err(DiskError::file("look at", &self.paths.data))?;
        let leaks = if tells { leaks } else { 0 };
        if !can_punch(self.data) {
            let all = leaks + discarded + kept;
            if all > 0 {
                let message = format!(
                    "{all} bytes of space may be in use that the map does not need: the file system cannot punch \
                     holes, so a discard gives nothing back"
                );
                report.note("data", message, false);
            }
            return Ok(());
        }
        if leaks + discarded == 0 {
            return Ok(());
        }
        if repair {
            let leaked = leaked.into_iter().filter(|_| tells);
            self.punch(leaked.chain(held))?;
        }
        if leaks > 0 {
            let what = format!("{leaks} bytes of space are in use that the map does not need");
            self.tell(what, repair, report);
        }
        if discarded > 0 {
            let what = format!("{discarded} bytes of space are in use that the guest discarded");
            self.tell(what, repair, report);
        }
        Ok(())
    }

    fn tell(&self, what: String, repaired: bool, report: &mut CheckReport) {
        match self.by_attach {
            true => {
                let message = format!("{what}; the next attach gives them back");
                report.note("data", message, repaired);
            }
            false => report.leak("data", what, repaired),
        }
    }

    fn punch(&self, ranges: impl Iterator<Item = Range<u64>>) -> Result<(), DiskError> {
        let (data, paths) = (self.data, self.paths);
        let synced = self.map.sync_all();
        synced.map_err(sync_failed(self.by_attach, FailedSync::Map, &paths.map))?;
        let mode = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        for range in ranges {
            fallocate(data, mode, range.start, range.end - range.start)
                .map_err(|e| DiskError::file("give space back of", &paths.data)(e.into()))?;
        }
        let synced = data.sync_all();
        synced.map_err(sync_failed(self.by_attach, FailedSync::Data, &paths.data))
    }
}

/// For `map_err` of a sync. Of a layer beneath the top nothing is at stake: it was made durable before it was
/// frozen.
fn sync_failed(is_top: bool, file: FailedSync, path: &Path) -> impl FnOnce(io::Error) -> DiskError {
    move |source| match is_top {
        true => VolumeError::sync(file, path)(source).into(),
        false => DiskError::file("sync", path)(source),
    }
}

/// Files that are longer than the disk: an interrupted resize leaves them so, with nothing there. If
/// there is something, the header may be an old one.
fn check_lengths(
    (data, map): (&File, &File),
    paths: &LayerPaths,
    geometry: &Geometry,
    (is_top, repair): (bool, bool),
    report: &mut CheckReport,
) -> Result<(), DiskError> {
    let map_len = format::file_len(geometry.blocks());
    let files = [
        (FailedSync::Data, data, &paths.data, geometry.data_len()),
        (FailedSync::Map, map, &paths.map, map_len),
    ];
    for (which, file, path, expected) in files {
        let part = which.as_str();
        let len = file
            .metadata()
            .map_err(DiskError::file("examine", path))?
            .len();
        if len <= expected {
            continue;
        }
        let content = has_content(file, expected, len);
        if content.map_err(DiskError::file("read", path))? {
            report.damage(
                part,
                format!(
                    "the {part} file has content behind the end of the disk: an old header may have \
                     been put back, or another disk's file; put the newest header back"
                ),
            );
            continue;
        }
        if repair {
            file.set_len(expected)
                .map_err(DiskError::file("set the length of", path))?;
            let synced = file.sync_all();
            synced.map_err(sync_failed(is_top, which, path))?;
        }
        let more = len - expected;
        let message = format!("the {part} file is {more} bytes longer than the disk, by a hole");
        report.leak(part, message, repair);
    }
    Ok(())
}

/// A file without `O_DIRECT`; to be read where its file system is read-only, of which nothing is repaired.
fn open_plain(path: &Path) -> Result<File, DiskError> {
    let open = |write| OpenOptions::new().read(true).write(write).open(path);
    open(true)
        .or_else(|error| match error.kind() {
            io::ErrorKind::ReadOnlyFilesystem => open(false),
            _ => Err(error),
        })
        .map_err(DiskError::file("open", path))
}
