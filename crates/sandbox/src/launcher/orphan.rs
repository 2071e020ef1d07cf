//! A process whose launcher may end before it does: its owner, which is its parent then, kills it and hears of its end.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::time::Instant;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Signal, WaitId, WaitIdOptions, pidfd_send_signal, waitid};

/// A process by its pidfd, which names no other one, also when that has ended.
#[derive(Debug)]
pub(super) struct Orphan(OwnedFd);

impl Orphan {
    pub(super) fn new(pidfd: OwnedFd) -> Self {
        Self(pidfd)
    }

    pub(super) fn duplicate(&self) -> io::Result<OwnedFd> {
        self.0.try_clone()
    }

    /// Ends it at once. Root needs CAP_KILL for it, as it is another user's.
    ///
    /// # Errors
    /// What the kernel says.
    pub(super) fn kill(&self) -> io::Result<()> {
        match pidfd_send_signal(&self.0, Signal::KILL) {
            // It has ended.
            Ok(()) | Err(Errno::SRCH) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Waits for its end, until `deadline` at most.
    ///
    /// # Errors
    /// What the kernel says.
    pub(super) fn ended(&self, deadline: Instant) -> io::Result<Option<ExitStatus>> {
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let timeout = Timespec::try_from(left).map_err(|_| io::ErrorKind::InvalidInput)?;
            let mut watched = [PollFd::new(&self.0, PollFlags::IN)];
            match poll(&mut watched, Some(&timeout)) {
                Ok(0) if left.is_zero() => return Ok(None),
                Ok(0) | Err(Errno::INTR) => {}
                Ok(_) => return Ok(Some(self.status())),
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// How it has ended. Of one that its launcher has heard of, and could not tell, nothing is known: such a one has
    /// not ended in order as far as anybody knows.
    fn status(&self) -> ExitStatus {
        let id = WaitId::PidFd(self.0.as_fd());
        let ended = waitid(id, WaitIdOptions::EXITED | WaitIdOptions::NOHANG);
        let ended = ended.ok().flatten();
        // As wait(2) has it: a code is in the second byte, a signal in the first.
        let raw = ended.and_then(|status| match status.exit_status() {
            Some(code) => Some((code & 0xff) << 8),
            None => status.terminating_signal(),
        });
        ExitStatus::from_raw(raw.unwrap_or(Signal::KILL.as_raw()))
    }
}

#[cfg(test)]
mod tests {
    use std::process::{Child, Command};
    use std::time::Duration;

    use rustix::process::{Pid, PidfdFlags, pidfd_open};

    use super::*;

    fn started(script: &str) -> (Child, Orphan) {
        let child = Command::new("sh").args(["-c", script]).spawn().unwrap();
        let pidfd = pidfd_open(Pid::from_child(&child), PidfdFlags::empty()).unwrap();
        (child, Orphan::new(pidfd))
    }

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(30)
    }

    #[test]
    fn a_child_that_another_has_started_is_killed_and_buried() {
        let (_child, orphan) = started("exec sleep 1000");
        assert!(orphan.ended(Instant::now()).unwrap().is_none());
        orphan.kill().unwrap();
        let status = orphan.ended(soon()).unwrap().unwrap();
        assert_eq!(status.signal(), Some(libc::SIGKILL));
        orphan.kill().unwrap();
    }

    #[test]
    fn how_a_child_has_ended_is_told_as_wait_tells_it() {
        for code in [0, 70] {
            let (_child, orphan) = started(&format!("exit {code}"));
            let status = orphan.ended(soon()).unwrap().unwrap();
            assert_eq!(status.code(), Some(code));
        }
    }

    #[test]
    fn what_somebody_else_has_heard_of_has_not_ended_in_order() {
        let (mut child, orphan) = started("exit 0");
        child.wait().unwrap();
        assert!(!orphan.ended(soon()).unwrap().unwrap().success());
    }
}
