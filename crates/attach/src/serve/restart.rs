//! Going on after the death of a data plane.
//!
//! # Order
//!
//! 1. Whoever waits for an answer of the dead one learns that it has ended. What it was to do with a key is done:
//!    its memory is gone.
//! 2. What it had kept is taken to its end. If it died over a message of the frontend, the connection is closed.
//! 3. After a pause, if several died soon after each other, the same program is started again.
//! 4. When it has said which protocol it speaks, nobody is changing the disk, and nothing of the dead one is under
//!    way any more, it gets the disk as it was served
//!    last, opened again; the keys that wait, unless they are revoked; and what was kept.
//!
//! No vault is asked, no header is read, and nothing is waited for meanwhile but the pauses: signals and the guard
//! of the key are heard as ever.

use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use crate::begin::data_plane::{DataPlane, START_PATIENCE, process};
use crate::begin::setup::stack_of;
use crate::error::AttachError;
use crate::guard::key_guard::Moment;
use crate::guard::records::Operation;
use crate::serve::supervise::{Ended, Stage, Supervision, Watched};
use crate::status::{EventKind, LastRestart, Reason};
use protocol::{Line, Opening, Peer, ProtocolError, Restart, Setup};

/// How long a data plane may take to say which protocol it speaks, on a busy host.
pub(crate) const GREETING_PATIENCE: Duration = Duration::from_secs(60);
/// How long it is until it is looked again whether the disk can be given.
const TURN: Duration = Duration::from_millis(5);

/// How long it is until the guard is asked again what is due: a wait stands still while the host is suspended, and the
/// guard's clock does not.
const GUARD_LOOK: Duration = Duration::from_secs(30);

/// Why a data plane that was started does not get the disk.
enum NotGiven {
    /// Somebody changes the disk right now, or something of the last data plane is still under way.
    Later,
    /// This time; the next one may.
    Failed(AttachError),
    /// None will.
    Never(String),
}

impl<E: Into<AttachError>> From<E> for NotGiven {
    fn from(error: E) -> Self {
        Self::Failed(error.into())
    }
}

impl Supervision {
    /// Takes the end of the data plane. How the attach ends, if no other one goes on.
    ///
    /// # Errors
    /// [`AttachError::Process`].
    pub(crate) fn ended(&mut self, watched: &mut Watched) -> Result<Option<Ended>, AttachError> {
        self.attached.commands.ended();
        watched.forget_data_plane()?;
        let status = self.attached.data_plane.wait();
        self.guard
            .without_data_plane(Moment::now(), &mut self.attached);
        let ended = match (self.reason.take(), status) {
            (Some(reason), Ok(_)) => Ended::Refused(reason),
            (None, Ok(status)) if status.success() => Ended::Flushed,
            (None, Ok(status)) => Ended::Died(status),
            // The launcher of a new program: the one of the old program is still there.
            (_, Err(error)) if self.upgrades.is_taking_over() => Ended::Refused(error.to_string()),
            (_, Err(error)) => return Err(error),
        };
        let why = match &ended {
            Ended::Died(status) => status.to_string(),
            // One that was just given the disk, and lets it go again.
            Ended::Flushed if self.upgrades.is_taking_over() => "it ended before it served".into(),
            // It was to go on for another, and could not.
            Ended::Refused(reason) if !self.serving => reason.clone(),
            Ended::Refused(_) | Ended::Flushed | Ended::TakenOver(_) => return Ok(Some(ended)),
        };
        if !self.served || self.captured || self.attached.commands.is_ending() {
            return Ok(Some(ended));
        }
        self.died(&why);
        Ok(None)
    }

    /// Has another one started in a while.
    fn died(&mut self, why: &str) {
        let now = Instant::now();
        self.fail_upgrade(&match self.upgrades.is_taking_over() {
            true => format!("the new program did not serve ({why})"),
            false => format!("its data plane has died ({why})"),
        });
        self.serving = false;
        self.handed_over = false;
        self.restarts += 1;
        let pause = self.lives.died(now, &self.keeping.progress());
        self.keeping.finish();
        log::error!(
            "the disk {} has no data plane ({why}); every completed write is kept, and another one is \
             started{}",
            self.attached.name,
            match pause.is_zero() {
                true => String::new(),
                false => format!(" in {} ms", pause.as_millis()),
            }
        );
        let last = LastRestart {
            time: Moment::now().time,
            reason: Line::of(&why).to_string(),
        };
        let in_a_row = self.lives.in_a_row();
        self.attached.event_hub.restarts(last, in_a_row);
        self.last_death = Some((now, why.to_owned()));
        self.stage = Stage::Paused { until: now + pause };
    }

    /// When something is to be done, if nothing happens before.
    pub(crate) fn deadline(&self) -> Instant {
        let guard = self.guard.deadline();
        let left = guard.saturating_duration_since(Moment::now().instant);
        let guard = Instant::now() + left.min(GUARD_LOOK);
        let stage = match self.stage {
            Stage::Paused { until: due }
            | Stage::Greeting { deadline: due }
            | Stage::Greeted { look: due, .. } => guard.min(due),
            Stage::Given => guard,
        };
        self.upgrade_deadline().map_or(stage, |due| stage.min(due))
    }

    /// Does what is due for the next data plane. How the attach ends, if none can go on.
    ///
    /// # Errors
    /// [`AttachError::Process`].
    pub(crate) fn go_on(&mut self, watched: &mut Watched) -> Result<Option<Ended>, AttachError> {
        let now = Instant::now();
        match self.stage {
            // Without one that could flush there is no orderly end.
            Stage::Paused { until } if now >= until || self.attached.commands.is_ending() => {
                if let Err(error) = self.start(watched) {
                    return self.not_started(&error, watched);
                }
            }
            Stage::Greeting { deadline } if now >= deadline => {
                let silent = ProtocolError::Silent(Peer::DataPlane);
                return self.not_started(&silent.into(), watched);
            }
            Stage::Greeted { look, prepared } if now >= look => match self.give(prepared) {
                Ok(()) => {
                    self.turn = None;
                    self.stage = Stage::Given;
                }
                Err(NotGiven::Later) => {
                    let look = now + TURN;
                    self.stage = Stage::Greeted { look, prepared };
                }
                Err(NotGiven::Failed(error)) => return self.not_started(&error, watched),
                Err(NotGiven::Never(why)) => return Ok(Some(Ended::Refused(why))),
            },
            _ => {}
        }
        if !matches!(self.stage, Stage::Given) {
            self.guard
                .without_data_plane(Moment::now(), &mut self.attached);
        }
        Ok(None)
    }

    fn start(&mut self, watched: &mut Watched) -> Result<(), AttachError> {
        // It has handed over, and its launcher starts one after the other.
        self.upgrades.retiring = None;
        let launcher = self.upgrades.launcher.clone();
        let renewed = self.keeping.renew();
        renewed.map_err(process("make the memory that outlives the data plane"))?;
        let region = self.keeping.region().as_fd().try_clone_to_owned();
        let region = region.map_err(process("start the data plane"))?;
        let socket = self.socket.duplicate()?;
        let (data_plane, keep) = DataPlane::spawn(launcher, socket, region, START_PATIENCE)?;
        watched.hear(data_plane.messages()?)?;
        // The one that has ended is put away with this, and the launcher of a program that has failed.
        let ended = std::mem::replace(&mut self.attached.data_plane, data_plane);
        self.upgrades.launcher.abandon(&ended.launcher());
        self.keep = Some(keep);
        self.stage = Stage::Greeting {
            deadline: Instant::now() + GREETING_PATIENCE,
        };
        Ok(())
    }

    /// Hears whether a data plane that was started speaks the same protocol. How the attach ends, if none goes on.
    ///
    /// # Errors
    /// [`AttachError::Process`].
    pub(crate) fn greet(&mut self, watched: &mut Watched) -> Result<Option<Ended>, AttachError> {
        let now = Instant::now();
        match watched.messages.greet(now) {
            Ok(_) => {
                let (look, prepared) = (now, false);
                self.stage = Stage::Greeted { look, prepared };
            }
            // It has said a part of it.
            Err(ProtocolError::Silent(_)) => {}
            Err(error) => return self.not_started(&error.into(), watched),
        }
        Ok(None)
    }

    /// Gives up one that was started, and has another one started in a while, unless there is to be an end.
    fn not_started(
        &mut self,
        error: &AttachError,
        watched: &mut Watched,
    ) -> Result<Option<Ended>, AttachError> {
        self.attached.data_plane.kill();
        self.attached.commands.ended();
        watched.forget_data_plane()?;
        self.turn = None;
        match self.attached.data_plane.wait() {
            // The launcher of a new program.
            Err(_) if self.upgrades.is_taking_over() => {}
            ended => drop(ended?),
        }
        if !self.upgrades.launcher.is_alive() {
            return Err(AttachError::Refused(error.to_string()));
        }
        if self.attached.commands.is_ending() {
            return Ok(Some(Ended::Refused(error.to_string())));
        }
        self.died(&error.to_string());
        Ok(None)
    }

    /// Gives the data plane the disk, as it was served last.
    fn give(&mut self, prepared: bool) -> Result<(), NotGiven> {
        let attached_disk = self.attached_disk.clone();
        if self.turn.is_none() {
            let turn = attached_disk.turns().take();
            self.turn = Some(turn.ok_or(NotGiven::Later)?);
        }
        if !attached_disk.is_held() {
            return self.give_nothing(prepared);
        }
        // Whoever took it has said so before its turn ended.
        self.hear_taken();
        let opened = attached_disk
            .open_again(&self.setup)?
            .ok_or(NotGiven::Later)?;
        let now = Moment::now();
        let held = self.guard.next_has_key(now, &mut self.attached);
        let deks = match held {
            true => Some(self.attached.keys.deks(&opened.layers).ok_or_else(|| {
                let why = "the keys of the layers that its header names were not kept";
                NotGiven::Never(why.into())
            })?),
            false => None,
        };
        let setup = Setup {
            revoked: (!held).then(|| self.guard.on_revoke()),
            restart: Some(self.restart(opened.resized)),
            ..opened.setup
        };
        self.begin_life(prepared, |opening| {
            opening.serve(setup, &opened.files, deks.as_ref())
        })?;
        attached_disk.served_again();
        match self.upgrades.is_taking_over() {
            true if held => {
                let reason = Reason {
                    code: "Upgraded".into(),
                    message: "another program serves the disk".into(),
                };
                let key_url = self.guard.key_url();
                self.attached
                    .record(Operation::HandOver, key_url, Some(reason));
            }
            true => {}
            false => self.tell_restarted(held),
        }
        Ok(())
    }

    /// The vaults have unwrapped the keys of the disk that was waited for: they are guarded from now on. A data plane of
    /// which nobody knows whether it has the disk makes place for one that gets it.
    pub(crate) fn hear_taken(&mut self) {
        while let Some(taken) = self.attached.migration.taken() {
            self.guard.begun(taken.key_url, Moment::now());
            // Else it has ended meanwhile.
            if taken.is_silent && matches!(self.stage, Stage::Given) {
                log::error!(
                    "the data plane of the disk {} was given the disk and does not answer, so it is killed",
                    self.attached.name
                );
                self.attached.data_plane.kill();
            }
        }
    }

    /// Has the data plane wait for the disk, which another attach may have.
    fn give_nothing(&mut self, prepared: bool) -> Result<(), NotGiven> {
        let header = self.attached_disk.header();
        let setup = Setup {
            stack: stack_of(&header)?,
            write_through: header.write_through,
            restart: Some(self.restart(false)),
            ..self.setup.clone()
        };
        self.begin_life(prepared, |opening| opening.wait(setup))?;
        if !self.upgrades.is_taking_over() {
            self.tell_restarted(false);
        }
        Ok(())
    }

    /// What the next data plane is told of those before.
    fn restart(&self, resized: bool) -> Restart {
        Restart {
            kept: self.keeping.len(),
            short_lives: self.lives.short(),
            resized,
        }
    }

    /// Has `tell` say to the data plane what it is for, and passes on what was kept.
    fn begin_life<E>(
        &mut self,
        prepared: bool,
        tell: impl FnOnce(Opening) -> Result<(), E>,
    ) -> Result<(), NotGiven>
    where
        NotGiven: From<E>,
    {
        let keep = self
            .keep
            .take()
            .ok_or(ProtocolError::Ended(Peer::DataPlane))?;
        let stream = self.attached.data_plane.stream()?;
        let opening = match prepared {
            true => self.attached.commands.open_prepared(stream),
            false => self.attached.commands.open_again(stream)?,
        };
        self.lives.begin(Instant::now(), self.keeping.progress());
        tell(opening)?;
        self.keeping.send(&keep)?;
        let listening = self.keeping.listen(keep);
        Ok(listening.map_err(process("start the thread of what is kept"))?)
    }

    fn tell_restarted(&mut self, with_key: bool) {
        let why = self.last_death.as_ref().map_or("", |(_, why)| why);
        let reason = Reason {
            code: "DataPlaneDied".into(),
            message: format!(
                "there was none any more ({why}); restarts: {}",
                self.restarts
            ),
        };
        if with_key {
            self.attached.record(
                Operation::HandOver,
                self.guard.key_url(),
                Some(reason.clone()),
            );
        }
        self.tell(EventKind::DataPlaneRestarted, Some(reason));
    }

    /// It serves guests again.
    pub(crate) fn serves_again(&mut self) {
        if let Some((death, _)) = self.last_death.take() {
            log::warn!(
                "the disk {} is served again, {} ms after the death of its data plane",
                self.attached.name,
                death.elapsed().as_millis()
            );
        }
    }
}
