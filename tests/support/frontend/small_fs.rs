//! File systems that a test can fill up.

use std::fs::{self, File};
use std::path::PathBuf;
use std::process::Command;

use rustix::fs::{FallocateFlags, fallocate};
use tempfile::TempDir;

use super::daemon::{Backend, Disk};

/// A small file system of its own, unmounted when dropped.
pub struct SmallFs {
    dir: TempDir,
}

impl SmallFs {
    /// `None`, with a word on stderr, where this cannot be mounted.
    pub fn mount(kind: &str) -> Option<Self> {
        if Backend::chosen() == Backend::Qsd {
            return None;
        }
        let dir = TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        fs::create_dir(dir.path().join("fs")).unwrap();
        let this = Self { dir };
        let mut mount = Command::new("mount");
        match kind {
            "tmpfs" => mount.args(["-t", "tmpfs", "-o", "size=32m,mode=0700", "sealdisk-test"]),
            _ => {
                let image = this.dir.path().join("image");
                File::create(&image).unwrap().set_len(64 << 20).unwrap();
                let made = Command::new("mkfs.ext4")
                    .args(["-q", "-m", "0"])
                    .arg(&image)
                    .status();
                if !made.is_ok_and(|status| status.success()) {
                    eprintln!("skipped: there is no mkfs.ext4");
                    return None;
                }
                mount.args(["-t", "ext4", "-o", "loop"]).arg(&image)
            }
        };
        let mounted = mount.arg(this.path()).status();
        if !mounted.is_ok_and(|status| status.success()) {
            eprintln!("skipped: {kind} cannot be mounted here");
            return None;
        }
        Some(this)
    }

    /// Where it is mounted.
    pub fn path(&self) -> PathBuf {
        self.dir.path().join("fs")
    }

    /// A disk of `size` bytes whose files are here.
    pub fn disk(&self, size: u64) -> Disk {
        Disk::with(size, &["--data-dir", self.path().to_str().unwrap()])
    }

    /// Takes all the space that there is, until the answer is dropped.
    pub fn fill(&self) -> Ballast {
        let path = self.path().join("ballast");
        let file = File::create(&path).unwrap();
        let (mut at, mut step) = (0, 1 << 20);
        while step >= 4096 {
            match fallocate(&file, FallocateFlags::empty(), at, step) {
                Ok(()) => at += step,
                Err(error) => {
                    assert_eq!(error, rustix::io::Errno::NOSPC);
                    step /= 2;
                }
            }
        }
        Ballast(path)
    }
}

impl Drop for SmallFs {
    fn drop(&mut self) {
        // It is not mounted when the test is skipped. The kernel takes some milliseconds to close the
        // files of a daemon that was killed, which needs not be waited for.
        let _ = Command::new("umount")
            .args(["-q", "-l"])
            .arg(self.path())
            .status();
    }
}

/// What takes the space.
pub struct Ballast(PathBuf);

impl Drop for Ballast {
    fn drop(&mut self) {
        fs::remove_file(&self.0).unwrap();
    }
}
