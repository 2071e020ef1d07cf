//! Letting go of a disk for another attach while no ring runs, and taking it when one is to run.
//!
//! A thread of an attach does both, since they take long. It holds the turn of whoever changes the disk meanwhile.
//!
//! # Order
//!
//! Letting go, when the rings rest and somebody waits for the disk ([`disks::Waiter`]):
//!
//! 1. The data plane makes durable what was completed, closes the disk and destroys its keys, or refuses since a ring
//!    runs. A crash from here on leaves a session in the header and a runtime map with nothing that is not durable.
//! 2. One write of the header takes the session out, then the runtime map goes.
//! 3. The claim is given up.
//!
//! Taking, when a ring is to run:
//!
//! 1. The claim is waited for, with a sign for whoever has it.
//! 2. The header is read again and authenticated; the vaults unwrap the keys, unless they are kept from before.
//! 3. A session begins, as at every attach.
//! 4. That the keys are handed over is recorded, and the data plane gets the disk.
//!
//! A disk that was let go of is taken at once when nobody waits for it any more and nobody has had it: the migration was
//! given up, and a guest that may go on must find the disk that it left.
//!
//! What fails is taken back, and the frontend's connection ends: it would wait for its requests for ever. A frontend
//! that connects anew has it tried again. Taken back is only what the data plane has refused. One that does not answer
//! may have the disk or take it any time, so the disk is kept, and it is killed: the next one gets it.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use time::OffsetDateTime;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use crate::begin::data_plane::process;
use crate::begin::setup::stack_of;
use crate::begin::take::{Claimed, Known, TakeOptions, Taken, claim, layers_of};
use crate::error::AttachError;
use crate::guard::records::{self, Operation, Record};
use crate::serve::attached_disk::{AttachedDisk, Held};
use crate::serve::control_socket::ControlSocket;
use crate::serve::event_hub::EventHub;
use crate::serve::jobs::Jobs;
use crate::serve::kept_keys::KeptKeys;
use crate::serve::letting_go::close_row;
use crate::status::{DiskHold, Event, EventKind, Reason};
use disks::{Awaiting, Disk, DiskError};
use installation::Installation;
use installation::envelope::HeaderPayload;
use keys::{ROOMY_STACK, spawn_with_keys};
use protocol::{Commands, OnRevoke, ProtocolError, RingsDo, Setup};

/// How long whoever has the disk is waited for.
const TAKE_PATIENCE: Duration = Duration::from_secs(10);
/// How often it is looked whether somebody waits for the disk, while its rings rest.
const LOOK: Duration = Duration::from_millis(200);
/// How often it is tried again to let go of a disk.
const AGAIN: Duration = Duration::from_secs(2);
/// How long it takes until a data plane that has its disk says that the rings do not wait any more.
const SETTLED: Duration = Duration::from_secs(1);

/// What the thread is told: what the rings of a connection do.
type RingsOf = (RingsDo, u64);

/// The thread, as the supervision sees it.
pub(crate) struct Migration {
    changes: Sender<RingsOf>,
    taken: Receiver<TakenDisk>,
    has_taken: EventFd,
}

/// That this attach has the disk, as the supervision is told.
pub(crate) struct TakenDisk {
    /// The key version that wraps its top layer's DEK.
    pub(crate) key_url: String,
    /// Whether the data plane has it nobody knows.
    pub(crate) is_silent: bool,
}

/// What it works with.
pub(crate) struct Work {
    pub(crate) installation: Arc<Installation>,
    pub(crate) disk: Arc<Disk>,
    pub(crate) attached_disk: Arc<AttachedDisk>,
    pub(crate) commands: Arc<Commands>,
    pub(crate) keys: Arc<KeptKeys>,
    pub(crate) event_hub: Arc<EventHub>,
    pub(crate) control: Arc<ControlSocket>,
    pub(crate) jobs: Jobs,
    pub(crate) options: TakeOptions,
    /// What the first data plane was told.
    pub(crate) setup: Setup,
    pub(crate) on_revoke: OnRevoke,
    /// Says that this attach waits for the disk, from its beginning on.
    pub(crate) awaiting: Mutex<Option<Awaiting>>,
    /// The guard of the key has begun: the disk was taken once.
    pub(crate) has_begun: AtomicBool,
}

impl Migration {
    /// Starts the thread.
    ///
    /// # Errors
    /// What the kernel says.
    pub(crate) fn spawn(work: Work) -> io::Result<Self> {
        let (changes, told) = channel();
        let (tell, taken) = channel();
        let has_taken = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?;
        let thread = Thread {
            work: Arc::new(work),
            tell,
            wake: has_taken.try_clone()?,
        };
        // It is never joined: what it does it does in its turn.
        let builder = std::thread::Builder::new().name("migration".into());
        builder.spawn(move || thread.run(&told))?;
        Ok(Self {
            changes,
            taken,
            has_taken,
        })
    }

    /// The rings of that connection do something else.
    pub(crate) fn rings(&self, rings: RingsDo, connection: u64) {
        // It has ended only with its panic, after which a ring that waits goes on waiting.
        let _ = self.changes.send((rings, connection));
    }

    /// Becomes readable when the keys of the disk were unwrapped.
    pub(crate) fn has_taken(&self) -> &EventFd {
        &self.has_taken
    }

    /// What was taken, if it was.
    pub(crate) fn taken(&self) -> Option<TakenDisk> {
        let _ = self.has_taken.read();
        self.taken.try_recv().ok()
    }
}

struct Thread {
    work: Arc<Work>,
    tell: Sender<TakenDisk>,
    wake: EventFd,
}

impl Thread {
    fn run(self, told: &Receiver<RingsOf>) {
        // What they do is said at the beginning, unless another program has heard that in this process. Whether one runs
        // the data plane knows in any case.
        let mut last: Option<RingsOf> = Some((RingsDo::Rest, 0));
        let mut known = None;
        // The connection whose rings rested when the disk was let go of.
        let mut left = None;
        loop {
            let change = match last {
                Some((RingsDo::Rest, _)) if self.work.has_begun() => {
                    told.recv_timeout(match known {
                        None => LOOK,
                        Some(_) => AGAIN,
                    })
                }
                // It was heard after another one.
                Some((RingsDo::Wait, _)) => Err(RecvTimeoutError::Timeout),
                _ => told.recv().map_err(|_| RecvTimeoutError::Disconnected),
            };
            match change {
                Ok(change) => last = Some(told.try_iter().last().unwrap_or(change)),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
            match last {
                Some((RingsDo::Rest, connection)) => match self.work.attached_disk.is_held() {
                    true => {
                        self.let_go_if_awaited(&mut known);
                        left = Some(connection);
                    }
                    false => self.take_back_if_given_up(&mut known),
                },
                Some((RingsDo::Wait, connection)) => {
                    last = self.after_a_wait(told);
                    if last.is_none() {
                        // A later connection may be of another guest. A data plane counts its connections from 1.
                        let is_later = left.is_some_and(|left| connection > left);
                        self.take(connection, !is_later);
                    }
                }
                Some((RingsDo::Run, _)) | None => {}
            }
        }
    }

    /// What the rings do since one was to run. That may have been while the disk was being taken, and is over then; else
    /// nothing follows, and the data plane has no disk.
    fn after_a_wait(&self, told: &Receiver<RingsOf>) -> Option<RingsOf> {
        match self.work.attached_disk.is_held() {
            true => told.recv_timeout(SETTLED).ok(),
            false => None,
        }
    }

    /// Lets go of the disk if somebody waits for it; `known` is why it could not last time.
    fn let_go_if_awaited(&self, known: &mut Option<String>) {
        let attached_disk = &self.work.attached_disk;
        if !attached_disk.is_held() || self.work.disk.awaited_by().is_none() {
            return;
        }
        let Some(_turn) = attached_disk.turns().take() else {
            return;
        };
        if self.work.commands.is_ending() {
            return;
        }
        match self.work.let_go() {
            Ok(()) => *known = None,
            Err(error) => {
                let name = attached_disk.name();
                let what = format!("the disk {name} is awaited and not let go of");
                warn_once(known, &what, &error);
            }
        }
    }

    /// Takes a disk back that was let go of, when nobody waits for it any more and nobody has had it since: a migration
    /// was given up. The guest may go on here, and nobody is to change or delete its disk before that; `known` is why it
    /// could not be taken last time.
    fn take_back_if_given_up(&self, known: &mut Option<String>) {
        let work = &self.work;
        if !work.has_begun() || work.disk.awaited_by().is_some() || !work.is_as_it_was_left() {
            return;
        }
        let Some(_turn) = work.attached_disk.turns().take() else {
            return;
        };
        if work.commands.is_ending() {
            return;
        }
        let taken = with_keys({
            let work = work.clone();
            move || work.take(Duration::ZERO, true)
        });
        match taken {
            Ok(taken) => {
                self.tell_taken(taken);
                *known = None;
            }
            Err(error) => {
                let name = work.attached_disk.name();
                let what = format!("nobody waits for the disk {name}, and it is not taken back");
                warn_once(known, &what, &error);
            }
        }
    }

    /// The supervision lives for as long as the process, and hears it before it changes the disk itself.
    fn tell_taken(&self, taken: TakenDisk) {
        let _ = self.tell.send(taken);
        let _ = self.wake.write(1);
    }

    /// Takes the disk for rings of that connection, which are to run, or ends the connection.
    fn take(&self, connection: u64, same_guest: bool) {
        let work = &self.work;
        let turn = work.attached_disk.turns().wait();
        if work.commands.is_ending() {
            return;
        }
        let taken = with_keys({
            let work = work.clone();
            move || match work.attached_disk.is_held() {
                // The data plane lost it when it was to be let go of.
                true => work.give_again().map(|()| None),
                false => work.take(TAKE_PATIENCE, same_guest).map(Some),
            }
        });
        let refused = match taken {
            Ok(Some(taken)) => {
                self.tell_taken(taken);
                None
            }
            Ok(None) => None,
            Err(error) => Some(error),
        };
        drop(turn);
        if let Some(error) = refused {
            work.refused(&error);
            match work.commands.disconnect(connection) {
                // The connection ended with it.
                Ok(()) | Err(ProtocolError::Ended(_)) => {}
                Err(error) => log::warn!("the connection does not end: {error}"),
            }
        }
    }
}

/// Logs why something is not done, unless it is what was `known` of it last time.
fn warn_once(known: &mut Option<String>, what: &str, error: &AttachError) {
    let error = error.to_string();
    if known.as_ref() != Some(&error) {
        log::warn!("{what}: {error}");
        *known = Some(error);
    }
}

/// Runs what handles keys on a thread of its own, whose stack is locked for as long.
fn with_keys<T: Send + 'static>(
    run: impl FnOnce() -> Result<T, AttachError> + Send + 'static,
) -> Result<T, AttachError> {
    let (done, is_done) = sync_channel(1);
    let work = move || {
        // It is waited for.
        let _ = done.send(run());
    };
    let thread = spawn_with_keys("take".into(), ROOMY_STACK, work).map_err(DiskError::Key)?;
    let result = is_done.recv();
    // Its stack is wiped before it ends.
    let _ = thread.join();
    let lost = |_| process("take the disk")(io::ErrorKind::BrokenPipe.into());
    result.map_err(lost)?
}

impl Work {
    fn let_go(self: &Arc<Self>) -> Result<(), AttachError> {
        self.commands.let_go()?;
        if let Err(error) = self.attached_disk.detached() {
            let this = self.clone();
            with_keys(move || this.give_again())?;
            return Err(error.into());
        }
        self.give_up_claim();
        Ok(())
    }

    /// Gives up the claim, which is told before.
    fn give_up_claim(&self) {
        self.attached_disk.let_go(|| {
            let now = OffsetDateTime::now_utc();
            self.tell(EventKind::LockReleased, now, None);
            self.control.names().has_no_disk();
        });
        self.event_hub.set_hold(self.hold(), None);
        close_row(&self.installation, &self.disk, &self.attached_disk);
    }

    /// Whether no attach has had the disk since this one let go of it.
    fn is_as_it_was_left(&self) -> bool {
        let found = self.disk.header_file().and_then(|file| Ok(file.read()?));
        found.is_ok_and(|found| found.claims().attach == self.attached_disk.header().attach)
    }

    /// Takes the disk, for which whoever has it is waited for, for the guest that had it before or another one.
    fn take(&self, patience: Duration, same_guest: bool) -> Result<TakenDisk, AttachError> {
        let is_first = !self.has_begun();
        let taken = self.claim_and_begin(is_first, patience, same_guest && !is_first)?;
        self.tell(EventKind::LockTaken, taken.at, None);
        self.control.names().has_disk();
        self.jobs.look();
        self.event_hub.set_hold(DiskHold::Held, None);
        let key_url = taken.key_url.clone();
        let is_silent = self.give(taken, is_first)?;
        self.has_begun.store(true, Ordering::Release);
        Ok(TakenDisk { key_url, is_silent })
    }

    fn has_begun(&self) -> bool {
        self.has_begun.load(Ordering::Acquire)
    }

    /// A guest that was served here goes on only with the disk that it had: others may have written to it in its
    /// name and pushed layers onto it, but one that was reverted or has another size is not what the guest knows.
    fn check_is_same(&self, now: &HeaderPayload) -> Result<(), AttachError> {
        let before = self.attached_disk.header();
        let top = before.top().map(|layer| layer.id);
        let is_there = now.layers.iter().any(|layer| Some(layer.id) == top);
        match is_there && now.size == before.size {
            true => Ok(()),
            false => Err(AttachError::AnotherDisk {
                name: self.disk.name().into(),
            }),
        }
    }

    fn claim_and_begin(
        &self,
        is_first: bool,
        patience: Duration,
        same_guest: bool,
    ) -> Result<Taken, AttachError> {
        let mut awaiting = self.awaiting().take();
        // Whoever has the disk lets go of it for this, or for another who waits already.
        let goes_on = || {
            if awaiting.is_none() {
                awaiting = self.disk.try_await().ok().flatten();
            }
            !self.commands.is_ending()
        };
        let begun = claim(&self.disk, patience, goes_on)
            .map_err(AttachError::from)
            .and_then(|claimed| {
                // Nobody has looked while the disk was waited for.
                self.installation.renew().map_err(DiskError::from)?;
                let known = self.attached_disk.known().filter(|_| !is_first);
                let known = known.map(|(top, key)| Known {
                    top,
                    key,
                    keys: &self.keys,
                });
                Claimed::open(&self.installation, &self.disk, claimed, known.as_ref())
            })
            .and_then(|claimed| {
                if same_guest {
                    self.check_is_same(claimed.header())?;
                }
                claimed.begin(&self.installation, &self.disk, &self.options)
            });
        if begun.is_err() {
            *self.awaiting() = awaiting.filter(|_| is_first);
        }
        begun
    }

    /// Gives the data plane a disk that was taken. The session ends again if it refuses it. Whether it is silent instead,
    /// so that nobody knows what it has.
    fn give(&self, taken: Taken, is_first: bool) -> Result<bool, AttachError> {
        let Taken {
            header,
            deks,
            unwrapped,
            key_url,
            files,
            claim,
            begun,
            ..
        } = taken;
        let layers = layers_of(&header);
        let setup = Setup {
            stack: stack_of(&header)?,
            write_through: header.write_through,
            ..self.setup.clone()
        };
        let (runtime, recovered) = (begun.runtime, begun.recovered);
        let held = Held::of(&self.disk, &header, runtime, claim);
        self.attached_disk.hold(header, begun.key, held);
        let recorded = match &deks {
            Some(_) => self.record(&key_url, is_first),
            None => Ok(()),
        };
        let given = recorded.and_then(|()| {
            match (&deks, unwrapped) {
                (Some(deks), true) if is_first => self.keys.hold(layers.clone(), deks),
                (Some(deks), true) => self.keys.exchange(layers.clone(), deks),
                _ => {}
            }
            let asked = self.keys.give(&layers, deks.as_ref(), |deks| {
                let setup = Setup {
                    revoked: deks.is_none().then_some(self.on_revoke),
                    ..setup
                };
                self.commands.take_disk(setup, &files, deks)
            });
            Ok(asked?.done()?)
        });
        drop(files);
        match given {
            // The next data plane gets it.
            Ok(()) | Err(AttachError::Protocol(ProtocolError::Ended(_))) => Ok(false),
            Err(AttachError::Protocol(error)) if !matches!(error, ProtocolError::Refused(_)) => {
                let name = self.disk.name();
                log::error!("whether its data plane has the disk {name} is not known: {error}");
                Ok(true)
            }
            Err(error) => {
                if is_first {
                    self.keys.destroy();
                }
                self.take_back(recovered);
                Err(error)
            }
        }
    }

    /// Ends a session in which nothing was served. What a process that died left stays.
    fn take_back(&self, recovered: bool) {
        if !recovered && let Err(error) = self.attached_disk.detached() {
            log::warn!("the header says that the disk is attached: {error}");
        }
        self.give_up_claim();
    }

    /// Gives the data plane, which has let go of it, the disk that this process still has.
    fn give_again(&self) -> Result<(), AttachError> {
        let again = || self.attached_disk.open_again(&self.setup);
        let opened = again()?.ok_or_else(|| {
            ProtocolError::Refused("something of the disk is still under way".into())
        })?;
        let asked = self.keys.give(&opened.layers, None, |deks| {
            let setup = Setup {
                revoked: deks.is_none().then_some(self.on_revoke),
                ..opened.setup
            };
            self.commands.take_disk(setup, &opened.files, deks)
        });
        match asked.and_then(protocol::Asked::done) {
            Ok(()) | Err(ProtocolError::Ended(_)) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Records that the keys are handed over, which they are not otherwise. A full file system keeps an attach from the
    /// keys that it never had, and not from those that it had before.
    fn record(&self, key_url: &str, is_first: bool) -> Result<(), AttachError> {
        let reason = (!is_first).then(|| Reason {
            code: "DiskTakenBack".into(),
            message: "the disk was let go of before".into(),
        });
        let record = Record {
            time: OffsetDateTime::now_utc(),
            operation: Operation::HandOver,
            disk: self.disk.id(),
            name: self.disk.name().into(),
            key_url: key_url.into(),
            reason,
        };
        let recorded = match is_first {
            true => records::append(&self.installation, &record),
            false => records::append_done(&self.installation, &record),
        };
        recorded.map_err(AttachError::Audit)
    }

    /// A ring is not started.
    fn refused(&self, error: &AttachError) {
        let reason = Reason {
            code: error.code().into(),
            message: error.to_string().replace('\n', " "),
        };
        self.event_hub.set_hold(self.hold(), Some(reason.clone()));
        self.tell(
            EventKind::RingRefused,
            OffsetDateTime::now_utc(),
            Some(reason),
        );
    }

    /// Whose the disk is.
    fn hold(&self) -> DiskHold {
        match (self.attached_disk.is_held(), self.has_begun()) {
            (true, _) => DiskHold::Held,
            (false, true) => DiskHold::LetGo,
            (false, false) => DiskHold::Awaited,
        }
    }

    fn tell(&self, event: EventKind, time: OffsetDateTime, reason: Option<Reason>) {
        let event = self.event_hub.log_hold(&self.disk, event, time, reason);
        self.event_hub.publish(&event);
    }

    fn awaiting(&self) -> std::sync::MutexGuard<'_, Option<Awaiting>> {
        // It is replaced as a whole.
        self.awaiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl EventHub {
    /// Logs what became of the lock of the disk; as an event it is for those who follow a migration.
    pub(crate) fn log_hold(
        &self,
        disk: &Disk,
        event: EventKind,
        time: OffsetDateTime,
        reason: Option<Reason>,
    ) -> Event {
        let status = self.status();
        let event = Event {
            time,
            event,
            disk: disk.name().into(),
            disk_id: disk.id(),
            key_url: status.key_url,
            reason,
            until: None,
            attach: status.offered.map(|offered| offered.attach),
            alarm: None,
        };
        match event.reason {
            Some(_) => log::warn!("{event}"),
            None => log::info!("{event}"),
        }
        event
    }
}
