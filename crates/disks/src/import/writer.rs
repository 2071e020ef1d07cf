//! Images that QEMU's tools write: a `qemu-nbd` child behind a socket. What it reads is what it
//! wrote itself.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::thread;
use std::time::Duration;

use command_fds::{CommandFdExt, FdMapping};

use super::helper::{self, QEMU_IMG, QEMU_NBD, Unfinished, cause, end};
use super::{Cancel, ImageFormat, ImportError, confined, socket};

/// The image in which is what another one does not have.
#[derive(Debug, Clone)]
pub struct Backing {
    /// Its name, relative to the directory of the other one. It is not looked for.
    pub name: PathBuf,
    /// Its format.
    pub format: ImageFormat,
}

/// What QEMU's tools are told about a new image.
pub(super) struct NewImage {
    path: PathBuf,
    format: ImageFormat,
    options: OsString,
}

impl NewImage {
    /// Format and protocol are spelled out, so that neither is guessed from content or name.
    pub(super) fn new(path: &Path, format: ImageFormat) -> Result<Self, ImportError> {
        let absolute = std::path::absolute(path).map_err(|source| ImportError::Io {
            call: "find",
            path: path.into(),
            source,
        })?;
        let mut options = OsString::from(format!(
            "driver={format},read-only=off,file.driver=file,file.filename="
        ));
        options.push(doubled_commas(absolute.as_os_str()));
        Ok(Self {
            path: absolute,
            format,
            options,
        })
    }

    /// Makes an empty image of `size` bytes in the file, which is there already.
    pub(super) fn create(&self, size: u64, cancel: &Cancel) -> Result<(), ImportError> {
        let mut command = Command::new(QEMU_IMG);
        command.args(["create", "-q", "-f", &self.format.to_string()]);
        if self.format == ImageFormat::Vpc {
            // What Azure takes: fixed, and exactly as large as the disk. Holes stay holes.
            command.args(["-o", "subformat=fixed,force_size=on"]);
        }
        // An absolute path is never taken for a protocol.
        self.run(command.arg(&self.path).arg(size.to_string()), cancel)
    }

    fn run(&self, command: &mut Command, cancel: &Cancel) -> Result<(), ImportError> {
        let child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .spawn()
            .map_err(|e| self.no_helper(QEMU_IMG, e))?;
        match helper::output(child, cancel, None) {
            Ok(output) if output.status.success() => Ok(()),
            Ok(output) => Err(self.unwritable(QEMU_IMG, &output)),
            Err(Unfinished::Io(e)) => Err(self.no_helper(QEMU_IMG, e)),
            Err(Unfinished::Cancelled(interrupted)) => Err(interrupted),
            Err(Unfinished::Stalled(after)) => Err(ImportError::Unwritable {
                program: QEMU_IMG,
                format: self.format,
                message: format!("it did nothing for {} s", after.as_secs()),
            }),
        }
    }

    /// Starts the server that takes the image's content, and connects to it.
    pub(super) fn serve(&self) -> Result<(Server, UnixStream), ImportError> {
        let (listener, stream) = socket::connected().map_err(|source| ImportError::Io {
            call: "make a socket for",
            path: self.path.clone(),
            source,
        })?;
        let start = |program: PathBuf| {
            // `$$` is the process that will be the program: who is given a listening socket asks for that.
            let mut command = Command::new("/bin/sh");
            command
                .args(["-c", "LISTEN_PID=$$ exec \"$0\" \"$@\""])
                .arg(program)
                .env("LISTEN_FDS", "1")
                .args(["--shared=1", "--image-opts"])
                .arg(&self.options)
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(Stdio::piped())
                // A terminal's Ctrl-C is for this process, which then ends the child in order.
                .process_group(0);
            let given = FdMapping {
                parent_fd: listener,
                child_fd: 3,
            };
            command
                .fd_mappings(vec![given])
                .map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
            // The command, and with it our end of the listening socket, goes here.
            command.spawn()
        };
        let child = confined::find(QEMU_NBD)
            .and_then(start)
            .map_err(|e| self.no_helper(QEMU_NBD, e))?;
        Ok((Server { child }, stream))
    }

    fn no_helper(&self, program: &'static str, source: io::Error) -> ImportError {
        ImportError::NoHelper {
            format: self.format,
            program,
            source,
        }
    }

    fn unwritable(&self, program: &'static str, output: &Output) -> ImportError {
        ImportError::Unwritable {
            program,
            format: self.format,
            message: cause(program, output),
        }
    }
}

/// A running qemu-nbd; ended when dropped.
pub(super) struct Server {
    child: Child,
}

impl Server {
    /// Why a conversation broke, if the server has ended.
    pub(super) fn explain(&mut self, image: &NewImage, error: ImportError) -> ImportError {
        match (&error, helper::last_words(&mut self.child)) {
            (ImportError::Nbd(_), Some(output)) => image.unwritable(QEMU_NBD, &output),
            _ => error,
        }
    }

    /// Waits for the end of a server whose client has gone: it completes the image before.
    pub(super) fn finish(mut self, image: &NewImage, cancel: &Cancel) -> Result<(), ImportError> {
        let io_error = |source| ImportError::Io {
            call: "complete",
            path: image.path.clone(),
            source,
        };
        loop {
            cancel.check()?;
            if let Some(status) = self.child.try_wait().map_err(io_error)? {
                return match status.success() {
                    true => Ok(()),
                    false => {
                        let output = helper::words(&mut self.child, status);
                        Err(image.unwritable(QEMU_NBD, &output))
                    }
                };
            }
            thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        end(&mut self.child);
    }
}

/// QEMU's option syntax: a comma in a value is written twice.
fn doubled_commas(text: &OsStr) -> OsString {
    use std::os::unix::ffi::{OsStrExt, OsStringExt};
    let mut doubled = Vec::with_capacity(text.len());
    for &byte in text.as_bytes() {
        doubled.push(byte);
        if byte == b',' {
            doubled.push(byte);
        }
    }
    OsString::from_vec(doubled)
}
