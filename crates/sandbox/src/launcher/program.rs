//! The file of this program.

use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// The file of this program. When it was replaced or removed meanwhile, by an upgrade say, it is still to be had
/// through the kernel: a data plane is of the same version as its attach process.
pub(super) fn program() -> io::Result<PathBuf> {
    let kernels = Path::new("/proc/self/exe");
    let (path, own) = (std::env::current_exe()?, kernels.metadata()?);
    let same = path
        .metadata()
        .is_ok_and(|found| (found.dev(), found.ino()) == (own.dev(), own.ino()));
    Ok(match same {
        true => path,
        false => kernels.to_owned(),
    })
}
