//! Exporting a disk's plaintext as an image that other programs read.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::ErrorKind;
use std::ops::Range;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use crate::import::{Backing, Cancel, ImageFormat, TargetImage};
use crate::resource::directory::parent_of;
use crate::resource::directory_lock::DirectoryLock;
use crate::resource::disk::Disk;
use crate::resource::error::DiskError;
use crate::transfer::decrypt::{Plaintext, decrypt, open_to_read};
use crate::transfer::partial;
use crate::transfer::qcow2::{CLUSTER, Qcow2};
use crate::transfer::stream::{Output, stream, stream_ranges};
use installation::Installation;
use installation::envelope::{HeaderPayload, ResourceKind};
use installation::files::{rename_new, sync_dir, try_rename_new};
use volume::pipeline::DiskIo;

/// The largest VHD that QEMU writes and Azure takes: 2040 GiB.
const MAX_VHD: u64 = 2040 << 30;
/// The image in its directory while it is written.
const PARTIAL: &str = "image";

/// What an export is to be.
#[derive(Debug)]
pub struct ExportRequest {
    /// What is exported, and its name.
    pub source: (ResourceKind, String),
    /// The file to make.
    pub file: PathBuf,
    /// Its format.
    pub format: ImageFormat,
    /// Only what changed since a snapshot.
    pub since: Option<Since>,
}

/// Of what an incremental export has the changes.
#[derive(Debug)]
pub struct Since {
    /// The snapshot.
    pub snapshot: String,
    /// The name of the full image of the snapshot, on which the export lies; `SNAPSHOT.qcow2` when it is
    /// not given. It is taken for raw when it ends in `.raw`, else for qcow2.
    pub backing: Option<PathBuf>,
}

/// Writes the plaintext of an unattached disk, a snapshot or an image to a new file, which gets mode
/// 0600, its holes, and its name when it is complete. Nothing of the plaintext is written anywhere else;
/// a failure, a signal, or a vault that refuses a key meanwhile, leaves nothing.
///
/// # Errors
/// [`DiskError`].
pub fn export<P: FnMut(u64)>(
    installation: &Installation,
    request: &ExportRequest,
    runtime_dir: &Path,
    cancel: &Cancel,
    started: impl FnOnce(u64) -> P,
) -> Result<(), DiskError> {
    let (path, format) = (&request.file, request.format);
    let (kind, name) = &request.source;
    if path.symlink_metadata().is_ok() {
        return Err(DiskError::OutputExists { path: path.into() });
    }
    if request.since.is_some() && format != ImageFormat::Qcow2 {
        return Err(DiskError::Argument(format!(
            "a {format} image cannot lie on another one; export changes as qcow2"
        )));
    }
    let disk = Disk::of_kind(installation, *kind, name)?;
    disk.refuse_unsynced(disk.header_file()?.read()?.claims(), runtime_dir)?;
    if format == ImageFormat::Raw {
        let to = Plaintext::Path(path.into());
        let source = (*kind, name.as_str());
        return decrypt(installation, source, &to, runtime_dir, cancel, started);
    }
    let (source, header, keys) = open_to_read(installation, &disk, runtime_dir)?;
    let size = header.size;
    if format == ImageFormat::Vpc && size > MAX_VHD {
        return Err(DiskError::Argument(format!(
            "a VHD holds {MAX_VHD} bytes at most, the {kind} has {size}; export it as raw or qcow2"
        )));
    }
    if format == ImageFormat::Vpc && header.logical_sector_size != 512 {
        return Err(DiskError::Argument(format!(
            "a VHD is a disk with sectors of 512 bytes, and those of the {kind} have {}; export it as raw \
             or qcow2",
            header.logical_sector_size
        )));
    }
    let changed = match &request.since {
        Some(since) => Some(layers_above(installation, &disk, &header, &since.snapshot)?),
        None => None,
    };
    let backing = request.since.as_ref().map(backing);
    let cancel = &keys.stopping(cancel);
    let written = NewImage::create(path, format, (size, backing), cancel).and_then(|mut image| {
        let progress = started(size);
        match changed {
            Some(layers) => stream_held(source, (size, layers), &mut image, cancel, progress)?,
            None => stream(source, size, &mut image, cancel, progress)?,
        }
        image.finish()
    });
    keys.judged(written)
}

/// How many layers a disk has above those that a snapshot has too.
pub(crate) fn layers_above(
    installation: &Installation,
    disk: &Disk,
    header: &HeaderPayload,
    snapshot: &str,
) -> Result<usize, DiskError> {
    let base = Disk::of_kind(installation, ResourceKind::Snapshot, snapshot)?;
    let (base_header, _) = base.unlock(installation, base.header_file()?.read()?)?;
    let top = base_header.top().ok_or_else(|| base.no_layer())?.id;
    let from_top = header.layers.iter().rev().position(|layer| layer.id == top);
    from_top.ok_or_else(|| {
        DiskError::Argument(format!(
            "the {} {} does not lie on the snapshot {snapshot} any more, or never did, so nobody knows \
             what changed since; export all of it",
            disk.kind(),
            disk.name()
        ))
    })
}

fn backing(since: &Since) -> Backing {
    let name = match &since.backing {
        Some(name) => name.clone(),
        None => format!("{}.qcow2", since.snapshot).into(),
    };
    let format = match name.extension().is_some_and(|e| e == "raw") {
        true => ImageFormat::Raw,
        false => ImageFormat::Qcow2,
    };
    Backing { name, format }
}

/// Copies the clusters in which something is that one of the topmost `layers` layers has. The rest of
/// such a cluster is copied too: the image is not to depend on what is beneath while it is written.
fn stream_held(
    source: DiskIo,
    (size, layers): (u64, usize),
    image: &mut NewImage,
    cancel: &Cancel,
    progress: impl FnMut(u64),
) -> Result<(), DiskError> {
    let whole_clusters = |source: &DiskIo, at| {
        let held = source.next_held(at, layers)?;
        let clusters =
            |held: Range<u64>| held.start / CLUSTER * CLUSTER..held.end.next_multiple_of(CLUSTER);
        Ok(held.map(clusters))
    };
    stream_ranges(source, size, whole_clusters, image, cancel, progress)
}

/// An image in a private directory beside its final place, which goes with it unless it is finished.
struct NewImage {
    directory: PathBuf,
    path: PathBuf,
    /// `None` when it is complete, or was never begun.
    image: Option<Writer>,
    /// That the directory is of a process that lives.
    held: Option<DirectoryLock>,
}

/// Who writes an image.
enum Writer {
    Own(Qcow2),
    Qemu(TargetImage),
}

impl NewImage {
    fn create(
        path: &Path,
        format: ImageFormat,
        (size, backing): (u64, Option<Backing>),
        cancel: &Cancel,
    ) -> Result<Self, DiskError> {
        let directory = partial::beside(path);
        DirBuilder::new()
            .mode(0o700)
            .create(&directory)
            .map_err(DiskError::file("create", path))?;
        let held = partial::hold_directory(&directory);
        let mut this = Self {
            directory,
            path: path.into(),
            image: None,
            held,
        };
        let partial = this.partial();
        // Made here, so that it has this mode before anything is in it.
        let file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&partial)
            .map_err(DiskError::file("create", path))?;
        try_rename_new(&partial).map_err(DiskError::file("name", path))?;
        this.image = Some(match format {
            ImageFormat::Qcow2 => Writer::Own(
                Qcow2::new(file, size, backing).map_err(DiskError::file("create", path))?,
            ),
            _ => Writer::Qemu(TargetImage::create(&partial, format, size, cancel)?),
        });
        Ok(this)
    }

    fn partial(&self) -> PathBuf {
        self.directory.join(PARTIAL)
    }

    fn finish(mut self) -> Result<(), DiskError> {
        match self.image.take() {
            Some(Writer::Own(image)) => {
                image
                    .finish()
                    .map_err(DiskError::file("write", &self.path))?;
            }
            Some(Writer::Qemu(image)) => image.finish()?,
            None => {}
        }
        let (partial, path) = (self.partial(), &self.path);
        File::open(&partial)
            .and_then(|file| file.sync_all())
            .map_err(DiskError::file("sync", path))?;
        rename_new(&partial, path).map_err(|e| match e.kind() {
            ErrorKind::AlreadyExists => DiskError::OutputExists { path: path.clone() },
            _ => DiskError::file("name", path)(e),
        })?;
        let parent = parent_of(path);
        sync_dir(parent).map_err(DiskError::file("sync", parent))
    }
}

impl Output for NewImage {
    fn data(&mut self, offset: u64, plaintext: &[u8], _: &Cancel) -> Result<(), DiskError> {
        match &mut self.image {
            Some(Writer::Own(image)) => image
                .write(offset, plaintext)
                .map_err(DiskError::file("write", &self.path)),
            Some(Writer::Qemu(image)) => Ok(image.write_at(offset, plaintext)?),
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
            Err(e) if e.kind() != ErrorKind::NotFound => {
                log::error!("remove the plaintext in {}: {e}", partial.display());
            }
            _ => {}
        }
        let removed = match self.held.take() {
            Some(lock) => lock.remove_directory(&self.directory),
            None => fs::remove_dir(&self.directory),
        };
        if let Err(e) = removed {
            log::warn!("cannot remove {}: {e}", self.directory.display());
        }
    }
}
