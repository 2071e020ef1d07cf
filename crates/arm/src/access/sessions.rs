//! Disks and snapshots that are open for whoever was granted access.
//!
//! The keys are unwrapped when the first request of a grant comes, and asked for again every few seconds, whatever its
//! clients do. They go when a vault refuses them, the grant is over, or nobody has asked for long.

use std::collections::HashMap;
use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::{Duration, Instant};

use time::OffsetDateTime;
use uuid::Uuid;
use zeroize::Zeroizing;

use super::error::BlobError;
use super::policy::is_forbidden;
use disks::{DiskError, Download, KeyWatch, Piece, Reader, Uploader};
use installation::catalog::{Access, AccessRecord, CatalogError};
use installation::{Installation, Place as Installed};
use server::{ByteStream, Chunk};

/// How often it is looked which grants are over, and which keys.
const LOOK: Duration = Duration::from_millis(300);
/// For how long keys are kept that nobody uses.
const IDLE: Duration = Duration::from_secs(10);
/// Most downloads at a time.
const MOST: usize = 32;
/// Most downloads at a time by the grants of one identity, so that nobody keeps all others out.
const MAX_OF_ONE: usize = 20;
/// Bytes that the kernel takes at once: whoever asks for so few is not counted.
const SHORT: u64 = 64 << 10;

/// The open disks of a server.
pub struct Sessions {
    inner: Arc<Inner>,
}

struct Inner {
    installed: Installed,
    runtime_dir: PathBuf,
    installation: Mutex<Option<Arc<Installation>>>,
    /// By the id of the grant.
    open: Mutex<HashMap<Uuid, Arc<Place>>>,
    watching: AtomicBool,
    downloads: Arc<Downloads>,
}

/// The place of a session: who opens it lets others of the same grant wait.
type Place = Mutex<Option<Arc<Session>>>;

/// A disk or a snapshot that is open by a grant.
pub struct Session {
    installation: Arc<Installation>,
    grant: AccessRecord,
    opened: Opened,
    over: AtomicBool,
    used: Mutex<Instant>,
    /// Held to write: alone by whoever does so on a condition, which is to hold until it is written.
    writing: RwLock<()>,
}

/// The turn of a request that writes, until it is dropped.
pub struct Turn<'a> {
    _shared: Option<RwLockReadGuard<'a, ()>>,
    _alone: Option<RwLockWriteGuard<'a, ()>>,
}

/// What a session is of.
pub enum Opened {
    /// A disk or a snapshot to be read.
    Read(Arc<Reader>),
    /// A disk in upload.
    Write(Box<Uploader>),
}

fn locked<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Sessions {
    /// In the installation at that place.
    pub fn new(installed: Installed, runtime_dir: PathBuf) -> Self {
        Self {
            inner: Arc::new(Inner {
                installed,
                runtime_dir,
                installation: Mutex::default(),
                open: Mutex::default(),
                watching: AtomicBool::new(false),
                downloads: Arc::default(),
            }),
        }
    }

    /// The session of a grant, which counts now. The keys were granted a moment ago at the latest.
    ///
    /// # Errors
    /// The vault's refusal; that the disk cannot be opened.
    pub fn get(&self, grant: &AccessRecord) -> Result<Arc<Session>, BlobError> {
        let installation = self.inner.installation()?;
        let place = Arc::clone(locked(&self.inner.open).entry(grant.id).or_default());
        let session = {
            let mut place = locked(&place);
            let known = place.as_ref().filter(|session| !session.is_over());
            match known.cloned() {
                Some(session) => session,
                None => {
                    // Whoever has it open keeps it claimed.
                    *place = None;
                    let opened = self.inner.open(installation, grant)?;
                    Arc::clone(place.insert(Arc::new(opened)))
                }
            }
        };
        self.inner.watch();
        session.check()?;
        Ok(session)
    }

    /// Ends the sessions of a disk or a snapshot, access to which is over.
    pub fn end(&self, resource: Uuid) {
        let places: Vec<_> = locked(&self.inner.open).values().cloned().collect();
        for place in places {
            let mut place = locked(&place);
            if let Some(session) = place.take_if(|session| session.grant.resource == resource) {
                session.over.store(true, Ordering::Release);
            }
        }
    }

    /// A place for a download of so many bytes.
    ///
    /// # Errors
    /// 503 when there are too many.
    pub fn begin_download(&self, session: &Session, length: u64) -> Result<Begun, BlobError> {
        begin_download(&self.inner.downloads, session.grant.created.by, length)
    }
}

/// How many downloads there are, by who has granted access.
type Downloads = Mutex<HashMap<Uuid, usize>>;

/// A download that is counted, unless it is short, until it is dropped.
pub struct Begun(Option<(Arc<Downloads>, Uuid)>);

fn begin_download(all: &Arc<Downloads>, by: Uuid, length: u64) -> Result<Begun, BlobError> {
    if length <= SHORT {
        return Ok(Begun(None));
    }
    let mut downloads = locked(all);
    let of_one = downloads.get(&by).copied().unwrap_or_default();
    if of_one >= MAX_OF_ONE || downloads.values().sum::<usize>() >= MOST {
        return Err(BlobError::busy());
    }
    downloads.insert(by, of_one + 1);
    Ok(Begun(Some((Arc::clone(all), by))))
}

impl Drop for Begun {
    fn drop(&mut self) {
        let Some((downloads, by)) = &self.0 else {
            return;
        };
        let mut downloads = locked(downloads);
        if let Some(left) = downloads.get_mut(by) {
            *left -= 1;
            if *left == 0 {
                downloads.remove(by);
            }
        }
    }
}

impl Inner {
    /// The installation, which stays open: sessions outlive requests.
    fn installation(&self) -> Result<Arc<Installation>, BlobError> {
        let mut kept = locked(&self.installation);
        if let Some(installation) = &*kept {
            installation.renew()?;
            return Ok(Arc::clone(installation));
        }
        let opened = Arc::new(Installation::open_existing(&self.installed)?);
        Ok(Arc::clone(kept.insert(opened)))
    }

    fn open(
        &self,
        installation: Arc<Installation>,
        grant: &AccessRecord,
    ) -> Result<Session, BlobError> {
        let (name, id) = (grant.name.as_str(), grant.resource);
        let opened = match grant.access {
            Access::Read => {
                let of = (grant.kind, name, id);
                let reader = Reader::open(&installation, of, &self.runtime_dir)?;
                Opened::Read(Arc::new(reader))
            }
            Access::Write => {
                let of = (name, id);
                let uploader = Uploader::open(&installation, of, &self.runtime_dir)?;
                Opened::Write(Box::new(uploader))
            }
        };
        Ok(Session {
            installation,
            grant: grant.clone(),
            opened,
            over: AtomicBool::new(false),
            used: Mutex::new(Instant::now()),
            writing: RwLock::new(()),
        })
    }

    /// Starts the thread that looks which grants are over, unless it runs.
    fn watch(self: &Arc<Self>) {
        if self.watching.swap(true, Ordering::AcqRel) {
            return;
        }
        let this = Arc::clone(self);
        let work = move || {
            while this.look() {
                std::thread::sleep(LOOK);
            }
        };
        let started = std::thread::Builder::new()
            .name("access".into())
            .spawn(work);
        if let Err(error) = started {
            // Nobody would end what is revoked.
            log::error!("access to disks over the network ends: {error}");
            locked(&self.open).clear();
            self.watching.store(false, Ordering::Release);
        }
    }

    /// Ends what is over; whether there is anything left to look at.
    fn look(&self) -> bool {
        let places: Vec<_> = {
            let open = locked(&self.open);
            if open.is_empty() {
                self.watching.store(false, Ordering::Release);
                return false;
            }
            let each = open.iter();
            each.map(|(id, place)| (*id, Arc::clone(place))).collect()
        };
        for (id, place) in places {
            // Whoever opens it now has just looked.
            let Ok(mut session) = place.try_lock() else {
                continue;
            };
            if session.as_ref().is_some_and(|session| session.may_stay()) {
                continue;
            }
            if let Some(session) = session.take() {
                session.end_if_over();
            }
            drop(session);
            let mut open = locked(&self.open);
            // One for the table, one here: nobody is about to open it.
            if Arc::strong_count(&place) <= 2 {
                open.remove(&id);
            }
        }
        true
    }
}

impl Session {
    /// What is open.
    pub fn opened(&self) -> &Opened {
        &self.opened
    }

    /// Waits until a request may write: with others, or alone.
    pub fn turn(&self, alone: bool) -> Turn<'_> {
        let (shared, alone) = match alone {
            true => (None, Some(self.writing.write())),
            false => (Some(self.writing.read()), None),
        };
        Turn {
            _shared: shared.map(|turn| turn.unwrap_or_else(PoisonError::into_inner)),
            _alone: alone.map(|turn| turn.unwrap_or_else(PoisonError::into_inner)),
        }
    }

    /// Has the next request open the disk again: this session has failed.
    pub fn give_up(&self) {
        self.over.store(true, Ordering::Release);
    }

    fn is_over(&self) -> bool {
        self.over.load(Ordering::Acquire)
            || self.keys().is_over()
            || !self.grant.is_live(OffsetDateTime::now_utc())
    }

    fn keys(&self) -> &KeyWatch {
        match &self.opened {
            Opened::Read(reader) => reader.keys(),
            Opened::Write(uploader) => uploader.keys(),
        }
    }

    /// Refuses what is over: the next request opens another session, or is refused.
    pub(super) fn check(&self) -> Result<(), BlobError> {
        if let Some(refused) = self.end_without_keys() {
            return Err(refused.into());
        }
        if self.is_over() {
            return Err(BlobError::unauthentic());
        }
        *locked(&self.used) = Instant::now();
        Ok(())
    }

    /// Ends the session, and tells once why, if its keys are not granted any more.
    fn end_without_keys(&self) -> Option<DiskError> {
        if !self.keys().is_over() || self.over.swap(true, Ordering::AcqRel) {
            return None;
        }
        let error = self.keys().why();
        let (kind, name) = (self.grant.kind, &self.grant.name);
        log::warn!("access over the network to the {kind} {name} ends: {error}");
        Some(error)
    }

    /// Whether the session is to be kept.
    fn may_stay(self: &Arc<Self>) -> bool {
        let is_used = Arc::strong_count(self) > 1 || locked(&self.used).elapsed() < IDLE;
        is_used && !self.end_if_over()
    }

    /// Whether the grant is over, which those who use the session are told then.
    fn end_if_over(&self) -> bool {
        let over = self.end_without_keys().is_some()
            || self.is_over()
            || self.is_gone().unwrap_or_else(|error| {
                // What cannot be found out is not granted.
                log::error!("access to disks over the network ends: {error}");
                true
            });
        if over {
            self.over.store(true, Ordering::Release);
        }
        over
    }

    fn is_gone(&self) -> Result<bool, CatalogError> {
        let Some(now) = self.installation.catalog().access(self.grant.id)? else {
            return Ok(true);
        };
        is_forbidden(&self.installation, now.kind.into(), &now.name)
    }
}

/// What is sent of a disk.
pub struct Sent {
    session: Arc<Session>,
    download: Download,
    _begun: Begun,
}

impl Sent {
    /// A download by a session.
    pub fn new(session: Arc<Session>, download: Download, begun: Begun) -> Self {
        Self {
            session,
            download,
            _begun: begun,
        }
    }

    /// All of it, which is looked at before it is sent. It is to be little.
    ///
    /// # Errors
    /// That access is over, or it cannot be read.
    pub fn whole(mut self) -> Result<Whole, BlobError> {
        let length = usize::try_from(self.left()).unwrap_or_default();
        // As long as it is to be, so that nothing of it stays behind where it grew.
        let mut bytes = Zeroizing::new(Vec::with_capacity(length));
        while let Some(piece) = self.next_piece()? {
            match piece {
                Piece::Zeros(count) => {
                    let len = bytes.len() + count;
                    bytes.resize(len, 0);
                }
                Piece::Data(buffer, range) => {
                    bytes.extend_from_slice(buffer.get(range).unwrap_or_default());
                }
            }
        }
        Ok(Whole { of: self, bytes })
    }

    fn next_piece(&mut self) -> Result<Option<Piece>, BlobError> {
        self.session.check()?;
        self.download.next_piece().map_err(|error| {
            let (kind, name) = (self.session.grant.kind, &self.session.grant.name);
            // Whoever downloads is told nothing once the answer has begun, but the end of the connection.
            log::error!("a download of the {kind} {name} fails: {error}");
            BlobError::from(error)
        })
    }
}

/// What is sent of a disk and was looked at before.
pub struct Whole {
    of: Sent,
    bytes: Zeroizing<Vec<u8>>,
}

impl Whole {
    /// The bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }
}

impl ByteStream for Whole {
    fn left(&self) -> u64 {
        self.bytes.len() as u64
    }

    fn next_chunk(&mut self) -> io::Result<Option<Chunk>> {
        let bytes = std::mem::take(&mut self.bytes);
        let all = 0..bytes.len();
        Ok((!bytes.is_empty()).then_some(Chunk::Data(bytes, all)))
    }

    fn permission(&self) -> Arc<dyn Fn() -> bool + Send + Sync> {
        self.of.permission()
    }
}

impl ByteStream for Sent {
    fn left(&self) -> u64 {
        self.download.left()
    }

    fn next_chunk(&mut self) -> io::Result<Option<Chunk>> {
        let piece = self.next_piece();
        let piece = piece.map_err(|error| io::Error::other(error.message))?;
        Ok(piece.map(|piece| match piece {
            Piece::Zeros(len) => Chunk::Zeros(len),
            Piece::Data(buffer, range) => Chunk::Data(buffer, range),
        }))
    }

    fn permission(&self) -> Arc<dyn Fn() -> bool + Send + Sync> {
        let session = Arc::clone(&self.session);
        Arc::new(move || !session.is_over())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_takes_all_places_of_downloads() {
        let downloads = Arc::new(Downloads::default());
        let begin = |by: u128, length: u64| begin_download(&downloads, Uuid::from_u128(by), length);
        // By however many grants.
        let mut begun: Vec<_> = (0..MOST).filter_map(|_| begin(1, u64::MAX).ok()).collect();
        assert_eq!(begun.len(), MAX_OF_ONE);
        assert!(begin(2, u64::MAX).is_ok());
        begun.extend((0..MOST).filter_map(|_| begin(2, u64::MAX).ok()));
        assert_eq!(begun.len(), MOST);
        assert!(begin(3, SHORT + 1).is_err());
        assert!(begin(3, SHORT).is_ok());
        drop(begun);
        assert!(locked(&downloads).is_empty());
    }
}
