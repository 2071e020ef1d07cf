//! How much room there is where vaults, logs and disks are.

use std::collections::BTreeSet;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use crate::alarm::SubjectKind;
use crate::facts::{Facts, FileSystemFacts, Unknown};
use vault::audit::Space;

/// The file systems of the state directory and of disks, each once.
pub(super) fn file_systems<'a>(
    state_dir: &'a Path,
    directories: impl Iterator<Item = &'a Path>,
    facts: &mut Facts,
) {
    let (mut seen, mut told) = (BTreeSet::new(), BTreeSet::new());
    for (number, path) in std::iter::once(state_dir).chain(directories).enumerate() {
        let looked = std::fs::metadata(path).and_then(|found| Ok((found.dev(), Space::at(path)?)));
        match looked {
            Ok((device, _)) if !seen.insert(device) => {}
            Ok((_, space)) => facts.file_systems.push(FileSystemFacts {
                path: path.into(),
                available: space.available,
                total: space.total,
                audit_warning: (number == 0 && space.is_low()).then(|| space.warning(path)),
            }),
            // The directory of a disk that is missing is an alarm of the disk.
            Err(error) if number > 0 && error.kind() == io::ErrorKind::NotFound => {}
            // Storage that is gone has thousands of disks beside each other: one alarm tells it.
            Err(error) if !told.insert((path.parent(), error.kind())) => {}
            Err(error) => {
                let unknown = Unknown::of_file(SubjectKind::FileSystem, path, error);
                facts.unknown.push(unknown);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use time::OffsetDateTime;

    use super::*;

    #[test]
    fn only_of_a_directory_that_is_missing_nothing_is_said() {
        let dir = tempfile::tempdir().unwrap();
        let plain = dir.path().join("plain");
        std::fs::write(&plain, "").unwrap();
        // What is beneath a file cannot be looked at, and is not said to be missing.
        let beneath = plain.join("disk");
        let missing = dir.path().join("missing");
        let mut facts = Facts::none(OffsetDateTime::now_utc());
        let directories = [beneath.as_path(), missing.as_path(), dir.path()];
        file_systems(dir.path(), directories.into_iter(), &mut facts);
        assert_eq!(facts.file_systems.len(), 1);
        let unknown = facts.unknown.iter().map(|unknown| &unknown.subject.name);
        assert!(unknown.eq([&beneath.display().to_string()]));
    }
}
