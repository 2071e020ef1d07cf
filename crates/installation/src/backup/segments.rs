//! Archived segments of audit logs: which a backup has, which it needs, and the chain through them.

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::io::{BufRead, BufReader, Read, Seek};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use database::Connection;
use uuid::Uuid;

use super::archived::ArchivedPart;
use super::manifest::Item;
use keys::Hashing;
use vault::audit::{self, Archives, Entry, Pin, Report, own_segment};

/// How many lines [`own_segment`] reads, and what is read of them at most: much more than they have.
const START_LINES: usize = 3;
const START_LIMIT: u64 = 3 << 20;

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

/// The lines by which a file says which segment it has.
fn start_of(from: &mut impl BufRead) -> std::io::Result<Vec<u8>> {
    let mut start = Vec::new();
    let mut from = from.take(START_LIMIT);
    for _ in 0..START_LINES {
        from.read_until(b'\n', &mut start)?;
    }
    Ok(start)
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
    pub(super) fn segment(&mut self, item: &Item, content: &mut dyn Read, pins: &[Pin]) {
        let path = item.path.as_str();
        let named = |part: &ArchivedPart| part.included && part.entry() == path;
        let Some(index) = self.parts.iter().position(named) else {
            self.findings
                .push(format!("{path} is a segment of no log of this backup"));
            return;
        };
        let known = self.parts[index].sha256.as_ref();
        if known.is_some_and(|known| *known != item.sha256) {
            self.findings.push(format!(
                "{path} is not the file that was archived: its SHA-256 is another one than its log knows"
            ));
        }
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

    fn read(&mut self, index: usize, name: &str, mut from: impl BufRead, pins: &[Pin]) {
        let part = &self.parts[index];
        let (start, own) = match start_of(&mut from) {
            Ok(start) => {
                let own = own_segment(start.as_slice());
                (
                    start,
                    own.is_ok_and(|own| own.is_some_and(|(log, own)| part.has(log, &own))),
                )
            }
            Err(e) => {
                self.findings.push(format!("{name}: {e}"));
                return;
            }
        };
        if !own {
            self.findings.push(format!(
                "{name}: it is another segment than {}, or was cut off",
                part.describe()
            ));
        }
        let from = start.as_slice().chain(from);
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

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use tempfile::TempDir;
    use time::OffsetDateTime;

    use super::*;
    use crate::backup::manifest::ItemKind;
    use vault::audit::{AuditLog, AuditRecord};

    const LOG: &str = "vault/v";

    fn record() -> AuditRecord {
        AuditRecord::new(Uuid::from_u128(1), "local", "KeyWrap").at(OffsetDateTime::UNIX_EPOCH)
    }

    /// A log of which two segments were archived.
    fn archived() -> (TempDir, AuditLog, Vec<ArchivedPart>) {
        let dir = tempfile::tempdir().unwrap();
        let log = AuditLog::open(&dir.path().join("audit.db")).unwrap();
        for _ in 0..2 {
            log.append(&record()).unwrap();
            let now = OffsetDateTime::now_utc();
            log.archive(LOG, dir.path(), now, record()).unwrap();
        }
        let kept = log.read(|_, db| audit::kept(db, LOG).unwrap());
        let parts = kept.into_iter().map(|kept| ArchivedPart::new(LOG, kept));
        let parts = parts.collect();
        (dir, log, parts)
    }

    fn item(part: &ArchivedPart, content: &[u8]) -> Item {
        Item {
            path: part.entry(),
            kind: ItemKind::Segment,
            bytes: content.len() as u64,
            sha256: keys::hex(&keys::sha256(content)),
            moment: None,
            keys: BTreeMap::new(),
        }
    }

    /// What is found in a backup that has that as its first segment, and the second one as it is or not at
    /// all.
    fn findings(first: impl FnOnce(&[Vec<u8>]) -> Vec<u8>, with_second: bool) -> Vec<String> {
        let (_dir, log, mut parts) = archived();
        let files = parts
            .iter()
            .map(|part| fs::read(part.file.as_ref().unwrap()).unwrap());
        let mut files: Vec<Vec<u8>> = files.collect();
        files[0] = first(&files);
        (parts[0].included, parts[1].included) = (true, with_second);
        let mut chains = Chains::new(&parts, &[]);
        for (part, file) in parts.iter().zip(&files).filter(|(part, _)| part.included) {
            chains.segment(&item(part, file), &mut file.as_slice(), &[]);
        }
        let report = log.read(|_, db| chains.log(db, LOG, &[]).unwrap());
        let (mut findings, _) = chains.finish();
        findings.extend(report.finding.map(|finding| finding.what));
        findings
    }

    #[test]
    fn a_segment_in_a_backup_is_the_one_that_its_log_names() {
        for with_second in [true, false] {
            let genuine = findings(|files| files[0].clone(), with_second);
            assert!(genuine.is_empty(), "{genuine:?}");
        }
        let other = findings(|files| files[1].clone(), false);
        assert!(
            other.iter().any(|what| what.contains("another segment")),
            "{other:?}"
        );
        // Two lines and no record.
        let cut_off = |files: &[Vec<u8>]| {
            let lines = files[0].split_inclusive(|byte| *byte == b'\n');
            lines.take(2).flatten().copied().collect()
        };
        for with_second in [true, false] {
            let found = findings(cut_off, with_second);
            assert!(
                found.iter().any(|what| what.contains("cut off")),
                "{found:?}"
            );
        }
    }

    #[test]
    fn a_segment_in_a_backup_has_the_hash_that_its_log_knows() {
        let found = findings(|files| [files[0].as_slice(), b"\n"].concat(), true);
        assert!(
            found.iter().any(|what| what.contains("SHA-256")),
            "{found:?}"
        );
    }
}
