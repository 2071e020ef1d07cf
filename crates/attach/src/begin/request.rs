//! What is to be attached, and how.

use std::path::PathBuf;

use crate::begin::socket::SocketSource;
use crate::status::GuardOptions;
use alarms::notify::Target;
use disks::{self, Unflushed};
use protocol::{Discard, Limits, OnFull};
use sandbox::Launch;
use volume::CacheMode;

/// What is to be attached, and how.
pub struct AttachRequest {
    /// The disk's name, or its directory.
    pub disk: String,
    /// Where the frontend connects.
    pub socket: SocketSource,
    /// Wait for the disk, which another attach has, until a guest that was migrated goes on here.
    pub incoming: bool,
    /// Refuse the guest's writes.
    pub read_only: bool,
    /// What becomes of blocks that the guest discards.
    pub discard: Discard,
    /// What becomes of requests that find the host's storage full.
    pub on_full: OnFull,
    /// Queues offered.
    pub num_queues: u16,
    /// Entries of a queue that a request may fill.
    pub queue_size: u16,
    /// Bytes that requests under way may take, over all queues; at least `dataplane::least_memory`.
    pub memory: u64,
    /// Take buffers from the huge pages that the host has set aside.
    pub huge_pages: bool,
    /// Busy-poll time of a queue in microseconds; 0 disables it.
    pub poll_us: u32,
    /// Threads that help to encrypt and decrypt large requests; 0 for none.
    pub crypto_threads: u16,
    /// The CPUs that queues run on, each queue on one of them in turn; none for wherever the kernel lets them.
    pub cpus: Vec<u16>,
    /// What the disk may do at most.
    pub limits: Limits,
    /// How confined its data plane is, and who that runs as.
    pub launch: Launch,
    /// How its key is guarded.
    pub guard: GuardOptions,
    /// The serial number that the guest sees; else one made of the disk's id.
    pub serial: Option<String>,
    /// Directories in which snapshots and images may be made while the disk is attached, beside its own.
    pub data_dirs: Vec<PathBuf>,
    /// Who is told of the disk's events.
    pub on_event: Vec<Target>,
    /// A directory on tmpfs.
    pub runtime_dir: PathBuf,
    /// What becomes of the attach when the runtime map of the last one is needed and lost.
    pub unflushed: Unflushed,
    /// The host that the disk is taken over from, which is gone; then that is what becomes of it.
    pub take_over_from: Option<String>,
    /// The cache mode with which the guest begins; else the one that the last guest chose.
    pub cache: Option<CacheMode>,
}
