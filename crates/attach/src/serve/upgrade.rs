//! A data plane of another program takes the place of the one that serves.
//!
//! # Order
//!
//! 1. A thread prepares the new one beside the old one (`candidate.rs`): its launcher, its namespaces, its rings, its
//!    cipher, its confinement. Whatever is wrong with the program shows here, and the old one goes on.
//! 2. Once nobody changes the disk, the old one is told to hand over. Its queues complete what they took; if that
//!    takes too long they go on, and so does it.
//! 3. When it has said that it has handed over, it touches nothing any more. The new one gets the disk at once, as
//!    after a death (`restart.rs`). The old one ends meanwhile.
//! 4. If the new one fails before it serves, that is a death too, and one of the old program is started: its
//!    launcher stays until the new one serves.
//!
//! A crash between any two of these is a death of whoever served then. In the end the attach process executes the same
//! program (`replace.rs`).

use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use crate::begin::data_plane::process;
use crate::error::AttachError;
use crate::guard::key_guard::Moment;
use crate::serve::candidate::{Candidate, Preparation};
use crate::serve::supervise::{Stage, Supervision, Watched};
use crate::serve::systemd::tell_systemd;
use crate::serve::upgrades::{Order, Step, Upgrade, UpgradeEvent};
use crate::status::{EventKind, LastUpgrade, Reason, Upgraded};
use protocol::Line;

/// How long a change of the disk's layers is waited for.
const TURN_PATIENCE: Duration = Duration::from_secs(10);
/// How often it is looked whether there is one.
const LOOK: Duration = Duration::from_millis(5);
/// How long a data plane may take to hand over, or to say why it does not.
const HAND_OVER_PATIENCE: Duration = Duration::from_secs(15);
/// How long a moment is waited for in which this process can go on as another program.
const REPLACE_PATIENCE: Duration = Duration::from_secs(10);
/// How long the new one may take from then on until it serves, on a busy host.
const SERVE_PATIENCE: Duration = Duration::from_secs(10);

impl Supervision {
    /// Hears what there is to hear of upgrades.
    pub(crate) fn hear_of_upgrades(&mut self) {
        while let Some(event) = self.upgrades.take() {
            match event {
                UpgradeEvent::Ordered(order) => self.begin_upgrade(order),
                UpgradeEvent::Prepared(number, prepared) => {
                    let now = self.upgrades.now.as_mut();
                    let waiting = now.filter(|_| number == self.upgrades.count);
                    match (prepared, waiting) {
                        (Ok(candidate), Some(upgrade)) => {
                            let until = Instant::now() + TURN_PATIENCE;
                            upgrade.step = Step::Waiting { candidate, until };
                        }
                        (Ok(candidate), None) => give_up(candidate),
                        (Err(error), Some(_)) => self.fail_upgrade(&error.to_string()),
                        (Err(_), None) => {}
                    }
                }
            }
        }
    }

    /// Starts what an order asks for, unless it cannot be now.
    fn begin_upgrade(&mut self, order: Order) {
        let Order {
            program,
            answer,
            client,
            span,
        } = order;
        let program = program.unwrap_or_else(|| self.upgrades.program.clone());
        let is_served = matches!(self.stage, Stage::Given) && self.serving;
        let refusal = match (&self.upgrades.now, is_served) {
            (Some(_), _) => Some("another upgrade of it goes on"),
            (None, false) => Some("its data plane is being started: try again"),
            (None, true) => None,
        };
        if let Some(why) = refusal {
            span.failed("NotUpgraded");
            if let Some(answer) = answer {
                let _ = answer.try_send(Err(why.into()));
            }
            return log::warn!("the disk {} is not upgraded: {why}", self.attached.name);
        }
        tell_reloading();
        self.upgrades.count += 1;
        self.upgrades.now = Some(Upgrade {
            answer,
            client,
            span,
            step: Step::Preparing,
        });
        log::info!(
            "the disk {} is to be served by {}",
            self.attached.name,
            program.display()
        );
        if let Err(error) = self.prepare(program) {
            self.fail_upgrade(&error.to_string());
        }
    }

    /// Has a thread prepare a data plane.
    fn prepare(&self, program: std::path::PathBuf) -> Result<(), AttachError> {
        let fail = process("prepare another data plane");
        let region = self.keeping.region().as_fd().try_clone_to_owned();
        let preparation = Preparation {
            program,
            place: self.place.clone(),
            launcher: self.upgrades.launcher.clone(),
            socket: self.socket.duplicate()?,
            region: region.map_err(&fail)?,
            queues: self.setup.num_queues,
        };
        let (desk, number) = (self.upgrades.desk.clone(), self.upgrades.count);
        std::thread::Builder::new()
            .name("upgrade".into())
            .spawn(move || desk.put(UpgradeEvent::Prepared(number, preparation.make())))
            .map(drop)
            .map_err(fail)
    }

    /// Has the data plane hand over, when it is time for that.
    pub(crate) fn go_on_upgrading(&mut self) {
        let now = Instant::now();
        match self.upgrades.now.as_mut().map(|upgrade| &mut upgrade.step) {
            Some(Step::Waiting { until, .. }) => {
                let is_late = now >= *until;
                if self.turn.is_none() {
                    self.turn = self.attached_disk.turns().take();
                }
                match self.turn.is_some() {
                    true => self.ask_to_hand_over(now),
                    false if is_late => {
                        self.fail_upgrade("its layers are being changed: try again later");
                    }
                    false => {}
                }
            }
            Some(Step::HandingOver { since, .. }) if now >= *since + HAND_OVER_PATIENCE => {
                let why = "the data plane neither hands over nor goes on, so it is killed";
                self.fail_upgrade(why);
                self.attached.data_plane.kill();
            }
            Some(Step::TakingOver { since, killed, .. })
                if !*killed && now >= *since + SERVE_PATIENCE =>
            {
                *killed = true;
                log::error!("the new data plane does not serve in time, so it is killed");
                self.attached.data_plane.kill();
            }
            _ => {}
        }
    }

    fn ask_to_hand_over(&mut self, now: Instant) {
        if let Err(error) = self.attached.commands.hand_over() {
            return self.fail_upgrade(&error.to_string());
        }
        let Some(upgrade) = &mut self.upgrades.now else {
            return;
        };
        let step = std::mem::replace(&mut upgrade.step, Step::Preparing);
        if let Step::Waiting { candidate, .. } = step {
            upgrade.step = Step::HandingOver {
                candidate,
                since: now,
            };
        }
    }

    /// When something is due, if nothing happens before.
    pub(crate) fn upgrade_deadline(&self) -> Option<Instant> {
        match self.upgrades.now.as_ref()?.step {
            Step::Waiting { .. } => Some(Instant::now() + LOOK),
            Step::HandingOver { since, .. } => Some(since + HAND_OVER_PATIENCE),
            Step::Replacing { .. } => Some(Instant::now() + LOOK),
            Step::TakingOver { since, killed, .. } => (!killed).then_some(since + SERVE_PATIENCE),
            Step::Preparing => None,
        }
    }

    /// After the data plane has handed over: the new one is the one that is supervised.
    ///
    /// # Errors
    /// [`AttachError::Process`].
    pub(crate) fn take_over(&mut self, watched: &mut Watched) -> Result<(), AttachError> {
        let Some(Upgrade {
            answer,
            client,
            span,
            step: Step::HandingOver { candidate, since },
        }) = self.upgrades.now.take()
        else {
            return Ok(());
        };
        self.attached.commands.ended();
        watched.forget_data_plane()?;
        // What it was to do with a key is done: it has none any more.
        self.guard
            .without_data_plane(Moment::now(), &mut self.attached);
        self.keeping.handed_over();
        watched.hear(candidate.messages)?;
        let mut old = std::mem::replace(&mut self.attached.data_plane, candidate.data_plane);
        // It ends by itself; one that a guest has taken over may not.
        old.kill();
        self.upgrades.retiring = Some(old);
        self.keep = Some(candidate.keep);
        self.serving = false;
        self.stage = Stage::Greeted {
            look: Instant::now(),
            prepared: true,
        };
        self.upgrades.now = Some(Upgrade {
            answer,
            client,
            span,
            step: Step::TakingOver {
                version: candidate.version,
                since,
                killed: false,
                program: candidate.program,
            },
        });
        Ok(())
    }

    /// The new one serves, if there is one: what was of the old program ends, and this process goes on as the new
    /// program as soon as it can.
    pub(crate) fn finish_upgrade(&mut self) {
        let Some(Upgrade {
            answer,
            client,
            span,
            step:
                Step::TakingOver {
                    version,
                    since,
                    program,
                    ..
                },
        }) = self
            .upgrades
            .now
            .take_if(|now| matches!(now.step, Step::TakingOver { .. }))
        else {
            return;
        };
        let stall = u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.upgrades.launcher = self.attached.data_plane.launcher();
        if let Some(old) = self.upgrades.retiring.take() {
            let launcher = old.launcher();
            let leave = move || {
                drop(old);
                launcher.end();
            };
            let end = std::thread::Builder::new().name("upgraded".into());
            match end.spawn(leave) {
                Ok(leaving) => self.upgrades.leaving = Some(leaving),
                Err(error) => log::debug!("the end of the old program is not waited for: {error}"),
            }
        }
        let upgraded = Upgraded {
            from: self.attached.event_hub.version(),
            to: version,
            stall_ms: stall,
            attach_kept: None,
        };
        self.attached.event_hub.upgraded(LastUpgrade {
            time: Moment::now().time,
            upgraded: upgraded.clone(),
        });
        let reason = Reason {
            code: "Upgraded".into(),
            message: upgraded.to_string(),
        };
        self.tell(EventKind::DataPlaneUpgraded, Some(reason));
        // This process may be another program before it could say so.
        span.set(
            "sealdisk.stall_ms",
            i64::try_from(stall).unwrap_or(i64::MAX),
        );
        span.end();
        self.upgrades.now = Some(Upgrade {
            answer,
            client,
            span,
            step: Step::Replacing {
                program,
                upgraded,
                until: Instant::now() + REPLACE_PATIENCE,
            },
        });
    }

    /// The data plane is upgraded, and why this process is not.
    pub(crate) fn end_upgrade(&mut self, attach_kept: Option<String>) {
        let is_replacing = |now: &mut Upgrade| matches!(now.step, Step::Replacing { .. });
        let Some(Upgrade {
            answer,
            step: Step::Replacing { upgraded, .. },
            ..
        }) = self.upgrades.now.take_if(is_replacing)
        else {
            return;
        };
        tell_ready();
        if let Some(answer) = answer {
            // Who asked may have gone.
            let _ = answer.try_send(Ok(Upgraded {
                attach_kept: attach_kept.map(|why| Line::of(&why).to_string()),
                ..upgraded
            }));
        }
    }

    /// Gives the upgrade up that is under way, if there is one.
    pub(crate) fn fail_upgrade(&mut self, why: &str) {
        self.end_upgrade(Some(why.to_owned()));
        let Some(Upgrade {
            answer, step, span, ..
        }) = self.upgrades.now.take()
        else {
            return;
        };
        span.failed("NotUpgraded");
        let why = Line::of(&why).to_string();
        match step {
            Step::Waiting { candidate, .. } | Step::HandingOver { candidate, .. } => {
                self.turn = None;
                give_up(candidate);
            }
            Step::Preparing | Step::TakingOver { .. } | Step::Replacing { .. } => {}
        }
        let reason = Reason {
            code: "NotUpgraded".into(),
            message: why.clone(),
        };
        self.tell(EventKind::UpgradeFailed, Some(reason));
        tell_ready();
        if let Some(answer) = answer {
            let _ = answer.try_send(Err(why));
        }
    }
}

/// Ends a candidate. That may take a moment, in which the guard is to be heard.
fn give_up(candidate: Candidate) {
    let end = std::thread::Builder::new().name("given-up".into());
    if let Err(error) = end.spawn(move || candidate.give_up()) {
        log::debug!("the end of a data plane was waited for: {error}");
    }
}

fn tell_reloading() {
    let mut states = vec![sd_notify::NotifyState::Reloading];
    states.extend(sd_notify::NotifyState::monotonic_usec_now());
    tell_systemd(&states);
}

fn tell_ready() {
    tell_systemd(&[sd_notify::NotifyState::Ready]);
}
