//! What a data plane serves, and how.

use std::str::FromStr;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use volume::Geometry;
use xts::DataUnit;

use crate::{Limits, Line, ProtocolError};

/// What becomes of a guest's requests while the disk's key is revoked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnRevoke {
    /// They fail with an I/O error.
    Error,
    /// They stay in the ring until the key is granted again.
    Pause,
}

/// What becomes of a guest's requests that find the host's storage full.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnFull {
    /// They wait, and are tried again until there is space.
    #[default]
    Pause,
    /// They fail with an I/O error.
    Error,
}

impl FromStr for OnFull {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "pause" => Ok(Self::Pause),
            "error" => Ok(Self::Error),
            other => Err(format!("'{other}' is neither 'pause' nor 'error'")),
        }
    }
}

/// What becomes of blocks that a guest discards.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Discard {
    /// Nothing: discards are not offered.
    Off,
    /// Their space is given back.
    #[default]
    Punch,
    /// Their ciphertext is overwritten with random bytes, then their space is given back.
    Overwrite,
}

impl FromStr for Discard {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "off" => Ok(Self::Off),
            "punch" => Ok(Self::Punch),
            "overwrite" => Ok(Self::Overwrite),
            other => Err(format!(
                "'{other}' is none of 'off', 'punch' and 'overwrite'"
            )),
        }
    }
}

impl FromStr for OnRevoke {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "error" => Ok(Self::Error),
            "pause" => Ok(Self::Pause),
            other => Err(format!("'{other}' is neither 'error' nor 'pause'")),
        }
    }
}

/// What is to be copied up into the top layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CopyRequest {
    /// How many of the layers right beneath the top are to go afterwards.
    pub drop: u8,
    /// Bytes a second at most.
    pub rate: Option<u64>,
}

/// How far a copy is.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CopyProgress {
    /// Whether it goes on.
    pub state: CopyState,
    /// Bytes that need not be copied any more; what the guest overwrites first counts only in the end.
    pub bytes_done: u64,
    /// Bytes that the layers have which are to go.
    pub bytes_total: u64,
    /// What it is held up by, or has failed for.
    pub error: Option<Line>,
}

/// Whether a copy goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CopyState {
    /// There is none.
    #[default]
    Idle,
    /// It is under way.
    Running,
    /// Everything is copied, and durable.
    Done,
    /// It cannot go on in this process.
    Failed,
}

/// What the data plane serves, and how.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Setup {
    /// The disk.
    pub stack: Stack,
    /// Refuse writes.
    pub read_only: bool,
    /// What becomes of discarded blocks.
    pub discard: Discard,
    /// What becomes of requests that find the host's storage full.
    pub on_full: OnFull,
    /// Bytes of a logical block, 512 or 4096.
    pub logical_sector_size: u32,
    /// Queues offered.
    pub num_queues: u16,
    /// Entries of a queue that a request may fill, a power of two from 4 on.
    pub queue_size: u16,
    /// Bytes that requests under way may take, over all queues.
    pub memory: u64,
    /// Take buffers from the huge pages that the host has set aside.
    pub huge_pages: bool,
    /// Microseconds that a queue busy-polls before it sleeps; 0 for never.
    pub poll_us: u32,
    /// Threads that help to encrypt and decrypt large requests; 0 for none.
    #[serde(default, skip_serializing_if = "is_none")]
    pub crypto_threads: u16,
    /// The CPUs that queues run on, each queue on one of them in turn; none for wherever the kernel lets them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub cpus: Vec<u16>,
    /// What the guest sees as the serial number, at most 20 bytes.
    pub serial: String,
    /// What the disk may do at most.
    pub limits: Limits,
    /// The cache mode with which the device begins, until the driver chooses another.
    pub write_through: bool,
    /// Whether the socket listens; else it is connected and the process ends with the connection.
    pub listening: bool,
    /// Set while the key is revoked: no keys follow, and this becomes of the guest's requests.
    pub revoked: Option<OnRevoke>,
    /// Set when a data plane before this one has died.
    pub restart: Option<Restart>,
}

/// What a data plane is told that goes on for one that died.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Restart {
    /// How many things are kept of the frontend's connection, which follow through
    /// [`KEEP_FD`](crate::KEEP_FD).
    pub kept: u32,
    /// How many died before it, one after the other, each soon after its start. With any it says in the log
    /// which requests it does again.
    pub short_lives: u32,
    /// The disk has another size than the frontend was told.
    pub resized: bool,
}

/// Versions that do not know of helping threads need not: nothing is said where there are none.
#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde calls it")]
fn is_none(threads: &u16) -> bool {
    *threads == 0
}

impl Setup {
    /// Bytes of the disk.
    pub fn size(&self) -> u64 {
        self.stack.layers.first().map_or(0, |top| top.size)
    }
}

/// A disk as a stack of layers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Stack {
    /// The disk.
    pub disk: Uuid,
    /// Its layers, from the top down.
    pub layers: Vec<StackLayer>,
}

/// One of its layers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StackLayer {
    /// The layer.
    pub id: Uuid,
    /// The resource that its map names.
    pub origin: Uuid,
    /// Bytes that it reaches; of the top layer, the disk's.
    pub size: u64,
    /// Bytes under one tweak.
    pub data_unit: u64,
}

impl StackLayer {
    /// The layer as the volume knows it.
    ///
    /// # Errors
    /// [`ProtocolError::Cipher`] for an unknown data unit.
    pub fn geometry(&self) -> Result<Geometry, ProtocolError> {
        Ok(Geometry {
            disk: self.origin,
            layer: self.id,
            size: self.size,
            data_unit: DataUnit::try_from(self.data_unit)?,
        })
    }
}
