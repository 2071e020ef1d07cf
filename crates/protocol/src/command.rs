//! The commands of the control process, as the data plane reads them.

use std::io::{self, Read};

use uuid::Uuid;

use keys::units::MAX_LAYERS;

use crate::message::{
    COPY, COPY_STOP, CopyRequest, DISCONNECT, FREEZE, LIMITS, PROGRESS, RESIZE, RESTACK, RESTORE,
    REVOKE, THAW,
};
use crate::{Limits, OnRevoke, ProtocolError};

/// A command is far shorter.
const MOST_COMMAND_LEN: usize = 4096;

/// A command of the control process.
pub enum ControlCommand {
    /// New limits.
    Limits(Limits),
    /// A new size in bytes.
    Resize(u64),
    /// Take the key away.
    Revoke(OnRevoke),
    /// Serve again, with the DEKs of these layers, which follow the line.
    Restore(Vec<Uuid>),
    /// Stand still with everything durable.
    Freeze,
    /// Go on with the stack that follows the line.
    Restack,
    /// Go on as before [`ControlCommand::Freeze`].
    Thaw,
    /// Copy up into the top layer.
    Copy(CopyRequest),
    /// Copy no more.
    CopyStop,
    /// End the connection of that number: its guest's memory is not shared.
    Disconnect(u64),
    /// Tell how far the copy is.
    Progress,
}

/// Reads the line of one command and not a byte more: a DEK may follow, which must get into no
/// buffer. The inner result is an error for a line that is no command.
///
/// # Errors
/// [`io::ErrorKind::UnexpectedEof`] when the other end is closed, and what the kernel says.
pub fn receive_command(from: &mut impl Read) -> io::Result<Result<ControlCommand, ProtocolError>> {
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

fn parse_command(line: &str) -> Result<ControlCommand, ProtocolError> {
    let refuse = |error: &dyn std::fmt::Display| ProtocolError::Message(error.to_string());
    if let Some(json) = line.strip_prefix(LIMITS) {
        let limits = serde_json::from_str(json).map_err(|e| refuse(&e))?;
        return Ok(ControlCommand::Limits(limits));
    }
    if let Some(size) = line.strip_prefix(RESIZE) {
        return Ok(ControlCommand::Resize(
            size.parse().map_err(|e| refuse(&e))?,
        ));
    }
    if let Some(number) = line.strip_prefix(DISCONNECT) {
        let number = number.parse().map_err(|e| refuse(&e))?;
        return Ok(ControlCommand::Disconnect(number));
    }
    if let Some(mode) = line.strip_prefix(REVOKE) {
        return Ok(ControlCommand::Revoke(
            mode.parse().map_err(|e| refuse(&e))?,
        ));
    }
    if let Some(json) = line.strip_prefix(RESTORE) {
        let layers: Vec<Uuid> = serde_json::from_str(json).map_err(|e| refuse(&e))?;
        return match layers.len() {
            1..=MAX_LAYERS => Ok(ControlCommand::Restore(layers)),
            count => Err(refuse(&format!("{count} layers"))),
        };
    }
    if let Some(json) = line.strip_prefix(COPY) {
        let request = serde_json::from_str(json).map_err(|e| refuse(&e))?;
        return Ok(ControlCommand::Copy(request));
    }
    match line {
        FREEZE => Ok(ControlCommand::Freeze),
        RESTACK => Ok(ControlCommand::Restack),
        THAW => Ok(ControlCommand::Thaw),
        COPY_STOP => Ok(ControlCommand::CopyStop),
        PROGRESS => Ok(ControlCommand::Progress),
        _ => Err(refuse(&"there is no such command")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use keys::Dek;

    #[test]
    fn a_command_is_read_to_its_end_and_not_further() {
        let dek = Dek::generate().unwrap();
        let mut pipe =
            b"revoke pause\nlimits {\"iops\":7}\nbogus\nrevoke never\nresize 8192\nresize -1\ncopy {\"drop\":2,\"rate\":null}\nfreeze\ndisconnect 3\nrestore []\n\
              restore [\"00000000-0000-0000-0000-000000000007\"]\n"
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
        let copy = CopyRequest {
            drop: 2,
            rate: None,
        };
        assert!(matches!(next(), Ok(ControlCommand::Copy(found)) if found == copy));
        assert!(matches!(next(), Ok(ControlCommand::Freeze)));
        assert!(matches!(next(), Ok(ControlCommand::Disconnect(3))));
        assert!(next().is_err(), "no layers");
        let layers = [Uuid::from_u128(7)];
        assert!(matches!(next(), Ok(ControlCommand::Restore(found)) if found == layers));
        assert_eq!(Dek::receive(from).unwrap().expose(), dek.expose());
        assert!(receive_command(from).is_err(), "the other end is closed");
        assert!(receive_command(&mut [b'x'; 10_000].as_slice()).is_err());
    }
}
