//! Keeping what the frontend set up, for the next data plane.
//!
//! A thread takes what the data plane has kept, until that has ended, so that this never waits for anything else.
//! What was kept is whole then, unless the data plane died in the middle of a message ([`KeptRegion`]).

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use rustix::net;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use crate::serve::passed::{Parcel, Passed};
use protocol::{
    Change, IoCounters, KeepSocket, Kept, KeptKey, KeptRegion, KeptThings, ProtocolError, Waiter,
    inflight_progress,
};

/// What outlives a data plane of its frontend's connection.
pub(crate) struct Keeping {
    region: Arc<KeptRegion>,
    counted: Arc<Counted>,
    things: Arc<Mutex<KeptThings>>,
    /// The next data plane gets another region.
    is_stale: bool,
    /// The thread of the data plane that runs.
    thread: Option<KeepingThread>,
    /// The socket of a thread that has paused.
    paused: Option<KeepSocket>,
}

/// Where it is read what the data planes of a disk have counted.
pub(crate) struct Counted(Mutex<Arc<KeptRegion>>);

impl Counted {
    /// What they have counted; `None` where nothing is.
    ///
    /// # Errors
    /// What the kernel says.
    pub(crate) fn counters(&self) -> io::Result<Option<IoCounters>> {
        let region = lock(&self.0).clone();
        region.counters()
    }
}

/// What the next program of this process is told.
pub(crate) struct PassedKeeping {
    pub(crate) kept: Vec<(Kept, Option<Passed>)>,
    /// The socket of the data plane.
    pub(crate) keep: Passed,
    pub(crate) region: Passed,
}

struct KeepingThread {
    /// A second handle of its socket.
    end: OwnedFd,
    pause: EventFd,
    /// Gives the socket back, unless there will be nothing more.
    thread: JoinHandle<Option<KeepSocket>>,
}

impl Keeping {
    /// Nothing yet, of a device with so many queues.
    ///
    /// # Errors
    /// What the kernel says.
    pub(crate) fn new(queues: u16) -> io::Result<Self> {
        let region = Arc::new(KeptRegion::create(queues)?);
        Ok(Self {
            counted: Arc::new(Counted(Mutex::new(region.clone()))),
            region,
            things: Arc::new(Mutex::new(KeptThings::new(queues))),
            is_stale: false,
            thread: None,
            paused: None,
        })
    }

    /// What the program before this one has kept, with the socket of the data plane that runs.
    ///
    /// # Errors
    /// What the kernel says.
    pub(crate) fn adopt(
        queues: u16,
        region: OwnedFd,
        kept: Vec<(Kept, Option<Passed>)>,
        from: KeepSocket,
    ) -> io::Result<Self> {
        let mut things = KeptThings::new(queues);
        for (thing, descriptor) in kept {
            let descriptor = descriptor.map(Passed::take).transpose()?;
            let put = things.apply(Change::Put(thing), descriptor);
            put.map_err(io::Error::other)?;
        }
        let region = Arc::new(KeptRegion::adopt(region, queues));
        let mut this = Self {
            counted: Arc::new(Counted(Mutex::new(region.clone()))),
            region,
            things: Arc::new(Mutex::new(things)),
            is_stale: false,
            thread: None,
            paused: None,
        };
        this.listen(from)?;
        Ok(this)
    }

    /// For the next program: what is kept, the socket of the data plane and the memory. The thread has paused.
    ///
    /// # Errors
    /// What the kernel says.
    pub(crate) fn passed(&self, parcel: &mut Parcel) -> io::Result<PassedKeeping> {
        let things = lock(&self.things);
        let kept = things.iter().map(|(kept, descriptor)| {
            let passed = descriptor.map(|descriptor| parcel.put(descriptor));
            Ok((kept, passed.transpose()?))
        });
        let kept = kept.collect::<io::Result<_>>()?;
        let paused = self.paused.as_ref().ok_or(io::ErrorKind::NotConnected)?;
        Ok(PassedKeeping {
            kept,
            keep: parcel.put(paused)?,
            region: parcel.put(&*self.region)?,
        })
    }

    /// Has the thread take no change any more; those that come wait in the socket.
    ///
    /// # Errors
    /// [`io::ErrorKind::NotConnected`] when there will be none.
    pub(crate) fn pause(&mut self) -> io::Result<()> {
        let Some(KeepingThread { pause, thread, .. }) = self.thread.take() else {
            return Err(io::ErrorKind::NotConnected.into());
        };
        pause.write(1)?;
        self.paused = thread.join().ok().flatten();
        match self.paused {
            Some(_) => Ok(()),
            None => Err(io::ErrorKind::NotConnected.into()),
        }
    }

    /// Has it go on.
    ///
    /// # Errors
    /// What the kernel says.
    pub(crate) fn go_on(&mut self) -> io::Result<()> {
        match self.paused.take() {
            Some(socket) => self.listen(socket),
            None => Ok(()),
        }
    }

    /// The memory that the data plane shares.
    pub(crate) fn region(&self) -> &KeptRegion {
        &self.region
    }

    /// What is counted there, for whoever asks.
    pub(crate) fn counted(&self) -> &Arc<Counted> {
        &self.counted
    }

    /// How many things there are.
    pub(crate) fn len(&self) -> u32 {
        lock(&self.things).len() as u32
    }

    /// Sends what is kept to a data plane, which expects it.
    ///
    /// # Errors
    /// [`ProtocolError`].
    pub(crate) fn send(&self, to: &KeepSocket) -> Result<(), ProtocolError> {
        lock(&self.things)
            .iter()
            .try_for_each(|(kept, descriptor)| to.send(&Change::Put(kept), descriptor))
    }

    /// Takes what a data plane has kept from now on.
    ///
    /// # Errors
    /// What the kernel says.
    pub(crate) fn listen(&mut self, to: KeepSocket) -> io::Result<()> {
        let end = std::os::fd::AsFd::as_fd(&to).try_clone_to_owned()?;
        let things = self.things.clone();
        let pause = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?;
        let told = pause.try_clone()?;
        let thread = std::thread::Builder::new()
            .name("keeper".into())
            .spawn(move || match keep(&to, &told, &things) {
                Ok(true) => Some(to),
                Ok(false) => None,
                Err(error) => {
                    log::warn!(
                        "what the data plane has kept is not understood, so its frontend would have to \
                         connect anew: {error}"
                    );
                    lock(&things).clear();
                    // Whoever sends more learns that it is not kept.
                    let _ = net::shutdown(&to, net::Shutdown::Both);
                    None
                }
            })?;
        self.thread = Some(KeepingThread { end, pause, thread });
        Ok(())
    }

    /// After the end of the data plane: takes what is left. A message that it died over ends the connection.
    pub(crate) fn finish(&mut self) {
        self.handed_over();
        let mut things = lock(&self.things);
        if self.region.is_busy().unwrap_or(true) {
            if let Some(connection) = things.descriptor(KeptKey::Connection) {
                log::warn!(
                    "the data plane died over a message of the frontend, which has to connect anew"
                );
                // It fails when it has ended already.
                let _ = net::shutdown(connection, net::Shutdown::Both);
            }
            things.clear();
        }
        // The next frontend says where the rings go on.
        self.is_stale |= things.is_empty();
    }

    /// Before another data plane: has the memory that it is to find. A host may be short of memory or descriptors for a
    /// while, so it can be called again after a failure.
    ///
    /// # Errors
    /// What the kernel says.
    pub(crate) fn renew(&mut self) -> io::Result<()> {
        if self.is_stale {
            self.region = Arc::new(self.region.renewed()?);
            *lock(&self.counted.0) = self.region.clone();
            self.is_stale = false;
        }
        Ok(())
    }

    /// After the data plane has handed over: takes what is left.
    pub(crate) fn handed_over(&mut self) {
        if let Some(KeepingThread { end, thread, .. }) = self.thread.take() {
            // What was sent is still received. Somebody else may have the other end, and must not be waited for.
            let _ = net::shutdown(&end, net::Shutdown::Read);
            let _ = thread.join();
        }
    }

    /// How far the queues are: another value after any request was returned.
    pub(crate) fn progress(&self) -> Vec<u16> {
        let things = lock(&self.things);
        let own = things.inflight().and_then(|(place, file)| {
            let file = File::from(file.try_clone_to_owned().ok()?);
            inflight_progress(&file, place.offset, place.queues, place.entries).ok()
        });
        let kept = self.region.progress().unwrap_or_default();
        kept.into_iter().chain(own.into_iter().flatten()).collect()
    }
}

/// Lets this process have as many descriptors as it may: a frontend may have one for each part of its guest's
/// memory, and who asks all attaches of a host one for each of them.
pub fn raise_file_limit() {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        ..limit
    };
    if let Err(error) = setrlimit(Resource::Nofile, raised) {
        log::debug!("the limit of open files stays as it is: {error}");
    }
}

/// Takes changes until there are no more, or until it is to pause: whether that.
fn keep(
    from: &KeepSocket,
    pause: &EventFd,
    things: &Mutex<KeptThings>,
) -> Result<bool, ProtocolError> {
    const PAUSE: u64 = 0;
    let fail = |source| ProtocolError::Io {
        what: "wait for what is to be kept",
        source,
    };
    let waiter = Waiter::new().map_err(fail)?;
    waiter.watch(pause, PAUSE).map_err(fail)?;
    waiter.watch(from, PAUSE + 1).map_err(fail)?;
    while waiter.wait().map_err(fail)? != PAUSE {
        let Some((change, descriptor)) = from.receive()? else {
            return Ok(false);
        };
        lock(things).apply(change, descriptor)?;
    }
    Ok(true)
}

fn lock<T>(things: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing is half changed at any point where a holder could panic.
    things.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;
    use std::os::unix::fs::FileExt;
    use std::os::unix::net::UnixStream;
    use std::time::Duration;

    use super::*;

    fn keeping() -> (Keeping, KeepSocket) {
        let mut keeping = Keeping::new(1).unwrap();
        let (ours, theirs) = KeepSocket::pair(Duration::from_secs(20)).unwrap();
        keeping.listen(ours).unwrap();
        (keeping, theirs.into())
    }

    /// Whether the other end of the connection has been closed.
    fn is_closed(frontend: &UnixStream) -> bool {
        use net::RecvFlags;
        let flags = RecvFlags::PEEK | RecvFlags::DONTWAIT;
        net::recv(frontend, &mut [0u8; 1], flags).is_ok_and(|(_, len)| len == 0)
    }

    #[test]
    fn a_connection_stays_unless_a_message_was_half_handled() {
        for busy in [false, true] {
            let (mut keeping, data_plane) = keeping();
            let (frontend, connection) = UnixStream::pair().unwrap();
            let put = Change::Put(Kept::Connection);
            data_plane.send(&put, Some(connection.as_fd())).unwrap();
            drop(connection);
            let file = File::from(keeping.region().as_fd().try_clone_to_owned().unwrap());
            file.write_all_at(&u32::from(busy).to_ne_bytes(), 0)
                .unwrap();
            // Somebody else has the socket, and keeps nobody waiting.
            keeping.finish();
            keeping.renew().unwrap();
            assert_eq!(keeping.len(), u32::from(!busy));
            assert_eq!(is_closed(&frontend), busy);
            assert!(!keeping.region().is_busy().unwrap());
            let sent = data_plane.send(&Change::ForgetMemory, None);
            assert!(sent.is_err());
        }
    }

    #[test]
    fn what_is_not_understood_is_all_forgotten() {
        let (mut keeping, data_plane) = keeping();
        let (_frontend, connection) = UnixStream::pair().unwrap();
        let put = Change::Put(Kept::Connection);
        data_plane.send(&put, Some(connection.as_fd())).unwrap();
        let none = Change::Put(Kept::Kick { ring: 7 });
        data_plane.send(&none, Some(connection.as_fd())).unwrap();
        while data_plane.send(&Change::ForgetMemory, None).is_ok() {
            std::thread::sleep(Duration::from_millis(1));
        }
        keeping.finish();
        keeping.renew().unwrap();
        assert_eq!(keeping.len(), 0);
    }
}
