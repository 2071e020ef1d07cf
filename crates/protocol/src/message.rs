//! What the control process gives to the data plane: descriptors, the setup and the DEK.
//!
//! The control socket and the vhost-user socket have fixed numbers. The setup goes over the control
//! socket as a length (u32, little-endian) and JSON, and with the length the descriptors of the disk's
//! files, as [`DiskFiles`] has them; the 64 bytes of each layer's DEK follow, from the top down. No
//! key is an argument or in the environment, and the socket is not in any file system. The data plane
//! answers with one line at a time: [`READY`], or [`REFUSED`] and what went wrong.
//!
//! Later the control process may send commands, a line each:
//!
//! | command | what it does | answer |
//! |---|---|---|
//! | [`LIMITS`] and JSON | changes the disk's limits | none |
//! | [`RESIZE`] and a number of bytes | serves the disk, whose files have grown, with that size | [`RESIZED`] and the size, or [`NOT_RESIZED`] and why |
//! | [`REVOKE`] and a mode | finishes what was begun, then destroys the DEKs and all ciphers | [`DESTROYED`] |
//! | [`RESTORE`] and the layers as JSON, then the DEKs as at first | serves the disk again | [`RESTORED`], or [`NOT_RESTORED`] and why |
//! | [`FREEZE`] | makes durable what was completed, and stands still | [`FROZEN`], or [`NOT_FROZEN`] and why |
//! | [`RESTACK`], then a stack, files and DEKs as at first | goes on with another stack, if it is frozen | [`RESTACKED`], or [`NOT_RESTACKED`] and why |
//! | [`THAW`] | goes on as before it was frozen | [`THAWED`] |
//! | [`COPY`] and a [`CopyRequest`] | copies up what the top layer lacks, meanwhile | [`COPYING`], or [`NOT_COPYING`] and why |
//! | [`COPY_STOP`] | copies no more | [`COPY_STOPPED`] |
//! | [`DISCONNECT`] and a number | ends that connection, whose guest's memory is not shared | none |
//! | [`PROGRESS`] | tells how far the copying is | [`PROGRESS_IS`] and a [`CopyProgress`] |
//!
//! The answers come in the order of the commands. Between them the data plane says, unasked,
//! [`FRONTEND_MEMORY`] when a frontend announces the guest's memory, [`MEMORY_NOT_SHARED`] when a
//! connection ends because there is none, [`STORAGE_FULL`] when requests begin to wait for space on the host, and [`STORAGE_OK`] when none
//! waits any more; and [`SYNC_FAILED`], `data` or `map`, a space and the kernel's words, once, when a sync
//! has failed, so that no flush succeeds until the disk was checked. When either end goes away, the other notices.
//!
//! # Another stack
//!
//! Between `freeze` and what follows it the disk's header may come to name another stack, so a data
//! plane that is frozen never goes on by itself: when the control process goes away it ends, with
//! nothing left to be flushed. A stack that it cannot take leaves it frozen; the control process ends
//! it then. A key that is revoked meanwhile is destroyed as ever, and what a new stack brings of keys
//! is zeroed too: the disk goes on without, until it is restored. `restore` names the layers, so that
//! keys which were unwrapped for an older stack are never used for a newer one.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::str::FromStr;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use uuid::Uuid;
use vmm_sys_util::sock_ctrl_msg::ScmSocket;

use keys::DekStack;
use keys::units::MAX_LAYERS;
use volume::store::{LayerFile, StackFiles};
use volume::{Geometry, RuntimeMap};
use xts::DataUnit;

use crate::{Limits, ProtocolError};

/// The descriptor of the control socket in the data plane process.
pub const CONTROL_FD: i32 = 3;
/// That of the vhost-user socket, listening or connected.
pub const SOCKET_FD: i32 = 4;
/// The line that says that guests are served.
pub const READY: &str = "ready";
/// Begins the line of a data plane that ends: why.
pub const REFUSED: &str = "error ";
/// The start of a line that changes the disk's limits; they follow as JSON.
pub const LIMITS: &str = "limits ";
/// The start of a line that has a grown disk served; its bytes follow.
pub const RESIZE: &str = "resize ";
/// The start of the line that says that the disk has the size that follows, in bytes.
pub const RESIZED: &str = "resized ";
/// The start of a line that says why the disk keeps its size.
pub const NOT_RESIZED: &str = "not-resized ";
/// The start of a line that takes the key away; an [`OnRevoke`] follows.
pub const REVOKE: &str = "revoke ";
/// The start of the line before the DEKs of a disk whose key is granted again; the ids of the layers
/// that they are of follow as JSON, from the top down.
pub const RESTORE: &str = "restore ";
/// The line that says that no DEK and no cipher is left in the data plane.
pub const DESTROYED: &str = "destroyed";
/// The line that says that guests are served again.
pub const RESTORED: &str = "restored";
/// The start of a line that says why the DEK that was sent could not be used; it is gone again.
pub const NOT_RESTORED: &str = "not-restored ";
/// The line that says that requests wait for space on the host.
pub const STORAGE_FULL: &str = "storage-full";
/// The line that says that none does any more.
pub const STORAGE_OK: &str = "storage-ok";
/// The start of the line that says that a sync has failed: `data` or `map` and why follow.
pub const SYNC_FAILED: &str = "sync-failed ";
/// The line that has the disk stand still with all that was completed durable.
pub const FREEZE: &str = "freeze";
/// The line that says that it does.
pub const FROZEN: &str = "frozen";
/// The start of a line that says why it goes on instead.
pub const NOT_FROZEN: &str = "not-frozen ";
/// The line before another stack.
pub const RESTACK: &str = "restack";
/// The line that says that the new stack is served.
pub const RESTACKED: &str = "restacked";
/// The start of a line that says why it is not; the disk stands still.
pub const NOT_RESTACKED: &str = "not-restacked ";
/// The line that has a frozen disk served again as it was.
pub const THAW: &str = "thaw";
/// The line that says that it is.
pub const THAWED: &str = "thawed";
/// The start of a line that begins a copy; a [`CopyRequest`] follows as JSON.
pub const COPY: &str = "copy ";
/// The line that says that it has begun.
pub const COPYING: &str = "copying";
/// The start of a line that says why it has not.
pub const NOT_COPYING: &str = "not-copying ";
/// The line that ends a copy; what is done of it stays.
pub const COPY_STOP: &str = "copy-stop";
/// The line that says that there is none.
pub const COPY_STOPPED: &str = "copy-stopped";
/// The line that asks how far it is.
pub const PROGRESS: &str = "progress";
/// The start of the line that tells; a [`CopyProgress`] follows as JSON.
pub const PROGRESS_IS: &str = "progress-is ";
/// A setup is far shorter; more is not one.
const MOST_SETUP_LEN: u32 = 64 * 1024;

/// The start of a line that ends a connection because its memory is not shared; its number follows.
pub const DISCONNECT: &str = "disconnect ";
/// The start of the line that tells which memory a frontend announced; a [`FrontendMemory`] follows as
/// JSON.
///
/// [`FrontendMemory`]: crate::FrontendMemory
pub const FRONTEND_MEMORY: &str = "frontend-memory ";
/// The line that says that a connection was ended since a queue of it is in no shared memory.
pub const MEMORY_NOT_SHARED: &str = "memory-not-shared";

/// What becomes of a guest's requests while the disk's key is revoked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnRevoke {
    /// They fail with an I/O error.
    Error,
    /// They stay in the ring until the key is granted again.
    Pause,
}

impl OnRevoke {
    /// As in arguments and messages.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Pause => "pause",
        }
    }
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
#[serde(rename_all = "camelCase")]
pub struct CopyProgress {
    /// Whether it goes on.
    pub state: CopyState,
    /// Bytes that need not be copied any more; what the guest overwrites first counts only in the end.
    pub bytes_done: u64,
    /// Bytes that the layers have which are to go.
    pub bytes_total: u64,
    /// What it is held up by, or has failed for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
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
    /// Microseconds that a queue looks busily for work at most, before it sleeps.
    pub poll_us: u32,
    /// What the guest sees as the serial number, at most 20 bytes.
    pub serial: String,
    /// What the disk may do at most.
    pub limits: Limits,
    /// The cache mode with which the device begins, until the driver chooses another.
    pub write_through: bool,
    /// Whether the socket listens; else it is connected and the process ends with the connection.
    pub listening: bool,
}

impl Setup {
    /// Bytes of the disk.
    pub fn size(&self) -> u64 {
        self.stack.layers.first().map_or(0, |top| top.size)
    }
}

/// A disk as a stack of layers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stack {
    /// The disk.
    pub disk: Uuid,
    /// Its layers, from the top down.
    pub layers: Vec<StackLayer>,
}

/// One of its layers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
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

/// What is open of a disk. As descriptors they go in the order of the fields.
#[derive(Debug)]
pub struct DiskFiles {
    /// The data of all layers and the map of the top one.
    pub files: StackFiles,
    /// The runtime map of the top layer.
    pub runtime: RuntimeMap,
    /// The maps of the layers beneath it, downwards.
    pub lower_maps: Vec<File>,
}

impl DiskFiles {
    fn descriptors(&self) -> Vec<RawFd> {
        let StackFiles {
            data, map, lower, ..
        } = &self.files;
        [
            data.file().as_raw_fd(),
            map.file().as_raw_fd(),
            self.runtime.as_raw_fd(),
        ]
        .into_iter()
        .chain(lower.iter().map(|data| data.file().as_raw_fd()))
        .chain(self.lower_maps.iter().map(AsRawFd::as_raw_fd))
        .collect()
    }

    /// Of a disk of `layers` layers.
    fn from_descriptors(files: Vec<File>, layers: usize) -> Result<Self, ProtocolError> {
        let count = files.len();
        let refuse = || ProtocolError::Message(format!("{count} descriptors for {layers} layers"));
        if layers == 0 || count != 1 + 2 * layers {
            return Err(refuse());
        }
        let mut files = files.into_iter();
        let mut next = || files.next().ok_or_else(refuse);
        let data = LayerFile::from_file(next()?)?;
        let map = LayerFile::from_file(next()?)?;
        let runtime = RuntimeMap::from_file(next()?);
        let lower = (1..layers)
            .map(|_| Ok(LayerFile::from_file(next()?)?))
            .collect::<Result<_, ProtocolError>>()?;
        Ok(Self {
            files: StackFiles::new(data, map, lower),
            runtime,
            lower_maps: files.collect(),
        })
    }
}

/// Sends setup, files and DEKs to the data plane.
///
/// # Errors
/// [`ProtocolError::Io`] when the data plane is gone.
pub fn send_setup(
    to: &mut UnixStream,
    setup: &Setup,
    files: &DiskFiles,
    deks: &DekStack,
) -> Result<(), ProtocolError> {
    send_json(to, setup, files)?;
    Ok(deks.send(to)?)
}

/// Receives what [`send_setup`] sent.
///
/// # Errors
/// [`ProtocolError::Message`], or [`ProtocolError::Key`].
pub fn receive_setup(from: &mut UnixStream) -> Result<(Setup, DiskFiles, DekStack), ProtocolError> {
    let (setup, files): (Setup, _) = receive_json(from)?;
    let layers = setup.stack.layers.len();
    let files = DiskFiles::from_descriptors(files, layers)?;
    Ok((setup, files, DekStack::receive(from, layers)?))
}

/// Sends another stack, its files and DEKs to the data plane, after the line [`RESTACK`]. Of the top
/// layer's files those are used that the data plane has already, if it has.
///
/// # Errors
/// As [`send_setup`].
pub fn send_stack(
    to: &mut UnixStream,
    stack: &Stack,
    files: &DiskFiles,
    deks: &DekStack,
) -> Result<(), ProtocolError> {
    send_json(to, stack, files)?;
    Ok(deks.send(to)?)
}

/// What [`send_stack`] sent; the files can be wrong by themselves.
pub type ReceivedStack = (Stack, Result<DiskFiles, ProtocolError>, DekStack);

/// Receives what [`send_stack`] sent. All of it is taken before anything in it is refused, so that
/// commands can follow it.
///
/// # Errors
/// As [`receive_setup`]; nothing that follows can be told apart from it then.
pub fn receive_stack(mut from: &UnixStream) -> Result<ReceivedStack, ProtocolError> {
    let (stack, files): (Stack, _) = receive_json(from)?;
    let layers = stack.layers.len();
    if !(1..=MAX_LAYERS).contains(&layers) {
        return Err(ProtocolError::Message(format!("{layers} layers")));
    }
    let deks = DekStack::receive(&mut from, layers)?;
    Ok((stack, DiskFiles::from_descriptors(files, layers), deks))
}

fn send_json(
    to: &mut UnixStream,
    value: &impl Serialize,
    files: &DiskFiles,
) -> Result<(), ProtocolError> {
    let fail = |source| ProtocolError::Io {
        what: "send a disk to the data plane",
        source,
    };
    let json = serde_json::to_vec(value).map_err(|e| ProtocolError::Message(e.to_string()))?;
    let len = (json.len() as u32).to_le_bytes();
    let sent = to
        .send_with_fds(&[&len[..]], &files.descriptors())
        .map_err(|e| fail(e.into()))?;
    to.write_all(&len[sent..]).map_err(fail)?;
    to.write_all(&json).map_err(fail)
}

fn receive_json<T: DeserializeOwned>(
    mut from: &UnixStream,
) -> Result<(T, Vec<File>), ProtocolError> {
    let refuse = |error: &dyn std::fmt::Display| ProtocolError::Message(error.to_string());
    let mut len = [0; 4];
    let (received, files) = receive_with_files(from, &mut len).map_err(|e| refuse(&e))?;
    from.read_exact(&mut len[received..])
        .map_err(|e| refuse(&e))?;
    let len = u32::from_le_bytes(len);
    if len > MOST_SETUP_LEN {
        return Err(refuse(&format!("it claims to be {len} bytes long")));
    }
    let mut json = vec![0; len as usize];
    from.read_exact(&mut json).map_err(|e| refuse(&e))?;
    Ok((
        serde_json::from_slice(&json).map_err(|e| refuse(&e))?,
        files,
    ))
}

/// Receives some bytes and the descriptors that came with them.
fn receive_with_files(from: &UnixStream, into: &mut [u8]) -> io::Result<(usize, Vec<File>)> {
    let mut numbers = [-1; 1 + 2 * MAX_LAYERS];
    let mut place = [libc::iovec {
        iov_base: into.as_mut_ptr().cast(),
        iov_len: into.len(),
    }];
    // SAFETY: the only element names `into`, which is writable and lives through the call.
    let (received, count) = unsafe { from.recv_with_fds(&mut place, &mut numbers) }?;
    let take_over = |number: &RawFd| {
        // SAFETY: the kernel has just made these descriptors for this process, and nobody else
        // knows their numbers.
        File::from(unsafe { OwnedFd::from_raw_fd(*number) })
    };
    Ok((received, numbers[..count].iter().map(take_over).collect()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use keys::Dek;

    fn setup(layers: u128) -> Setup {
        let layer = |id| StackLayer {
            id: Uuid::from_u128(id),
            origin: Uuid::from_u128(1),
            size: 4096,
            data_unit: 512,
        };
        Setup {
            stack: Stack {
                disk: Uuid::from_u128(1),
                layers: (0..layers).map(layer).collect(),
            },
            read_only: true,
            discard: Discard::Overwrite,
            on_full: OnFull::Error,
            logical_sector_size: 512,
            num_queues: 2,
            queue_size: 64,
            memory: 1 << 20,
            huge_pages: true,
            poll_us: 32,
            limits: Limits {
                iops: Some(5),
                ..Limits::default()
            },
            serial: "disk".into(),
            write_through: false,
            listening: true,
        }
    }

    #[test]
    fn setup_files_and_keys_travel_together() {
        let file = |text: &str| {
            let mut file = tempfile::tempfile().unwrap();
            file.write_all(text.as_bytes()).unwrap();
            file
        };
        let text = |mut file: &File| {
            use std::io::Seek;
            file.rewind().unwrap();
            let mut text = String::new();
            file.read_to_string(&mut text).unwrap();
            text
        };
        let open = |text| LayerFile::from_file(file(text)).unwrap();
        let lower = vec![open("lower"), open("bottom")];
        let files = DiskFiles {
            files: StackFiles::new(open("data"), open("map"), lower),
            runtime: RuntimeMap::from_file(file("runtime")),
            lower_maps: vec![file("lower map"), file("bottom map")],
        };
        let deks = DekStack::from(Dek::generate().unwrap())
            .pushed(Dek::generate().unwrap())
            .pushed(Dek::generate().unwrap());
        let (mut ours, mut theirs) = UnixStream::pair().unwrap();
        send_setup(&mut ours, &setup(3), &files, &deks).unwrap();
        let (received, files, keys) = receive_setup(&mut theirs).unwrap();
        assert_eq!(received, setup(3));
        assert_eq!(keys.get(2).unwrap().expose(), deks.get(2).unwrap().expose());
        assert_eq!(text(files.files.data.file()), "data");
        assert_eq!(text(files.files.lower[1].file()), "bottom");
        assert_eq!(text(&files.lower_maps[0]), "lower map");
        send_setup(&mut ours, &setup(2), &files, &deks).unwrap();
        assert!(receive_setup(&mut theirs).is_err(), "files of three layers");
        let (mut ours, mut theirs) = UnixStream::pair().unwrap();
        ours.write_all(&[0xff; 8]).unwrap();
        assert!(receive_setup(&mut theirs).is_err());
    }
}
