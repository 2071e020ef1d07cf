//! Archived segments of audit logs: which a backup has, which it needs, and the chain through them.

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::io::{BufRead, BufReader, Read, Seek};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use rusqlite::Connection;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::audit::{self, Archives, Entry, Kept, Pin, Report, Segment, own_segment};
use crate::keys::Hashing;

/// The directory, below the state directory, into which segments are restored.
pub(super) const DIRECTORY: &str = "segments";

/// Records that were archived before a backup was made. Field names are the manifest's.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ArchivedPart {
    /// Whose log it is, as exports call it.
    pub log: String,
    /// The log's id.
    pub log_id: Uuid,
    /// The records, as the log has them on record.
    #[serde(flatten)]
    pub segment: Segment,
    /// The name that the file was given.
    pub name: String,
    /// Where the file was written, when that is known.
    pub file: Option<String>,
    /// The SHA-256 of the file, in hexadecimal, when that is known.
    pub sha256: Option<String>,
    /// Whether it is in the backup, as `segments/NAME`.
    pub included: bool,
}

impl ArchivedPart {
    pub(super) fn new(log: &str, kept: Kept) -> Self {
        Self {
            log: log.into(),
            log_id: kept.log,
            segment: kept.segment,
            name: kept.name,
            file: kept.file.map(|file| file.to_string_lossy().into_owned()),
            sha256: kept.sha256,
            included: false,
        }
    }

    /// The path of its entry, when it is included.
    pub(super) fn entry(&self) -> String {
        format!("{DIRECTORY}/{}", self.name)
    }

    /// What it is, for a person.
    pub fn describe(&self) -> String {
        let sum = match &self.sha256 {
            Some(sha256) => format!(", SHA-256 {sha256}"),
            None => String::new(),
        };
        format!(
            "records {} to {} of the audit log {}, which were archived to {}{sum}",
            self.segment.first,
            self.segment.last,
            self.log,
            self.file.as_deref().unwrap_or(&self.name)
        )
    }

    fn has(&self, log: Uuid, segment: &Segment) -> bool {
        (self.log_id, &self.segment) == (log, segment)
    }
}

/// The file of a segment, when it is in the state directory: its length and SHA-256. Opened, it is whole
/// even if it is removed meanwhile.
///
/// # Errors
/// Why a file that is there is not taken.
pub(super) fn find(
    state: &Path,
    part: &ArchivedPart,
) -> Result<Option<(File, u64, String)>, String> {
    let written = part.file.as_ref().map(PathBuf::from);
    let restored = state.join(part.entry());
    for path in written.into_iter().chain([restored]) {
        let inside = || {
            let (dir, state) = (
                path.parent()?.canonicalize().ok()?,
                state.canonicalize().ok()?,
            );
            dir.starts_with(state).then_some(())
        };
        if inside().is_none() || fs::symlink_metadata(&path).is_err() {
            continue;
        }
        let (file, bytes, sha256) =
            hashed(&path).map_err(|e| format!("{} cannot be read: {e}", path.display()))?;
        if part.sha256.as_ref().is_some_and(|known| *known != sha256) {
            return Err(format!("{} was changed since", path.display()));
        }
        return Ok(Some((file, bytes, sha256)));
    }
    Ok(None)
}

fn hashed(path: &Path) -> std::io::Result<(File, u64, String)> {
    let mut file = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
        .open(path)?;
    if !file.metadata()?.is_file() {
        return Err(std::io::Error::other("it is no file"));
    }
    let mut hashing = Hashing::new(&mut file);
    let bytes = std::io::copy(&mut hashing, &mut std::io::sink())?;
    let sha256 = hashing.hex();
    file.rewind()?;
    Ok((file, bytes, sha256))
}

/// The chains of a backup's logs while its segments are read, in their order, and then its databases.
#[derive(Default)]
pub(super) struct Chains {
    parts: Vec<ArchivedPart>,
    /// Files that are not in the backup, with the index of their part, not read yet.
    outside: Vec<(usize, PathBuf)>,
    archives: Archives,
    /// Keys that records in segments say were purged, in lower case.
    purged: BTreeSet<(Uuid, String)>,
    pub(super) findings: Vec<String>,
    pub(super) notes: Vec<String>,
}

impl Chains {
    /// For the segments that a backup names, of which `files` may have some.
    pub(super) fn new(parts: &[ArchivedPart], files: &[PathBuf]) -> Self {
        let mut chains = Self {
            parts: parts.to_vec(),
            ..Self::default()
        };
        for path in files {
            let segment = File::open(path)
                .map_err(|e| e.to_string())
                .and_then(|file| own_segment(BufReader::new(file)).map_err(|e| e.to_string()));
            let shown = path.display();
            match segment {
                Err(e) => chains.findings.push(format!("{shown}: {e}")),
                Ok(None) => chains
                    .findings
                    .push(format!("{shown} is no archived segment")),
                Ok(Some((log, segment))) => {
                    let index = chains.parts.iter().position(|part| part.has(log, &segment));
                    match index {
                        Some(index) if !chains.is_there(index) => {
                            chains.outside.push((index, path.clone()));
                        }
                        Some(_) => {}
                        None => chains.notes.push(format!(
                            "{shown} was not looked at: it is no segment that the logs of this backup \
                             name; it was archived later, or elsewhere"
                        )),
                    }
                }
            }
        }
        chains.outside.sort();
        let missing = |index: &usize| !chains.is_there(*index);
        let needed: Vec<String> = (0..chains.parts.len())
            .filter(missing)
            .map(|index| format!("not in the backup: {}", chains.parts[index].describe()))
            .collect();
        chains.notes.extend(needed);
        chains
    }

    fn is_there(&self, index: usize) -> bool {
        self.parts[index].included || self.outside.iter().any(|(known, _)| *known == index)
    }

    /// Whether every later segment of the same log is there too. A chain begins behind those that are
    /// missing; what is before them is looked at by itself.
    fn leads_to_the_log(&self, index: usize) -> bool {
        let part = &self.parts[index];
        let later = |other: &ArchivedPart| {
            other.log_id == part.log_id && other.segment.first > part.segment.first
        };
        (0..self.parts.len()).all(|other| !later(&self.parts[other]) || self.is_there(other))
    }

    /// Reads a segment of the backup, behind those outside of it that come before.
    pub(super) fn segment(&mut self, path: &str, content: &mut dyn Read, pins: &[Pin]) {
        let named = |part: &ArchivedPart| part.included && part.entry() == path;
        let Some(index) = self.parts.iter().position(named) else {
            self.findings
                .push(format!("{path} is a segment of no log of this backup"));
            return;
        };
        self.read_outside(pins, Some(index));
        self.read(index, path, BufReader::new(content), pins);
    }

    /// Reads the files that are not in the backup: those of the same log before the segment `before`, or
    /// all that are left.
    fn read_outside(&mut self, pins: &[Pin], before: Option<usize>) {
        let (due, later): (Vec<_>, Vec<_>) = std::mem::take(&mut self.outside)
            .into_iter()
            .partition(|(index, _)| before.is_none_or(|before| self.precedes(*index, before)));
        for (index, path) in &due {
            let name = path.display().to_string();
            match File::open(path) {
                Ok(file) => self.read(*index, &name, BufReader::new(file), pins),
                Err(e) => self.findings.push(format!("{name}: {e}")),
            }
        }
        self.outside = later;
        // They stay known as there.
        for (index, _) in due {
            self.parts[index].included = true;
        }
    }

    fn precedes(&self, one: usize, other: usize) -> bool {
        let (one, other) = (&self.parts[one], &self.parts[other]);
        one.log_id == other.log_id && one.segment.first < other.segment.first
    }

    fn read(&mut self, index: usize, name: &str, from: impl BufRead, pins: &[Pin]) {
        let mut apart = Archives::default();
        let alone = !self.leads_to_the_log(index);
        let archives = match alone {
            true => &mut apart,
            false => &mut self.archives,
        };
        let purged = &mut self.purged;
        let read = archives.read_each(from, pins, |log, entry: &Entry| {
            if let ("KeyPurge", Some(key), None) = (
                entry.event.operation.as_str(),
                &entry.event.key,
                &entry.event.code,
            ) {
                purged.insert((log, key.to_ascii_lowercase()));
            }
        });
        if let Err(e) = read {
            self.findings.push(format!("{name}: {e}"));
        }
        for report in apart.finish() {
            if let Some(finding) = report.finding {
                self.findings.push(format!("{name}: {}", finding.what));
            }
        }
    }

    /// Verifies a log's database behind its segments.
    pub(super) fn log(
        &mut self,
        db: &Connection,
        name: &str,
        pins: &[Pin],
    ) -> Result<Report, String> {
        self.read_outside(pins, None);
        let kept = audit::kept(db, name).map_err(|e| e.to_string())?;
        let parts = self.parts.iter().filter(|part| part.log == name);
        if !parts
            .map(|part| &part.segment)
            .eq(kept.iter().map(|kept| &kept.segment))
        {
            return Err("its archived segments are not those that the backup names".into());
        }
        audit::verify_database(db, name, pins, &mut self.archives).map_err(|e| e.to_string())
    }

    /// Whether a segment that was read says that a key was purged.
    pub(super) fn was_purged(&self, log: Uuid, key: &str) -> bool {
        self.purged.contains(&(log, key.to_ascii_lowercase()))
    }

    /// What was found, and what is to be said besides.
    pub(super) fn finish(mut self) -> (Vec<String>, Vec<String>) {
        for report in self.archives.finish() {
            self.findings.push(format!(
                "the log {} of which there are segments is missing",
                report.name
            ));
        }
        (self.findings, self.notes)
    }
}
