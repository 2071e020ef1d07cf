//! The life of an attached disk, as its attach process sees it: one loop that waits for the data
//! plane, for signals, for what the vault has said, and for the guard's next deadline. Everything
//! else that can take long is in a thread of its own.

use std::io::{self, Read};
use std::os::unix::net::UnixStream;
use std::process::ExitStatus;
use std::sync::Arc;
use std::time::Instant;

use time::OffsetDateTime;
use uuid::Uuid;

use crate::begin::data_plane::{DataPlane, process};
use crate::begin::socket::Socket;
use crate::error::AttachError;
use crate::guard::checker::Checker;
use crate::guard::key_guard::{Guard, GuardActions, GuardEvent, LayerKeys, Moment, Unanswered};
use crate::guard::records::{Operation, Record, Recorder};
use crate::serve::attached_disk::AttachedDisk;
use crate::serve::control_socket::ControlSocket;
use crate::serve::event_hub::EventHub;
use crate::serve::jobs::Jobs;
use crate::serve::keeping::Keeping;
use crate::serve::kept_keys::KeptKeys;
use crate::serve::lives::Lives;
use crate::serve::marker::Marker;
use crate::serve::migration::Migration;
use crate::serve::systemd::{Watchdog, tell_systemd};
use crate::serve::taken_over::TakenOver;
use crate::serve::turn::Turn;
use crate::serve::upgrades::{Order, UpgradeEvent, Upgrades};
use crate::status::{Event, EventKind, Reason};
use installation::Place;
use installation::envelope::SyncedFile;
use protocol::{
    CommandKind, Commands, Event as DataPlaneEvent, Heard, KeepSocket, Message, Messages, OnRevoke,
    ProtocolError, Reply, Setup, Waiter,
};
use sandbox::{Launcher, bury_strangers};
use traces::{Span, SpanKind};

/// Of several that are ready the lowest is told, so a data plane that never stops speaking comes last.
const SIGNAL: u64 = 0;
const FINDING: u64 = 1;
const UPGRADE: u64 = 2;
const HANGUP: u64 = 3;
/// The disk that was waited for was taken.
const TAKEN: u64 = 4;
/// The launcher of the data plane has ended.
pub(crate) const LAUNCHER_END: u64 = 5;
/// Another host has taken the disk over.
const TAKEN_OVER: u64 = 6;
const CONTROL: u64 = 7;

/// How the data plane ended.
pub(crate) enum Ended {
    /// It flushed everything.
    Flushed,
    /// It said why it cannot serve the disk, or not make its last writes durable.
    Refused(String),
    /// It ended without a word.
    Died(ExitStatus),
    /// It was killed, since another host has taken the disk over.
    TakenOver(String),
}

/// An attached disk under supervision.
pub(crate) struct Supervision {
    pub(crate) guard: Guard,
    pub(crate) attached: Attached,
    /// Where guests connect, from when they are served.
    pub(crate) socket: Socket,
    /// Guests were served: they may have written something.
    pub(crate) served: bool,
    /// The file of which a sync has failed, in this attach or in one before.
    pub(crate) failed_sync: Option<SyncedFile>,
    /// When it was last told that a guest's memory is not shared.
    pub(crate) told_not_shared: Option<Instant>,
    /// Where the installation is.
    pub(crate) place: Place,
    pub(crate) attached_disk: Arc<AttachedDisk>,
    pub(crate) taken_over: TakenOver,
    pub(crate) control: Arc<ControlSocket>,
    pub(crate) jobs: Jobs,
    /// What the first data plane was told.
    pub(crate) setup: Setup,
    /// What outlives a data plane of its frontend's connection.
    pub(crate) keeping: Keeping,
    /// Through which the next one gets that.
    pub(crate) keep: Option<KeepSocket>,
    pub(crate) lives: Lives,
    pub(crate) stage: Stage,
    /// Why the data plane that runs cannot serve the disk.
    pub(crate) reason: Option<String>,
    /// It serves guests.
    pub(crate) serving: bool,
    /// A guest may have taken it over, so that none goes on for it.
    pub(crate) captured: bool,
    /// How many died.
    pub(crate) restarts: u64,
    /// When the last one did, and of what, until the next one serves.
    pub(crate) last_death: Option<(Instant, String)>,
    /// Held while the disk is given to a data plane, so that nobody changes it.
    pub(crate) turn: Option<Turn>,
    pub(crate) upgrades: Upgrades,
    /// The data plane has said that it touches the disk no more.
    pub(crate) handed_over: bool,
}

/// How far the data plane is.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Stage {
    /// There is none; it is started then.
    Paused { until: Instant },
    /// It was started, and has to say until then which protocol it speaks.
    Greeting { deadline: Instant },
    /// It has, and may be prepared already; whether it can get the disk is looked at then.
    Greeted { look: Instant, prepared: bool },
    /// It has its disk.
    Given,
}

/// What the supervision waits for.
pub(crate) struct Watched {
    pub(crate) waiter: Waiter,
    pub(crate) messages: Messages,
    pub(crate) signals: Signals,
    /// Whose end is watched, or was told.
    pub(crate) launcher: Option<Arc<Launcher>>,
}

/// What has something to read after a signal.
pub(crate) struct Signals {
    /// One that tells the process to end.
    pub(crate) end: UnixStream,
    /// SIGHUP.
    pub(crate) hangup: UnixStream,
}

impl Watched {
    /// Waits for the data plane that was heard no more.
    pub(crate) fn forget_data_plane(&mut self) -> Result<(), AttachError> {
        let forgotten = self.waiter.unwatch(&self.messages);
        match forgotten {
            // It was forgotten before.
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            other => other.map_err(process("watch the data plane")),
        }
    }

    /// Waits for another data plane.
    pub(crate) fn hear(&mut self, messages: Messages) -> Result<(), AttachError> {
        self.messages = messages;
        let watched = self.waiter.watch(&self.messages, CONTROL);
        watched.map_err(process("watch the data plane"))
    }

    /// Why a data plane has ended, if it has said that.
    pub(crate) fn last_words(&mut self) -> Option<String> {
        let mut said = None;
        loop {
            let messages = match self.messages.take() {
                Heard::Messages(messages) if !messages.is_empty() => messages,
                Heard::Messages(_) | Heard::End | Heard::Endless => return said,
            };
            for message in messages {
                if let Message::Event(DataPlaneEvent::Failed { why }) = message {
                    said = Some(why.into());
                }
            }
        }
    }
}

/// What the guard acts on.
pub(crate) struct Attached {
    pub(crate) data_plane: DataPlane,
    pub(crate) commands: Arc<Commands>,
    /// Its keys, for the next data plane.
    pub(crate) keys: Arc<KeptKeys>,
    pub(crate) checker: Checker,
    pub(crate) recorder: Recorder,
    pub(crate) marker: Marker,
    pub(crate) event_hub: Arc<EventHub>,
    pub(crate) migration: Migration,
    pub(crate) disk: Uuid,
    /// The disk's name.
    pub(crate) name: String,
}

impl GuardActions for Attached {
    fn check(&mut self, with_key: bool) {
        self.checker.ask(with_key);
    }

    fn destroy(&mut self, mode: OnRevoke) {
        self.keys.destroy();
        // A data plane that cannot be told is at its end, and its key with it.
        if let Err(error) = self.commands.revoke_key(mode) {
            log::warn!("the data plane cannot be told to destroy its key: {error}");
        }
    }

    fn restore(&mut self, keys: &LayerKeys) {
        self.keys.hold(keys.layers.clone(), &keys.deks);
        if let Err(error) = self.commands.restore_key(keys.layers.clone(), &keys.deks) {
            log::warn!("the data plane cannot be given its key: {error}");
        }
    }

    fn forget(&mut self) {
        self.keys.destroy();
    }

    fn kill(&mut self, told: Unanswered) {
        let name = &self.name;
        match told {
            Unanswered::Destroy => log::error!(
                "the data plane of the disk {name} does not finish what it had begun, so it is killed: its \
                 revoked key must not live on; look at the storage"
            ),
            Unanswered::Restore => log::error!(
                "the data plane of the disk {name} was given its key and says nothing, so it is killed: \
                 another one gets the key; look at the storage"
            ),
        }
        self.data_plane.kill();
    }

    fn tell(&mut self, event: GuardEvent) {
        if event.event == EventKind::DekDestroyed {
            self.record(Operation::Destroy, &event.key_url, event.reason.clone());
        }
        let event = Event {
            time: event.time,
            event: event.event,
            disk: self.name.clone(),
            disk_id: self.disk,
            key_url: event.key_url,
            reason: event.reason,
            until: event.until,
            attach: None,
            alarm: None,
        };
        match event.event {
            EventKind::Attached
            | EventKind::Waiting
            | EventKind::Detached
            | EventKind::KeyChanged
            | EventKind::DataPlaneUpgraded
            | EventKind::AttachProcessUpgraded
            | EventKind::AuditSpaceOk
            | EventKind::StorageOk => {
                log::info!("{event}");
            }
            _ => log::warn!("{event}"),
        }
        self.event_hub.publish(&event);
        let status = event.to_string();
        tell_systemd(&[sd_notify::NotifyState::Status(&status)]);
    }
}

impl Attached {
    pub(crate) fn end(&self) {
        // A data plane that cannot be told is at its end.
        if let Err(error) = self.commands.end() {
            log::warn!("the data plane cannot be told to end: {error}");
        }
    }

    /// Has it recorded what was done with the DEK.
    pub(crate) fn record(&self, operation: Operation, key_url: &str, reason: Option<Reason>) {
        self.recorder.put(Record {
            time: OffsetDateTime::now_utc(),
            operation,
            disk: self.disk,
            name: self.name.clone(),
            key_url: key_url.into(),
            reason,
        });
    }
}

impl Supervision {
    /// Makes ready for waiting for the data plane, signals and the guard's findings.
    ///
    /// # Errors
    /// [`AttachError::Process`].
    pub(crate) fn watch(&self, signals: Signals) -> Result<Watched, AttachError> {
        self.watch_from(signals, self.attached.data_plane.messages()?)
    }

    /// The same, where these messages of the data plane go on.
    ///
    /// # Errors
    /// [`AttachError::Process`].
    pub(crate) fn watch_from(
        &self,
        signals: Signals,
        messages: Messages,
    ) -> Result<Watched, AttachError> {
        let watched = || {
            let waiter = Waiter::new()?;
            waiter.watch(&messages, CONTROL)?;
            waiter.watch(&signals.end, SIGNAL)?;
            waiter.watch(&signals.hangup, HANGUP)?;
            waiter.watch(self.attached.checker.readable(), FINDING)?;
            waiter.watch(self.upgrades.bell(), UPGRADE)?;
            waiter.watch(self.attached.migration.has_taken(), TAKEN)?;
            waiter.watch(self.taken_over.bell(), TAKEN_OVER)?;
            // Processes too that are nothing to this disk.
            bury_strangers()?;
            Ok(Watched {
                waiter,
                messages,
                signals,
                launcher: None,
            })
        };
        watched().map_err(process("watch the data plane"))
    }

    /// Waits for the end of the disk, which a signal to this process brings about, and guards its key
    /// meanwhile. A data plane that dies is replaced by another.
    pub(crate) fn run(&mut self, watched: Watched) -> Result<Ended, AttachError> {
        let ended = self.supervise(watched);
        self.fail_upgrade("the disk is detached");
        self.turn = None;
        ended
    }

    fn supervise(&mut self, mut watched: Watched) -> Result<Ended, AttachError> {
        let fail = process("watch the data plane");
        let mut low = false;
        let mut watchdog = Watchdog::asked_for();
        loop {
            self.attached.event_hub.set_status(self.guard.status());
            self.watch_launcher(&mut watched)?;
            let until = watchdog.tell(self.deadline());
            let woken = watched.waiter.wait_until(until).map_err(&fail)?;
            let mut ended = None;
            match woken {
                Some(SIGNAL) => {
                    self.attached.commands.end().map_err(&fail)?;
                    let unwatched = watched.waiter.unwatch(&watched.signals.end);
                    unwatched.map_err(&fail)?;
                }
                Some(UPGRADE) => self.hear_of_upgrades(),
                Some(HANGUP) => {
                    // Several are one.
                    let _ = (&watched.signals.hangup).read(&mut [0; 64]);
                    self.upgrades.desk.put(UpgradeEvent::Ordered(Order {
                        program: None,
                        answer: None,
                        client: None,
                        span: Span::asked_by(None, SpanKind::Internal, "upgrade"),
                    }));
                }
                Some(FINDING) => {
                    while let Some(finding) = self.attached.checker.take() {
                        self.guard.found(finding, Moment::now(), &mut self.attached);
                    }
                    self.watch_space(&mut low);
                }
                Some(TAKEN) => self.hear_taken(),
                Some(LAUNCHER_END) => self.launcher_ended(&watched),
                Some(TAKEN_OVER) => {
                    if let Some(ended) = self.end_taken_over() {
                        return Ok(ended);
                    }
                }
                Some(_) if matches!(self.stage, Stage::Greeting { .. }) => {
                    ended = self.greet(&mut watched)?;
                }
                Some(_) if !self.listen(&mut watched.messages) => {
                    ended = self.ended(&mut watched)?;
                }
                Some(_) | None => {}
            }
            if std::mem::take(&mut self.handed_over) {
                self.take_over(&mut watched)?;
            }
            self.go_on_upgrading();
            self.go_on_replacing(&watched);
            self.guard.tick(Moment::now(), &mut self.attached);
            if ended.is_none() {
                ended = self.go_on(&mut watched)?;
            }
            if let Some(ended) = ended {
                return Ok(ended);
            }
        }
    }

    /// Ends an attach that another host has taken the disk over from. What its guest asks for is not done any more.
    fn end_taken_over(&mut self) -> Option<Ended> {
        let by = self.taken_over.take()?;
        self.attached.data_plane.kill();
        self.attached.keys.destroy();
        // Who waits for an answer of it has none.
        self.attached.commands.ended();
        let reason = Reason {
            code: "TakenOver".into(),
            message: format!("{by} has taken it over, while this host did not answer"),
        };
        self.tell(EventKind::TakenOver, Some(reason));
        Some(Ended::TakenOver(by))
    }

    /// Takes what the data plane says. Whether it goes on.
    fn listen(&mut self, messages: &mut Messages) -> bool {
        let heard = match messages.take() {
            Heard::Messages(heard) => heard,
            Heard::End => return false,
            Heard::Endless => {
                self.kill_captured("a message that does not end");
                return false;
            }
        };
        for message in heard {
            let taken = match message {
                Message::Event(DataPlaneEvent::FrontendMemory(memory)) => {
                    self.look_at_memory(&memory, messages.frontend())
                }
                Message::Event(event) => self.happened(event),
                Message::Reply { number, reply } => self.answered(number, reply),
            };
            if let Err(error) = taken {
                self.kill_captured(&error.to_string());
                return false;
            }
            if self.handed_over {
                break;
            }
        }
        true
    }

    fn kill_captured(&mut self, said: &str) {
        log::error!(
            "the data plane of the disk {} says what none does, so it is killed: a guest may have taken \
             it over ({said})",
            self.attached.name
        );
        self.captured = true;
        self.attached.data_plane.kill();
    }

    /// Takes the answer to a command.
    ///
    /// # Errors
    /// [`ProtocolError::Unasked`].
    fn answered(&mut self, number: u64, reply: Reply) -> Result<(), ProtocolError> {
        let (now, attached) = (Moment::now(), &mut self.attached);
        match attached.commands.answered(number, reply)? {
            Some((_, Reply::Prepared { program })) => {
                attached.event_hub.set_version(program.into())
            }
            Some((_, Reply::HandedOver)) => self.handed_over = true,
            Some((CommandKind::HandOver, Reply::Refused { why })) => {
                self.fail_upgrade(why.as_str());
            }
            Some((kind, Reply::Serving | Reply::Waiting)) => {
                self.publish(kind == CommandKind::Serve);
            }
            Some((_, Reply::KeyDestroyed)) => self.guard.destroyed(now, attached),
            Some((_, Reply::KeyRestored)) => self.guard.restored(now, attached),
            Some((CommandKind::RestoreKey, Reply::Refused { why })) => {
                self.guard.not_restored(why.as_str(), now, attached);
            }
            Some((CommandKind::Serve, Reply::Refused { why })) => {
                self.reason = Some(why.into());
                match self.upgrades.is_taking_over() {
                    // The program that served before is still to be had.
                    true => attached.data_plane.kill(),
                    false => attached.end(),
                }
            }
            Some((command, Reply::Refused { why })) => {
                log::warn!("the data plane refuses a command ({command}): {why}");
            }
            Some(_) | None => {}
        }
        Ok(())
    }

    /// Lets guests connect: the data plane serves them, or will.
    fn publish(&mut self, has_disk: bool) {
        self.serving = true;
        if self.served {
            self.finish_upgrade();
            return self.serves_again();
        }
        if let Err(error) = self.socket.publish() {
            self.reason = Some(error.to_string());
            self.attached.end();
            return;
        }
        self.served = true;
        let event = match has_disk {
            true => EventKind::Attached,
            false => EventKind::Waiting,
        };
        self.tell(event, None);
        tell_systemd(&[sd_notify::NotifyState::Ready]);
    }

    /// Takes what the data plane says unasked.
    ///
    /// # Errors
    /// [`ProtocolError`], when it does not take what has to be done about it.
    fn happened(&mut self, event: DataPlaneEvent) -> Result<(), ProtocolError> {
        match event {
            // The socket that comes with it is with who hears it.
            DataPlaneEvent::FrontendMemory(_) => {}
            DataPlaneEvent::MemoryNotShared => self.tell_not_shared(),
            DataPlaneEvent::Rings { rings, connection } => {
                self.attached.migration.rings(rings, connection);
            }
            DataPlaneEvent::StorageFull => self.tell(EventKind::StorageFull, None),
            DataPlaneEvent::StorageOk => self.tell(EventKind::StorageOk, None),
            DataPlaneEvent::SyncFailed { file, why } => self.sync_failed(file, why.as_str()),
            DataPlaneEvent::Failed { why } => self.reason = Some(why.into()),
        }
        Ok(())
    }

    fn sync_failed(&mut self, file: protocol::SyncedFile, why: &str) {
        let file = match file {
            protocol::SyncedFile::Data => SyncedFile::Data,
            protocol::SyncedFile::Map => SyncedFile::Map,
        };
        self.failed_sync = Some(file);
        self.attached.marker.put(file, why);
        let reason = Reason {
            code: "SyncFailed".into(),
            message: format!("{file}: {why}"),
        };
        self.tell(EventKind::SyncFailed, Some(reason));
    }

    pub(crate) fn tell(&mut self, event: EventKind, reason: Option<Reason>) {
        let event = self.guard.guard_event(event, Moment::now().time, reason);
        self.attached.tell(event);
    }

    /// After the end of the data plane: with it its DEK is gone, if it still had it.
    pub(crate) fn close(self) {
        let (guard, mut attached) = (self.guard, self.attached);
        attached.keys.destroy();
        if guard.holds_key() {
            let reason = guard.reason().cloned().unwrap_or_else(|| Reason {
                code: "Detached".into(),
                message: "the data plane has ended".into(),
            });
            attached.record(Operation::Destroy, guard.key_url(), Some(reason));
        }
        attached.tell(guard.guard_event(EventKind::Detached, Moment::now().time, None));
        attached.event_hub.close();
        attached.marker.finish();
        attached.recorder.finish();
    }
}
