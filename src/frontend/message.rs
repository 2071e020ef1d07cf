//! What the control process gives to the data plane: descriptors, the setup and the DEK.
//!
//! The descriptors have fixed numbers. The setup goes over the control socket as a length (u32,
//! little-endian) and JSON; the 64 bytes of the DEK follow it. It is neither an argument nor in the
//! environment, and the socket is not in any file system. The data plane answers with one line at a
//! time: [`READY`], or `error` and what went wrong.
//!
//! Later the control process may send commands, a line each:
//!
//! | command | what it does | answer |
//! |---|---|---|
//! | [`LIMITS`] and JSON | changes the disk's limits | none |
//! | [`RESIZE`] and a number of bytes | serves the disk, whose files have grown, with that size | [`RESIZED`] and the size, or [`NOT_RESIZED`] and why |
//! | [`REVOKE`] and a mode | finishes what was begun, then destroys the DEK and all ciphers | [`DESTROYED`] |
//! | [`RESTORE`], then the 64 bytes of the DEK | serves the disk again | [`RESTORED`], or [`NOT_RESTORED`] and why |
//!
//! The answers come in the order of the commands. When either end goes away, the other notices.

use std::io::{self, Read, Write};
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::cipher::DataUnit;
use crate::keys::Dek;
use crate::volume::Geometry;

use super::{FrontendError, Limits};

/// The descriptor of the control socket in the data plane process.
pub const CONTROL_FD: i32 = 3;
/// The line that says that guests are served.
pub const READY: &str = "ready";
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
/// The line before the DEK of a disk whose key is granted again.
pub const RESTORE: &str = "restore";
/// The line that says that no DEK and no cipher is left in the data plane.
pub const DESTROYED: &str = "destroyed";
/// The line that says that guests are served again.
pub const RESTORED: &str = "restored";
/// The start of a line that says why the DEK that was sent could not be used; it is gone again.
pub const NOT_RESTORED: &str = "not-restored ";
/// A command is far shorter.
const MOST_COMMAND_LEN: usize = 4096;
/// A setup is far shorter; more is not one.
const MOST_SETUP_LEN: u32 = 64 * 1024;

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

/// The other descriptors of the data plane process.
#[derive(Debug, Clone, Copy)]
pub struct DataPlaneFds {
    /// The vhost-user socket, listening or connected.
    pub socket: i32,
    /// The layer's data file.
    pub data: i32,
    /// The layer's map file.
    pub map: i32,
    /// The runtime map.
    pub runtime: i32,
}

impl DataPlaneFds {
    /// The numbers in every data plane process.
    pub const FIXED: Self = Self {
        socket: 4,
        data: 5,
        map: 6,
        runtime: 7,
    };
}

/// What the data plane serves, and how.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Setup {
    /// The disk.
    pub disk: Uuid,
    /// Its layer.
    pub layer: Uuid,
    /// Bytes of the disk.
    pub size: u64,
    /// Bytes under one tweak.
    pub data_unit: u64,
    /// Refuse writes.
    pub read_only: bool,
    /// What becomes of discarded blocks.
    pub discard: Discard,
    /// Queues offered.
    pub num_queues: u16,
    /// Entries of a queue at most, a power of two from 4 on.
    pub queue_size: u16,
    /// Microseconds that a queue looks busily for work at most, before it sleeps.
    pub poll_us: u32,
    /// What the guest sees as the serial number, at most 20 bytes.
    pub serial: String,
    /// What the disk may do at most.
    pub limits: Limits,
    /// Whether the socket listens; else it is connected and the process ends with the connection.
    pub listening: bool,
}

impl Setup {
    /// The layer as the volume knows it.
    ///
    /// # Errors
    /// [`FrontendError::Cipher`] for an unknown data unit.
    pub fn geometry(&self) -> Result<Geometry, FrontendError> {
        let data_unit = DataUnit::try_from(self.data_unit)?;
        Ok(Geometry {
            disk: self.disk,
            layer: self.layer,
            size: self.size,
            data_unit,
        })
    }
}

/// Sends setup and DEK to the data plane.
///
/// # Errors
/// [`FrontendError::Io`] when the data plane is gone.
pub fn send_setup(to: &mut impl Write, setup: &Setup, dek: &Dek) -> Result<(), FrontendError> {
    let fail = |source| FrontendError::Io {
        what: "send the setup to the data plane",
        source,
    };
    let json = serde_json::to_vec(setup).map_err(|e| FrontendError::Setup(e.to_string()))?;
    to.write_all(&(json.len() as u32).to_le_bytes())
        .map_err(fail)?;
    to.write_all(&json).map_err(fail)?;
    Ok(dek.send(to)?)
}

/// Receives what [`send_setup`] sent.
///
/// # Errors
/// [`FrontendError::Setup`], or [`FrontendError::Key`].
pub fn receive_setup(from: &mut impl Read) -> Result<(Setup, Dek), FrontendError> {
    let refuse = |error: &dyn std::fmt::Display| FrontendError::Setup(error.to_string());
    let mut len = [0; 4];
    from.read_exact(&mut len).map_err(|e| refuse(&e))?;
    let len = u32::from_le_bytes(len);
    if len > MOST_SETUP_LEN {
        return Err(refuse(&format!("it claims to be {len} bytes long")));
    }
    let mut json = vec![0; len as usize];
    from.read_exact(&mut json).map_err(|e| refuse(&e))?;
    let setup = serde_json::from_slice(&json).map_err(|e| refuse(&e))?;
    Ok((setup, Dek::receive(from)?))
}

/// A command of the control process.
pub(super) enum ControlCommand {
    /// New limits.
    Limits(Limits),
    /// A new size in bytes.
    Resize(u64),
    /// Take the key away.
    Revoke(OnRevoke),
    /// Serve again, with the DEK that follows the line.
    Restore,
}

/// Reads the line of one command and not a byte more: a DEK may follow, which must get into no
/// buffer. The inner result is an error for a line that is no command.
///
/// # Errors
/// [`io::ErrorKind::UnexpectedEof`] when the other end is closed, and what the kernel says.
pub(super) fn receive_command(
    from: &mut impl Read,
) -> io::Result<Result<ControlCommand, FrontendError>> {
    let mut line = Vec::new();
    loop {
        let mut byte = [0];
        from.read_exact(&mut byte)?;
        match byte {
            [b'\n'] => return Ok(parse_command(&String::from_utf8_lossy(&line))),
            [_] if line.len() >= MOST_COMMAND_LEN => {
                return Err(io::ErrorKind::InvalidData.into());
            }
            [byte] => line.push(byte),
        }
    }
}

fn parse_command(line: &str) -> Result<ControlCommand, FrontendError> {
    let refuse = |error: &dyn std::fmt::Display| FrontendError::Setup(error.to_string());
    if let Some(json) = line.strip_prefix(LIMITS) {
        let limits = serde_json::from_str(json).map_err(|e| refuse(&e))?;
        return Ok(ControlCommand::Limits(limits));
    }
    if let Some(size) = line.strip_prefix(RESIZE) {
        return Ok(ControlCommand::Resize(
            size.parse().map_err(|e| refuse(&e))?,
        ));
    }
    if let Some(mode) = line.strip_prefix(REVOKE) {
        return Ok(ControlCommand::Revoke(
            mode.parse().map_err(|e| refuse(&e))?,
        ));
    }
    match line {
        RESTORE => Ok(ControlCommand::Restore),
        _ => Err(refuse(&"there is no such command")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_is_read_to_its_end_and_not_further() {
        let dek = Dek::generate().unwrap();
        let mut pipe =
            b"revoke pause\nlimits {\"iops\":7}\nbogus\nrevoke never\nresize 8192\nresize -1\nrestore\n"
                .to_vec();
        dek.send(&mut pipe).unwrap();
        let from = &mut pipe.as_slice();
        let mut next = || receive_command(from).unwrap();
        assert!(matches!(
            next(),
            Ok(ControlCommand::Revoke(OnRevoke::Pause))
        ));
        assert!(matches!(
            next(),
            Ok(ControlCommand::Limits(Limits { iops: Some(7), .. }))
        ));
        assert!(next().is_err());
        assert!(next().is_err());
        assert!(matches!(next(), Ok(ControlCommand::Resize(8192))));
        assert!(next().is_err());
        assert!(matches!(next(), Ok(ControlCommand::Restore)));
        assert_eq!(Dek::receive(from).unwrap().expose(), dek.expose());
        assert!(receive_command(from).is_err(), "the other end is closed");
        assert!(receive_command(&mut [b'x'; 10_000].as_slice()).is_err());
    }

    #[test]
    fn setup_and_key_travel_together() {
        let setup = Setup {
            disk: Uuid::from_u128(1),
            layer: Uuid::from_u128(2),
            size: 4096,
            data_unit: 512,
            read_only: true,
            discard: Discard::Overwrite,
            num_queues: 2,
            queue_size: 64,
            poll_us: 32,
            limits: Limits {
                iops: Some(5),
                ..Limits::default()
            },
            serial: "disk".into(),
            listening: true,
        };
        let dek = Dek::generate().unwrap();
        let mut pipe = Vec::new();
        send_setup(&mut pipe, &setup, &dek).unwrap();
        let (received, key) = receive_setup(&mut pipe.as_slice()).unwrap();
        assert_eq!(received, setup);
        assert_eq!(key.expose(), dek.expose());
        assert!(receive_setup(&mut &pipe[..pipe.len() - 1]).is_err());
        assert!(receive_setup(&mut [0xff; 8].as_slice()).is_err());
    }
}
