//! Images that QEMU's tools read: a read-only `qemu-nbd` child behind a private socket.

use std::ffi::{OsStr, OsString};
use std::io::{self, Read};
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::thread;
use std::time::Duration;

use rustix::process::{Pid, Resource, Rlimit, prlimit};
use serde::Deserialize;

use super::nbd::NbdClient;
use super::{Backing, Cancel, ImageFormat, ImportError, SourceImage};

const QEMU_IMG: &str = "qemu-img";
const QEMU_NBD: &str = "qemu-nbd";
const SOCKET: &str = "nbd.sock";
/// Limits for looking at the metadata of an image that may be made to be costly to read.
const QEMU_IMG_CPU_SECONDS: u64 = 600;
const QEMU_IMG_MEMORY: u64 = 4 << 30;

/// An image behind a qemu-nbd child.
pub(super) struct QemuImage {
    // In the order of dropping: the connection, which ends the server, then the server.
    client: NbdClient,
    _server: Server,
}

impl QemuImage {
    /// Checks what the image refers to, starts qemu-nbd and connects. The socket is in `scratch`
    /// for as long as the server starts.
    pub(super) fn open(
        path: &Path,
        format: ImageFormat,
        scratch: &Path,
        cancel: &Cancel,
    ) -> Result<Self, ImportError> {
        let image = Image::new(path, format)?;
        image.refuse_references(cancel)?;
        image.refuse_damaged(cancel)?;
        let server = image.serve(scratch)?;
        let (server, stream) = server.connect(&image, scratch, cancel)?;
        Ok(Self {
            client: NbdClient::connect(stream, cancel.clone())?,
            _server: server,
        })
    }
}

impl SourceImage for QemuImage {
    fn size(&self) -> u64 {
        self.client.size()
    }

    fn read_at(&mut self, offset: u64, buffer: &mut [u8]) -> Result<(), ImportError> {
        self.client.read_at(offset, buffer)
    }

    fn next_data(&mut self, offset: u64) -> Result<Option<Range<u64>>, ImportError> {
        self.client.next_data(offset)
    }
}

/// What QEMU's tools are told about an image.
pub(super) struct Image {
    path: PathBuf,
    format: ImageFormat,
    writable: bool,
    options: OsString,
}

/// What is of interest in `qemu-img info --output=json`.
#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Info {
    backing_filename: Option<String>,
    format_specific: Option<FormatSpecific>,
}

#[derive(Deserialize)]
struct FormatSpecific {
    data: Option<FormatData>,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct FormatData {
    data_file: Option<String>,
    #[serde(default)]
    extents: Vec<Extent>,
}

#[derive(Deserialize)]
struct Extent {
    filename: Option<String>,
}

impl Image {
    /// Format and protocol are spelled out, so that neither is guessed from content or name.
    fn new(path: &Path, format: ImageFormat) -> Result<Self, ImportError> {
        Self::with(path, format, false)
    }

    /// An image that is to be made.
    pub(super) fn to_write(path: &Path, format: ImageFormat) -> Result<Self, ImportError> {
        let mut image = Self::with(path, format, true)?;
        if format == ImageFormat::Qcow2 {
            // Zeros are noted as such, and take no space.
            image.options = {
                let mut options = OsString::from("detect-zeroes=on,");
                options.push(&image.options);
                options
            };
        }
        Ok(image)
    }

    fn with(path: &Path, format: ImageFormat, writable: bool) -> Result<Self, ImportError> {
        let absolute = std::path::absolute(path).map_err(|source| ImportError::Io {
            call: "find",
            path: path.into(),
            source,
        })?;
        let read_only = if writable { "off" } else { "on" };
        let mut options = OsString::from(format!(
            "driver={format},read-only={read_only},file.driver=file,file.filename="
        ));
        options.push(doubled_commas(absolute.as_os_str()));
        Ok(Self {
            path: absolute,
            format,
            writable,
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
        let output = self.run(command.arg(&self.path).arg(size.to_string()), cancel)?;
        match output.status.success() {
            true => Ok(()),
            false => Err(self.unwritable(QEMU_IMG, &output)),
        }
    }

    /// Has the image say that what it does not have is in another one, which need not be there.
    pub(super) fn rebase(&self, backing: &Backing, cancel: &Cancel) -> Result<(), ImportError> {
        let mut command = Command::new(QEMU_IMG);
        command
            .args(["rebase", "-q", "-u", "-f", &self.format.to_string()])
            .args(["-F", &backing.format.to_string(), "-b"])
            .arg(&backing.name)
            .arg(&self.path);
        let output = self.run(&mut command, cancel)?;
        match output.status.success() {
            true => Ok(()),
            false => Err(self.unwritable(QEMU_IMG, &output)),
        }
    }

    /// Runs `qemu-img COMMAND --output=json` on the image.
    fn qemu_img(&self, command: &str, cancel: &Cancel) -> Result<Output, ImportError> {
        let mut program = Command::new(QEMU_IMG);
        program.args([command, "--output=json", "--image-opts"]);
        self.run(program.arg(&self.options), cancel)
    }

    fn run(&self, command: &mut Command, cancel: &Cancel) -> Result<Output, ImportError> {
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .spawn()
            .map_err(|e| self.no_helper(QEMU_IMG, e))?;
        limit(&child);
        // Its pipes are emptied by a thread of their own, so that this one can watch for signals.
        let (stdout, stderr) = (drain(child.stdout.take()), drain(child.stderr.take()));
        let status = loop {
            match child.try_wait() {
                Ok(None) => {}
                Ok(Some(status)) => break status,
                Err(e) => return Err(self.no_helper(QEMU_IMG, e)),
            }
            if let Err(interrupted) = cancel.check() {
                end(&mut child);
                return Err(interrupted);
            }
            thread::sleep(Duration::from_millis(2));
        };
        // A thread that panicked would have read nothing.
        Ok(Output {
            status,
            stdout: stdout.join().unwrap_or_default(),
            stderr: stderr.join().unwrap_or_default(),
        })
    }

    /// QEMU reads what lies behind the end of an image file as zeros, so a truncated image would
    /// be imported as one with less in it.
    fn refuse_damaged(&self, cancel: &Cancel) -> Result<(), ImportError> {
        // From qemu-img(1); leaked clusters do no harm, and a format without a check refuses such
        // images when it opens them.
        const SOUND: i32 = 0;
        const ONLY_LEAKS: i32 = 3;
        const NO_CHECK: i32 = 63;
        let output = self.qemu_img("check", cancel)?;
        match output.status.code() {
            Some(SOUND | ONLY_LEAKS | NO_CHECK) => Ok(()),
            _ => Err(self.unreadable(QEMU_IMG, &output)),
        }
    }

    fn refuse_references(&self, cancel: &Cancel) -> Result<(), ImportError> {
        let output = self.qemu_img("info", cancel)?;
        if !output.status.success() {
            return Err(self.unreadable(QEMU_IMG, &output));
        }
        let info: Info =
            serde_json::from_slice(&output.stdout).map_err(|e| ImportError::Unreadable {
                program: QEMU_IMG,
                path: self.path.clone(),
                format: self.format,
                message: format!("its answer is not understood: {e}"),
            })?;
        match self.reference(info) {
            Some(what) => Err(ImportError::Refers {
                path: self.path.clone(),
                what,
            }),
            None => Ok(()),
        }
    }

    fn reference(&self, info: Info) -> Option<String> {
        if let Some(name) = info.backing_filename {
            return Some(format!("backing file {name:?}"));
        }
        let data = info.format_specific?.data?;
        if let Some(name) = data.data_file {
            return Some(format!("data file {name:?}"));
        }
        let own = self.path.as_os_str();
        data.extents
            .into_iter()
            .filter_map(|extent| extent.filename)
            .find(|name| OsStr::new(name) != own)
            .map(|name| format!("extent {name:?}"))
    }

    pub(super) fn serve(&self, scratch: &Path) -> Result<Server, ImportError> {
        let mut command = Command::new(QEMU_NBD);
        if !self.writable {
            command.arg("--read-only");
        }
        let child = command
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

    fn unreadable(&self, program: &'static str, output: &Output) -> ImportError {
        ImportError::Unreadable {
            program,
            path: self.path.clone(),
            format: self.format,
            message: Self::cause(program, output),
        }
    }

    pub(super) fn unwritable(&self, program: &'static str, output: &Output) -> ImportError {
        ImportError::Unwritable {
            program,
            format: self.format,
            message: Self::cause(program, output),
        }
    }

    /// What the program said of its failure, on one line.
    fn cause(program: &str, output: &Output) -> String {
        let text = String::from_utf8_lossy(&output.stderr);
        // The first line has the cause; a damaged image can be told of in thousands.
        let first = text.lines().next().unwrap_or_default();
        let text: String = first
            .trim_start_matches(program)
            .trim_start_matches(": ")
            .chars()
            .filter(|c| !c.is_control())
            .collect();
        match text.as_str() {
            "" => output.status.to_string(),
            _ => text,
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
        image: &Image,
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
                return Err(match image.writable {
                    true => image.unwritable(QEMU_NBD, &output),
                    false => image.unreadable(QEMU_NBD, &output),
                });
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
    pub(super) fn finish(mut self, image: &Image, cancel: &Cancel) -> Result<(), ImportError> {
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

/// Ends a child that has nothing to finish: it only reads, or what it writes is given up.
fn end(child: &mut Child) {
    // Both calls fail only if it is gone already.
    let _ = child.kill();
    let _ = child.wait();
}

/// Collects what a child writes, as far as somebody could want to read it.
fn drain(pipe: Option<impl Read + Send + 'static>) -> thread::JoinHandle<Vec<u8>> {
    const MOST: u64 = 1 << 20;
    thread::spawn(move || {
        let mut text = Vec::new();
        if let Some(mut pipe) = pipe {
            // What cannot be read is missing from a message at worst.
            let _ = pipe.by_ref().take(MOST).read_to_end(&mut text);
            let _ = io::copy(&mut pipe, &mut io::sink());
        }
        text
    })
}

/// Keeps a hostile image from making `qemu-img` run or grow without end.
fn limit(child: &Child) {
    let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
    for (resource, most) in [
        (Resource::Cpu, QEMU_IMG_CPU_SECONDS),
        (Resource::As, QEMU_IMG_MEMORY),
    ] {
        let limit = Rlimit {
            current: Some(most),
            maximum: Some(most),
        };
        if let Err(e) = prlimit(pid, resource, limit) {
            // Only possible when it has ended already.
            log::debug!("cannot limit {QEMU_IMG}: {e}");
        }
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
