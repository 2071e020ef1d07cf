//! Why an operation on a disk was refused or failed.

use std::io;
use std::path::{Path, PathBuf};

use thiserror::Error;

use crate::import::ImportError;
use installation::catalog::CatalogError;
use installation::envelope::{EnvelopeError, FailedSync, JobKind, ResourceKind};
use installation::{InstallationError, name_of_host, this_host};
use keys::KeyError;
use vault::{VaultError, lacks_space};
use volume::VolumeError;
use volume::pipeline::PipelineError;

/// Errors of the operations on disks. After every one of them the disk is as it was, or, when it
/// was to be made, not there.
#[derive(Debug, Error)]
pub enum DiskError {
    /// An argument is not acceptable.
    #[error("{0}")]
    Argument(String),
    /// The disk's files are in use.
    #[error(
        "the disk {name} is in use ({}): detach it, or wait for the command that uses it",
        path.display()
    )]
    InUse {
        /// The disk.
        name: String,
        /// What is locked.
        path: PathBuf,
    },
    /// An attach waits for the disk.
    #[error("an incoming attach waits for the disk {name} ({by}): end that before")]
    Awaited {
        /// The disk.
        name: String,
        /// Who waits.
        by: String,
    },
    /// Access to the data was granted over the network.
    #[error(
        "access over the network to the data of the {kind} {name} is granted until {until}: end that with \
         `sealdisk {kind} revoke-access {name}`"
    )]
    Granted {
        /// What it is.
        kind: ResourceKind,
        /// Its name.
        name: String,
        /// When it ends by itself.
        until: String,
    },
    /// The disk is in upload.
    #[error(
        "the disk {name} is being uploaded: when all of it is, `sealdisk disk revoke-access {name}` makes it a disk \
         that can be used"
    )]
    Uploading {
        /// The disk.
        name: String,
    },
    /// What was to be written is not in upload.
    #[error(
        "the disk {name} was not created to be uploaded, or is uploaded already: it is not written to over the network"
    )]
    NotUploading {
        /// The disk.
        name: String,
    },
    /// An upload was to be complete and is not.
    #[error(
        "the upload of the disk {name} is not complete: the last 512 bytes, at {size}, have to be the footer of a \
         fixed VHD of {size} bytes; grant access to write once more"
    )]
    NoFooter {
        /// The disk.
        name: String,
        /// Its size, at which the footer begins.
        size: u64,
    },
    /// The attach that had the disk before has not let go of it in order, and left what only its host has.
    #[error(
        "the disk {name} was attached on {host} since {since} and not let go of in order, so what its guest has \
         written and not flushed is there: attach it there again, and migrate or detach it. If that host is gone, and \
         the guest with it, lose those writes with `sealdisk attach --take-over-from {host}` (with --incoming, of a \
         guest that goes on) or `sealdisk disk check {name} --repair --take-over-from {host}`{}",
        or_this_one(host)
    )]
    NotLetGo {
        /// The disk.
        name: String,
        /// Where it was attached.
        host: String,
        /// Since when.
        since: String,
    },
    /// An interrupted command left the disk half made or half deleted, or one is still at it.
    #[error("the {kind} {name} is being {doing} by another command")]
    Unfinished {
        /// What it is.
        kind: ResourceKind,
        /// The disk.
        name: String,
        /// `created` or `deleted`.
        doing: &'static str,
    },
    /// Something is in the place where the disk is to be.
    #[error("{} exists already; move it away or choose another name or --data-dir", path.display())]
    PathTaken {
        /// The directory that the disk was to have.
        path: PathBuf,
    },
    /// The header in a disk's directory is another disk's.
    #[error(
        "the header in {} is that of disk {found}, not of {name}; put the disk's own header back",
        path.display()
    )]
    OtherDisk {
        /// The disk that was looked for.
        name: String,
        /// Its directory.
        path: PathBuf,
        /// The id of the disk whose header is there.
        found: uuid::Uuid,
    },
    /// The DEK of a layer beneath the top one, which may be under somebody else's key.
    #[error(
        "the layer {layer} of the {kind} {name}, which came from {from}, cannot be unlocked by \
         {key_url}: {source}"
    )]
    Layer {
        /// What the layer is of.
        kind: ResourceKind,
        /// Its name.
        name: String,
        /// The layer.
        layer: uuid::Uuid,
        /// Whose it was before.
        from: String,
        /// The key version that wraps its DEK.
        key_url: String,
        /// Why.
        source: Box<DiskError>,
    },
    /// Another copy of the disk is in the catalog.
    #[error(
        "the disk in {} is known here as {name}; a copy is the same disk, so register it in another \
         installation, or `disk unregister {name}` first", path.display()
    )]
    Registered {
        /// The directory that was to be registered.
        path: PathBuf,
        /// The disk that is known.
        name: String,
    },
    /// Layers cannot be shared across file systems.
    #[error(
        "{} is not on the file system of {}, whose layers are shared: give a --data-dir on the same \
         one", into.display(), from.display()
    )]
    OtherFileSystem {
        /// The directory that has the layers.
        from: PathBuf,
        /// The one that was to get them.
        into: PathBuf,
    },
    /// Layers are shared by hard links.
    #[error(
        "the file system of {} gives no hard links, by which snapshots, images and clones share layers: \
         {source}; keep the disk on another one (`disk copy`)", path.display()
    )]
    NoLinks {
        /// The directory in which they were to be.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// Something goes on with the disk's layers.
    #[error(
        "the disk {name} has a job under way ({job}); wait until it is done (`disk show {name}`), or \
         abort it"
    )]
    JobUnderWay {
        /// The disk.
        name: String,
        /// What it is.
        job: JobKind,
    },
    /// A layer that was to be dropped has content that nothing above it has.
    #[error(
        "the layer {layer} of the disk {name} is still needed: not all of it is in the layers above; \
         nothing was dropped"
    )]
    Needed {
        /// The disk.
        name: String,
        /// The layer.
        layer: uuid::Uuid,
    },
    /// Nothing goes on with the disk's layers.
    #[error("the disk {name} has no such job under way; `disk show {name}` tells what it has")]
    NoJob {
        /// The disk.
        name: String,
    },
    /// Disks share the layers of a snapshot or an image.
    #[error(
        "the {kind} {name} is in use: the disk {disk} was made of it and shares its layers ({count} \
         in all); make them independent with `disk flatten {disk}`, or delete them"
    )]
    HasClones {
        /// A snapshot or an image.
        kind: ResourceKind,
        /// Its name.
        name: String,
        /// One of the disks.
        disk: String,
        /// How many there are.
        count: usize,
    },
    /// A snapshot that is a deep copy of it is not complete yet.
    #[error(
        "the {kind} {name} is in use: its data is being copied into the snapshot {snapshot}; wait until that is \
         complete, or delete it"
    )]
    BeingCopied {
        /// A snapshot or an image.
        kind: ResourceKind,
        /// Its name.
        name: String,
        /// The copy.
        snapshot: String,
    },
    /// Nothing is made of a deep copy before all is copied.
    #[error(
        "the {kind} {name} is not complete yet: its data is still being copied; wait until that is done"
    )]
    Incomplete {
        /// A snapshot.
        kind: ResourceKind,
        /// Its name.
        name: String,
    },
    /// The process that serves the disk to a guest did not take part in a change of its layers.
    #[error("the disk {name}, which is attached: {why}")]
    Attached {
        /// The disk.
        name: String,
        /// What went wrong, and how it goes on.
        why: String,
    },
    /// The header of an attached disk says the new size, and its guest does not see it.
    #[error(
        "the disk {name} has {size} bytes now, but what serves it keeps the old size ({reason}); try \
         again, or attach it again"
    )]
    SizeNotServed {
        /// The disk.
        name: String,
        /// Its size.
        size: u64,
        /// Why.
        reason: String,
    },
    /// The runtime map is in another directory than the one that was given.
    #[error(
        "the disk {name} was not detached in order, and {} has what was completed and not flushed: give \
         --runtime-dir {}", path.display(), directory.display()
    )]
    RuntimeMapElsewhere {
        /// The disk.
        name: String,
        /// The runtime directory in which its map is.
        directory: PathBuf,
        /// The map.
        path: PathBuf,
    },
    /// The runtime map that is needed is not to be found.
    #[error(
        "{}, which has what was completed of the disk {name} and not flushed (it was attached on {host} \
         since {since}), {why}: put it back, or lose those writes with `sealdisk attach \
         --discard-unflushed` or `sealdisk disk check {name} --repair --discard-unflushed`",
        path.display()
    )]
    RuntimeMapMissing {
        /// The disk.
        name: String,
        /// Where the map was.
        path: PathBuf,
        /// What is wrong with what is there, as the end of a sentence.
        why: &'static str,
        /// When the disk was attached.
        since: String,
        /// On which host.
        host: String,
    },
    /// A sync of the disk's files failed, and the disk was not repaired since.
    #[error(
        "a sync of the disk {name} failed at {} ({failed}), so writes that were completed before may be \
         lost: detach it, mend its storage, and run `sealdisk disk check {name} --repair`",
        vault::moment(failed.time)
    )]
    SyncFailed {
        /// The disk.
        name: String,
        /// What failed.
        failed: Box<FailedSync>,
    },
    /// What the last user of the disk left is not in its data file.
    #[error(
        "{bytes} bytes that were written to the disk {name} and not flushed are lost{ranges}: mend its storage, \
         and run `sealdisk disk check {name} --repair`, after which they read as before they were written"
    )]
    UnflushedLost {
        /// The disk.
        name: String,
        /// How many bytes.
        bytes: u64,
        /// Where they are, in words.
        ranges: String,
    },
    /// What the last user of the disk left cannot be read.
    #[error(
        "{bytes} bytes that were written to the disk {name} and not flushed cannot be read{ranges}: mend its \
         storage; `sealdisk disk check {name} --repair --discard-unflushed` gives them up"
    )]
    UnflushedUnreadable {
        /// The disk.
        name: String,
        /// How many bytes.
        bytes: u64,
        /// Where they are, in words.
        ranges: String,
    },
    /// Plaintext would go to a terminal.
    #[error("not writing a disk's plaintext to a terminal; redirect it or give --output-file")]
    Terminal,
    /// What was to be written is there already.
    #[error("{} exists already and is not written over; choose another path", path.display())]
    OutputExists {
        /// The file.
        path: PathBuf,
    },
    /// Something that is not part of a disk is in its directory.
    #[error("{} holds files that are not a disk's and was left; look at them and remove it", path.display())]
    LeftBehind {
        /// The directory.
        path: PathBuf,
    },
    /// A file operation failed.
    #[error("cannot {call} {}: {source}{}", path.display(), keys::read_only::advice(source))]
    File {
        /// What was attempted.
        call: &'static str,
        /// On what.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// The source image cannot be imported.
    #[error(transparent)]
    Import(#[from] ImportError),
    /// The catalog, a vault or the state directory.
    #[error(transparent)]
    Control(#[from] InstallationError),
    /// The header or an envelope.
    #[error(transparent)]
    Envelope(#[from] EnvelopeError),
    /// The layer's files.
    #[error(transparent)]
    Volume(#[from] VolumeError),
    /// Reading or writing the disk's data.
    #[error(transparent)]
    Pipeline(#[from] PipelineError),
    /// Key memory.
    #[error(transparent)]
    Key(#[from] KeyError),
}

/// A host that is called as this one may be this one.
fn or_this_one(host: &str) -> &'static str {
    match host == name_of_host(this_host()) {
        true => {
            "; so too if that is this very host, which has another id since it was booted: SEALDISK_HOST gives it a \
             name that stays"
        }
        false => "",
    }
}

impl From<CatalogError> for DiskError {
    fn from(error: CatalogError) -> Self {
        Self::Control(error.into())
    }
}

impl From<VaultError> for DiskError {
    fn from(error: VaultError) -> Self {
        Self::Control(error.into())
    }
}

impl DiskError {
    /// A code for programs, Azure's where it has one.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Argument(_) | Self::Import(ImportError::UnknownFormat(_)) | Self::Terminal => {
                "InvalidArgument"
            }
            Self::Control(error) => error.code(),
            Self::Envelope(EnvelopeError::Vault(error)) => error.code.as_str(),
            Self::Layer { source, .. } => source.code(),
            Self::InUse { .. }
            | Self::Awaited { .. }
            | Self::Granted { .. }
            | Self::Uploading { .. }
            | Self::NotUploading { .. }
            | Self::JobUnderWay { .. }
            | Self::Needed { .. }
            | Self::HasClones { .. }
            | Self::BeingCopied { .. }
            | Self::Incomplete { .. } => "OperationNotAllowed",
            Self::NoFooter { .. } => "InvalidVhd",
            Self::NoJob { .. } => "NotFound",
            Self::Unfinished { .. }
            | Self::PathTaken { .. }
            | Self::OutputExists { .. }
            | Self::Registered { .. }
            | Self::Envelope(EnvelopeError::Busy { .. }) => "Conflict",
            Self::Import(ImportError::Interrupted) => "Cancelled",
            Self::Import(_) => "UnusableImage",
            Self::OtherDisk { .. } | Self::Envelope(_) => "UnusableHeader",
            Self::OtherFileSystem { .. }
            | Self::NoLinks { .. }
            | Self::LeftBehind { .. }
            | Self::File { .. } => "FileSystem",
            Self::Volume(_) | Self::Pipeline(_) => "DiskData",
            Self::Attached { .. } => "DataPlane",
            Self::SizeNotServed { .. } => "SizeNotServed",
            Self::SyncFailed { .. } => "SyncFailed",
            Self::NotLetGo { .. }
            | Self::RuntimeMapElsewhere { .. }
            | Self::RuntimeMapMissing { .. }
            | Self::UnflushedLost { .. }
            | Self::UnflushedUnreadable { .. } => "UnflushedWrites",
            Self::Key(_) => "KeyMaterial",
        }
    }

    /// Whether there is no room on a file system for what was to be written.
    pub fn is_no_space(&self) -> bool {
        match self {
            Self::Control(error) => error.is_no_space(),
            Self::Envelope(EnvelopeError::Vault(error)) => error.is_no_space(),
            Self::Layer { source, .. } => source.is_no_space(),
            Self::File { source, .. }
            | Self::Envelope(EnvelopeError::Io { source, .. })
            | Self::Volume(VolumeError::File { source, .. }) => lacks_space(source),
            Self::Volume(error) | Self::Pipeline(PipelineError::Volume(error)) => {
                error.is_no_space()
            }
            Self::Pipeline(PipelineError::Request(error)) => error.is_no_space(),
            Self::Pipeline(PipelineError::Store(error)) => error.is_no_space(),
            _ => false,
        }
    }

    /// Why no disk can have the size that was asked for, without where its files are; `None` for what is about no size.
    pub fn refused_size(&self) -> Option<String> {
        let error = match self {
            Self::Volume(error) | Self::Pipeline(PipelineError::Volume(error)) => error,
            _ => return None,
        };
        match error {
            VolumeError::TooLong { most, .. } => Some(format!(
                "a file on the server's file system has {most} bytes ({} GiB) at most, and a disk lies in one",
                most >> 30
            )),
            VolumeError::Size { .. } | VolumeError::Shrink { .. } => Some(error.to_string()),
            _ => None,
        }
    }

    /// For `map_err` of file operations.
    pub(crate) fn file(call: &'static str, path: &Path) -> impl Fn(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::File {
            call,
            path: path.clone(),
            source,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_size_that_is_refused_says_no_path() {
        let path = PathBuf::from("/var/lib/sealdisk/disks/d/x.data");
        let len = 65536 << 30;
        let most = 16 << 40;
        let long = DiskError::Volume(VolumeError::TooLong { path, len, most });
        let why = long.refused_size().unwrap();
        assert!(why.contains("(16384 GiB)") && !why.contains('/'), "{why}");
        assert_eq!(DiskError::Argument("x".into()).refused_size(), None);
    }

    #[test]
    fn a_host_that_is_called_as_this_one_may_be_this_one() {
        let said = |host: &str| {
            let not_let_go = DiskError::NotLetGo {
                name: "d".into(),
                host: host.into(),
                since: "then".into(),
            };
            not_let_go.to_string()
        };
        assert!(said(name_of_host(this_host())).contains("SEALDISK_HOST"));
        let other = said("somebody else's");
        assert!(!other.contains("SEALDISK_HOST"), "{other}");
    }

    #[test]
    fn that_there_is_no_space_is_told_from_other_failures() {
        let file = |kind: io::ErrorKind| {
            DiskError::file("write", Path::new("x"))(io::Error::from(kind)).is_no_space()
        };
        assert!(file(io::ErrorKind::StorageFull) && file(io::ErrorKind::QuotaExceeded));
        assert!(!file(io::ErrorKind::PermissionDenied));
        let audit = InstallationError::Audit(vault::audit::AuditError::Full);
        assert!(DiskError::Control(audit).is_no_space());
    }
}
