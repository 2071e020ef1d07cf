//! Writing the data of a disk in upload, on a thread of its own: a ring of io_uring is one thread's. What waits while
//! it writes is made durable together.

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::SystemTime;

use uuid::Uuid;
use zeroize::Zeroizing;

use crate::access::footer::{self, FOOTER_LEN};
use crate::access::grant::claim_patiently;
use crate::access::reader::{modified, version};
use crate::resource::disk::Disk;
use crate::resource::error::DiskError;
use crate::resource::key_watch::KeyWatch;
use crate::resource::offline::open_existing;
use installation::Installation;
use installation::envelope::{Header, HeaderKey, Upload};
use keys::{DekStack, KeyError, ROOMY_STACK, spawn_with_keys, with_wiped_call_stack};
use volume::pipeline::{DiskIo, PipelineError};
use volume::store::LayerFile;

/// Bytes that are encrypted and written at a time.
const CHUNK: usize = 512 << 10;
const SECTOR: u64 = 512;

/// A part of an upload that is to be written.
pub enum Part {
    /// With this.
    Bytes(Zeroizing<Vec<u8>>),
    /// With so many zeros.
    Zeros(u64),
}

impl Part {
    fn len(&self) -> u64 {
        match self {
            Self::Bytes(bytes) => bytes.len() as u64,
            Self::Zeros(len) => *len,
        }
    }
}

/// How a part was written: a failure may be that of several.
type Outcome = Result<(), Arc<DiskError>>;

struct Job {
    at: u64,
    part: Part,
    done: Sender<Outcome>,
}

/// A disk in upload that is open to be written.
pub struct Uploader {
    disk: Disk,
    size: u64,
    version: u64,
    keys: KeyWatch,
    claim: LayerFile,
    /// None when it is dropped.
    jobs: Option<Mutex<Sender<Job>>>,
    thread: Option<JoinHandle<()>>,
}

impl Uploader {
    /// Opens the disk of that name, if it is the one of that id and in upload.
    ///
    /// # Errors
    /// [`DiskError::NotUploading`]; that it is in use, or what its keys cannot be unwrapped for.
    pub fn open(
        installation: &Arc<Installation>,
        (name, id): (&str, Uuid),
        runtime_dir: &Path,
    ) -> Result<Self, DiskError> {
        let disk = Disk::find(installation, name)?;
        let claim = claim_patiently(&disk)?;
        let found = disk.header_file()?.read()?;
        if disk.id() != id || found.claims().upload.is_none() {
            return Err(DiskError::NotUploading { name: name.into() });
        }
        disk.refuse_failed_sync(found.claims())?;
        let (header, deks) = with_wiped_call_stack(|| disk.unlock_all(installation, found))?;
        let (jobs, to_do) = channel();
        let begin = Begin {
            installation: Arc::clone(installation),
            disk: Disk {
                record: disk.record.clone(),
            },
            claim: claim.try_clone().map_err(PipelineError::from)?,
            runtime_dir: runtime_dir.into(),
            deks,
        };
        let (size, version) = (header.size, version(&header));
        let work = move || begin.serve(header, &to_do);
        let thread = spawn_with_keys("upload".into(), ROOMY_STACK, work)?;
        Ok(Self {
            keys: KeyWatch::of(installation, &disk)?,
            disk,
            size,
            version,
            claim,
            jobs: Some(Mutex::new(jobs)),
            thread: Some(thread),
        })
    }

    /// Bytes of the disk. A footer follows them.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Changes with what the disk is.
    pub fn version(&self) -> u64 {
        self.version
    }

    /// When its data was changed last.
    pub fn modified(&self) -> SystemTime {
        modified(&self.claim)
    }

    /// Whether its keys are still granted.
    pub fn keys(&self) -> &KeyWatch {
        &self.keys
    }

    /// Writes to the disk or its footer, in whole sectors. It is durable when this returns.
    ///
    /// # Errors
    /// [`DiskError::Argument`] for a range that is not there, others when it cannot be written: nobody should write any
    /// more then, and the disk be opened again.
    pub fn write(&self, at: u64, part: Part) -> Outcome {
        let ended = || -> Arc<DiskError> {
            Arc::new(KeyError::Thread(std::io::ErrorKind::BrokenPipe.into()).into())
        };
        let (done, outcome) = channel();
        let jobs = self.jobs.as_ref().ok_or_else(ended)?;
        let jobs = jobs.lock().unwrap_or_else(PoisonError::into_inner).clone();
        jobs.send(Job { at, part, done }).map_err(|_| ended())?;
        outcome.recv().map_err(|_| ended())?
    }
}

impl Drop for Uploader {
    fn drop(&mut self) {
        self.jobs = None;
        // The disk is claimed until it has ended.
        if let Some(Err(_)) = self.thread.take().map(JoinHandle::join) {
            log::error!("the upload of the disk {} has failed", self.disk.name());
        }
    }
}

/// What the thread begins with.
struct Begin {
    installation: Arc<Installation>,
    disk: Disk,
    claim: LayerFile,
    runtime_dir: PathBuf,
    deks: DekStack,
}

impl Begin {
    fn serve(self, header: Header, jobs: &Receiver<Job>) {
        let opened = Writer::new(self, header);
        match opened {
            Ok(mut writer) => writer.serve(jobs),
            Err(error) => {
                let error = Arc::new(error);
                for job in jobs {
                    let _ = job.done.send(Err(Arc::clone(&error)));
                }
            }
        }
    }
}

/// What the thread has.
struct Writer {
    installation: Arc<Installation>,
    disk: Disk,
    header: Header,
    key: HeaderKey,
    io: DiskIo,
}

impl Writer {
    fn new(begin: Begin, header: Header) -> Result<Self, DiskError> {
        let Begin {
            installation,
            disk,
            claim,
            runtime_dir,
            deks,
        } = begin;
        let io = open_existing(&disk, claim, &header, &deks, &runtime_dir)?;
        Ok(Self {
            key: HeaderKey::of(deks.top())?,
            installation,
            disk,
            header,
            io,
        })
    }

    fn serve(&mut self, jobs: &Receiver<Job>) {
        while let Ok(first) = jobs.recv() {
            let mut written = Vec::new();
            let mut footer = None;
            for job in std::iter::once(first).chain(jobs.try_iter()) {
                match self.write(job.at, &job.part) {
                    Ok(found) => {
                        footer = found.or(footer);
                        written.push(job.done);
                    }
                    Err(error) => drop(job.done.send(Err(Arc::new(error)))),
                }
            }
            let flushed = match written.is_empty() {
                true => Ok(()),
                false => self.finish(footer).map_err(Arc::new),
            };
            for done in written {
                // Who does not wait any more need not know.
                let _ = done.send(flushed.clone());
            }
        }
    }

    /// Writes a part; whether what it has of the footer is right, if it has anything.
    fn write(&mut self, at: u64, part: &Part) -> Result<Option<bool>, DiskError> {
        let range = self.on_disk(at, part.len())?;
        let on_disk = range.end - range.start;
        let is_all = on_disk == part.len();
        match part {
            Part::Bytes(bytes) => {
                let (data, footer) = bytes.split_at(on_disk as usize);
                for (at, chunk) in (at..).step_by(CHUNK).zip(data.chunks(CHUNK)) {
                    self.io.write_behind(at, chunk)?;
                }
                Ok((!is_all).then(|| self.is_footer(footer)))
            }
            Part::Zeros(_) => {
                // Not before what was begun.
                self.io.end_writes()?;
                if on_disk > 0 {
                    self.io.discard(range.start, on_disk)?;
                }
                Ok((!is_all).then_some(false))
            }
        }
    }

    /// The part of a range that is on the disk; the rest is the footer.
    fn on_disk(&self, at: u64, len: u64) -> Result<Range<u64>, DiskError> {
        let size = self.header.size;
        let all = size + FOOTER_LEN as u64;
        let end = at.checked_add(len).filter(|end| *end <= all);
        match end {
            Some(end) if at.is_multiple_of(SECTOR) && end.is_multiple_of(SECTOR) => {
                Ok(at.min(size)..end.min(size))
            }
            _ => Err(DiskError::Argument(format!(
                "{len} bytes at {at} are not whole sectors of the {all} bytes of the upload"
            ))),
        }
    }

    fn is_footer(&self, bytes: &[u8]) -> bool {
        let found = footer::check(bytes, self.header.size);
        if let Err(why) = found {
            let name = self.disk.name();
            log::warn!("the footer that was uploaded of the disk {name} {why}");
        }
        found.is_ok()
    }

    /// Makes durable what was written, and has the header say whether the footer is right.
    fn finish(&mut self, footer: Option<bool>) -> Result<(), DiskError> {
        let flushed = self.io.flush().map_err(DiskError::from);
        self.disk.keeping_failed_sync(&self.installation, flushed)?;
        let Some(footer) = footer else {
            return Ok(());
        };
        let upload = Some(Upload { footer });
        if self.header.upload == upload {
            return Ok(());
        }
        let file = self.disk.header_file()?;
        let mut lock = file.lock()?;
        let mut header = lock.read()?.authenticate_by(&self.key)?;
        header.upload = upload;
        lock.write(&header, &self.key)?;
        self.header.upload = upload;
        Ok(())
    }
}
