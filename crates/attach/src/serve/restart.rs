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

use std::time::{Duration, Instant};

use crate::begin::data_plane::{DataPlane, process};
use crate::error::AttachError;
use crate::guard::key_guard::Moment;
use crate::guard::records::Operation;
use crate::serve::supervise::{Ended, Stage, Supervision, Watched};
use crate::status::{EventKind, LastRestart, Reason};
use protocol::{Line, Peer, ProtocolError, Restart, Setup};

/// How long a data plane may take to say which protocol it speaks, on a busy host.
pub(crate) const GREETING_PATIENCE: Duration = Duration::from_secs(60);
/// How long it is until it is looked again whether the disk can be given.
const TURN: Duration = Duration::from_millis(5);

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
        self.hands.commands.ended();
        watched.forget_data_plane()?;
        let status = self.hands.data_plane.wait()?;
        self.guard
            .without_data_plane(Moment::now(), &mut self.hands);
        let ended = match self.reason.take() {
            Some(reason) => Ended::Refused(reason),
            None if status.success() => Ended::Flushed,
            None => Ended::Died(status),
        };
        let why = match &ended {
            Ended::Died(status) => status.to_string(),
            // It was to go on for another, and could not.
            Ended::Refused(reason) if !self.serving => reason.clone(),
            Ended::Refused(_) | Ended::Flushed => return Ok(Some(ended)),
        };
        if !self.served || self.captured || self.hands.commands.is_ending() {
            return Ok(Some(ended));
        }
        self.died(&why)?;
        Ok(None)
    }

    /// Has another one started in a while.
    fn died(&mut self, why: &str) -> Result<(), AttachError> {
        let now = Instant::now();
        self.serving = false;
        self.restarts += 1;
        let pause = self.lives.died(now, &self.keeping.progress());
        let finished = self.keeping.finish();
        finished.map_err(process("make the memory that outlives the data plane"))?;
        log::error!(
            "the disk {} has no data plane ({why}); every completed write is kept, and another one is \
             started{}",
            self.hands.name,
            match pause.is_zero() {
                true => String::new(),
                false => format!(" in {} ms", pause.as_millis()),
            }
        );
        self.hands.event_hub.restarts(LastRestart {
            time: Moment::now().time,
            reason: Line::of(&why).to_string(),
        });
        self.last_death = Some((now, why.to_owned()));
        self.stage = Stage::Paused { until: now + pause };
        Ok(())
    }

    /// Does what is due for the next data plane. How the attach ends, if none can go on.
    ///
    /// # Errors
    /// [`AttachError::Process`].
    pub(crate) fn go_on(&mut self, watched: &mut Watched) -> Result<Option<Ended>, AttachError> {
        let now = Instant::now();
        match self.stage {
            // Without one that could flush there is no orderly end.
            Stage::Paused { until } if now >= until || self.hands.commands.is_ending() => {
                if let Err(error) = self.start(watched) {
                    return self.not_started(&error, watched);
                }
            }
            Stage::Greeting { deadline } if now >= deadline => {
                let silent = ProtocolError::Silent(Peer::DataPlane);
                return self.not_started(&silent.into(), watched);
            }
            Stage::Greeted { look } if now >= look => match self.give() {
                Ok(()) => self.stage = Stage::Given,
                Err(NotGiven::Later) => self.stage = Stage::Greeted { look: now + TURN },
                Err(NotGiven::Failed(error)) => return self.not_started(&error, watched),
                Err(NotGiven::Never(why)) => return Ok(Some(Ended::Refused(why))),
            },
            _ => {}
        }
        if !matches!(self.stage, Stage::Given) {
            self.guard
                .without_data_plane(Moment::now(), &mut self.hands);
        }
        Ok(None)
    }

    fn start(&mut self, watched: &mut Watched) -> Result<(), AttachError> {
        let launcher = self.hands.data_plane.launcher();
        let (data_plane, keep) = DataPlane::spawn(launcher, &self.socket, self.keeping.region())?;
        watched.hear(data_plane.messages()?)?;
        // The one that has ended is put away with this.
        self.hands.data_plane = data_plane;
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
            Ok(_) => self.stage = Stage::Greeted { look: now },
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
        self.hands.data_plane.kill();
        self.hands.commands.ended();
        watched.forget_data_plane()?;
        self.hands.data_plane.wait()?;
        if self.hands.commands.is_ending() {
            return Ok(Some(Ended::Refused(error.to_string())));
        }
        self.died(&error.to_string())?;
        Ok(None)
    }

    /// Gives the data plane the disk, as it was served last.
    fn give(&mut self) -> Result<(), NotGiven> {
        let attached_disk = self.attached_disk.clone();
        let Some(_turn) = attached_disk.try_changing() else {
            return Err(NotGiven::Later);
        };
        let opened = attached_disk
            .open_again(&self.setup)?
            .ok_or(NotGiven::Later)?;
        let held = self.guard.holds_key();
        let deks = match held {
            true => Some(self.hands.keys.deks(&opened.layers).ok_or_else(|| {
                let why = "the keys of the layers that its header names were not kept";
                NotGiven::Never(why.into())
            })?),
            false => None,
        };
        let setup = Setup {
            revoked: (!held).then(|| self.guard.on_revoke()),
            restart: Some(Restart {
                kept: self.keeping.len(),
                short_lives: self.lives.short(),
                resized: opened.resized,
            }),
            ..opened.setup
        };
        let keep = self
            .keep
            .take()
            .ok_or(ProtocolError::Ended(Peer::DataPlane))?;
        let opening = self
            .hands
            .commands
            .open_again(self.hands.data_plane.stream()?)?;
        self.lives.begin(Instant::now(), self.keeping.progress());
        opening.serve(setup, &opened.files, deks.as_ref())?;
        self.keeping.send(&keep)?;
        let listening = self.keeping.listen(keep);
        listening.map_err(process("start the thread of what is kept"))?;
        attached_disk.served_again();
        self.tell_restarted(held);
        Ok(())
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
            self.hands.record(
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
                self.hands.name,
                death.elapsed().as_millis()
            );
        }
    }
}
