//! Images that QEMU's tools write: a `qemu-nbd` child behind a private socket. What it reads is what it
//! wrote itself.

use std::ffi::{OsStr, OsString};
use std::io::{self, Read};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::thread;
use std::time::Duration;

use super::helper::{self, QEMU_IMG, QEMU_NBD, Unfinished, cause, end};
use super::{Backing, Cancel, ImageFormat, ImportError};

const SOCKET: &str = "nbd.sock";

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
        // Zeros are noted as such in qcow2, and take no space.
        let own = match format {
            ImageFormat::Qcow2 => "detect-zeroes=on,",
            _ => "",
        };
        let mut options = OsString::from(format!(
            "{own}driver={format},read-only=off,file.driver=file,file.filename="
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

    /// Has the image say that what it does not have is in another one, which need not be there.
    pub(super) fn rebase(&self, backing: &Backing, cancel: &Cancel) -> Result<(), ImportError> {
        let mut command = Command::new(QEMU_IMG);
        command
            .args(["rebase", "-q", "-u", "-f", &self.format.to_string()])
            .args(["-F", &backing.format.to_string(), "-b"])
            .arg(&backing.name)
            .arg(&self.path);
        self.run(&mut command, cancel)
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

    /// Starts the server that takes the image's content.
    pub(super) fn serve(&self, scratch: &Path) -> Result<Server, ImportError> {
        let child = Command::new(QEMU_NBD)
            .args(["--shared=1", "--image-opts"])
            // The child's working directory, because a socket's path has at most 107 bytes.
            .arg(format!("--socket=/proc/self/cwd/{SOCKET}"))
            .arg(&self.options)
            .current_dir(scratch)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            // A terminal's Ctrl-C is for this process, which then ends the child in order.
            .process_group(0)
            .spawn()
            .map_err(|e| self.no_helper(QEMU_NBD, e))?;
        Ok(Server {
            child,
            socket: scratch.join(SOCKET),
        })
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

/// A running qemu-nbd; ended, and its socket removed, when dropped.
pub(super) struct Server {
    child: Child,
    socket: PathBuf,
}

impl Server {
    /// Waits until the server accepts a connection, then takes the socket's name away: there is
    /// to be no second client.
    pub(super) fn connect(
        mut self,
        image: &NewImage,
        scratch: &Path,
        cancel: &Cancel,
    ) -> Result<(Self, UnixStream), ImportError> {
        let io_error = |source| ImportError::Io {
            call: "connect to qemu-nbd for",
            path: image.path.clone(),
            source,
        };
        let directory = std::fs::File::open(scratch).map_err(io_error)?;
        let socket = format!("/proc/self/fd/{}/{SOCKET}", directory.as_raw_fd());
        loop {
            cancel.check()?;
            if let Ok(stream) = UnixStream::connect(&socket) {
                std::fs::remove_file(&self.socket).map_err(io_error)?;
                return Ok((self, stream));
            }
            if let Some(status) = self.child.try_wait().map_err(io_error)? {
                let output = self.last_words(status).map_err(io_error)?;
                return Err(image.unwritable(QEMU_NBD, &output));
            }
            thread::sleep(Duration::from_millis(5));
        }
    }

    fn last_words(&mut self, status: ExitStatus) -> io::Result<Output> {
        let mut stderr = Vec::new();
        if let Some(mut pipe) = self.child.stderr.take() {
            pipe.read_to_end(&mut stderr)?;
        }
        Ok(Output {
            status,
            stdout: Vec::new(),
            stderr,
        })
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
                let output = self.last_words(status).map_err(io_error)?;
                return match status.success() {
                    true => Ok(()),
                    false => Err(image.unwritable(QEMU_NBD, &output)),
                };
            }
            thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        end(&mut self.child);
        // Gone already unless connecting failed.
        let _ = std::fs::remove_file(&self.socket);
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
