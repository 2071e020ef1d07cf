//! File systems that a test can fill up.

use std::fs::{self, File};
use std::path::PathBuf;
use std::process::Command;

use rustix::fs::{FallocateFlags, fallocate};
use tempfile::TempDir;

use crate::{Backend, Disk, scratch};

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
        let dir = TempDir::new_in(scratch()).unwrap();
        fs::create_dir(dir.path().join("fs")).unwrap();
        let this = Self { dir };
        let mut mount = Command::new("mount");
        match kind {
            "tmpfs" => mount.args(["-t", "tmpfs", "-o", "size=32m,mode=0700", "sealdisk-test"]),
            "ramfs" => mount.args(["-t", "ramfs", "-o", "mode=0700", "sealdisk-test"]),
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
        fill(self.path().join("ballast"))
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

/// A state directory that is on a small file system, until this is dropped.
pub struct Moved(PathBuf);

impl Moved {
    /// Moves a state directory that nobody uses.
    pub fn to(fs: &SmallFs, state: PathBuf) -> Self {
        let copied = Command::new("cp")
            .args(["-a", "--sparse=always"])
            .arg(state.join("."))
            .arg(fs.path())
            .status();
        assert!(copied.unwrap().success());
        let mut mount = Command::new("mount");
        let bound = mount.arg("--bind").arg(fs.path()).arg(&state).status();
        assert!(bound.unwrap().success());
        Self(state)
    }
}

impl Drop for Moved {
    fn drop(&mut self) {
        let _ = Command::new("umount")
            .args(["-q", "-l"])
            .arg(&self.0)
            .status();
    }
}

/// An ext4 whose syncs can be made to fail: it lies in a sparse file on a tmpfs, which is then filled up,
/// so that the journal finds no place.
pub struct FailingFs {
    backing: SmallFs,
    /// Where it is mounted.
    path: PathBuf,
}

impl FailingFs {
    /// `None`, with a word on stderr, where this cannot be mounted.
    pub fn mount() -> Option<Self> {
        let backing = SmallFs::mount("tmpfs")?;
        let (image, path) = (
            backing.path().join("image"),
            backing.dir.path().join("ext4"),
        );
        File::create(&image).unwrap().set_len(64 << 20).unwrap();
        fs::create_dir(&path).unwrap();
        let mut make = Command::new("mkfs.ext4");
        make.args(["-q", "-m", "0", "-E", "lazy_journal_init=1"]);
        let mut mount = Command::new("mount");
        mount.args(["-t", "ext4", "-o", "loop"]);
        let done = |command: &mut Command| command.status().is_ok_and(|status| status.success());
        if !done(make.arg(&image)) || !done(mount.arg(&image).arg(&path)) {
            eprintln!("skipped: an ext4 in a file cannot be made and mounted here");
            return None;
        }
        Some(Self { backing, path })
    }

    /// As [`SmallFs::disk`].
    pub fn disk(&self, size: u64) -> Disk {
        Disk::with(size, &["--data-dir", self.path.to_str().unwrap()])
    }

    /// Has every sync fail from now on.
    pub fn fail(&self) -> Ballast {
        let ballast = self.backing.fill();
        let mut failed = false;
        for i in 0..64 {
            // The first failure aborts the journal, the next use of it makes the file system read-only.
            failed = match File::create(self.path.join(format!("file{i}"))) {
                Ok(file) => {
                    let _ = file.sync_all();
                    false
                }
                Err(_) => true,
            };
            if failed {
                break;
            }
        }
        assert!(failed, "the journal still finds a place");
        ballast
    }
}

impl Drop for FailingFs {
    fn drop(&mut self) {
        let _ = Command::new("umount")
            .args(["-q", "-l"])
            .arg(&self.path)
            .status();
    }
}

/// What takes the space.
pub struct Ballast(PathBuf);

impl Ballast {
    /// Gives some bytes back.
    pub fn shrink(&self, bytes: u64) {
        let file = File::options().write(true).open(&self.0).unwrap();
        let len = file.metadata().unwrap().len();
        file.set_len(len - bytes).unwrap();
    }
}

impl Drop for Ballast {
    fn drop(&mut self) {
        fs::remove_file(&self.0).unwrap();
    }
}

/// An ext4 whose device has less space than it promises: a sparse file on a small tmpfs. When that is
/// full, what ext4 has taken for written cannot be, and the sync that finds out fails, once.
pub struct Overcommitted {
    dir: TempDir,
}

impl Overcommitted {
    /// `None`, with a word on stderr, where this cannot be mounted.
    pub fn mount() -> Option<Self> {
        if Backend::chosen() == Backend::Qsd {
            return None;
        }
        let dir = TempDir::new_in(scratch()).unwrap();
        for name in ["device", "fs"] {
            fs::create_dir(dir.path().join(name)).unwrap();
        }
        let this = Self { dir };
        let succeeds =
            |command: &mut Command| command.status().is_ok_and(|status| status.success());
        let tmpfs = ["-t", "tmpfs", "-o", "size=32m,mode=0700", "sealdisk-test"];
        if !succeeds(Command::new("mount").args(tmpfs).arg(this.device())) {
            eprintln!("skipped: no tmpfs can be mounted here");
            return None;
        }
        let image = this.device().join("image");
        File::create(&image).unwrap().set_len(64 << 20).unwrap();
        // Without a journal nothing is remounted read-only, and all inodes have their space. A block is
        // a page of the tmpfs, so that each new one takes space.
        let options = [
            "-q",
            "-m",
            "0",
            "-b",
            "4096",
            "-O",
            "^has_journal",
            "-E",
            "lazy_itable_init=0",
        ];
        if !succeeds(Command::new("mkfs.ext4").args(options).arg(&image)) {
            eprintln!("skipped: there is no mkfs.ext4");
            return None;
        }
        let mount = ["-t", "ext4", "-o", "loop"];
        if !succeeds(
            Command::new("mount")
                .args(mount)
                .arg(&image)
                .arg(this.path()),
        ) {
            eprintln!("skipped: ext4 cannot be mounted here");
            return None;
        }
        Some(this)
    }

    /// Where the file system is mounted.
    pub fn path(&self) -> PathBuf {
        self.dir.path().join("fs")
    }

    fn device(&self) -> PathBuf {
        self.dir.path().join("device")
    }

    /// Takes all the space that the device has, until the answer is dropped.
    pub fn fill_device(&self) -> Ballast {
        fill(self.device().join("ballast"))
    }
}

impl Drop for Overcommitted {
    fn drop(&mut self) {
        for mounted in [self.path(), self.device()] {
            // It is not mounted when the test is skipped.
            let _ = Command::new("umount")
                .args(["-q", "-l"])
                .arg(mounted)
                .status();
        }
    }
}

fn fill(path: PathBuf) -> Ballast {
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
