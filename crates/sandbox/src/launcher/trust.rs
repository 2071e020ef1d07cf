//! Whether a program may take the launcher's place.
//!
//! A launcher has privileges that the attach process has given up. So it starts no program that the attach process, or
//! who took that over, could have written: the file belongs to root or to the launcher's user, others cannot write to
//! it, and it lies in no directory in which the attach process may change files. Nobody can write to it between this
//! and its start either: the kernel starts no file that is open for writing, and opens none for writing that runs.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::process::geteuid;

/// Why a program is not started, if there is a reason; `changed` are the directories in which the attach process
/// may change files.
///
/// # Errors
/// What the kernel says.
pub(super) fn objection(program: &File, changed: &[PathBuf]) -> io::Result<Option<String>> {
    let found = program.metadata()?;
    let path = std::fs::read_link(format!("/proc/self/fd/{}", program.as_raw_fd()))?;
    let objects = |why: &str| Ok(Some(format!("{} {why}", path.display())));
    if !found.is_file() || found.mode() & 0o111 == 0 {
        return objects("is no program");
    }
    if found.nlink() == 0 {
        return objects("is not there any more");
    }
    if ![0, geteuid().as_raw()].contains(&found.uid()) {
        return objects("belongs neither to root nor to the user of the attach process");
    }
    if found.mode() & 0o022 != 0 {
        return objects("can be written to by others: chmod go-w");
    }
    match changed.iter().find(|changed| lies_in(&path, changed)) {
        Some(changed) => objects(&format!(
            "lies in {}, where the attach process may write: put the program elsewhere",
            changed.display()
        )),
        None => Ok(None),
    }
}

/// Whether a path without symbolic links lies in a directory.
fn lies_in(path: &Path, directory: &Path) -> bool {
    let resolved = directory.canonicalize();
    path.starts_with(resolved.as_deref().unwrap_or(directory))
}

#[cfg(test)]
mod tests {
    use std::fs::{self, Permissions};
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn only_a_program_that_nobody_else_can_write_is_started() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("program");
        let objection_of = |mode: u32, changed: &[PathBuf]| {
            let _ = fs::remove_file(&path);
            fs::write(&path, "program").unwrap();
            fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
            objection(&File::open(&path).unwrap(), changed).unwrap()
        };
        assert_eq!(objection_of(0o755, &[]), None);
        assert_eq!(objection_of(0o755, &["/nowhere".into()]), None);
        for (mode, changed, why) in [
            (0o644, "/nowhere", "is no program"),
            (0o775, "/nowhere", "written to by others"),
            (0o757, "/nowhere", "written to by others"),
            (
                0o755,
                directory.path().to_str().unwrap(),
                "where the attach process may write",
            ),
        ] {
            let said = objection_of(mode, &[changed.into()]).unwrap();
            assert!(said.contains(why), "{said}");
        }
        objection_of(0o755, &[]);
        let open = File::open(&path).unwrap();
        fs::remove_file(&path).unwrap();
        let said = objection(&open, &[]).unwrap().unwrap();
        assert!(said.contains("not there any more"), "{said}");
        let said = objection(&File::open("/").unwrap(), &[]).unwrap().unwrap();
        assert!(said.contains("is no program"), "{said}");
    }
}
