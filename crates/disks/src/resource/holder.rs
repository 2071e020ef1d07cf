//! Whether whoever holds the lock of a file still lives.
//!
//! The kernel lets go of a dead process's files in its own time: a ring of io_uring keeps them until its last
//! requests have ended, after the process is gone from `/proc`. A disk that is attached again at once after
//! `kill -9` finds its lock held by nobody.

use std::fs;
use std::os::unix::fs::MetadataExt;

use volume::store::LayerFile;

/// True when a process that lives, and can be seen from here, took the lock of this file; also when that cannot be
/// told.
pub(super) fn lives(data: &LayerFile) -> bool {
    let (Ok(metadata), Ok(locks)) = (data.file().metadata(), fs::read_to_string("/proc/locks"))
    else {
        return true;
    };
    holders(&locks, metadata.ino()).any(is_alive)
}

/// Who holds a `flock` of the file with that inode number, by `/proc/locks` (proc_locks(5)). The device is not
/// compared: file systems with subvolumes show another one there than to stat(2).
fn holders(locks: &str, inode: u64) -> impl Iterator<Item = u32> {
    locks.lines().filter_map(move |line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        // One that waits has "->" as its second field.
        let [_, "FLOCK", _, _, pid, file, ..] = fields.as_slice() else {
            return None;
        };
        let (_, its) = file.rsplit_once(':')?;
        (its.parse() == Ok(inode)).then(|| pid.parse().ok())?
    })
}

/// False for a process that is gone, or waits to be reaped.
fn is_alive(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"));
    let state = |stat: String| Some(stat.rsplit_once(") ")?.1.chars().next()? != 'Z');
    stat.ok().and_then(state).unwrap_or(false)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Command, Stdio};

    #[test]
    fn the_holder_of_a_lock_is_found_by_the_inode() {
        let locks = "1: FLOCK  ADVISORY  WRITE 812 fe:00:4242 0 EOF\n\
                     1: -> FLOCK  ADVISORY  WRITE 813 fe:00:4242 0 EOF\n\
                     2: POSIX  ADVISORY  READ 814 fe:00:4242 0 EOF\n\
                     3: FLOCK  ADVISORY  READ 815 00:1a:4242 0 EOF\n\
                     4: FLOCK  ADVISORY  READ 816 fe:00:42420 0 EOF\n\
                     rubbish\n";
        assert_eq!(holders(locks, 4242).collect::<Vec<_>>(), [812, 815]);
        assert_eq!(holders(locks, 1).count(), 0);
    }

    #[test]
    fn a_process_that_ended_does_not_live() {
        assert!(is_alive(std::process::id()));
        let mut child = Command::new("cat").stdin(Stdio::piped()).spawn().unwrap();
        assert!(is_alive(child.id()));
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(!is_alive(child.id()));
    }
}
