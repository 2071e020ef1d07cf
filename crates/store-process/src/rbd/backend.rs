//! I/O on images of a cluster.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::mpsc::{Receiver, Sender, channel};

use ceph::Image;
use store_ring::{Operation, Target};

use super::end_fenced;
use super::names::{DATA_AT, MAP_AT};
use super::stack::Stack;
use crate::backend::{Backend, Bytes, Outcome, Token};
use crate::eventfd::{Alarm, quiet};

/// Works on the layers of a disk.
pub(super) struct RbdBackend {
    stack: Stack,
    tell: Sender<(Token, Outcome)>,
    ended: Receiver<(Token, Outcome)>,
    alarm: Alarm,
}

impl RbdBackend {
    /// Has no layers yet.
    ///
    /// # Errors
    /// What the kernel says.
    pub(super) fn new() -> io::Result<Self> {
        let (tell, ended) = channel();
        Ok(Self {
            stack: Stack::default(),
            tell,
            ended,
            alarm: Alarm::new()?,
        })
    }

    /// Works on these layers from now on. Nothing is to be under way.
    pub(super) fn set_stack(&mut self, stack: Stack) {
        self.stack = stack;
    }

    /// The image of a file, where in it the file begins, and how long the file is.
    ///
    /// # Errors
    /// The number of the error for who asks for what is not the disk's, or may not be done.
    fn place(&self, target: Target, writes: bool) -> Result<(&Image, u64, u64), i32> {
        let depth = match target {
            Target::Data(layer) => usize::from(layer),
            Target::Map => 0,
        };
        let layer = self.stack.layers.get(depth).ok_or(libc::EBADF)?;
        if writes && (depth > 0 || self.stack.read_only) {
            return Err(libc::EROFS);
        }
        let (start, len) = match target {
            Target::Data(_) => (DATA_AT, layer.of.data_len),
            Target::Map => (MAP_AT, layer.of.map_len),
        };
        Ok((&*layer.image, start, len))
    }

    fn try_begin(
        &self,
        token: Token,
        operation: Operation,
        bytes: Option<Bytes>,
    ) -> Result<(), i32> {
        let (tell, alarm) = (self.tell.clone(), self.alarm.clone());
        let end = move |outcome: Outcome| {
            // It fails when nobody is left who would be told.
            let _ = tell.send((token, outcome));
            alarm.ring();
        };
        match operation {
            Operation::Read { target, at, data } => {
                let (image, start, len) = self.place(target, false)?;
                let at = start + within(at, data.len as u64, len)?;
                let bytes = bytes.ok_or(libc::EFAULT)?;
                let (into, count) = (bytes.start().as_ptr(), bytes.count());
                let ended = move |result: Result<usize, i32>| {
                    // Until now they had to be mapped.
                    drop(bytes);
                    end(ended_by(result).and_then(|read| match read == count {
                        true => Ok(()),
                        false => Err(libc::EIO),
                    }));
                };
                // SAFETY: `bytes` keeps them mapped until the end. Others at them are the data plane alone, and there is
                // no reference to them.
                unsafe { image.begin_read(at, into, count, ended) };
            }
            Operation::Write {
                target, at, data, ..
            } => {
                let (image, start, len) = self.place(target, true)?;
                // What is behind the end the library would leave out, without an error.
                let at = start + within(at, data.len as u64, len)?;
                let bytes = bytes.ok_or(libc::EFAULT)?;
                let (from, count) = (bytes.start().as_ptr(), bytes.count());
                let ended = move |result: Result<usize, i32>| {
                    drop(bytes);
                    end(ended_by(result).map(drop));
                };
                // SAFETY: as above.
                unsafe { image.begin_write(at, from, count, ended) };
            }
            Operation::Sync { target } => {
                let (image, ..) = self.place(target, true)?;
                image.begin_flush(move |result| end(ended_by(result).map(drop)));
            }
            Operation::Punch { at, len } => {
                let (image, start, of) = self.place(Target::TOP, true)?;
                let at = start + within(at, len, of)?;
                image.begin_discard(at, len, move |result| end(ended_by(result).map(drop)));
            }
        }
        Ok(())
    }
}

/// An end as the cluster tells it. Who was fenced ends.
fn ended_by(result: Result<usize, i32>) -> Result<usize, i32> {
    match result {
        Err(libc::ESHUTDOWN) => end_fenced(),
        result => result,
    }
}

/// An offset, if the range from there on lies in a file of so many bytes.
fn within(at: u64, len: u64, of: u64) -> Result<u64, i32> {
    match at.checked_add(len) {
        Some(end) if end <= of => Ok(at),
        _ => Err(libc::EINVAL),
    }
}

impl Backend for RbdBackend {
    fn begin(&mut self, token: Token, operation: Operation, bytes: Option<Bytes>) {
        if let Err(errno) = self.try_begin(token, operation, bytes) {
            // This has the other end.
            let _ = self.tell.send((token, Err(errno)));
            self.alarm.ring();
        }
    }

    fn ended(&mut self, into: &mut Vec<(Token, Outcome)>) {
        quiet(self.alarm.as_fd());
        into.extend(self.ended.try_iter());
    }

    fn woken_by(&self) -> BorrowedFd<'_> {
        self.alarm.as_fd()
    }
}
