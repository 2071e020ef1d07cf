//! Writing the data of a disk in upload, on a thread of its own: a ring of io_uring is one thread's. What waits while
//! it writes is made durable together.

use std::fs;
use std::ops::Range;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime};

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
use keys::{DekStack, KeyError, ROOMY_STACK, sha256, spawn_with_keys, with_wiped_call_stack};
use vault::audit::Space;
use volume::pipeline::{DiskIo, PipelineError};
use volume::store::LayerFile;

/// Bytes that are encrypted and written at a time.
const CHUNK: usize = 512 << 10;
const SECTOR: u64 = 512;
/// What uploads leave of the file system of the installation: whoever writes has nothing but a URL, and would take the
/// room of the audit logs otherwise, without which that URL is not revoked.
const LEFT: u64 = 64 << 20;

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
    state_dir: PathBuf,
    /// When its data was changed last. The file says so too, so that whoever opens it next goes on from there.
    changed: Mutex<SystemTime>,
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
            changed: Mutex::new(modified(&claim)),
            claim,
            state_dir: installation.state_dir().into(),

            jobs: Some(Mutex::new(jobs)),
            thread: Some(thread),
        })
    }

    /// Bytes of the disk. A footer follows them.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Changes with what the disk is, and with each write.
    pub fn version(&self) -> u64 {
        let since = self.modified().duration_since(SystemTime::UNIX_EPOCH);
        let modified = since.map_or(0, |since| since.as_nanos());
        let mut all = self.version.to_le_bytes().to_vec();
        all.extend(modified.to_le_bytes());
        let mut version = [0; 8];
        version.copy_from_slice(&sha256(&all)[..8]);
        u64::from_le_bytes(version)
    }

    /// When its data was changed last.
    pub fn modified(&self) -> SystemTime {
        *self.changed()
    }

    fn changed(&self) -> MutexGuard<'_, SystemTime> {
        // It is replaced as a whole.
        self.changed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells of a change by a moment that was not told of before: the kernel's own are ticks of some milliseconds, and zeros
    /// may change nothing but the map.
    fn note_change(&self) {
        let mut changed = self.changed();
        *changed = SystemTime::now().max(*changed + Duration::from_nanos(1));
        if let Err(error) = self.claim.file().set_modified(*changed) {
            log::warn!(
                "the file of the disk {} does not tell when it was changed: {error}",
                self.disk.name()
            );
        }
    }

    /// Whether its keys are still granted.
    pub fn keys(&self) -> &KeyWatch {
        &self.keys
    }

    /// Whether so many bytes can be written and leave the installation the room that it needs.
    pub fn has_room(&self, bytes: u64) -> bool {
        let device = |path: &Path| fs::metadata(path).map(|found| found.dev()).ok();
        let is_elsewhere = device(self.disk.directory()) != device(&self.state_dir);
        // What cannot be found out shows when it is written.
        let lacks = |space: Space| space.available < LEFT + bytes;
        is_elsewhere || !Space::at(&self.state_dir).is_ok_and(lacks)
    }

    /// Writes to the disk or its footer, in whole sectors. It is durable when this returns.
    ///
    /// # Errors
    /// [`DiskError::Argument`] for a range that is not there, others when it cannot be written, or something that was
    /// written together with it or before: nothing is written any more then, until the disk is opened again.
    pub fn write(&self, at: u64, part: Part) -> Outcome {
        let ended = || -> Arc<DiskError> {
            Arc::new(KeyError::Thread(std::io::ErrorKind::BrokenPipe.into()).into())
        };
        let (done, outcome) = channel();
        let jobs = self.jobs.as_ref().ok_or_else(ended)?;
        let jobs = jobs.lock().unwrap_or_else(PoisonError::into_inner).clone();
        jobs.send(Job { at, part, done }).map_err(|_| ended())?;
        let outcome = outcome.recv();
        // It may have been written whatever became of it.
        self.note_change();
        outcome.map_err(|_| ended())?
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

    /// Writes what is asked for. Once anything has failed, nothing succeeds any more: a failure is told once, by
    /// whatever comes next, and nobody knows whose write it was.
    fn serve(&mut self, jobs: &Receiver<Job>) {
        let mut outcome: Outcome = Ok(());
        while let Ok(first) = jobs.recv() {
            let mut asked = Vec::new();
            let mut footer = None;
            for job in std::iter::once(first).chain(jobs.try_iter()) {
                match self.on_disk(job.at, job.part.len()) {
                    Ok(range) => {
                        if outcome.is_ok() {
                            let written = self.write(job.at, range, &job.part);
                            outcome = written
                                .map(|found| footer = found.or(footer))
                                .map_err(Arc::new);
                        }
                        asked.push(job.done);
                    }
                    // Nothing was begun of it.
                    Err(error) => drop(job.done.send(Err(Arc::new(error)))),
                }
            }
            if outcome.is_ok() && !asked.is_empty() {
                outcome = self.finish(footer).map_err(Arc::new);
            }
            for done in asked {
                // Who does not wait any more need not know.
                let _ = done.send(outcome.clone());
            }
        }
    }

    /// Writes a part, of which `range` is on the disk; whether what it has of the footer is right, if it has anything.
    fn write(
        &mut self,
        at: u64,
        range: Range<u64>,
        part: &Part,
    ) -> Result<Option<bool>, DiskError> {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::import::Cancel;
    use crate::lifecycle::create::{CreateRequest, create};

    fn ask(jobs: &Sender<Job>, at: u64, part: Part) -> Receiver<Outcome> {
        let (done, outcome) = channel();
        jobs.send(Job { at, part, done }).unwrap();
        outcome
    }

    /// The data file cannot be written to. Writing zeros needs the map alone, and is told what failed before.
    #[test]
    fn a_failure_that_another_part_was_told_of_is_not_forgotten() {
        let dir = tempfile::tempdir().unwrap();
        let installation = Arc::new(Installation::open(dir.path().join("state")).unwrap());
        let request = CreateRequest {
            name: "d".into(),
            size: Some(1 << 20),
            source: None,
            disk_encryption_set: None,
            sector_size: 4096,
            logical_sector_size: None,
            data_dir: None,
        };
        create(&installation, &request, &Cancel::default(), |_| |_| {}).unwrap();
        let disk = Disk::find(&installation, "d").unwrap();
        let found = disk.header_file().unwrap().read().unwrap();
        let (header, deks) = disk.unlock_all(&installation, found).unwrap();
        let data = disk.layer_paths(header.top().unwrap()).data;
        let begin = Begin {
            installation: Arc::clone(&installation),
            claim: LayerFile::open_to_read(&data).unwrap(),
            runtime_dir: dir.path().join("none"),
            disk,
            deks,
        };
        let (jobs, to_do) = channel();
        let bytes = Part::Bytes(Zeroizing::new(vec![1; 4096]));
        // One batch: they are there before anything is done.
        let written = ask(&jobs, 0, bytes);
        let told = ask(&jobs, 4096, Part::Zeros(4096));
        let beyond = ask(&jobs, 1 << 30, Part::Zeros(4096));
        std::thread::scope(|scope| {
            scope.spawn(move || begin.serve(header, &to_do));
            assert!(written.recv().unwrap().is_err(), "it is not written");
            assert!(told.recv().unwrap().is_err());
            let beyond = beyond.recv().unwrap().unwrap_err();
            assert!(matches!(*beyond, DiskError::Argument(_)), "{beyond}");
            let later = ask(&jobs, 8192, Part::Zeros(4096));
            assert!(later.recv().unwrap().is_err());
            drop(jobs);
        });
    }
}
