//! The end of processes that nobody else hears of.
//!
//! An attach process takes the place of parents that have ended (a child subreaper): that of its launcher, to hear of the
//! data plane, and of any other process below it. What becomes its child in that way stays when it has ended, as a
//! zombie, until somebody asks for it. Whoever waits for a child of this process's own asks for that one: such children
//! are in its group of processes. What a program of `--on-event` has started, and that program, never are.

use std::io;
use std::thread::{Builder, sleep};
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::process::{Pid, WaitOptions, getpgid, getpgrp, waitpid};

/// How long whoever waits for a child of this process's own has for that. One that nobody has asked for by then would
/// hide the others.
const PATIENCE: Duration = Duration::from_secs(60);
/// How often it is looked whether somebody has asked for it.
const LOOK: Duration = Duration::from_millis(100);
/// How often it is looked for a child when there is none.
const IDLE: Duration = Duration::from_secs(1);

/// Hears, from now on and for good, of the end of each child that nobody else asks for. It is for a process that is a
/// child subreaper, as whoever has a [`Launcher`](super::Launcher) is, and that starts none of its own children in another
/// group of processes whose end it has to hear of itself.
///
/// # Errors
/// No thread can be started.
pub fn bury_strangers() -> io::Result<()> {
    let thread = Builder::new().name("burial".into());
    thread.spawn(|| bury(PATIENCE)).map(drop)
}

fn bury(patience: Duration) {
    let mut left: Option<(Pid, Instant)> = None;
    loop {
        match ended() {
            Ok(child) if is_own(child) && !is_overdue(child, &mut left, patience) => sleep(LOOK),
            Ok(child) => {
                left = None;
                match waitpid(Some(child), WaitOptions::NOHANG) {
                    Ok(Some((_, how))) => log::debug!("a process has ended: {how:?}"),
                    // Somebody else has asked for it.
                    Ok(None) | Err(_) => sleep(LOOK),
                }
            }
            Err(Errno::INTR) => {}
            // There is no child.
            Err(_) => sleep(IDLE),
        }
    }
}

/// Whether it is one of those that somebody in this process waits for.
fn is_own(child: Pid) -> bool {
    getpgid(Some(child)).is_ok_and(|group| group == getpgrp())
}

/// Whether that one was left where it is for too long.
fn is_overdue(child: Pid, left: &mut Option<(Pid, Instant)>, patience: Duration) -> bool {
    match left {
        Some((same, since)) if *same == child => since.elapsed() >= patience,
        _ => {
            *left = Some((child, Instant::now()));
            false
        }
    }
}

/// Waits until a child has ended, and leaves it as it is: one of them, where there are several.
fn ended() -> Result<Pid, Errno> {
    // SAFETY: it is plain data, for which zeros are as good as anything.
    let mut found: libc::siginfo_t = unsafe { std::mem::zeroed() };
    let options = libc::WEXITED | libc::WNOWAIT;
    // SAFETY: what is found is written into this function's own place.
    let result = unsafe { libc::waitid(libc::P_ALL, 0, &raw mut found, options) };
    if result != 0 {
        let error = io::Error::last_os_error();
        return Err(Errno::from_io_error(&error).unwrap_or(Errno::CHILD));
    }
    // SAFETY: waitid(2) has filled in what there is to tell of a child.
    let child = unsafe { found.si_pid() };
    Pid::from_raw(child).ok_or(Errno::CHILD)
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;
    use std::process::Command;

    use rustix::process::{getpid, set_child_subreaper};

    use super::*;

    const SOON: Duration = Duration::from_secs(120);

    fn is_there(process: &str) -> bool {
        PathBuf::from(format!("/proc/{process}")).exists()
    }

    #[test]
    fn what_others_have_left_is_buried_and_own_children_are_not() {
        set_child_subreaper(Some(getpid())).unwrap();
        bury_strangers().unwrap();
        let mut own = Command::new("sh").args(["-c", "exit 7"]).spawn().unwrap();
        let leave = "for i in 1 2 3; do setsid sleep 0.5 >/dev/null & echo $!; done";
        let left = Command::new("sh").args(["-c", leave]).output().unwrap();
        assert!(left.status.success(), "its status is there to be asked for");
        let left = String::from_utf8(left.stdout).unwrap();
        assert_eq!(left.lines().count(), 3);
        // This one hides the others as long as nobody asks for it, and is asked for late.
        sleep(Duration::from_secs(1));
        assert_eq!(own.wait().unwrap().code(), Some(7));
        let end = Instant::now() + SOON;
        while left.lines().any(is_there) {
            assert!(Instant::now() < end, "{left}");
            sleep(LOOK);
        }
    }

    #[test]
    fn an_own_child_that_nobody_asks_for_is_overdue_after_a_while() {
        let mut left = None;
        let [one, other] = [1, 2].map(|id| Pid::from_raw(id).unwrap());
        let (long, none) = (Duration::from_secs(1000), Duration::ZERO);
        assert!(!is_overdue(one, &mut left, none), "it has just been seen");
        assert!(!is_overdue(one, &mut left, long));
        assert!(is_overdue(one, &mut left, none));
        assert!(!is_overdue(other, &mut left, none), "another one");
    }
}
