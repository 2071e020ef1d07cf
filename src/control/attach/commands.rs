//! What the control process tells the data plane, from whichever of its threads.

use std::io::{self, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::frontend::{
    COPY, COPY_STOP, COPY_STOPPED, COPYING, CopyProgress, CopyRequest, DiskFiles, FREEZE, FROZEN,
    LIMITS, Limits, NOT_COPYING, NOT_FROZEN, NOT_RESIZED, NOT_RESTACKED, OnRevoke, PROGRESS,
    PROGRESS_IS, RESIZE, RESIZED, RESTACK, RESTACKED, RESTORE, REVOKE, Stack, THAW, THAWED,
    send_stack,
};
use crate::keys::DekStack;

use super::guard::LayerKeys;

/// How long the data plane may take for what waits until it has completed what the guest has asked
/// for.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long it may take to stand still; a guest waits meanwhile.
const FREEZE_PATIENCE: Duration = Duration::from_secs(10);

/// How the data plane answers a question: yes, perhaps with something, or no and why.
struct Question {
    yes: &'static str,
    /// Empty when it cannot say no.
    no: &'static str,
}

const RESIZING: Question = Question {
    yes: RESIZED,
    no: NOT_RESIZED,
};
const FREEZING: Question = Question {
    yes: FROZEN,
    no: NOT_FROZEN,
};
const RESTACKING: Question = Question {
    yes: RESTACKED,
    no: NOT_RESTACKED,
};
const THAWING: Question = Question {
    yes: THAWED,
    no: "",
};
const BEGINNING: Question = Question {
    yes: COPYING,
    no: NOT_COPYING,
};
const STOPPING: Question = Question {
    yes: COPY_STOPPED,
    no: "",
};
const ASKING: Question = Question {
    yes: PROGRESS_IS,
    no: "",
};

/// Who waits for the answer to a question.
struct Waiting {
    question: &'static Question,
    answer: SyncSender<Result<String, String>>,
}

/// The writing end of the data plane's control socket. Commands do not mix: each is written whole.
pub(super) struct Commands {
    control: Mutex<UnixStream>,
    /// Held by who asks: one question at a time.
    asking: Mutex<()>,
    waiting: Mutex<Option<Waiting>>,
}

impl Commands {
    pub(super) fn new(control: UnixStream) -> Self {
        Self {
            control: Mutex::new(control),
            asking: Mutex::new(()),
            waiting: Mutex::new(None),
        }
    }

    /// Has the disk, whose files have grown, served with `size` bytes.
    pub(super) fn resize(&self, size: u64) -> Result<(), String> {
        let served = self.ask_line(&RESIZING, &format!("{RESIZE}{size}"), PATIENCE)?;
        match served.parse::<u64>() {
            Ok(served) if served == size => Ok(()),
            _ => Err(format!("the data plane serves {served} bytes")),
        }
    }

    /// Has it stand still with everything durable. When it does not in time, it goes on.
    pub(super) fn freeze(&self) -> Result<(), String> {
        let frozen = self.ask_line(&FREEZING, FREEZE, FREEZE_PATIENCE);
        if frozen.is_err() {
            // It may do so later.
            let _ = self.thaw();
        }
        frozen.map(drop)
    }

    /// Has it go on with another stack.
    pub(super) fn restack(
        &self,
        stack: &Stack,
        files: &DiskFiles,
        deks: &DekStack,
    ) -> Result<(), String> {
        let send = |control: &mut UnixStream| {
            writeln!(control, "{RESTACK}")?;
            send_stack(control, stack, files, deks).map_err(io::Error::other)
        };
        self.ask(&RESTACKING, send, PATIENCE).map(drop)
    }

    /// Has it go on as before it stood still.
    pub(super) fn thaw(&self) -> Result<(), String> {
        self.ask_line(&THAWING, THAW, PATIENCE).map(drop)
    }

    /// Has it copy up into the top layer.
    pub(super) fn copy(&self, request: &CopyRequest) -> Result<(), String> {
        let json = serde_json::to_string(request).map_err(|e| e.to_string())?;
        self.ask_line(&BEGINNING, &format!("{COPY}{json}"), PATIENCE)
            .map(drop)
    }

    /// Has it copy no more.
    pub(super) fn copy_stop(&self) -> Result<(), String> {
        self.ask_line(&STOPPING, COPY_STOP, PATIENCE).map(drop)
    }

    /// How far the copy is.
    pub(super) fn progress(&self) -> Result<CopyProgress, String> {
        let json = self.ask_line(&ASKING, PROGRESS, PATIENCE)?;
        serde_json::from_str(&json).map_err(|e| e.to_string())
    }

    pub(super) fn limits(&self, limits: &Limits) -> io::Result<()> {
        let json = serde_json::to_string(limits)?;
        self.line(&format!("{LIMITS}{json}"))
    }

    pub(super) fn revoke(&self, mode: OnRevoke) -> io::Result<()> {
        self.line(&format!("{REVOKE}{}", mode.as_str()))
    }

    pub(super) fn restore(&self, keys: &LayerKeys) -> io::Result<()> {
        let layers = serde_json::to_string(&keys.layers)?;
        let mut control = self.control();
        writeln!(control, "{RESTORE}{layers}")?;
        keys.deks.send(&mut *control).map_err(io::Error::other)
    }

    /// The data plane sees the end of the socket, and ends.
    pub(super) fn end(&self) -> io::Result<()> {
        self.control().shutdown(Shutdown::Write)
    }

    /// Takes a line of the data plane, if it is the answer that somebody waits for.
    pub(super) fn answered(&self, line: &str) {
        let mut waiting = self.waiting();
        let Some(Waiting { question, answer }) = &*waiting else {
            return;
        };
        let said = match (line.strip_prefix(question.yes), question.no) {
            (Some(rest), _) => Ok(rest.to_owned()),
            (None, "") => return,
            (None, no) => match line.strip_prefix(no) {
                Some(why) => Err(why.to_owned()),
                None => return,
            },
        };
        // Who waited has given up at most.
        let _ = answer.try_send(said);
        *waiting = None;
    }

    fn ask_line(
        &self,
        question: &'static Question,
        line: &str,
        patience: Duration,
    ) -> Result<String, String> {
        self.ask(question, |control| writeln!(control, "{line}"), patience)
    }

    fn ask(
        &self,
        question: &'static Question,
        send: impl FnOnce(&mut UnixStream) -> io::Result<()>,
        patience: Duration,
    ) -> Result<String, String> {
        // Nothing is guarded but the turn.
        let _turn = self.asking.lock().unwrap_or_else(PoisonError::into_inner);
        let (answer, answered) = sync_channel(1);
        *self.waiting() = Some(Waiting { question, answer });
        send(&mut self.control()).map_err(|e| format!("the data plane cannot be told: {e}"))?;
        let said = answered.recv_timeout(patience);
        *self.waiting() = None;
        said.unwrap_or_else(|_| Err("the data plane does not answer".into()))
    }

    fn waiting(&self) -> MutexGuard<'_, Option<Waiting>> {
        // It is replaced as a whole.
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn line(&self, line: &str) -> io::Result<()> {
        self.control().write_all(format!("{line}\n").as_bytes())
    }

    fn control(&self) -> MutexGuard<'_, UnixStream> {
        // A command that was cut off ends the data plane, whoever holds the lock.
        self.control.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
