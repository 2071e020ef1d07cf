//! Exporting a disk's plaintext as an image that other programs read.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, RenameFlags, renameat_with};
use uuid::Uuid;

use super::decrypt::{Output, Plaintext, decrypt, open_to_read, stream};
use super::{DiskError, parent_of};
use crate::control::Installation;
use crate::control::files::sync_dir;
use crate::control::import::{Cancel, ImageFormat, TargetImage};

/// The largest VHD that QEMU writes and Azure takes: 2040 GiB.
const MOST_VHD: u64 = 2040 << 30;
/// The image in its directory while it is written.
const PARTIAL: &str = "image";

/// Writes the plaintext of an unattached disk to the new file `path`, which gets mode 0600, its holes,
/// and its name when it is complete. Nothing of the plaintext is written anywhere else; a failure or a
/// signal leaves nothing.
///
/// # Errors
/// [`DiskError`].
pub fn export<P: FnMut(u64)>(
    installation: &Installation,
    name: &str,
    path: &Path,
    format: ImageFormat,
    runtime_dir: &Path,
    cancel: &Cancel,
    started: impl FnOnce(u64) -> P,
) -> Result<(), DiskError> {
    if path.symlink_metadata().is_ok() {
        return Err(DiskError::OutputExists { path: path.into() });
    }
    if format == ImageFormat::Raw {
        let to = Plaintext::Path(path.into());
        return decrypt(installation, name, &to, runtime_dir, cancel, started);
    }
    let (mut source, size) = open_to_read(installation, name, runtime_dir)?;
    if format == ImageFormat::Vpc && size > MOST_VHD {
        return Err(DiskError::Argument(format!(
            "a VHD holds {MOST_VHD} bytes at most, the disk has {size}; export it as raw or qcow2"
        )));
    }
    let mut image = NewImage::create(path, format, size, cancel)?;
    stream(&mut source, size, &mut image, cancel, started(size))?;
    image.finish()
}

/// An image in a private directory beside its final place, which goes with it unless it is finished.
struct NewImage {
    directory: PathBuf,
    path: PathBuf,
    /// `None` when it is complete, or was never begun.
    image: Option<TargetImage>,
}

impl NewImage {
    fn create(
        path: &Path,
        format: ImageFormat,
        size: u64,
        cancel: &Cancel,
    ) -> Result<Self, DiskError> {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let directory = path.with_file_name(format!(".{name}.partial-{}", Uuid::new_v4()));
        DirBuilder::new()
            .mode(0o700)
            .create(&directory)
            .map_err(DiskError::file("create", path))?;
        let mut this = Self {
            directory,
            path: path.into(),
            image: None,
        };
        let partial = this.partial();
        // Made here, so that it has this mode before anything is in it.
        OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&partial)
            .map_err(DiskError::file("create", path))?;
        let image = TargetImage::create(&partial, format, size, &this.directory, cancel)?;
        this.image = Some(image);
        Ok(this)
    }

    fn partial(&self) -> PathBuf {
        self.directory.join(PARTIAL)
    }

    fn finish(mut self) -> Result<(), DiskError> {
        if let Some(image) = self.image.take() {
            image.finish()?;
        }
        let (partial, path) = (self.partial(), &self.path);
        File::open(&partial)
            .and_then(|file| file.sync_all())
            .map_err(DiskError::file("sync", path))?;
        renameat_with(CWD, &partial, CWD, path, RenameFlags::NOREPLACE).map_err(|e| match e {
            rustix::io::Errno::EXIST => DiskError::OutputExists { path: path.clone() },
            e => DiskError::file("name", path)(e.into()),
        })?;
        let parent = parent_of(path);
        sync_dir(parent).map_err(DiskError::file("sync", parent))
    }
}

impl Output for NewImage {
    fn data(&mut self, offset: u64, plaintext: &[u8]) -> Result<(), DiskError> {
        match &mut self.image {
            Some(image) => Ok(image.write_at(offset, plaintext)?),
            None => Ok(()),
        }
    }

    /// A new image is zeros.
    fn zeros(&mut self, _: u64, cancel: &Cancel) -> Result<(), DiskError> {
        Ok(cancel.check()?)
    }
}

impl Drop for NewImage {
    fn drop(&mut self) {
        // QEMU has to be gone first.
        self.image = None;
        let partial = self.partial();
        match fs::remove_file(&partial) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                log::error!("remove the plaintext in {}: {e}", partial.display());
            }
            _ => {}
        }
        if let Err(e) = fs::remove_dir(&self.directory) {
            log::warn!("cannot remove {}: {e}", self.directory.display());
        }
    }
}
