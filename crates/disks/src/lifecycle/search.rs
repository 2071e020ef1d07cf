//! Looking for headers. Nothing is taken for a directory without one because it could not be looked at: the operator may
//! have said that there are no disks but those that are found.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::resource::directory::HEADER;

/// What was found in the directories that were named.
pub(super) struct Search {
    /// All that are looked into, so that one of them may lie in another.
    named: BTreeSet<PathBuf>,
    /// There are said to be no disks elsewhere.
    all_named: bool,
    /// The directories with a header.
    pub(super) found: Vec<PathBuf>,
    /// What may have disks in it that were not found.
    pub(super) problems: Vec<String>,
}

impl Search {
    /// For one that will look into `named`.
    pub(super) fn new<'a>(named: impl Iterator<Item = &'a PathBuf>, all_named: bool) -> Self {
        Self {
            named: named.filter_map(|dir| dir.canonicalize().ok()).collect(),
            all_named,
            found: Vec::new(),
            problems: Vec::new(),
        }
    }

    /// Looks at a directory that has a header, or directories with one.
    ///
    /// # Errors
    /// When it cannot be read. What concerns one in it is in `problems`.
    pub(super) fn directory(&mut self, dir: &Path) -> io::Result<()> {
        let dir = dir.canonicalize()?;
        if has_header(&dir)? {
            self.found.push(dir);
            return Ok(());
        }
        for path in entries(&dir)? {
            if let Err(error) = self.entry(&path) {
                // The file system's own, into which only root may look.
                if path.ends_with("lost+found") {
                    continue;
                }
                let path = path.display();
                self.problems
                    .push(format!("{path} cannot be looked into: {error}"));
            }
        }
        Ok(())
    }

    fn entry(&mut self, path: &Path) -> io::Result<()> {
        // Of a link what it leads to counts.
        let is_dir = fs::metadata(path)?.is_dir();
        if !is_dir {
            return Ok(());
        }
        if has_header(path)? {
            self.found.push(path.to_owned());
        } else if !self.is_named(path) {
            self.look_beneath(path)?;
        }
        Ok(())
    }

    /// Only a directory that was named is searched, and this one is none. If directories are in it, so may disks be.
    fn look_beneath(&mut self, path: &Path) -> io::Result<()> {
        for below in entries(path)? {
            // A file, and a link that leads nowhere, has no header in it.
            let is_dir = fs::metadata(&below).map(|found| found.is_dir());
            let hides = match is_dir {
                Ok(true) if self.is_named(&below) => false,
                Ok(true) => self.all_named || has_header(&below)?,
                Ok(false) => false,
                Err(_) => self.all_named,
            };
            if hides {
                self.problems.push(format!(
                    "{} was not looked into, and there may be disks in it: name {} with --data-dir, or move it away",
                    below.display(),
                    path.display()
                ));
                return Ok(());
            }
        }
        Ok(())
    }

    fn is_named(&self, path: &Path) -> bool {
        path.canonicalize()
            .is_ok_and(|path| self.named.contains(&path))
    }
}

/// What is in a directory, by name. What a killed command has left begins with a dot.
fn entries(dir: &Path) -> io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        if !entry.file_name().to_string_lossy().starts_with('.') {
            found.push(entry.path());
        }
    }
    found.sort();
    Ok(found)
}

/// Whether there is one in a directory, be it a link that leads nowhere.
fn has_header(dir: &Path) -> io::Result<bool> {
    match fs::symlink_metadata(dir.join(HEADER)) {
        Ok(_) => Ok(true),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(e) => Err(e),
    }
}

/// Whether nothing has that name.
pub(super) fn is_absent(path: &Path) -> bool {
    fs::symlink_metadata(path).is_err_and(|e| e.kind() == io::ErrorKind::NotFound)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    /// What a search of `named` below `root` has found, and how many problems it had.
    fn searched(root: &Path, named: &[&str], all_named: bool) -> (Vec<PathBuf>, usize) {
        let named: Vec<PathBuf> = named.iter().map(|name| root.join(name)).collect();
        let mut search = Search::new(named.iter(), all_named);
        for dir in &named {
            search.directory(dir).unwrap();
        }
        let found = search.found.iter();
        let found = found.map(|path| path.strip_prefix(root).unwrap().to_owned());
        (found.collect(), search.problems.len())
    }

    fn disk(root: &Path, name: &str) {
        fs::create_dir_all(root.join(name)).unwrap();
        fs::write(root.join(name).join(HEADER), "h").unwrap();
    }

    fn root() -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().canonicalize().unwrap();
        (dir, root)
    }

    #[test]
    fn what_lies_deeper_than_a_named_directory_is_a_problem_until_it_is_named() {
        let (_dir, root) = root();
        disk(&root, "disks/web");
        disk(&root, "disks/disks/db");
        fs::create_dir_all(root.join("disks/isos")).unwrap();
        fs::write(root.join("disks/isos/one.iso"), "no disk").unwrap();
        let web = PathBuf::from("disks/web");
        for all_named in [false, true] {
            let (found, problems) = searched(&root, &["disks"], all_named);
            assert_eq!((found, problems), (vec![web.clone()], 1), "{all_named}");
        }
        let (found, problems) = searched(&root, &["disks", "disks/disks"], true);
        assert_eq!(found, [web, "disks/disks/db".into()]);
        assert_eq!(problems, 0);
        // The parent of a directory of disks, and its parent.
        fs::create_dir(root.join("up")).unwrap();
        disk(&root, "up/srv/vm/disks/one");
        assert_eq!(searched(&root, &["up/srv/vm"], false).1, 1);
        assert_eq!(searched(&root, &["up"], true).1, 1);
        assert_eq!(
            searched(&root, &["up/srv/vm", "up/srv/vm/disks"], true).1,
            0
        );
    }

    #[test]
    fn what_cannot_be_looked_at_is_a_problem() {
        let (_dir, root) = root();
        disk(&root, "disks/web");
        symlink(root.join("gone"), root.join("disks/gone")).unwrap();
        assert_eq!(searched(&root, &["disks"], false).1, 1, "a link to nowhere");
        fs::remove_file(root.join("disks/gone")).unwrap();
        // A header that leads nowhere is one that cannot be read.
        fs::create_dir(root.join("disks/lost")).unwrap();
        symlink(root.join("gone"), root.join("disks/lost").join(HEADER)).unwrap();
        assert_eq!(searched(&root, &["disks"], false).0.len(), 2);
        let closed = root.join("disks/closed");
        fs::create_dir(&closed).unwrap();
        fs::set_permissions(&closed, fs::Permissions::from_mode(0o0)).unwrap();
        // Nothing is closed to root.
        if fs::read_dir(&closed).is_err() {
            assert_eq!(
                searched(&root, &["disks"], false).1,
                1,
                "a closed directory"
            );
        }
        fs::set_permissions(&closed, fs::Permissions::from_mode(0o700)).unwrap();
        // What is no directory has no disks in it.
        fs::write(root.join("disks/file"), "").unwrap();
        assert_eq!(searched(&root, &["disks"], true).1, 0);
        assert!(is_absent(&root.join("gone")) && !is_absent(&root.join("disks")));
    }
}
