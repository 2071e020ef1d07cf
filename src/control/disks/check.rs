//! Checking a disk's files, and repairing what can be repaired without a doubt.
//!
//! Repaired are: a header copy that is not whole, from the whole one; space of the data file that no
//! map needs, which is given back; and files that are longer than the disk, by nothing. What a killed
//! daemon had completed is made durable first. Everything else is told and left.

use std::fs::{File, OpenOptions};
use std::path::Path;

use rustix::fs::{FallocateFlags, fallocate};
use serde::Serialize;
use uuid::Uuid;

use super::copy::settle;
use super::extents::{Mismatch, compare, has_content};
use super::{Disk, DiskError, HEADER, dataplane};
use crate::control::{Installation, runtime_map};
use crate::envelope::{EnvelopeError, HeaderCopy, HeaderLock, HeaderPayload, LayerRecord};
use crate::pipeline::PipelineError;
use crate::store::LayerFile;
use crate::units::BLOCK_SIZE;
use crate::volume::{
    BlockMap, Geometry, LayerPaths, RuntimeMap, Volume, check_data_file, examine_map, format,
};

/// How grave a problem is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub enum ProblemKind {
    /// Content or keys are lost or in danger.
    Damage,
    /// Something takes space for nothing.
    Leak,
}

/// One thing that is not as it should be.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Problem {
    /// How grave it is.
    pub kind: ProblemKind,
    /// `header`, `data`, `map` or `directory`.
    pub part: &'static str,
    /// One line: what, and what to do.
    pub message: String,
    /// It was, and is no more.
    pub repaired: bool,
}

/// What a check found.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct CheckReport {
    /// The disk.
    pub name: String,
    /// Its id.
    pub unique_id: Uuid,
    /// Its size by its header, when that can be read.
    pub disk_size_bytes: Option<u64>,
    /// Bytes of the blocks that hold data, when the map can be read.
    pub data_bytes: Option<u64>,
    /// Whether the header was proven to be written by somebody who had the disk's key.
    pub header_authenticated: bool,
    /// Why it could not be looked at, if that is the reason.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub not_authenticated_because: Option<String>,
    /// What is wrong.
    pub problems: Vec<Problem>,
}

impl CheckReport {
    /// Problems of a kind that were not repaired.
    pub fn remaining(&self, kind: ProblemKind) -> usize {
        let left = |problem: &&Problem| problem.kind == kind && !problem.repaired;
        self.problems.iter().filter(left).count()
    }

    fn add(&mut self, kind: ProblemKind, part: &'static str, message: String, repaired: bool) {
        self.problems.push(Problem {
            kind,
            part,
            message: message.replace('\n', " "),
            repaired,
        });
    }

    fn damage(&mut self, part: &'static str, message: impl ToString) {
        self.add(ProblemKind::Damage, part, message.to_string(), false);
    }

    fn leak(&mut self, part: &'static str, message: String, repaired: bool) {
        self.add(ProblemKind::Leak, part, message, repaired);
    }
}

/// Checks a disk that nobody uses, and repairs what is safe when `repair` says so.
///
/// # Errors
/// [`DiskError`] when the check could not be made; what is wrong with the disk is in the report.
pub fn check(
    installation: &Installation,
    name: &str,
    repair: bool,
    runtime_dir: &Path,
) -> Result<CheckReport, DiskError> {
    let disk = Disk::find(installation, name)?;
    let mut report = CheckReport {
        name: name.into(),
        unique_id: disk.id(),
        disk_size_bytes: None,
        data_bytes: None,
        header_authenticated: false,
        not_authenticated_because: None,
        problems: Vec::new(),
    };
    let file = match disk.header_file() {
        Ok(file) => file,
        Err(error) => {
            report.damage("header", error);
            return Ok(report);
        }
    };
    let copies = file.copies();
    // No resize and no re-wrap in the middle.
    let mut lock = file.lock()?;
    let claims = match lock.read() {
        Ok(header) if header.claims().disk == disk.id() => header.claims().clone(),
        Ok(header) => {
            let error = disk.check_identity(header.claims());
            error.err().iter().for_each(|e| report.damage("header", e));
            return Ok(report);
        }
        Err(error) => {
            report.damage("header", error);
            return Ok(report);
        }
    };
    report.disk_size_bytes = Some(claims.size);
    let claim = match disk.claim(&claims) {
        Err(DiskError::Pipeline(error)) => {
            report.damage("data", error);
            return Ok(report);
        }
        claim => claim?,
    };
    authenticate(installation, &disk, &lock, &mut report)?;
    // A header that was altered proves nothing about the rest.
    let repair = repair && report.problems.is_empty();
    check_copies(copies?, &mut lock, repair, &mut report)?;
    check_layer(&disk, &claims, claim, repair, runtime_dir, &mut report)?;
    check_directory(&disk, &claims, &mut report)?;
    Ok(report)
}

fn authenticate(
    installation: &Installation,
    disk: &Disk,
    lock: &HeaderLock<'_>,
    report: &mut CheckReport,
) -> Result<(), DiskError> {
    match disk.unlock(installation, lock.read()?) {
        Ok(_) => report.header_authenticated = true,
        Err(DiskError::Envelope(
            error @ (EnvelopeError::Unauthentic { .. } | EnvelopeError::WrongDek { .. }),
        )) => report.damage("header", error),
        Err(error) => report.not_authenticated_because = Some(error.to_string()),
    }
    Ok(())
}

fn check_copies(
    copies: [HeaderCopy; 2],
    lock: &mut HeaderLock<'_>,
    repair: bool,
    report: &mut CheckReport,
) -> Result<(), DiskError> {
    for (number, copy) in copies.iter().enumerate() {
        let what = match copy {
            HeaderCopy::Whole { .. } => continue,
            HeaderCopy::Torn => "is torn or damaged",
            HeaderCopy::NoHeader => "is no header",
            HeaderCopy::Unusable(why) => why.as_str(),
        };
        let message = format!("copy {number} of the header {what}; the other one is used");
        let repaired = repair && lock.mend()?;
        report.add(ProblemKind::Damage, "header", message, repaired);
    }
    Ok(())
}

/// Checks the layer's two files, and each against the other.
fn check_layer(
    disk: &Disk,
    claims: &HeaderPayload,
    claim: LayerFile,
    repair: bool,
    runtime_dir: &Path,
    report: &mut CheckReport,
) -> Result<(), DiskError> {
    let top = claims.top().ok_or_else(|| disk.no_layer())?;
    let (paths, geometry) = (disk.layer_paths(top), dataplane::geometry(claims, top)?);
    if let Err(error) = check_data_file(claim.file(), &geometry) {
        report.damage("data", error);
    }
    let map = match OpenOptions::new().read(true).write(true).open(&paths.map) {
        Ok(map) => map,
        Err(error) => {
            report.damage("map", DiskError::file("open", &paths.map)(error));
            return Ok(());
        }
    };
    if !is_sound(&map, &geometry, report) {
        return Ok(());
    }
    // A data file that was cut off gives no space back: what is missing may be put back.
    let repair = repair && report.remaining(ProblemKind::Damage) == 0;
    let runtime_path = runtime_map(runtime_dir, claims.disk);
    if repair {
        let same_claim = claim.try_clone().map_err(PipelineError::from)?;
        settle(disk, claims, same_claim, runtime_dir)?;
    }
    let durable = dataplane::layer_map(claims, top, &paths)?;
    let unflushed = match RuntimeMap::find(&runtime_path, &geometry, claims.attach)? {
        Some(runtime) => Some(Volume::open_runtime(durable.clone(), Vec::new(), &runtime)?),
        None => None,
    };
    let durable = Volume::open_private(durable, Vec::new())?;
    for volume in [Some(&durable), unflushed.as_ref()].into_iter().flatten() {
        volume.map().load_all()?;
    }
    let newest = unflushed.as_ref().unwrap_or(&durable);
    report.data_bytes = Some(newest.map().data_blocks() * BLOCK_SIZE);
    let maps: Vec<&BlockMap> = [Some(&durable), unflushed.as_ref()]
        .into_iter()
        .flatten()
        .map(Volume::map)
        .collect();
    let data = open_plain(&paths.data)?;
    let fail = DiskError::file("look for holes in", &paths.data);
    let mismatch = compare(&data, &geometry, &maps).map_err(&fail)?;
    report_mismatch(&mismatch, report);
    let repair = repair && report.remaining(ProblemKind::Damage) == 0;
    give_back(&data, &map, &paths, mismatch, repair, report)?;
    check_lengths(&data, &map, &paths, &geometry, repair, report)
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

/// Space that no map needs. The map that says so is durable before.
fn give_back(
    data: &File,
    map: &File,
    paths: &LayerPaths,
    mismatch: Mismatch,
    repair: bool,
    report: &mut CheckReport,
) -> Result<(), DiskError> {
    if mismatch.leaked.is_empty() {
        return Ok(());
    }
    let bytes: u64 = mismatch
        .leaked
        .iter()
        .map(|range| range.end - range.start)
        .sum();
    if repair {
        map.sync_all()
            .map_err(DiskError::file("sync", &paths.map))?;
        let mode = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        for range in mismatch.leaked {
            fallocate(data, mode, range.start, range.end - range.start)
                .map_err(|e| DiskError::file("give space back of", &paths.data)(e.into()))?;
        }
        data.sync_all()
            .map_err(DiskError::file("sync", &paths.data))?;
    }
    let message = format!("{bytes} bytes of space are in use that the map does not need");
    report.leak("data", message, repair);
    Ok(())
}

/// Files that are longer than the disk: an interrupted resize leaves them so, with nothing there. If
/// there is something, the header may be an old one.
fn check_lengths(
    data: &File,
    map: &File,
    paths: &LayerPaths,
    geometry: &Geometry,
    repair: bool,
    report: &mut CheckReport,
) -> Result<(), DiskError> {
    let map_len = format::file_len(geometry.blocks());
    let files = [
        ("data", data, &paths.data, geometry.data_len()),
        ("map", map, &paths.map, map_len),
    ];
    for (part, file, path, expected) in files {
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
                .and_then(|()| file.sync_all())
                .map_err(DiskError::file("set the length of", path))?;
        }
        let more = len - expected;
        let message = format!("the {part} file is {more} bytes longer than the disk, by a hole");
        report.leak(part, message, repair);
    }
    Ok(())
}

/// What is in the directory and not of the disk.
fn check_directory(
    disk: &Disk,
    claims: &HeaderPayload,
    report: &mut CheckReport,
) -> Result<(), DiskError> {
    let directory = disk.directory();
    let fail = DiskError::file("list", directory);
    let of_layer =
        |layer: &LayerRecord| [format!("{}.data", layer.id), format!("{}.map", layer.id)];
    let own: Vec<String> = claims.layers.iter().flat_map(of_layer).collect();
    for entry in std::fs::read_dir(directory).map_err(&fail)? {
        let name = entry.map_err(&fail)?.file_name();
        let name = name.to_string_lossy();
        if name != HEADER && !own.iter().any(|own| *own == name) {
            let message = format!(
                "{} is not of this disk; look at it and remove it",
                directory.join(&*name).display()
            );
            report.leak("directory", message, false);
        }
    }
    Ok(())
}

/// The data file without `O_DIRECT`.
fn open_plain(path: &Path) -> Result<File, DiskError> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .open(path)
        .map_err(DiskError::file("open", path))
}
