//! The directories of the installation and of its disks, and their file systems.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};

use super::check::Check;
use super::mounts::{existing, file_system};
use crate::cli::output::size_cell;
use installation::goes_at_logout;
use vault::audit::Space;
use volume::store::can_punch;

/// File systems whose content goes with the power.
const VOLATILE: [&str; 2] = ["tmpfs", "ramfs"];
/// File systems that several hosts may have mounted.
const SHARED: [&str; 9] = [
    "nfs",
    "nfs4",
    "cifs",
    "smb3",
    "ceph",
    "fuse.ceph-fuse",
    "gfs2",
    "ocfs2",
    "9p",
];

pub(super) fn runtime(dir: &Path) -> Check {
    const CHECK: &str = "runtime directory";
    let kind = file_system(&existing(dir)).unwrap_or_default();
    let place = dir.display();
    if kind != "tmpfs" {
        return Check::fail(
            CHECK,
            format!("{place} is on {kind}"),
            "name a directory on tmpfs with --runtime-dir, as /run/sealdisk: what is there must go with the \
             power and nothing else",
        );
    }
    if goes_at_logout(dir) {
        return Check::warn(
            CHECK,
            format!("{place} goes with the last logout of its user"),
            "`loginctl enable-linger`: completed writes that are not flushed yet are there",
        );
    }
    match is_writable(&existing(dir)) {
        true => Check::ok(CHECK, format!("{place}, on tmpfs")),
        false => Check::fail(
            CHECK,
            format!("{place} cannot be written to"),
            "run this as the user of `attach`, or name another with --runtime-dir",
        ),
    }
}

pub(super) fn state(dir: &Path) -> Check {
    const CHECK: &str = "state directory";
    let there = existing(dir);
    let kind = file_system(&there).unwrap_or_else(|| "an unknown file system".into());
    let place = match there == dir {
        true => format!("{}, on {kind}", dir.display()),
        false => format!("{} is not there yet, and would be on {kind}", dir.display()),
    };
    if VOLATILE.contains(&kind.as_str()) {
        return Check::fail(
            CHECK,
            place,
            "keys and disks would be gone with the power: name another with --state-dir",
        );
    }
    if !is_writable(&there) {
        return Check::fail(
            CHECK,
            format!("{place}, cannot be written to"),
            "run this as its owner, or name another with --state-dir",
        );
    }
    match Space::at(&there) {
        Err(error) => Check::warn(
            CHECK,
            format!("{place}: {error}"),
            "look at its file system",
        ),
        Ok(space) if space.is_low() => Check::warn(
            CHECK,
            format!("{place}, {} free", size_cell(space.available)),
            "make room, or archive records with `sealdisk audit archive`: without room for audit records \
             keys cannot be used",
        ),
        Ok(space) => Check::ok(
            CHECK,
            format!("{place}, {} free", size_cell(space.available)),
        ),
    }
}

/// The file systems on which disks are, and new ones would be.
pub(super) fn disks(state_dir: &Path, known: &[PathBuf]) -> Vec<Check> {
    let new = existing(&state_dir.join("disks"));
    let mut places = BTreeMap::new();
    for dir in known.iter().map(PathBuf::as_path).chain([new.as_path()]) {
        if let Ok(metadata) = dir.metadata() {
            places
                .entry(metadata.dev())
                .or_insert_with(|| dir.to_owned());
        }
    }
    let mut checks: Vec<Check> = places.into_values().map(|dir| of_disks(&dir)).collect();
    let gone = known.iter().filter(|dir| !dir.exists());
    checks.extend(gone.map(|dir| {
        Check::fail(
            DISKS,
            format!("{} is not there", dir.display()),
            "mount its file system; `sealdisk disk list` names the disks that are in it",
        )
    }));
    checks
}

const DISKS: &str = "disks";

fn of_disks(dir: &Path) -> Check {
    let kind = file_system(dir).unwrap_or_default();
    let place = format!("{}, on {kind}", dir.display());
    // It has no name, so that nothing is left of it.
    let file = match tempfile::tempfile_in(dir) {
        Ok(file) => file,
        Err(error) => {
            return Check::fail(
                DISKS,
                format!("{place}: no file can be made: {error}"),
                "run this as the owner of the disks; look whether the file system is full or read-only",
            );
        }
    };
    let (direct, holes) = (can_be_direct(&file).is_ok(), can_punch(&file));
    let free = Space::at(dir).map_or(0, |space| space.available);
    let found = format!("{place}, {} free", size_cell(free));
    match (direct, holes) {
        _ if VOLATILE.contains(&kind.as_str()) => Check::warn(
            DISKS,
            found,
            "disks are gone with the power; keep those that matter on another file system (--data-dir)",
        ),
        _ if SHARED.contains(&kind.as_str()) => Check::warn(
            DISKS,
            found,
            "see that locks hold between hosts (flock on NFS 4, nolock unset), and that no two hosts have one machine \
             id (SEALDISK_HOST)",
        ),
        (false, _) => Check::warn(
            DISKS,
            format!("{found}, without O_DIRECT"),
            "disks go through the page cache, which costs memory and time; ext4, XFS and btrfs have O_DIRECT",
        ),
        (_, false) => Check::warn(
            DISKS,
            format!("{found}, without holes"),
            "discards give no space back; ext4, XFS and btrfs have holes",
        ),
        _ => Check::ok(DISKS, format!("{found}, with O_DIRECT and holes")),
    }
}

fn can_be_direct(file: &File) -> io::Result<()> {
    let flags = fcntl_getfl(file)?;
    Ok(fcntl_setfl(file, flags | OFlags::DIRECT)?)
}

fn is_writable(dir: &Path) -> bool {
    tempfile::tempfile_in(dir).is_ok()
}

#[cfg(test)]
mod tests {
    use super::super::check::Status;
    use super::*;

    #[test]
    fn a_place_that_goes_or_is_gone_is_told() {
        let shm = Path::new("/dev/shm");
        assert_eq!(state(&shm.join("not-there")).status, Status::Fail);
        assert_eq!(runtime(&shm.join("not-there")).status, Status::Ok);
        assert_eq!(runtime(Path::new("/proc/x")).status, Status::Fail);
        let gone = PathBuf::from("/nowhere/at/all");
        let found = disks(shm, &[gone]);
        let statuses: Vec<Status> = found.iter().map(|check| check.status).collect();
        assert_eq!(statuses, [Status::Warn, Status::Fail]);
    }
}
