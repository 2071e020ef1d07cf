//! What the data plane says, as the control process hears it: a line at a time.
//!
//! A guest may have taken the data plane over. Whatever that says must not keep this process from guarding
//! the disk's key: the end of a line is never waited for, no line is longer than [`MOST_LINE`], and none
//! carries what a terminal obeys.

use std::os::unix::net::UnixStream;

use rustix::io::Errno;
use rustix::net::{RecvFlags, recv};

/// Bytes of a line at most; what the data plane says of a frontend's memory is the longest.
const MOST_LINE: usize = 64 << 10;
/// Bytes that are taken at a time.
const MOST_READ: usize = 16 << 10;

/// The reading end of the data plane's control socket.
pub(super) struct Answers {
    stream: UnixStream,
    /// The beginning of a line.
    rest: Vec<u8>,
}

/// What was heard.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Heard {
    /// The lines that are whole by now.
    Lines(Vec<String>),
    /// Nothing more will come.
    End,
    /// What no data plane of ours says.
    Nonsense,
}

impl Answers {
    pub(super) fn new(stream: UnixStream) -> Self {
        Self {
            stream,
            rest: Vec::new(),
        }
    }

    /// Takes what is there, without waiting for more.
    pub(super) fn take(&mut self) -> Heard {
        let mut buffer = [0; MOST_READ];
        match recv(&self.stream, &mut buffer, RecvFlags::DONTWAIT) {
            Ok((_, 0)) => return Heard::End,
            Ok((_, read)) => self.rest.extend(&buffer[..read]),
            Err(Errno::AGAIN | Errno::INTR) => return Heard::Lines(Vec::new()),
            Err(_) => return Heard::End,
        }
        let whole = self
            .rest
            .iter()
            .rposition(|b| *b == b'\n')
            .map_or(0, |at| at + 1);
        let rest = self.rest.split_off(whole);
        let lines = std::mem::replace(&mut self.rest, rest);
        let too_long = |line: &[u8]| line.len() > MOST_LINE;
        if too_long(&self.rest) || lines.split(|b| *b == b'\n').any(too_long) {
            return Heard::Nonsense;
        }
        let lines = lines.split_inclusive(|b| *b == b'\n').map(printable);
        Heard::Lines(lines.collect())
    }
}

fn printable(line: &[u8]) -> String {
    let text: String = String::from_utf8_lossy(line)
        .chars()
        .filter(|c| !c.is_control())
        .collect();
    text.trim_end().to_owned()
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn lines(lines: &[&str]) -> Heard {
        Heard::Lines(lines.iter().map(|line| (*line).to_owned()).collect())
    }

    #[test]
    fn lines_are_heard_when_they_are_whole() {
        let (stream, mut data_plane) = UnixStream::pair().unwrap();
        let mut answers = Answers::new(stream);
        assert_eq!(answers.take(), lines(&[]), "nobody waits");
        for (said, heard) in [
            (&b"rea"[..], &[][..]),
            (b"dy\nfro", &["ready"]),
            (b"zen", &[]),
            (b"\n\nthawed \n", &["frozen", "", "thawed"]),
            (b"error \x1b[2J\xff\x07x\n", &["error [2J\u{fffd}x"]),
        ] {
            data_plane.write_all(said).unwrap();
            assert_eq!(answers.take(), lines(heard));
        }
        data_plane.write_all(b"half").unwrap();
        drop(data_plane);
        assert_eq!(answers.take(), lines(&[]));
        assert_eq!(answers.take(), Heard::End);
    }

    #[test]
    fn a_line_without_an_end_is_nonsense() {
        let (stream, mut data_plane) = UnixStream::pair().unwrap();
        let mut answers = Answers::new(stream);
        for _ in 0..4 {
            data_plane.write_all(&[b'x'; MOST_READ]).unwrap();
            assert_eq!(answers.take(), lines(&[]));
        }
        data_plane.write_all(b"x").unwrap();
        assert_eq!(answers.take(), Heard::Nonsense);
    }
}
