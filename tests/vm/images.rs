//! What guests boot from, built on first use by the scripts in `images/` and cached.

use std::path::{Path, PathBuf};
use std::process::Command;

/// A kernel and an initramfs.
pub struct Initramfs {
    pub kernel: PathBuf,
    pub initrd: PathBuf,
}

/// The usual guest: busybox, cryptsetup and file system tools.
pub fn initramfs() -> Initramfs {
    split(&build("initramfs.sh", &[]))
}

/// The same with fio; a second slower to boot.
pub fn initramfs_with_fio() -> Initramfs {
    split(&build("initramfs.sh", &["--fio"]))
}

/// A small Linux with GRUB for SeaBIOS and OVMF, as a raw image.
pub fn bootable_disk() -> PathBuf {
    build("disk.sh", &[]).remove(0)
}

/// A whole Debian with systemd, as a raw image. The first time takes minutes.
pub fn debian_disk() -> PathBuf {
    build("debian.sh", &[]).remove(0)
}

/// An arm64 Linux that the EFI shell of AAVMF starts, as a raw image.
pub fn arm64_disk() -> PathBuf {
    build("arm64.sh", &[]).remove(0)
}

fn split(paths: &[PathBuf]) -> Initramfs {
    let [kernel, initrd] = paths else {
        panic!("a kernel and an initramfs were expected: {paths:?}");
    };
    Initramfs {
        kernel: kernel.clone(),
        initrd: initrd.clone(),
    }
}

fn build(script: &str, args: &[&str]) -> Vec<PathBuf> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/vm/images")
        .join(script);
    let output = Command::new(&path)
        .args(args)
        .output()
        .unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    assert!(
        output.status.success(),
        "{script} failed:\n{}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout)
        .expect("the paths are UTF-8")
        .lines()
        .map(PathBuf::from)
        .collect()
}
