//! Why a disk is not attached.

use std::io;
use std::path::PathBuf;
use std::process::ExitStatus;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use disks::DiskError;
use installation::envelope::SyncedFile;
use protocol::ProtocolError;
use sandbox::SandboxError;

/// Errors of attaching.
#[derive(Debug, Error)]
pub enum AttachError {
    /// The disk cannot be used.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// The header has no layer; one that was read always has.
    #[error("the disk's header names no layer")]
    NoLayer,
    /// Another process listens on the socket.
    #[error("{} is in use by another process; choose another --socket-path", path.display())]
    SocketInUse {
        /// The socket.
        path: PathBuf,
    },
    /// Something else than a socket is there.
    #[error("{} exists and is not a socket; choose another --socket-path", path.display())]
    NotASocket {
        /// What is there.
        path: PathBuf,
    },
    /// A queue is to run on a CPU that this process may not use.
    #[error(
        "this process may not run on CPU {cpu}, only on {allowed}; choose other --cpus, or look at taskset and at \
         cpuset.cpus of its control group"
    )]
    Cpu {
        /// The CPU.
        cpu: u16,
        /// Those that it may run on, as ranges.
        allowed: String,
    },
    /// The socket cannot be made.
    #[error("cannot make the socket {}: {source}", path.display())]
    Socket {
        /// The socket.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// The socket's group cannot be changed.
    #[error(
        "cannot give the socket {} to the group {group}: {source}; be a member of it, or root",
        path.display()
    )]
    SocketGroup {
        /// The socket.
        path: PathBuf,
        /// The group's id.
        group: u32,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// `--fd` does not name what it should.
    #[error("--fd {fd} is not an open Unix stream socket: {source}")]
    Fd {
        /// The number.
        fd: i32,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// The data plane cannot be started or watched.
    #[error("cannot {what}: {source}")]
    Process {
        /// What was tried.
        what: &'static str,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// The handing over of the DEK could not be recorded, so it was not done.
    #[error("the audit log of the installation cannot be written: {0}")]
    Audit(String),
    /// Nobody serves the disk.
    #[error(
        "the disk is not attached with this --runtime-dir ({source}); only an attached disk has limits \
         and events: attach it, with its limits as options of `sealdisk attach`"
    )]
    NotAttached {
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// There are attaches of the disk here, and none has it.
    #[error(
        "the attach of this host does not have the disk: it waits for it, or has let go of it (`disk show` has it in \
         `waiting`); upgrade it when it has the disk, or send it SIGHUP for a data plane of the new program"
    )]
    WithoutDisk,
    /// The process that has the disk attached did not apply a change of its layers.
    #[error(transparent)]
    NotApplied(Refusal),
    /// The process that has the disk attached does not know the request, or says what this one does not know.
    #[error(
        "the disk is attached by another version of sealdisk, which does not know this request: use that \
         version, or detach the disk and attach it again"
    )]
    OtherVersion,
    /// A program that is to serve a disk cannot be opened.
    #[error("cannot open the program {}: {source}", path.display())]
    Program {
        /// The program.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// An attached disk goes on being served by the program that has served it.
    #[error("the disk is not upgraded, and goes on as it was: {0}")]
    NotUpgraded(String),
    /// The data plane is another program now, and the attach process is not.
    #[error(
        "version {version} serves the disk, and its attach process goes on with the program that it has: {why}; try \
         again, or attach the disk again when its guest allows it"
    )]
    NotReplaced {
        /// The version of the data plane.
        version: String,
        /// Why.
        why: String,
    },
    /// The disk is not the one that was let go of.
    #[error(
        "the disk {name} was reverted or resized while this attach did not have it, so the guest that had it before \
         cannot go on with it; shut that guest down and attach the disk again"
    )]
    AnotherDisk {
        /// The disk's name.
        name: String,
    },
    /// The data plane could not be started, killed or waited for.
    #[error(transparent)]
    Sandbox(#[from] SandboxError),
    /// The setup could not be handed over.
    #[error("the data plane cannot be given the disk: {0}")]
    Protocol(#[from] ProtocolError),
    /// A sync failed while the disk was attached, or before, so the detach is not clean.
    #[error(
        "a sync of the disk {name} has failed ({file}), so writes that were completed may be lost; {} is \
         kept: mend the storage, then `sealdisk disk check {name} --repair`", map.display()
    )]
    SyncFailed {
        /// The disk.
        name: String,
        /// Of which file.
        file: SyncedFile,
        /// The runtime map.
        map: PathBuf,
    },
    /// The data plane said that it cannot serve the disk.
    #[error("{0}")]
    Refused(String),
    /// The data plane served the disk, and said why it ended without everything being durable.
    #[error(
        "{reason}; every completed write is kept by {}: make room if there is no space, or remove the other \
         cause that is named, then attach the disk again", map.display()
    )]
    NotFlushed {
        /// Why.
        reason: String,
        /// The runtime map.
        map: PathBuf,
    },
    /// Another host has taken the disk over.
    #[error(
        "{by} has taken the disk {name} over, while this host did not answer: nothing more is written to it here, and its \
         guest here has to end; see where it is attached with `sealdisk disk show {name}`"
    )]
    TakenOver {
        /// The disk's name.
        name: String,
        /// Who has.
        by: String,
    },
    /// The process may not have as much memory as the disk is to have.
    #[error(
        "--memory allows {wanted} bytes, and {limit_of} has {limit}: raise that (MemoryMax= of a systemd \
         unit), or lower --memory"
    )]
    Memory {
        /// Bytes that were asked for.
        wanted: u64,
        /// What sets the limit.
        limit_of: String,
        /// The limit in bytes.
        limit: u64,
    },
    /// The data plane ended while it was getting what it needs.
    #[error(
        "the data plane ended before the disk was served ({0}); if it was killed because memory ran out, \
         raise MemoryMax= of the systemd unit or the memory limit of the container, or lower --memory"
    )]
    DiedEarly(ExitStatus),
    /// The data plane ended without having been told to.
    #[error(
        "the data plane ended by itself ({0}); every completed write is kept: attach the disk again"
    )]
    Died(ExitStatus),
}

impl AttachError {
    /// Whether nobody was there to be asked, so that nothing was sent.
    pub(crate) fn nobody_listens(&self) -> bool {
        let Self::NotAttached { source } = self else {
            return false;
        };
        matches!(
            source.kind(),
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused
        )
    }

    /// A code for programs, Azure's where it has one.
    pub fn code(&self) -> &str {
        match self {
            Self::Disk(error) => error.code(),
            Self::NotApplied(refusal) => &refusal.code,
            Self::NotAttached { .. } | Self::WithoutDisk => "DiskNotAttached",
            Self::SyncFailed { .. } => "SyncFailed",
            Self::Audit(_) => "AuditLog",
            Self::TakenOver { .. } => "TakenOver",
            Self::SocketInUse { .. } | Self::AnotherDisk { .. } => "Conflict",
            Self::NotUpgraded(_) | Self::NotReplaced { .. } => "NotUpgraded",
            _ => "AttachFailed",
        }
    }
}

/// Why an operation was not applied, as another process tells it.
#[derive(Debug, Clone, PartialEq, Eq, Error, Serialize, Deserialize)]
#[error("{message}")]
pub struct Refusal {
    /// As [`DiskError::code`].
    pub code: String,
    /// One line.
    pub message: String,
}

impl Refusal {
    pub(crate) fn of(error: &DiskError) -> Self {
        Self {
            code: error.code().into(),
            message: error.to_string().replace('\n', " "),
        }
    }
}
