//! Checking a disk's files, and repairing what can be repaired without a doubt.
//!
//! A sync that failed (`failed_sync.rs`) is told, and repaired when nothing else is damaged.
//!
//! A disk that was left dirty (`session.rs`) needs its runtime map for the check too; where that is lost, or on another
//! host, the check says so, and a repair gives it up only when it is told to.
//!
//! Repaired are: a header copy that is not whole, from the whole one; space of a data file that no
//! map needs, which is given back; files that are longer than their layer, by nothing; and, when the
//! header is proven to count, files of layers that it says are gone, or that it does not name and that
//! hold nothing, which an interrupted push leaves. What a killed daemon had completed is made durable
//! first. What it had completed and is a hole of the data file (`lost.rs`) is named, and reads as before it was
//! written afterwards; where it cannot be read, only when that is told to go on without it. Everything else is told and left: a layer with content that the header does not name may
//! be of a newer header, in whose place somebody put this one.

use std::collections::BTreeSet;
use std::fs::File;
use std::path::Path;

use uuid::Uuid;

use crate::check::layers::Layers;
use crate::check::lost::GiveUp;
use crate::check::report::{CheckReport, Problem, ProblemKind, in_words};
use crate::resource::directory::{HEADER, LOCK};
use crate::resource::disk::Disk;
use crate::resource::error::DiskError;
use crate::resource::extents::has_content;
use crate::resource::layer_files;
use crate::resource::session::Unflushed;
use installation::Installation;
use installation::envelope::{
    EnvelopeError, FailedSync, HeaderCopy, HeaderFile, HeaderLock, HeaderPayload,
};
use volume::format;
use volume::pipeline::PipelineError;
use volume::store::LayerFile;

/// How a disk is checked.
#[derive(Clone, Copy)]
struct How<'a> {
    /// What is safe to repair is repaired.
    repair: bool,
    /// Where its runtime map is, when it was left dirty.
    runtime_dir: &'a Path,
    /// Whether a repair gives up what that had.
    unflushed: Unflushed,
}

impl How<'_> {
    /// Whether that is what was left by the attach of that id.
    fn gives_up(self, lost: &DiskError, attach: Uuid) -> bool {
        let said = match lost {
            DiskError::NotLetGo { .. } => Unflushed::TakenFrom(attach),
            _ => Unflushed::GivenUp,
        };
        self.repair && self.unflushed == said
    }
}

/// Checks a disk that nobody uses, and repairs what is safe when `repair` says so. Its runtime map, when
/// it was left dirty, is in `runtime_dir`; a repair may give up what that had if it is lost, or its data cannot
/// be read.
///
/// # Errors
/// [`DiskError`] when the check could not be made; what is wrong with the disk is in the report.
pub fn check(
    installation: &Installation,
    name: &str,
    repair: bool,
    (runtime_dir, unflushed): (&Path, Unflushed),
) -> Result<CheckReport, DiskError> {
    let how = How {
        repair,
        runtime_dir,
        unflushed,
    };
    check_by(installation, name, how, || {})
}

/// As [`check`]. `claimed` is called before the layers are looked at, for tests.
fn check_by(
    installation: &Installation,
    name: &str,
    how: How<'_>,
    claimed: impl FnOnce(),
) -> Result<CheckReport, DiskError> {
    let disk = Disk::find(installation, name)?;
    let mut report = CheckReport {
        name: name.into(),
        unique_id: disk.id(),
        disk_size_bytes: None,
        data_bytes: None,
        unflushed_bytes: None,
        unflushed_ranges: Vec::new(),
        lost_ranges: Vec::new(),
        unreadable_ranges: Vec::new(),
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
    if let Some(begun) = begin(installation, (&disk, &file), how, &mut report)? {
        claimed();
        look(installation, (&disk, &file), how, begun, &mut report)?;
    }
    Ok(report)
}

/// A disk that is claimed for its check, and what is known of it.
struct Begun {
    claims: HeaderPayload,
    claim: LayerFile,
    failed: Option<FailedSync>,
    /// What is given up, if anything is: its runtime map is lost, or on another host.
    given_up: Option<String>,
    /// Whether what is found may be repaired.
    repair: bool,
}

/// Looks at the header, and claims the disk; nothing when that cannot be, which is in the report.
///
/// The header is locked until it returns, so that it is not changed in the middle. From then on the claim keeps the
/// layers and the size as they are: whoever looks at the header or wraps it anew does not wait for the rest, which may
/// take hours.
fn begin(
    installation: &Installation,
    (disk, file): (&Disk, &HeaderFile),
    how: How<'_>,
    report: &mut CheckReport,
) -> Result<Option<Begun>, DiskError> {
    if how.repair {
        file.is_writable()?;
    }
    let copies = file.copies();
    let mut lock = file.lock()?;
    let claims = match lock.read() {
        Ok(header) if header.claims().disk == disk.id() => header.claims().clone(),
        Ok(header) => {
            let error = disk.check_identity(header.claims());
            error.err().iter().for_each(|e| report.damage("header", e));
            return Ok(None);
        }
        Err(error) => {
            report.damage("header", error);
            return Ok(None);
        }
    };
    report.disk_size_bytes = Some(claims.size);
    let claim = match disk.claim_to_look(&lock) {
        Err(DiskError::Pipeline(error)) => {
            report.damage("data", error);
            return Ok(None);
        }
        claim => claim?,
    };
    authenticate(installation, disk, &lock, report)?;
    let mut failed = claims.failed_sync.clone();
    let lost = match disk.left(&claims, how.runtime_dir, Unflushed::Needed) {
        Ok(left) => {
            failed = disk.failed_sync(&claims, &left)?;
            None
        }
        Err(lost @ (DiskError::RuntimeMapMissing { .. } | DiskError::NotLetGo { .. })) => {
            Some(lost)
        }
        Err(error) => return Err(error),
    };
    let given_up = match lost {
        Some(lost) if how.gives_up(&lost, claims.attach) => Some(lost.to_string()),
        Some(lost) => {
            report.damage("session", lost.to_string());
            None
        }
        None => None,
    };
    // A header that was altered proves nothing about the rest.
    let repair = how.repair && report.problems.is_empty();
    if repair {
        // A power cut must not bring back a header that names what is removed.
        lock.make_durable()?;
    }
    check_copies(copies?, &mut lock, repair, report)?;
    Ok(Some(Begun {
        claims,
        claim,
        failed,
        given_up,
        repair,
    }))
}

/// Looks at everything else.
fn look(
    installation: &Installation,
    (disk, file): (&Disk, &HeaderFile),
    how: How<'_>,
    begun: Begun,
    report: &mut CheckReport,
) -> Result<(), DiskError> {
    let How {
        runtime_dir,
        unflushed,
        ..
    } = how;
    let Begun {
        claims,
        claim,
        failed,
        given_up,
        repair: asked,
    } = begun;
    let is_authentic = report.header_authenticated;
    // What is repaired otherwise is made durable, which nothing is before this is repaired.
    let repair = asked && failed.is_none();
    let same_claim = claim.try_clone().map_err(PipelineError::from)?;
    let mut layers = Layers {
        disk,
        header: &claims,
        gives_up: match (asked && is_authentic, unflushed) {
            (false, _) => GiveUp::Nothing,
            (true, Unflushed::Needed | Unflushed::TakenFrom(_)) => GiveUp::Holes,
            (true, Unflushed::GivenUp) => GiveUp::Unreadable,
        },
        unflushed: &mut |claim, repair| {
            if repair && is_authentic {
                let mut lock = file.lock()?;
                disk.settle_under(installation, &mut lock, claim, (runtime_dir, unflushed))?;
            }
            match disk.left(file.read()?.claims(), runtime_dir, Unflushed::Needed) {
                // It is in the report.
                Err(DiskError::RuntimeMapMissing { .. } | DiskError::NotLetGo { .. }) => Ok(None),
                left => Ok(left?.map()),
            }
        },
    };
    let checked = layers.check(claim, repair, report);
    disk.keeping_failed_sync(installation, checked)?;
    if let Some(lost) = given_up {
        let settled = file.read()?.claims().session.is_none();
        report.add(ProblemKind::Damage, "session", lost, settled);
    }
    if let Some(failed) = failed {
        let repair = asked && is_authentic && report.remaining(ProblemKind::Damage) == 0;
        let repaired = match repair {
            true => Some(disk.repair_sync(installation, file, &same_claim, runtime_dir)),
            false => None,
        };
        report_failed_sync(&failed, repaired, report);
    }
    // Only a header that counts tells which files are of no use.
    let repair = repair && report.header_authenticated;
    check_directory(disk, &claims, repair, report)
}

/// Puts a failed sync before what else was found, since it may be the cause of that.
fn report_failed_sync(
    failed: &FailedSync,
    repaired: Option<Result<u64, DiskError>>,
    report: &mut CheckReport,
) {
    let time = vault::moment(failed.time);
    let mut message = format!("a sync failed at {time} ({failed}), and no flush succeeded since");
    if let Some(bytes) = report.unflushed_bytes {
        message += &format!(
            "; {bytes} bytes were written for the first time since the last one that did{}, and others \
             perhaps again",
            in_words(&report.unflushed_ranges)
        );
    }
    let is_repaired = matches!(repaired, Some(Ok(_)));
    message += &match repaired {
        None => "; mend the storage, then --repair".to_owned(),
        Some(Ok(bytes)) => format!(
            "; all {bytes} bytes of data could be read and are durable now, but what the guest wrote \
             shortly before may be lost: what was written for the first time reads as random bytes then, \
             and the rest as before; run fsck in the guest"
        ),
        Some(Err(error)) => format!("; the repair failed: {error}").replace('\n', " "),
    };
    let (kind, part, repaired) = (ProblemKind::Damage, "sync", is_repaired);
    let problem = Problem {
        kind,
        part,
        message,
        repaired,
    };
    report.problems.insert(0, problem);
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

/// What is in the directory and not of the disk.
fn check_directory(
    disk: &Disk,
    claims: &HeaderPayload,
    repair: bool,
    report: &mut CheckReport,
) -> Result<(), DiskError> {
    let directory = disk.directory();
    let fail = DiskError::file("list", directory);
    let mut unnamed = BTreeSet::new();
    for entry in std::fs::read_dir(directory).map_err(&fail)? {
        let name = entry.map_err(&fail)?.file_name();
        let name = name.to_string_lossy();
        match layer_of(&name) {
            // A process that was killed leaves it, and whoever locks the directory next removes it.
            _ if name == HEADER || name == LOCK => {}
            Some(layer) if claims.layer(layer).is_some() => {}
            Some(layer) => drop(unnamed.insert(layer)),
            None => {
                let path = directory.join(&*name);
                let message = format!(
                    "{} is not of this disk; look at it and remove it",
                    path.display()
                );
                report.leak("directory", message, false);
            }
        }
    }
    check_unnamed(directory, claims, &unnamed, repair, report)
}

/// Files of layers that the header does not name. Those of one that holds something and was not
/// dropped on purpose may be of a newer header; then the others are left too, because that header may
/// name them.
fn check_unnamed(
    directory: &Path,
    claims: &HeaderPayload,
    unnamed: &BTreeSet<Uuid>,
    repair: bool,
    report: &mut CheckReport,
) -> Result<(), DiskError> {
    let mut foreign = BTreeSet::new();
    for layer in unnamed {
        if !claims.gone.contains(layer) && !is_empty(directory, *layer)? {
            foreign.insert(*layer);
        }
    }
    let repair = repair && foreign.is_empty() && report.remaining(ProblemKind::Damage) == 0;
    for layer in unnamed {
        if repair {
            layer_files::remove(directory, *layer)?;
        }
        if report.header_authenticated && claims.gone.contains(layer) {
            let message = format!(
                "the layer {layer} was dropped, and its files are left; the next attach removes them"
            );
            report.note("directory", message, repair);
            continue;
        }
        let why = if foreign.contains(layer) {
            " and holds something: if an older header was put back, put the newest one back, else \
             move its files away"
        } else {
            ""
        };
        let message = format!(
            "the layer {layer} is in {} and the header does not name it{why}",
            directory.display()
        );
        report.leak("directory", message, repair);
    }
    Ok(())
}

/// Whether neither the map of a layer says anything nor its data file has anything.
fn is_empty(directory: &Path, layer: Uuid) -> Result<bool, DiskError> {
    for (extension, from) in [("data", 0), ("map", format::HEADER_LEN as u64)] {
        let path = directory.join(format!("{layer}.{extension}"));
        let fail = DiskError::file("read", &path);
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => continue,
            Err(e) => return Err(fail(e)),
        };
        let len = file.metadata().map_err(&fail)?.len();
        if has_content(&file, from, len).map_err(&fail)? {
            return Ok(false);
        }
    }
    Ok(true)
}

/// The layer whose file has that name.
fn layer_of(name: &str) -> Option<Uuid> {
    let id = name
        .strip_suffix(".data")
        .or_else(|| name.strip_suffix(".map"))?;
    Uuid::parse_str(id).ok()
}

#[cfg(test)]
mod tests {
    use test_support::seccomp::with_failing_syncs;

    use super::*;
    use crate::resource::directory::header_claims;
    use crate::resource::session::tests::attached;

    /// Looking at the layers may take hours. Whoever looks at the header of the disk, or wraps it anew, waits for 30 s.
    #[test]
    fn a_disk_is_wrapped_anew_while_its_layers_are_checked() {
        let dir = tempfile::tempdir().unwrap();
        let runtime = tempfile::tempdir_in("/dev/shm").unwrap();
        let installation = Installation::open(dir.path().join("state")).unwrap();
        let disk = attached(&installation, runtime.path());
        let how = How {
            repair: true,
            runtime_dir: runtime.path(),
            unflushed: Unflushed::Needed,
        };
        let report = check_by(&installation, "d", how, || {
            let file = disk.header_file().unwrap();
            let mut lock = file.lock().unwrap();
            let (mut header, dek) = disk.unlock(&installation, lock.read().unwrap()).unwrap();
            header.generation = 77;
            lock.write_both(&header, &dek).unwrap();
            drop(lock);
            assert!(matches!(disk.claim(), Err(DiskError::InUse { .. })));
        });
        assert!(report.unwrap().problems.is_empty());
        // What the attach left is settled, in the header of this moment.
        let header = header_claims(disk.directory()).unwrap();
        assert_eq!((header.generation, header.session), (77, None));
    }

    /// The header of before may be all that storage has, and name what is to be removed.
    #[test]
    fn nothing_is_removed_before_the_header_is_durable() {
        let dir = tempfile::tempdir().unwrap();
        let runtime = tempfile::tempdir_in("/dev/shm").unwrap();
        let installation = Installation::open(dir.path().join("state")).unwrap();
        let disk = attached(&installation, runtime.path());
        let repair = || {
            let how = (runtime.path(), Unflushed::Needed);
            check(&installation, "d", true, how).map(drop)
        };
        // What the attach left is none of this.
        repair().unwrap();
        let gone = Uuid::new_v4();
        let file = disk.header_file().unwrap();
        let mut lock = file.lock().unwrap();
        let (mut header, dek) = disk.unlock(&installation, lock.read().unwrap()).unwrap();
        header.gone.push(gone);
        lock.write(&header, &dek).unwrap();
        drop(lock);
        let left = disk.directory().join(format!("{gone}.data"));
        std::fs::write(&left, "").unwrap();
        with_failing_syncs("header", |syncs| {
            syncs.allow(0);
            assert!(repair().is_err());
            assert!(left.exists());
            syncs.allow_all();
            repair().unwrap();
            assert!(!left.exists());
        });
    }
}
