//! Upgrades of an attached disk: who asks for one, and how far it is. `upgrade.rs` has what is done for it.

use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::thread::JoinHandle;
use std::time::Instant;

use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use crate::begin::data_plane::DataPlane;
use crate::error::AttachError;
use crate::serve::candidate::{Candidate, NewProgram};
use crate::status::Upgraded;
use sandbox::Launcher;
use traces::{Span, SpanKind};

/// What comes of an upgrade; else why the program that served goes on, as one line.
pub(crate) type Outcome = Result<Upgraded, String>;

/// An upgrade that somebody asks for.
pub(crate) struct Order {
    /// The program; else the one that is at the path by now from which this process was started.
    pub(crate) program: Option<PathBuf>,
    /// Who waits for what comes of it: a thread here, and a client at the other end of a socket.
    pub(crate) answer: Option<SyncSender<Outcome>>,
    pub(crate) client: Option<OwnedFd>,
    /// What it is, for traces.
    pub(crate) span: Span,
}

/// What the supervision hears of upgrades.
pub(crate) enum UpgradeEvent {
    Ordered(Order),
    /// What came of the preparation of that number.
    Prepared(u64, Result<Candidate, AttachError>),
}

/// Where upgrades are asked for.
#[derive(Clone)]
pub(crate) struct UpgradeDesk {
    sender: Sender<UpgradeEvent>,
    bell: Arc<EventFd>,
}

impl UpgradeDesk {
    /// Has the supervision hear something.
    pub(crate) fn put(&self, event: UpgradeEvent) {
        // Without a supervision there is nothing to upgrade.
        if self.sender.send(event).is_ok() {
            let _ = self.bell.write(1);
        }
    }

    /// Asks for an upgrade, and waits for what comes of it.
    /// The client has its answer by `client`, if another program goes on in this process meanwhile.
    /// It is a part of what `parent` names.
    pub(crate) fn ask(
        &self,
        program: Option<PathBuf>,
        client: Option<OwnedFd>,
        parent: Option<String>,
    ) -> Outcome {
        let (answer, answered) = sync_channel(1);
        let span = Span::asked_by(parent.as_deref(), SpanKind::Server, "upgrade");
        self.put(UpgradeEvent::Ordered(Order {
            program,
            answer: Some(answer),
            client,
            span,
        }));
        let detached = |_| Err("the disk was detached meanwhile".into());
        answered.recv().unwrap_or_else(detached)
    }
}

/// The upgrades of an attached disk, one at a time.
pub(crate) struct Upgrades {
    pub(crate) desk: UpgradeDesk,
    events: Receiver<UpgradeEvent>,
    /// The path from which this process was started.
    pub(crate) program: PathBuf,
    /// The launcher of the program that served last.
    pub(crate) launcher: Arc<Launcher>,
    /// How many there were.
    pub(crate) count: u64,
    /// The one that is under way.
    pub(crate) now: Option<Upgrade>,
    /// The data plane that has handed over, until it has ended.
    pub(crate) retiring: Option<DataPlane>,
    /// Waits for the end of what was of the old program.
    pub(crate) leaving: Option<JoinHandle<()>>,
}

/// An upgrade that is under way.
pub(crate) struct Upgrade {
    pub(crate) answer: Option<SyncSender<Outcome>>,
    pub(crate) client: Option<OwnedFd>,
    pub(crate) span: Span,
    pub(crate) step: Step,
}

/// How far an upgrade is.
pub(crate) enum Step {
    /// A data plane of the program is being prepared.
    Preparing,
    /// It is prepared, and waits for its turn until then.
    Waiting {
        candidate: Candidate,
        until: Instant,
    },
    /// The one that serves has been told to hand over, at that time.
    HandingOver {
        candidate: Candidate,
        since: Instant,
    },
    /// It has; the new one, of that version, is given the disk, and is killed when it does not serve in time.
    TakingOver {
        version: String,
        since: Instant,
        killed: bool,
        program: NewProgram,
    },
    /// It serves; this process is to execute the same program, until then.
    Replacing {
        program: NewProgram,
        upgraded: Upgraded,
        until: Instant,
    },
}

impl Upgrades {
    /// None yet.
    ///
    /// # Errors
    /// What the kernel says.
    pub(crate) fn new(program: PathBuf, launcher: Arc<Launcher>) -> io::Result<Self> {
        let (sender, events) = channel();
        let bell = Arc::new(EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?);
        Ok(Self {
            desk: UpgradeDesk { sender, bell },
            events,
            program,
            launcher,
            count: 0,
            now: None,
            retiring: None,
            leaving: None,
        })
    }

    /// Becomes readable when there is something to hear.
    pub(crate) fn bell(&self) -> &EventFd {
        &self.desk.bell
    }

    /// What was heard next, if there is something.
    pub(crate) fn take(&self) -> Option<UpgradeEvent> {
        let _ = self.desk.bell.read();
        self.events.try_recv().ok()
    }

    /// Whether a data plane has handed over that the next one can be taken back from.
    pub(crate) fn is_taking_over(&self) -> bool {
        let step = self.now.as_ref().map(|upgrade| &upgrade.step);
        matches!(step, Some(Step::TakingOver { .. }))
    }
}
