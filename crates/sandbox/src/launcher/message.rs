//! What a launcher is told, and what it tells: one packet each.

use std::fs::File;
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};

/// The descriptor of the socket in the launcher.
pub const LAUNCHER_FD: i32 = 3;

/// Descriptors that a confined process gets at most.
pub(super) const MAX_FDS: usize = 8;
/// Bytes of a packet at most.
const MAX_LEN: usize = 512;

/// What a launcher is told.
#[derive(Debug)]
pub(super) enum Order {
    /// To start the program with these descriptors, from number 3 on.
    Start(Vec<OwnedFd>),
    /// To kill what it has started.
    Kill,
    /// To open the mappings of the process at the other end of this connection.
    Look(OwnedFd),
    /// To start a launcher of another program, with this socket.
    Succeed {
        /// The program's file.
        program: File,
        /// The socket of the new launcher.
        socket: OwnedFd,
    },
    /// To end a launcher that it has started, by its id.
    Abandon(u32),
}

/// What a launcher tells.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Notice {
    /// It has started a process, whose id that is.
    Started(u32),
    /// It could not.
    NotStarted(String),
    /// The process has ended, with this status of wait(2).
    Ended(i32),
    /// The mappings come with this, if they could be opened.
    Mappings,
}

const START: u8 = b's';
const KILL: u8 = b'k';
const LOOK: u8 = b'l';
const SUCCEED: u8 = b'u';
const ABANDON: u8 = b'a';
const STARTED: u8 = b'p';
const NOT_STARTED: u8 = b'n';
const ENDED: u8 = b'e';
const MAPPINGS: u8 = b'm';

pub(super) fn order_start(socket: &impl AsFd, fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    send_with(socket, &[START], fds)
}

pub(super) fn order_look(socket: &impl AsFd, connection: BorrowedFd<'_>) -> io::Result<()> {
    send_with(socket, &[LOOK], &[connection])
}

pub(super) fn order_succeed(
    socket: &impl AsFd,
    program: BorrowedFd<'_>,
    its_socket: BorrowedFd<'_>,
) -> io::Result<()> {
    send_with(socket, &[SUCCEED], &[program, its_socket])
}

pub(super) fn order_abandon(socket: &impl AsFd, id: u32) -> io::Result<()> {
    let [a, b, c, d] = id.to_le_bytes();
    let packet = [ABANDON, a, b, c, d];
    Ok(rustix::net::send(socket, &packet, SendFlags::NOSIGNAL).map(drop)?)
}

/// Tells that it has started a process, with what names that (a pidfd): its owner may outlive the launcher.
pub(super) fn tell_started(socket: &impl AsFd, id: u32, process: BorrowedFd<'_>) -> io::Result<()> {
    send_with(socket, &packet_of(&Notice::Started(id)), &[process])
}

pub(super) fn tell_mappings(socket: &impl AsFd, maps: io::Result<File>) -> io::Result<()> {
    match &maps {
        Ok(maps) => send_with(socket, &[MAPPINGS], &[maps.as_fd()]),
        Err(_) => tell(socket, &Notice::Mappings),
    }
}

fn send_with(socket: &impl AsFd, packet: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !control.push(SendAncillaryMessage::ScmRights(fds)) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let packet = [IoSlice::new(packet)];
    let sent = sendmsg(socket, &packet, &mut control, SendFlags::NOSIGNAL);
    Ok(sent.map(drop)?)
}

/// Receives a packet and the descriptors that came with it; how long it is.
pub(super) fn receive(socket: &impl AsFd, packet: &mut [u8]) -> io::Result<(usize, Vec<OwnedFd>)> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut into = [IoSliceMut::new(packet)];
    let received = recvmsg(socket, &mut into, &mut control, RecvFlags::CMSG_CLOEXEC)?;
    let fds = control
        .drain()
        .filter_map(|message| match message {
            RecvAncillaryMessage::ScmRights(fds) => Some(fds),
            _ => None,
        })
        .flatten()
        .collect();
    Ok((received.bytes, fds))
}

pub(super) fn order_kill(socket: &impl AsFd) -> io::Result<()> {
    Ok(rustix::net::send(socket, &[KILL], SendFlags::NOSIGNAL).map(drop)?)
}

/// The next order; `None` when there will be no more.
pub(super) fn next_order(socket: &impl AsFd) -> io::Result<Option<Order>> {
    let mut packet = [0; 5];
    let (len, mut fds) = receive(socket, &mut packet)?;
    match packet[..len] {
        [] => Ok(None),
        [START] => Ok(Some(Order::Start(fds))),
        [LOOK] => {
            let connection = fds.pop().ok_or(io::ErrorKind::InvalidData)?;
            Ok(Some(Order::Look(connection)))
        }
        [SUCCEED] => {
            let [program, socket] = <[OwnedFd; 2]>::try_from(fds)
                .map_err(|_| io::Error::from(io::ErrorKind::InvalidData))?;
            Ok(Some(Order::Succeed {
                program: program.into(),
                socket,
            }))
        }
        [ABANDON, a, b, c, d] => Ok(Some(Order::Abandon(u32::from_le_bytes([a, b, c, d])))),
        [KILL] => Ok(Some(Order::Kill)),
        _ => Err(io::ErrorKind::InvalidData.into()),
    }
}

pub(super) fn tell(socket: &impl AsFd, notice: &Notice) -> io::Result<()> {
    let packet = packet_of(notice);
    Ok(rustix::net::send(socket, &packet, SendFlags::NOSIGNAL).map(drop)?)
}

fn packet_of(notice: &Notice) -> Vec<u8> {
    let mut packet = Vec::new();
    match notice {
        Notice::Started(id) => {
            packet.push(STARTED);
            packet.extend(id.to_le_bytes());
        }
        Notice::NotStarted(why) => {
            packet.push(NOT_STARTED);
            packet.extend(why.bytes().take(MAX_LEN - 1));
        }
        Notice::Ended(status) => {
            packet.push(ENDED);
            packet.extend(status.to_le_bytes());
        }
        Notice::Mappings => packet.push(MAPPINGS),
    }
    packet
}

/// What a packet says.
///
/// # Errors
/// [`io::ErrorKind::UnexpectedEof`] for none, and [`io::ErrorKind::InvalidData`].
pub(super) fn notice_in(packet: &[u8]) -> io::Result<Notice> {
    let number = |bytes: &[u8]| <[u8; 4]>::try_from(bytes).map_err(|_| io::ErrorKind::InvalidData);
    match packet.split_first() {
        None => Err(io::ErrorKind::UnexpectedEof.into()),
        Some((&STARTED, id)) => Ok(Notice::Started(u32::from_le_bytes(number(id)?))),
        Some((&NOT_STARTED, why)) => Ok(Notice::NotStarted(
            String::from_utf8_lossy(why).into_owned(),
        )),
        Some((&ENDED, status)) => Ok(Notice::Ended(i32::from_le_bytes(number(status)?))),
        Some((&MAPPINGS, [])) => Ok(Notice::Mappings),
        Some(_) => Err(io::ErrorKind::InvalidData.into()),
    }
}

/// Room for a packet.
pub(super) fn packet() -> [u8; MAX_LEN] {
    [0; MAX_LEN]
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixDatagram;

    use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

    use super::*;

    #[test]
    fn what_is_told_is_understood() {
        let kind = SocketType::SEQPACKET;
        let (ours, theirs) =
            socketpair(AddressFamily::UNIX, kind, SocketFlags::CLOEXEC, None).unwrap();
        let (reader, writer) = io::pipe().unwrap();
        order_start(&ours, &[reader.as_fd(), writer.as_fd()]).unwrap();
        order_kill(&ours).unwrap();
        let order = next_order(&theirs).unwrap();
        assert!(
            matches!(&order, Some(Order::Start(fds)) if fds.len() == 2),
            "{order:?}"
        );
        assert!(matches!(next_order(&theirs).unwrap(), Some(Order::Kill)));
        order_succeed(&ours, reader.as_fd(), writer.as_fd()).unwrap();
        order_abandon(&ours, 70000).unwrap();
        let order = next_order(&theirs).unwrap();
        assert!(matches!(order, Some(Order::Succeed { .. })), "{order:?}");
        let order = next_order(&theirs).unwrap();
        assert!(matches!(order, Some(Order::Abandon(70000))), "{order:?}");
        send_with(&ours, &[SUCCEED], &[reader.as_fd()]).unwrap();
        assert!(next_order(&theirs).is_err(), "without a socket");
        let ours = UnixDatagram::from(ours);
        for notice in [
            Notice::Started(7),
            Notice::NotStarted("a reason".into()),
            Notice::Ended(-2),
            Notice::Mappings,
        ] {
            tell(&theirs, &notice).unwrap();
            let mut packet = packet();
            let len = ours.recv(&mut packet).unwrap();
            assert_eq!(notice_in(&packet[..len]).unwrap(), notice);
        }
        for bad in [&b""[..], b"x", b"p12", b"e12345"] {
            assert!(notice_in(bad).is_err());
        }
        tell_started(&theirs, 7, reader.as_fd()).unwrap();
        let mut packet = packet();
        let (len, fds) = receive(&ours, &mut packet).unwrap();
        assert_eq!(notice_in(&packet[..len]).unwrap(), Notice::Started(7));
        assert_eq!(fds.len(), 1, "with what names the process");
        drop(ours);
        assert!(next_order(&theirs).unwrap().is_none());
    }
}
