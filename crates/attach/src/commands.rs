//! What the control process tells the data plane, from whichever of its threads.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use keys::DekStack;
use protocol::{
    COPY, COPY_STOP, COPY_STOPPED, COPYING, CopyProgress, CopyRequest, DISCONNECT, DiskFiles,
    FREEZE, FROZEN, LIMITS, Limits, NOT_COPYING, NOT_FROZEN, NOT_RESIZED, NOT_RESTACKED, OnRevoke,
    PROGRESS, PROGRESS_IS, RESIZE, RESIZED, RESTACK, RESTACKED, RESTORE, REVOKE, Stack, THAW,
    THAWED, send_stack,
};

use super::guard::LayerKeys;

/// How long the data plane may take for what it answers when the guest's requests, or a flush, are
/// done.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long it may take to quiesce: it flushes before, which can be long.
const FREEZE_PATIENCE: Duration = Duration::from_secs(120);
/// How long it may take for what it answers at once, after what it was told before.
const COPY_PATIENCE: Duration = Duration::from_secs(120);

/// The answer to a command: what it says, or why the command was refused.
type Answer = Result<String, String>;

/// The writing end of the data plane's control socket. Commands do not mix: each is written whole.
pub(super) struct Commands {
    control: Mutex<UnixStream>,
    /// Who waits for answers, in the order of the commands; `None` after the data plane's end.
    waiting: Mutex<Option<VecDeque<SyncSender<Answer>>>>,
}

impl Commands {
    pub(super) fn new(control: UnixStream) -> Self {
        Self {
            control: Mutex::new(control),
            waiting: Mutex::new(Some(VecDeque::new())),
        }
    }

    /// Keeps everybody's commands back: the data plane has to get its setup before.
    pub(super) fn lock(&self) -> MutexGuard<'_, UnixStream> {
        self.control()
    }

    /// Has the disk, whose files have grown, served with `size` bytes.
    pub(super) fn resize(&self, size: u64) -> Result<(), String> {
        let served = self.ask_line(&format!("{RESIZE}{size}"), PATIENCE)?;
        match served == size.to_string() {
            true => Ok(()),
            false => Err(format!("the data plane serves {served} bytes")),
        }
    }

    /// Has the data plane make everything durable and quiesce.
    pub(super) fn freeze(&self) -> Result<(), String> {
        self.ask_line(FREEZE, FREEZE_PATIENCE)
            .map(drop)
            .inspect_err(|_| {
                // Should it be quiesced later, it resumes at once. If it cannot be told, it
                // is at its end.
                let _ = self.post(|control| writeln!(control, "{THAW}"));
            })
    }

    /// Has the data plane, which is quiesced, swap its layers for others and resume.
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
        self.ask(send, PATIENCE).map(drop)
    }

    /// Has it resume with the layers that it has.
    pub(super) fn thaw(&self) -> Result<(), String> {
        self.ask_line(THAW, PATIENCE).map(drop)
    }

    /// Has it copy up into the top layer.
    pub(super) fn copy(&self, request: &CopyRequest) -> Result<(), String> {
        let json = serde_json::to_string(request).map_err(|e| e.to_string())?;
        self.ask_line(&format!("{COPY}{json}"), COPY_PATIENCE)
            .map(drop)
    }

    /// Has it copy no more.
    pub(super) fn copy_stop(&self) -> Result<(), String> {
        self.ask_line(COPY_STOP, COPY_PATIENCE).map(drop)
    }

    /// How far the copy is.
    pub(super) fn progress(&self) -> Result<CopyProgress, String> {
        let json = self.ask_line(PROGRESS, COPY_PATIENCE)?;
        serde_json::from_str(&json).map_err(|e| e.to_string())
    }

    /// Takes a line of the data plane, if it answers a command of those that are waited for.
    pub(super) fn answered(&self, line: &str) {
        let Some(answer) = parse(line) else {
            return;
        };
        let waiting = self.waiting().as_mut().and_then(VecDeque::pop_front);
        if let Some(waiting) = waiting {
            // Who waited has given up at most.
            let _ = waiting.try_send(answer);
        }
    }

    /// Ends a connection of the frontend, whose guest's memory is not shared.
    pub(super) fn disconnect(&self, connection: u64) -> io::Result<()> {
        self.line(&format!("{DISCONNECT}{connection}"))
    }

    /// Whether the data plane has ended.
    pub(super) fn has_ended(&self) -> bool {
        self.waiting().is_none()
    }

    /// There will be no more answers.
    pub(super) fn ended(&self) {
        *self.waiting() = None;
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

    fn line(&self, line: &str) -> io::Result<()> {
        self.control().write_all(format!("{line}\n").as_bytes())
    }

    fn ask_line(&self, line: &str, patience: Duration) -> Answer {
        self.ask(
            |control| control.write_all(format!("{line}\n").as_bytes()),
            patience,
        )
    }

    fn ask(
        &self,
        send: impl FnOnce(&mut UnixStream) -> io::Result<()>,
        patience: Duration,
    ) -> Answer {
        let answered = self.post(send)?;
        answered.recv_timeout(patience).map_err(|e| match e {
            RecvTimeoutError::Timeout => "the data plane does not answer".to_owned(),
            RecvTimeoutError::Disconnected => "the data plane has ended".to_owned(),
        })?
    }

    /// Sends a command that is answered. Whoever does not wait for the answer still has it taken from
    /// the next one's.
    fn post(
        &self,
        send: impl FnOnce(&mut UnixStream) -> io::Result<()>,
    ) -> Result<std::sync::mpsc::Receiver<Answer>, String> {
        let (answer, answered) = sync_channel(1);
        // Until the command is written nobody else's comes in between.
        let mut control = self.control();
        match self.waiting().as_mut() {
            Some(waiting) => waiting.push_back(answer),
            None => return Err("the data plane has ended".into()),
        }
        send(&mut control).map_err(|e| format!("the data plane cannot be told: {e}"))?;
        Ok(answered)
    }

    fn waiting(&self) -> MutexGuard<'_, Option<VecDeque<SyncSender<Answer>>>> {
        // Nothing is half changed at any point where a holder could panic.
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn control(&self) -> MutexGuard<'_, UnixStream> {
        // A command that was cut off ends the data plane, whoever holds the lock.
        self.control.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The answer to a command that [`Commands`] waits for.
fn parse(line: &str) -> Option<Answer> {
    let done = [RESIZED, PROGRESS_IS];
    let refused = [NOT_RESIZED, NOT_FROZEN, NOT_RESTACKED, NOT_COPYING];
    let plain = [FROZEN, RESTACKED, THAWED, COPYING, COPY_STOPPED];
    let after = |prefix: &&str| line.strip_prefix(prefix).map(str::to_owned);
    if plain.contains(&line) {
        return Some(Ok(String::new()));
    }
    let what = done.iter().find_map(after).map(Ok);
    what.or_else(|| refused.iter().find_map(after).map(Err))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_go_to_whom_they_are_for() {
        let (ours, _theirs) = UnixStream::pair().unwrap();
        let commands = Commands::new(ours);
        let post = |line: &'static str| commands.post(move |to| writeln!(to, "{line}")).unwrap();
        drop(post(FREEZE));
        let (thaw, progress) = (post(THAW), post(PROGRESS));
        for line in ["ready", "not-frozen why", "destroyed", "thawed"] {
            commands.answered(line);
        }
        assert_eq!(thaw.recv().unwrap(), Ok(String::new()));
        commands.answered("progress-is {}");
        assert_eq!(progress.recv().unwrap(), Ok("{}".into()));
        let refused = post(RESTACK);
        commands.answered("not-restacked why");
        assert_eq!(refused.recv().unwrap(), Err("why".into()));
        let lost = post(COPY_STOP);
        commands.ended();
        assert!(lost.recv().is_err());
        assert!(commands.thaw().is_err());
    }
}
