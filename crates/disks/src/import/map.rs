//! Where in its file an image has the disk's data, as a confined `qemu-img map` tells it.
//!
//! What an image has as it is, neither compressed nor encrypted, need not go through QEMU: its bytes are read from
//! the file itself, past two sockets and a process. QEMU remains the one that understands the format. What it
//! says is the image's word all the same: it only ever names bytes of the image's own file, and a place of which
//! it says nothing sound is read through `qemu-nbd`.

use std::collections::VecDeque;
use std::io::{self, BufRead, BufReader, Read};
use std::ops::Range;
use std::process::{Child, ChildStdout};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::Duration;

use serde::Deserialize;

use super::ImportError;
use super::helper::end;
use super::nbd::Patience;

/// Ranges that are known before they are asked for, at most; `qemu-img` waits then.
const MOST: usize = 4096;
/// No line is longer.
const MAX_LINE: u64 = 4096;
/// How often a signal is looked for.
const LOOK: Duration = Duration::from_millis(200);

/// What is known of a range of the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    /// It is zeros.
    Zeros,
    /// It is in the file, from here on.
    File(u64),
    /// It is data, which only QEMU can read.
    Packed,
}

/// A range of the disk and where it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Extent {
    pub(super) range: Range<u64>,
    pub(super) place: Place,
}

impl Extent {
    /// Where the disk's byte `at` is, which lies in the extent.
    pub(super) fn place_of(&self, at: u64) -> Place {
        match self.place {
            Place::File(start) => Place::File(start + (at - self.range.start)),
            other => other,
        }
    }
}

/// One line of `qemu-img map --output=json`.
#[derive(Deserialize)]
struct Line {
    start: u64,
    length: u64,
    zero: bool,
    data: bool,
    offset: Option<u64>,
}

/// The extents of an image from its beginning on, as they become known.
pub(super) struct Map {
    child: Child,
    patience: Patience,
    /// Bytes of the image's file.
    file_size: u64,
    lines: Receiver<Line>,
    /// Those that may still be asked for, in order and without gaps.
    known: VecDeque<Extent>,
    /// Where what is known ends.
    end: u64,
    /// Nothing more becomes known.
    is_over: bool,
}

impl Map {
    /// Takes what a started `qemu-img map` says of an image, whose file has `file_size` bytes.
    ///
    /// # Errors
    /// There is no thread to read it.
    pub(super) fn of(mut child: Child, file_size: u64, patience: Patience) -> io::Result<Self> {
        let (told, lines) = sync_channel(MOST);
        let stdout = child.stdout.take();
        let read = move || {
            if let Some(stdout) = stdout {
                read_lines(stdout, &told);
            }
        };
        let spawned = std::thread::Builder::new()
            .name("image-map".into())
            .spawn(read);
        if let Err(error) = spawned {
            end(&mut child);
            return Err(error);
        }
        Ok(Self {
            child,
            patience,
            file_size,
            lines,
            known: VecDeque::new(),
            end: 0,
            is_over: false,
        })
    }

    /// The extent in which the disk's byte `at` is. `None` when nothing is known of it.
    ///
    /// # Errors
    /// [`ImportError::Interrupted`].
    pub(super) fn at(&mut self, at: u64) -> Result<Option<Extent>, ImportError> {
        while at >= self.end {
            if self.is_over || !self.learn()? {
                return Ok(None);
            }
        }
        let found = self.known.partition_point(|extent| extent.range.end <= at);
        let extent = self.known.get(found);
        Ok(extent.filter(|extent| extent.range.contains(&at)).cloned())
    }

    /// Forgets what is before a place of the disk.
    pub(super) fn forget(&mut self, before: u64) {
        while self
            .known
            .front()
            .is_some_and(|extent| extent.range.end <= before)
        {
            self.known.pop_front();
        }
    }

    /// Waits for the next extent; whether there is one.
    fn learn(&mut self) -> Result<bool, ImportError> {
        let mut since = self.patience.start();
        let line = loop {
            match self.lines.recv_timeout(LOOK) {
                Ok(line) => break Some(line),
                Err(RecvTimeoutError::Disconnected) => break None,
                Err(RecvTimeoutError::Timeout) => match self.patience.check(&mut since) {
                    Ok(()) => {}
                    Err(ImportError::Interrupted) => return Err(ImportError::Interrupted),
                    Err(_) => break None,
                },
            }
        };
        let extent = line.and_then(|line| self.sound(&line));
        match extent {
            Some(extent) => {
                self.end = extent.range.end;
                self.known.push_back(extent);
                Ok(true)
            }
            None => {
                log::debug!("the map of the image ends at {}", self.end);
                self.is_over = true;
                end(&mut self.child);
                Ok(false)
            }
        }
    }

    /// What a line says, if that can be so.
    fn sound(&self, line: &Line) -> Option<Extent> {
        let range = line.start..line.start.checked_add(line.length)?;
        if range.start != self.end || range.is_empty() {
            return None;
        }
        let in_file = |offset: &u64| {
            let end = offset.checked_add(line.length);
            end.is_some_and(|end| end <= self.file_size)
        };
        let place = match (line.zero, line.offset.filter(in_file)) {
            (true, _) => Place::Zeros,
            (false, Some(offset)) if line.data => Place::File(offset),
            (false, _) => Place::Packed,
        };
        Some(Extent { range, place })
    }
}

impl Drop for Map {
    fn drop(&mut self) {
        end(&mut self.child);
    }
}

/// Passes on what `qemu-img` says: an array, each element of which is a line. Ends with it, with what is no
/// such line, or when nobody listens any more.
fn read_lines(stdout: ChildStdout, told: &SyncSender<Line>) {
    let mut stdout = BufReader::new(stdout);
    let mut line = Vec::new();
    loop {
        line.clear();
        match stdout.by_ref().take(MAX_LINE).read_until(b'\n', &mut line) {
            Ok(0) | Err(_) => return,
            Ok(_) => {}
        }
        let is_around = |byte: &u8| b"[],\n ".contains(byte);
        let start = line.iter().position(|byte| !is_around(byte));
        let last = line.iter().rposition(|byte| !is_around(byte));
        let (Some(start), Some(last)) = (start, last) else {
            continue;
        };
        let parsed = serde_json::from_slice::<Line>(&line[start..=last]);
        let Ok(true) = parsed.map(|line| told.send(line).is_ok()) else {
            return;
        };
    }
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};
    use std::sync::Arc;

    use super::*;
    use crate::import::Cancel;

    fn map(says: &str) -> Map {
        let child = Command::new("printf")
            .args(["%s", says])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let patience = Patience {
            cancel: Cancel::default(),
            stall: Some((Duration::from_secs(60), Arc::default())),
        };
        Map::of(child, 1 << 20, patience).unwrap()
    }

    fn places(says: &str) -> Vec<(Range<u64>, Place)> {
        let mut map = map(says);
        let (mut at, mut found) = (0, Vec::new());
        while let Some(extent) = map.at(at).unwrap() {
            at = extent.range.end;
            found.push((extent.range, extent.place));
        }
        found
    }

    const FIRST: &str = r#"[{ "start": 0, "length": 4096, "depth": 0, "zero": false, "data": true, "offset": 65536},
"#;

    #[test]
    fn data_zeros_and_what_is_packed_are_told_apart() {
        let says = FIRST.to_owned()
            + r#"{ "start": 4096, "length": 4096, "zero": true, "data": false, "offset": 0},
{ "start": 8192, "length": 512, "zero": false, "data": true}]
"#;
        let expected = [
            (0..4096, Place::File(65536)),
            (4096..8192, Place::Zeros),
            (8192..8704, Place::Packed),
        ];
        assert_eq!(places(&says), expected);
        let mut map = map(&says);
        let extent = map.at(1000).unwrap().unwrap();
        assert_eq!(extent.place_of(1000), Place::File(66536));
        assert!(map.at(8192).unwrap().is_some() && map.at(0).unwrap().is_some());
        map.forget(4096);
        assert!(map.at(0).unwrap().is_none() && map.at(8191).unwrap().is_some());
    }

    #[test]
    fn what_cannot_be_is_not_believed() {
        let first = [(0..4096, Place::File(65536))];
        let end = (1 << 20) - 4095;
        for then in [
            "",
            "nonsense",
            r#"{ "start": 8192, "length": 512, "zero": true, "data": false}"#,
            r#"{ "start": 4096, "length": 0, "zero": true, "data": false}"#,
            r#"{ "start": 4096, "length": 18446744073709551615, "zero": true, "data": false}"#,
        ] {
            assert_eq!(places(&(FIRST.to_owned() + then)), first, "{then}");
        }
        // What is not in the file is QEMU's to read, or to refuse.
        let behind = format!(
            r#"{{ "start": 4096, "length": 4096, "zero": false, "data": true, "offset": {end}}}"#
        );
        let found = places(&(FIRST.to_owned() + &behind));
        assert_eq!(found[1], (4096..8192, Place::Packed));
    }
}
