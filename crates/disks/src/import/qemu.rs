//! Images that QEMU's tools read: a confined `qemu-nbd` child that is fed the file over one socket and
//! gives the disk over another.

use std::io;
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Output, Stdio};
use std::sync::Arc;
use std::time::Duration;

use keys::units::BLOCK_SIZE;
use serde::Deserialize;

use super::confined::Most;
use super::feeder::{self, Progress};
use super::helper::{self, QEMU_IMG, QEMU_NBD, Unfinished, cause, end};
use super::map::{Map, Place};
use super::nbd::{NbdClient, Patience};
use super::raw::RawImage;
use super::{Cancel, ImageFormat, ImportError, SourceImage, confined, socket};

/// What the programs may take of the host for an image that may be made to be costly.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bounds {
    /// Bytes of address space, beside what follows from the storage that the image takes. The tables of
    /// the largest sound images take half a GiB.
    pub(super) memory: u64,
    /// Seconds of CPU time for a look at the metadata, and for a reader beside what its disk's size gives
    /// it.
    pub(super) cpu_seconds: u64,
    /// How long a program may neither give anything nor ask for anything.
    pub(super) stall: Duration,
}

impl Default for Bounds {
    fn default() -> Self {
        Self {
            memory: 2 << 30,
            cpu_seconds: 600,
            stall: Duration::from_secs(300),
        }
    }
}

/// Bytes of storage of an image for which a program gets another byte of memory: `qemu-img check` counts
/// the references to each cluster of 64 KiB.
const STORAGE_PER_MEMORY: u64 = 16 << 10;
/// Bytes of the disk for which its reader gets another second of CPU time; to decompress them takes a
/// fiftieth of that.
const BYTES_PER_CPU_SECOND: u64 = 2 << 20;
/// An image behind a qemu-nbd child.
pub(super) struct QemuImage {
    // In the order of dropping: the connection, which ends the server, then the server.
    client: NbdClient,
    server: Server,
    path: PathBuf,
    format: ImageFormat,
    /// Where its data are in its file, which is here, as far as QEMU tells.
    map: Option<(Map, RawImage)>,
    /// Bytes of its file that are known to be data: to find where they end takes as long as there are many.
    found: Range<u64>,
}

/// Bytes in several places that are given as one range of data.
const TOGETHER: u64 = 4 << 20;

impl QemuImage {
    /// Checks what the image refers to, starts qemu-nbd and connects. `size` is what the disk in it has
    /// to have, where the image says that in one way only.
    pub(super) fn open(
        file: &RawImage,
        image: &Image<'_>,
        size: Option<u64>,
    ) -> Result<Self, ImportError> {
        let bytes = image.refuse_references(file)?;
        image.refuse_damaged(file)?;
        let map = match image.format {
            ImageFormat::Qcow2 => Some((image.map(file)?, file.try_clone()?)),
            _ => None,
        };
        let mut this = image.serve(file, bytes)?;
        this.map = map;
        match size {
            Some(says) if says != this.client.size() => Err(ImportError::OtherSize {
                path: image.path.into(),
                says,
                program: QEMU_NBD,
                reads: this.client.size(),
            }),
            _ => Ok(this),
        }
    }

    /// What a broken conversation was about, if the server has ended.
    fn explain<T>(&mut self, result: Result<T, ImportError>) -> Result<T, ImportError> {
        result.map_err(
            |error| match (&error, helper::last_words(&mut self.server.child)) {
                (ImportError::Nbd(_), Some(output)) => ImportError::Unreadable {
                    program: QEMU_NBD,
                    path: self.path.clone(),
                    format: self.format,
                    message: cause(QEMU_NBD, &output),
                },
                _ => error,
            },
        )
    }
}

impl QemuImage {
    /// Reads through qemu-nbd.
    fn read_packed(&mut self, offset: u64, buffer: &mut [u8]) -> Result<(), ImportError> {
        let read = self.client.read_at(offset, buffer);
        self.explain(read).map_err(|error| match error {
            ImportError::Unreadable {
                program,
                path,
                format,
                message,
            } => ImportError::Unreadable {
                program,
                path,
                format,
                message: format!(
                    "{message}, in the {} bytes of the disk from {offset} on: the image is damaged, \
                     or truncated",
                    buffer.len()
                ),
            },
            other => other,
        })
    }

    /// Where the disk's byte `at` is, and up to where what follows is there too. `None` when nothing is known
    /// of it.
    fn known(&mut self, at: u64) -> Result<Option<(Place, u64)>, ImportError> {
        let Some((map, file)) = &mut self.map else {
            return Ok(None);
        };
        let Some(extent) = map.at(at)? else {
            return Ok(None);
        };
        let (place, end) = (extent.place_of(at), extent.range.end);
        let Place::File(start) = place else {
            return Ok(Some((place, end)));
        };
        // Space that the image has set aside may be a hole of its file.
        let in_disk = |in_file: u64| at + (in_file - start);
        if !self.found.contains(&start) {
            match file.next_data(start)? {
                Some(data) => self.found = data,
                None => return Ok(Some((Place::Zeros, end))),
            }
        }
        Ok(Some(match self.found.contains(&start) {
            true => (place, end.min(in_disk(self.found.end))),
            false => (Place::Zeros, end.min(in_disk(self.found.start))),
        }))
    }
}

impl SourceImage for QemuImage {
    fn size(&self) -> u64 {
        self.client.size()
    }

    fn read_at(&mut self, offset: u64, buffer: &mut [u8]) -> Result<(), ImportError> {
        let mut done = 0;
        while done < buffer.len() {
            let at = offset + done as u64;
            let rest = &mut buffer[done..];
            let Some((place, end)) = self.known(at)? else {
                return self.read_packed(at, rest);
            };
            let len = usize::try_from(end - at).map_or(rest.len(), |len| len.min(rest.len()));
            let part = &mut rest[..len];
            match (place, &mut self.map) {
                (Place::Zeros, _) => part.fill(0),
                (Place::File(start), Some((_, file))) => file.read_at(start, part)?,
                (Place::File(_) | Place::Packed, _) => self.read_packed(at, part)?,
            }
            done += len;
        }
        Ok(())
    }

    fn will_read(&mut self, range: Range<u64>) {
        // Reading says what fails.
        let Ok(Some((Place::File(start), end))) = self.known(range.start) else {
            return;
        };
        if let Some((_, file)) = &mut self.map {
            file.will_read(start..start + (end.min(range.end) - range.start));
        }
    }

    fn next_data(&mut self, offset: u64) -> Result<Option<Range<u64>>, ImportError> {
        if let Some((map, _)) = &mut self.map {
            map.forget(offset.saturating_sub(BLOCK_SIZE));
        }
        let size = self.size();
        let (mut start, mut at) = (None, offset);
        while at < size {
            let Some((place, end)) = self.known(at)? else {
                break;
            };
            match (place, start) {
                (Place::Zeros, None) => {}
                (Place::Zeros, Some(start)) => return Ok(Some(start..at)),
                (_, None) => start = Some(at),
                (_, Some(start)) if end - start > TOGETHER => return Ok(Some(start..at)),
                (_, Some(_)) => {}
            }
            at = end.min(size);
        }
        match start {
            Some(start) => Ok(Some(start..at)),
            None if at >= size => Ok(None),
            None => {
                let found = self.client.next_data(at);
                self.explain(found)
            }
        }
    }
}

/// What QEMU's tools are told about an image.
pub(super) struct Image<'a> {
    pub(super) path: &'a Path,
    pub(super) format: ImageFormat,
    /// What may have to be done before it can be read.
    pub(super) repair: Option<&'static str>,
    pub(super) bounds: Bounds,
    pub(super) cancel: &'a Cancel,
}

/// What is of interest in `qemu-img info --output=json`.
#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Info {
    virtual_size: u64,
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

/// What is of interest in `qemu-img check --output=json`.
#[derive(Deserialize)]
struct Check {
    #[serde(default)]
    corruptions: u64,
}

impl Image<'_> {
    /// The image as QEMU's option syntax has it, fed through the descriptor `feeder`. Format and
    /// protocol are spelled out, so that neither is guessed.
    fn options(&self, feeder: u32) -> String {
        let own = match self.format {
            // What a VHD's footer says is believed, whoever made it.
            ImageFormat::Vpc => "force_size_calc=current_size,",
            _ => "",
        };
        format!(
            "driver={},read-only=on,{own}file.driver=nbd,file.server.type=fd,file.server.str={feeder}",
            self.format
        )
    }

    /// What a program may take that looks at the image, and one that reads `bytes` of the disk in it.
    fn most(&self, file: &RawImage, bytes: u64) -> Result<Most, ImportError> {
        Ok(Most {
            memory: self.bounds.memory + file.allocated()? / STORAGE_PER_MEMORY,
            cpu_seconds: self.bounds.cpu_seconds + bytes / BYTES_PER_CPU_SECOND,
        })
    }

    /// A socket that gives the file.
    fn feed(&self, file: &RawImage) -> Result<(OwnedFd, Arc<Progress>), ImportError> {
        let progress = Arc::new(Progress::default());
        let copy = file.duplicate()?;
        let fed = UnixStream::pair().and_then(|(ours, theirs)| {
            feeder::spawn(copy, file.size(), ours, progress.clone())?;
            Ok(theirs)
        });
        Ok((fed.map_err(self.io_error("serve"))?.into(), progress))
    }

    /// Runs `qemu-img COMMAND --output=json` on the image.
    fn qemu_img(&self, command: &str, file: &RawImage) -> Result<Output, ImportError> {
        let (feeder, progress) = self.feed(file)?;
        let most = self.most(file, 0)?;
        let child = confined::find(QEMU_IMG)
            .and_then(|program| confined::command(&program, vec![feeder], most))
            .and_then(|mut program| {
                program
                    .args([command, "--output=json", "--image-opts", &self.options(3)])
                    .stdout(Stdio::piped())
                    .spawn()
            })
            .map_err(|e| self.no_helper(QEMU_IMG, e))?;
        let stall = Some((self.bounds.stall, progress));
        helper::output(child, self.cancel, stall).map_err(|unfinished| match unfinished {
            Unfinished::Io(e) => self.no_helper(QEMU_IMG, e),
            Unfinished::Cancelled(interrupted) => interrupted,
            Unfinished::Stalled(after) => self.unreadable_for(
                QEMU_IMG,
                format!("it did nothing for {} s", after.as_secs()),
            ),
        })
    }

    /// Starts `qemu-img map` on the image.
    fn map(&self, file: &RawImage) -> Result<Map, ImportError> {
        let (feeder, progress) = self.feed(file)?;
        let most = self.most(file, 0)?;
        let map = confined::find(QEMU_IMG)
            .and_then(|program| confined::command(&program, vec![feeder], most))
            .and_then(|mut program| {
                program
                    .args(["map", "--output=json", "--image-opts", &self.options(3)])
                    .stdout(Stdio::piped())
                    .stderr(Stdio::null())
                    .spawn()
            })
            .and_then(|child| Map::of(child, file.size(), self.patience(progress)));
        map.map_err(|e| self.no_helper(QEMU_IMG, e))
    }

    fn patience(&self, progress: Arc<Progress>) -> Patience {
        Patience {
            cancel: self.cancel.clone(),
            stall: Some((self.bounds.stall, progress)),
        }
    }

    /// A damaged image would be imported as one with other things in it, or less.
    fn refuse_damaged(&self, file: &RawImage) -> Result<(), ImportError> {
        // From qemu-img(1); leaked clusters do no harm, and a format without a check refuses such
        // images when it opens them.
        const SOUND: i32 = 0;
        const ONLY_LEAKS: i32 = 3;
        const NO_CHECK: i32 = 63;
        let output = self.qemu_img("check", file)?;
        match output.status.code() {
            Some(SOUND | ONLY_LEAKS | NO_CHECK) => Ok(()),
            // QED's check says nothing but numbers.
            _ if output.stderr.is_empty() => match serde_json::from_slice(&output.stdout) {
                Ok(Check { corruptions }) => {
                    let message = format!("its tables are damaged in {corruptions} places");
                    Err(self.unreadable_because(QEMU_IMG, message))
                }
                Err(_) => Err(self.unreadable(QEMU_IMG, &output)),
            },
            _ => Err(self.unreadable(QEMU_IMG, &output)),
        }
    }

    /// Bytes of the disk in the image, if it needs no other file.
    fn refuse_references(&self, file: &RawImage) -> Result<u64, ImportError> {
        let output = self.qemu_img("info", file)?;
        if !output.status.success() {
            return Err(self.unreadable(QEMU_IMG, &output));
        }
        let info: Info = serde_json::from_slice(&output.stdout).map_err(|e| {
            self.unreadable_for(QEMU_IMG, format!("its answer is not understood: {e}"))
        })?;
        let bytes = info.virtual_size;
        match Self::reference(info) {
            Some(what) => Err(ImportError::Refers {
                path: self.path.into(),
                what,
            }),
            None => Ok(bytes),
        }
    }

    fn reference(info: Info) -> Option<String> {
        if let Some(name) = info.backing_filename {
            return Some(format!("backing file {name:?}"));
        }
        let data = info.format_specific?.data?;
        if let Some(name) = data.data_file {
            return Some(format!("data file {name:?}"));
        }
        // The image's own extent is what the feeder gives.
        let is_fed = |name: &str| {
            name.strip_prefix("json:").is_some_and(|json| {
                serde_json::from_str(json).is_ok_and(|node: serde_json::Value| {
                    node["driver"] == "nbd" && node["server.type"] == "fd"
                })
            })
        };
        data.extents
            .into_iter()
            .filter_map(|extent| extent.filename)
            .find(|name| !name.is_empty() && !is_fed(name))
            .map(|name| format!("extent {name:?}"))
    }

    /// Starts qemu-nbd, which is to read `bytes`, and connects to it.
    fn serve(&self, file: &RawImage, bytes: u64) -> Result<QemuImage, ImportError> {
        let (listener, stream) = socket::connected().map_err(self.io_error("make a socket for"))?;
        let (feeder, progress) = self.feed(file)?;
        let fds = vec![listener, feeder];
        let most = self.most(file, bytes)?;
        let child = confined::find(QEMU_NBD)
            .and_then(|program| confined::command(&program, fds, most))
            .and_then(|mut program| {
                program
                    .args(["--read-only", "--shared=1", "--description"])
                    // For whoever looks at the processes of the host.
                    .arg(self.path)
                    .args(["--image-opts", &self.options(4)])
                    .stdout(Stdio::null())
                    .spawn()
            })
            .map_err(|e| self.no_helper(QEMU_NBD, e))?;
        let mut server = Server { child };
        match NbdClient::connect_to(stream, self.patience(progress)) {
            Ok(client) => Ok(QemuImage {
                client,
                server,
                path: self.path.into(),
                format: self.format,
                map: None,
                found: 0..0,
            }),
            Err(error @ ImportError::Nbd(_)) => Err(match helper::last_words(&mut server.child) {
                Some(output) => self.unreadable(QEMU_NBD, &output),
                None => error,
            }),
            Err(error) => Err(error),
        }
    }

    fn io_error(&self, call: &'static str) -> impl Fn(io::Error) -> ImportError {
        move |source| ImportError::Io {
            call,
            path: self.path.into(),
            source,
        }
    }

    fn no_helper(&self, program: &'static str, source: io::Error) -> ImportError {
        ImportError::NoHelper {
            format: self.format,
            program,
            source,
        }
    }

    fn unreadable(&self, program: &'static str, output: &Output) -> ImportError {
        self.unreadable_because(program, cause(program, output))
    }

    /// With the repair that there may be.
    fn unreadable_because(&self, program: &'static str, mut message: String) -> ImportError {
        if let Some(why) = self.repair {
            message += &format!(
                "; {why}: repair it, or a copy of it, with `qemu-img check -f {} -r all {}`",
                self.format,
                quoted(self.path)
            );
        }
        self.unreadable_for(program, message)
    }

    fn unreadable_for(&self, program: &'static str, message: String) -> ImportError {
        ImportError::Unreadable {
            program,
            path: self.path.into(),
            format: self.format,
            message,
        }
    }
}

/// A path for a shell.
fn quoted(path: &Path) -> String {
    let text = path.display().to_string();
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+:@%".contains(c);
    match text.chars().all(plain) {
        true => text,
        false => format!("'{}'", text.replace('\'', r"'\''")),
    }
}

/// A running qemu-nbd, ended when dropped.
struct Server {
    child: Child,
}

impl Drop for Server {
    fn drop(&mut self) {
        end(&mut self.child);
    }
}
