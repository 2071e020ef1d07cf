//! The life of an attached disk, as its control process sees it: one loop that waits for the data
//! plane, for signals, for what the vault has said, and for the guard's next deadline. Everything
//! else that can take long is in a thread of its own.

use std::io::{BufRead, BufReader};
use std::os::unix::net::UnixStream;
use std::process::ExitStatus;
use std::sync::Arc;

use time::OffsetDateTime;
use uuid::Uuid;

use crate::envelope::SyncedFile;
use crate::frontend::{
    DESTROYED, NOT_RESTORED, OnRevoke, READY, RESTORED, STORAGE_FULL, STORAGE_OK, SYNC_FAILED,
    Waiter,
};

use super::AttachError;
use super::board::Board;
use super::checker::Checker;
use super::commands::Commands;
use super::data_plane::{DataPlane, process};
use super::guard::{Guard, Hands, LayerKeys, Moment, News};
use super::marker::Marker;
use super::records::{Operation, Record, Recorder};
use super::status::{Event, EventKind, Reason};

const CONTROL: u64 = 0;
const SIGNAL: u64 = 1;
const FINDING: u64 = 2;

/// How the data plane ended.
pub(super) enum Ended {
    /// It flushed everything.
    Flushed,
    /// It said why it cannot serve the disk, or not make its last writes durable.
    Refused(String),
    /// It ended without a word.
    Died(ExitStatus),
}

/// An attached disk under supervision.
pub(super) struct Supervision {
    pub(super) guard: Guard,
    pub(super) hands: Attached,
    /// Guests were served: they may have written something.
    pub(super) served: bool,
    /// The file of which a sync has failed, in this attach or in one before.
    pub(super) failed_sync: Option<SyncedFile>,
}

/// What the guard acts on.
pub(super) struct Attached {
    pub(super) data_plane: DataPlane,
    pub(super) commands: Arc<Commands>,
    pub(super) checker: Checker,
    pub(super) recorder: Recorder,
    pub(super) marker: Marker,
    pub(super) board: Arc<Board>,
    pub(super) disk: Uuid,
    /// The disk's name.
    pub(super) name: String,
}

impl Hands for Attached {
    fn check(&mut self, with_key: bool) {
        self.checker.ask(with_key);
    }

    fn destroy(&mut self, mode: OnRevoke) {
        // A data plane that cannot be told is at its end, and its key with it.
        if let Err(error) = self.commands.revoke(mode) {
            log::warn!("the data plane cannot be told to destroy its key: {error}");
        }
    }

    fn restore(&mut self, keys: &LayerKeys) {
        if let Err(error) = self.commands.restore(keys) {
            log::warn!("the data plane cannot be given its key: {error}");
        }
    }

    fn kill(&mut self) {
        log::error!(
            "the data plane of the disk {} does not finish what it had begun, so it is killed: its \
             revoked key must not live on; look at the storage and attach the disk again",
            self.name
        );
        self.data_plane.kill();
    }

    fn tell(&mut self, news: News) {
        if news.event == EventKind::DekDestroyed {
            self.record_destruction(news.time, &news.key_url, news.reason.clone());
        }
        let event = Event {
            time: news.time,
            event: news.event,
            disk: self.name.clone(),
            disk_id: self.disk,
            key_url: news.key_url,
            reason: news.reason,
            until: news.until,
        };
        match event.event {
            EventKind::Attached
            | EventKind::Detached
            | EventKind::KeyChanged
            | EventKind::StorageOk => {
                log::info!("{event}");
            }
            _ => log::warn!("{event}"),
        }
        self.board.publish(&event);
        let status = event.to_string();
        // Without systemd there is nobody to notify.
        let _ = sd_notify::notify(&[sd_notify::NotifyState::Status(&status)]);
    }
}

impl Attached {
    fn record_destruction(&self, time: OffsetDateTime, key_url: &str, reason: Option<Reason>) {
        self.recorder.put(Record {
            time,
            operation: Operation::Destroy,
            disk: self.disk,
            name: self.name.clone(),
            key_url: key_url.into(),
            reason,
        });
    }
}

impl Supervision {
    /// Waits for the end of the data plane, which a signal to this process brings about, and guards
    /// its key meanwhile.
    pub(super) fn run(&mut self, signals: &UnixStream) -> Result<Ended, AttachError> {
        let fail = process("watch the data plane");
        let waiter = Waiter::new().map_err(&fail)?;
        let answers = self.hands.data_plane.answers().try_clone().map_err(&fail)?;
        waiter.watch(&answers, CONTROL).map_err(&fail)?;
        waiter.watch(signals, SIGNAL).map_err(&fail)?;
        waiter
            .watch(self.hands.checker.news(), FINDING)
            .map_err(&fail)?;
        let mut lines = BufReader::new(answers);
        let mut reason = None;
        loop {
            self.hands.board.set_status(self.guard.status());
            let woken = waiter.wait_until(self.guard.deadline()).map_err(&fail)?;
            match woken {
                Some(SIGNAL) => {
                    self.hands.commands.end().map_err(&fail)?;
                    waiter.unwatch(signals).map_err(&fail)?;
                }
                Some(FINDING) => {
                    while let Some(finding) = self.hands.checker.take() {
                        self.guard.found(finding, Moment::now(), &mut self.hands);
                    }
                }
                Some(_) if !self.listen(&mut lines, &mut reason) => break,
                Some(_) | None => {}
            }
            self.guard.tick(Moment::now(), &mut self.hands);
        }
        self.hands.commands.ended();
        let status = self.hands.data_plane.wait()?;
        Ok(match reason {
            Some(reason) => Ended::Refused(reason),
            None if status.success() => Ended::Flushed,
            None => Ended::Died(status),
        })
    }

    /// Takes what the data plane says. Whether it goes on.
    fn listen(&mut self, lines: &mut BufReader<UnixStream>, reason: &mut Option<String>) -> bool {
        loop {
            let mut line = String::new();
            match lines.read_line(&mut line) {
                Ok(0) | Err(_) => return false,
                Ok(_) => self.answered(line.trim_end(), reason),
            }
            // What was read along with the line wakes nobody.
            if !lines.buffer().contains(&b'\n') {
                return true;
            }
        }
    }

    fn answered(&mut self, line: &str, reason: &mut Option<String>) {
        let (now, hands) = (Moment::now(), &mut self.hands);
        if line == READY {
            self.served = true;
            hands.tell(self.guard.news(EventKind::Attached, now.time, None));
            let _ = sd_notify::notify(&[sd_notify::NotifyState::Ready]);
        } else if line == STORAGE_FULL {
            hands.tell(self.guard.news(EventKind::StorageFull, now.time, None));
        } else if line == STORAGE_OK {
            hands.tell(self.guard.news(EventKind::StorageOk, now.time, None));
        } else if let Some(what) = line.strip_prefix(SYNC_FAILED) {
            let (file, why) = what.split_once(' ').unwrap_or((what, ""));
            let file = match file {
                "map" => SyncedFile::Map,
                _ => SyncedFile::Data,
            };
            self.failed_sync = Some(file);
            hands.marker.put(file, why);
            let reason = Reason {
                code: "SyncFailed".into(),
                message: format!("{file}: {why}"),
            };
            hands.tell(
                self.guard
                    .news(EventKind::SyncFailed, now.time, Some(reason)),
            );
        } else if line == DESTROYED {
            self.guard.destroyed(now, hands);
        } else if line == RESTORED {
            self.guard.restored(now, hands);
        } else if let Some(why) = line.strip_prefix(NOT_RESTORED) {
            self.guard.not_restored(why, now, hands);
        } else if let Some(text) = line.strip_prefix("error ") {
            *reason = Some(text.to_owned());
        } else {
            hands.commands.answered(line);
        }
    }

    /// After the end of the data plane: with it its DEK is gone, if it still had it.
    pub(super) fn close(self) {
        let Self {
            guard, mut hands, ..
        } = self;
        let now = Moment::now();
        if guard.holds_key() {
            let reason = guard.reason().cloned().unwrap_or_else(|| Reason {
                code: "Detached".into(),
                message: "the data plane has ended".into(),
            });
            hands.record_destruction(now.time, guard.key_url(), Some(reason));
        }
        hands.tell(guard.news(EventKind::Detached, now.time, None));
        hands.board.close();
        hands.marker.finish();
        hands.recorder.finish();
    }
}
