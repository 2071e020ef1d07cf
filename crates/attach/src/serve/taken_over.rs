//! That another host has taken the disk over from this attach.
//!
//! Storage that lets one host write at a time refuses what this one writes then. It may have taken the lock from it without
//! a word, since this host was frozen or cut off, and whoever knew no better has said that it is off. So a thread looks each
//! second whether the header still names this attach, which is one look at the attributes of a file as long as nobody has
//! changed it. Whether the catalog does is asked only when the lease of this host has had a break, before which nobody takes
//! anything from it, and while the header cannot be read.
//!
//! What was taken over is not given back: the data plane is killed, with its keys, and nothing is made durable any more.

use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use uuid::Uuid;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use crate::serve::attached_disk::AttachedDisk;
use disks::Disk;
use installation::{HostLease, Installation};

/// How often it is looked.
const LOOK: Duration = Duration::from_secs(1);
/// How often the catalog is asked while the header cannot be read.
const ASK: Duration = Duration::from_secs(5);

/// What the supervision hears of it.
#[derive(Clone)]
pub(crate) struct TakenOver(Arc<Inner>);

struct Inner {
    by: Mutex<Option<String>>,
    bell: EventFd,
}

impl TakenOver {
    /// Nobody has taken it over yet.
    ///
    /// # Errors
    /// What the kernel says.
    pub(crate) fn new() -> io::Result<Self> {
        let bell = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?;
        let by = Mutex::default();
        Ok(Self(Arc::new(Inner { by, bell })))
    }

    /// Becomes readable when somebody has.
    pub(crate) fn bell(&self) -> &EventFd {
        &self.0.bell
    }

    /// Who has, in words, if somebody has.
    pub(crate) fn take(&self) -> Option<String> {
        let _ = self.0.bell.read();
        self.by().take()
    }

    fn tell(&self, by: String) {
        *self.by() = Some(by);
        let _ = self.0.bell.write(1);
    }

    fn by(&self) -> std::sync::MutexGuard<'_, Option<String>> {
        // It is replaced as a whole.
        self.0.by.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What is looked at, and who hears of it.
pub(crate) struct TakeoverWatch {
    pub(crate) installation: Arc<Installation>,
    pub(crate) disk: Arc<Disk>,
    pub(crate) attached_disk: Arc<AttachedDisk>,
    /// Nothing where the catalog is this host's own.
    pub(crate) lease: Option<Arc<HostLease>>,
    pub(crate) taken_over: TakenOver,
}

/// What tells one state of a file from another.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Stamp([i64; 5]);

/// What the header says.
enum Said {
    /// Nothing that was not known.
    AsBefore,
    /// That another attach has had the disk, on the host of that name, if it says one.
    Another(Option<String>),
    /// It cannot be read.
    Unreadable,
}

impl TakeoverWatch {
    /// Looks from now on, until the end of the process.
    ///
    /// # Errors
    /// What the kernel says.
    pub(crate) fn spawn(self) -> io::Result<()> {
        let thread = std::thread::Builder::new().name("takeovers".into());
        thread.spawn(move || self.run()).map(drop)
    }

    fn run(self) {
        let (mut seen, mut asked) = (None, Instant::now());
        // The program before this one may have missed a break of the lease.
        let mut under = None;
        loop {
            std::thread::sleep(LOOK);
            let Some(own) = self.attached_disk.own_attaches() else {
                seen = None;
                continue;
            };
            let mut by = None;
            let said = self.look_at_header(&mut seen, own);
            let is_unreadable = matches!(said, Said::Unreadable);
            if let Said::Another(host) = said {
                by = Some(host);
            }
            let lease = self.lease.as_ref().and_then(|lease| lease.id());
            let has_broken = lease.is_some() && lease != under;
            let is_due = is_unreadable && asked.elapsed() >= ASK;
            if by.is_none() && self.lease.is_some() && (has_broken || is_due) {
                asked = Instant::now();
                match self.disk.taken_since(&self.installation, own[0]) {
                    Ok(Some(now)) => by = Some(Some(now.host_name)),
                    Ok(None) => under = lease,
                    Err(error) => log::debug!("whose the disk is cannot be asked: {error}"),
                }
            }
            // Where it was let go of meanwhile, and taken again, that was this attach.
            if let Some(host) = by
                && self.attached_disk.own_attaches() == Some(own)
            {
                let by =
                    host.map_or_else(|| "another host".into(), |name| format!("the host {name}"));
                return self.taken_over.tell(by);
            }
        }
    }

    /// `own` is what the header has of this attach, and will have when it has ended.
    fn look_at_header(&self, seen: &mut Option<Stamp>, own: [Uuid; 2]) -> Said {
        // It is opened anew: a client of NFS asks its server then.
        let Ok(stamp) = stamp_of(&self.disk) else {
            return Said::Unreadable;
        };
        if *seen == Some(stamp) {
            return Said::AsBefore;
        }
        let found = self.disk.header_file().and_then(|file| Ok(file.read()?));
        let Ok(found) = found else {
            return Said::Unreadable;
        };
        *seen = Some(stamp);
        let claims = found.claims();
        match claims.disk != self.disk.id() || own.contains(&claims.attach) {
            true => Said::AsBefore,
            false => {
                let session = claims.session.as_ref();
                Said::Another(session.map(|session| session.host_name().to_owned()))
            }
        }
    }
}

fn stamp_of(disk: &Disk) -> io::Result<Stamp> {
    let found = File::open(disk.header_path())?.metadata()?;
    Ok(Stamp([
        found.ino() as i64,
        found.mtime(),
        found.mtime_nsec(),
        found.ctime(),
        found.ctime_nsec(),
    ]))
}
