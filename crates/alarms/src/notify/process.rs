//! The process that tells of the events of another one.
//!
//! An attach is confined, and has keys. What runs commands and speaks HTTP for it is started before that, as another
//! process, which gets nothing but lines of JSON. It ends when the other end of its socket is closed, after what is
//! left is told; a signal is no reason to end, since the last event is about that.
//!
//! There are two of it. Whoever has started them could start no third one, since it may start nothing any more; so one
//! tells, and the other one stands by, is told what is not told yet, goes on with that when the first one is no more,
//! and starts another one that stands by for itself. Only when both are killed within a moment is nobody left. What was
//! being told when one was killed is told again.

use std::collections::VecDeque;
use std::io::{self, BufRead, BufReader, Write};
use std::net::Shutdown;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::AtomicBool;
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::net::{RecvFlags, recv};
use rustix::process::{Pid, getpid, getppid};
use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM};
use signal_hook::flag;

use super::notifier::{FAREWELL, Notifier};
use super::queue::{Delivery, ROOM};
use super::target::Target;

/// The subcommand that is this process.
pub const EVENT_NOTIFIER: &str = "event-notifier";
/// Its option with which it stands by.
const STAND_BY: &str = "--stand-by-for";
/// Its option that says how often one was started again.
const AGAIN: &str = "--again";
/// Bytes of an event at most; what is longer is no event.
const MAX_LINE: usize = 64 * 1024;
/// How long the one that stands by may take to take something.
const PATIENCE: Duration = Duration::from_secs(1);
/// How long the rest of a line may take to come.
const REST: Duration = Duration::from_secs(2);
/// How often it is looked for that.
const LOOK: Duration = Duration::from_millis(5);
/// How long the first pause is before one is started again; each next one is twice as long.
const PAUSE: Duration = Duration::from_millis(100);
/// The longest one.
const MAX_PAUSE: Duration = Duration::from_secs(30);
/// One that was there for so long was not started in vain.
const STABLE: Duration = Duration::from_secs(60);
/// How long it takes at most until the child of a process that has ended has another parent.
const ORPHANED: Duration = Duration::from_secs(5);

/// Starts the process, which reads events from `input`, a line of JSON each. It and the one that stands by are in a
/// group of processes of their own, whose id is that of the process.
///
/// # Errors
/// What the kernel says.
pub fn spawn(program: &Path, targets: &[Target], input: OwnedFd) -> io::Result<Child> {
    Command::new(program)
        .arg(EVENT_NOTIFIER)
        .args(targets.iter().map(Target::argument))
        .stdin(Stdio::from(input))
        .stdout(Stdio::null())
        .process_group(0)
        .spawn()
}

/// Which of the two a process is.
#[derive(Debug, Clone, Copy, Default)]
pub struct Place {
    /// It stands by for the process with that id; nothing for the one that tells.
    pub stand_by_for: Option<u32>,
    /// How often one was started again, one soon after the other.
    pub again: u32,
}

/// Is that process: tells the targets of what is read on its standard input, until its end. For the one that stands
/// by its standard output is a socket, through which it is told what is not told yet.
///
/// # Errors
/// [`Notifier::start`], or what reading says.
pub fn pass_on(targets: &[Target], place: Place) -> io::Result<()> {
    // A handler, unlike a signal that is ignored, is not inherited by a command.
    let heard = Arc::new(AtomicBool::new(false));
    for signal in [SIGHUP, SIGINT, SIGQUIT, SIGTERM] {
        flag::register(signal, heard.clone())?;
    }
    let events = io::stdin().as_fd().try_clone_to_owned()?;
    let (mut untold, mut again) = (VecDeque::new(), place.again);
    if let Some(other) = place.stand_by_for {
        let began = Instant::now();
        let link = UnixStream::from(io::stdout().as_fd().try_clone_to_owned()?);
        match stand_by(link, other)? {
            Some(left) => untold = left,
            None => return Ok(()),
        }
        log::warn!("the process that tells of events has ended, and another one goes on");
        again = counted(again, began.elapsed());
        std::thread::sleep(pause(again));
    }
    tell(&events.into(), targets, untold, Some(again))
}

/// Tells the targets of what was not told, and of what is read. With `again` another process stands by.
pub(super) fn tell(
    events: &UnixStream,
    targets: &[Target],
    untold: VecDeque<String>,
    again: Option<u32>,
) -> io::Result<()> {
    let notifier = Notifier::start(targets)?;
    let mirror = Arc::new(Mirror::default());
    let (done, told) = channel();
    let noted = mirror.clone();
    let note = move || told.iter().for_each(|number| noted.told(number));
    std::thread::Builder::new()
        .name("event-told".into())
        .spawn(note)?;
    if let Some(again) = again {
        let (events, targets) = (events.try_clone()?, targets.to_vec());
        let mirror = mirror.clone();
        let keep = move || mirror.keep(&events, &targets, again);
        std::thread::Builder::new()
            .name("event-stand-by".into())
            .spawn(keep)?;
    }
    let tell = |line: &str| {
        let number = mirror.add(line);
        let done = done.clone();
        notifier.put(line, Some(Delivery { number, done }));
    };
    untold.iter().for_each(|line| tell(line));
    let read = read_lines(events, tell);
    notifier.finish(FAREWELL);
    mirror.end();
    read
}

/// Gives each line to `each`, and takes it from the socket after that: another process that reads from it misses none.
fn read_lines(events: &UnixStream, mut each: impl FnMut(&str)) -> io::Result<()> {
    let mut buffer = vec![0; MAX_LINE];
    let (mut seen, mut since) = (0, Instant::now());
    loop {
        let there = match recv(events, &mut buffer[..], RecvFlags::PEEK) {
            Ok((_, 0)) => return Ok(()),
            Ok((_, there)) => there.min(MAX_LINE),
            Err(rustix::io::Errno::INTR) => continue,
            Err(error) => return Err(error.into()),
        };
        let end = buffer[..there].iter().position(|byte| *byte == b'\n');
        if there != seen {
            (seen, since) = (there, Instant::now());
        }
        let is_whole = end.is_some() || there == MAX_LINE || since.elapsed() > REST;
        if !is_whole {
            std::thread::sleep(LOOK);
            continue;
        }
        let length = end.map_or(there, |end| end + 1);
        each(String::from_utf8_lossy(&buffer[..length]).trim_end());
        seen = 0;
        let mut taken = 0;
        while taken < length {
            match recv(events, &mut buffer[taken..length], RecvFlags::empty()) {
                Ok((_, 0)) => return Ok(()),
                Ok((_, more)) => taken += more,
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}

/// What is not told yet, here and in the process that stands by.
#[derive(Default)]
struct Mirror(Mutex<Content>);

#[derive(Default)]
struct Content {
    untold: VecDeque<(u64, String)>,
    next: u64,
    /// The process that stands by, if there is one.
    link: Option<UnixStream>,
    is_over: bool,
}

impl Mirror {
    /// Adds an event that is to be told; its number.
    fn add(&self, line: &str) -> u64 {
        let mut content = self.content();
        let number = content.next;
        content.next += 1;
        if content.untold.len() == ROOM {
            content.untold.pop_front();
        }
        content.untold.push_back((number, line.to_owned()));
        content.send(&format!("e {number} {line}\n"));
        number
    }

    /// Takes away one that is told.
    fn told(&self, number: u64) {
        let mut content = self.content();
        content.untold.retain(|(other, _)| *other != number);
        content.send(&format!("t {number}\n"));
    }

    /// There is no more to tell, and nobody is to go on.
    fn end(&self) {
        let mut content = self.content();
        content.is_over = true;
        content.send("x\n");
    }

    /// Has a process stand by, again and again.
    fn keep(&self, events: &UnixStream, targets: &[Target], mut again: u32) {
        while !self.content().is_over {
            let began = Instant::now();
            if let Err(error) = self.stand_by_once(events, targets, again) {
                log::warn!("no process stands by to tell of events: {error}");
            }
            again = counted(again, began.elapsed());
            std::thread::sleep(pause(again));
        }
    }

    /// Starts one that stands by, and waits for its end.
    fn stand_by_once(&self, events: &UnixStream, targets: &[Target], again: u32) -> io::Result<()> {
        let (ours, its) = UnixStream::pair()?;
        ours.set_write_timeout(Some(PATIENCE))?;
        // The file of this program may be another one by now.
        let mut command = Command::new("/proc/self/exe");
        if let Some(name) = std::env::args_os().next() {
            command.arg0(name);
        }
        command
            .args([EVENT_NOTIFIER, STAND_BY])
            .arg(getpid().as_raw_pid().to_string())
            .args([AGAIN, &again.to_string()])
            .arg("--")
            .args(targets.iter().map(Target::argument))
            .stdin(Stdio::from(OwnedFd::from(events.try_clone()?)))
            .stdout(Stdio::from(OwnedFd::from(its)));
        let mut child = command.spawn()?;
        // It holds the other end of the socket.
        drop(command);
        self.content().connect(ours);
        let ended = child.wait();
        self.content().link = None;
        ended.map(drop)
    }

    fn content(&self) -> MutexGuard<'_, Content> {
        // Nothing is half changed at any point where a holder could panic.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Content {
    /// Tells the process that stands by what is not told yet.
    fn connect(&mut self, link: UnixStream) {
        self.link = Some(link);
        let lines = self.untold.iter();
        let lines: String = lines
            .map(|(number, line)| format!("e {number} {line}\n"))
            .collect();
        self.send(&lines);
        if self.is_over {
            self.send("x\n");
        }
    }

    fn send(&mut self, text: &str) {
        let Some(link) = &mut self.link else {
            return;
        };
        if let Err(error) = link.write_all(text.as_bytes()) {
            log::debug!("the process that stands by is not told: {error}");
            // It sees the end, and ends too; another one knows more.
            let _ = link.shutdown(Shutdown::Both);
            self.link = None;
        }
    }
}

/// Waits for the end of the process that tells. What that has not told; nothing when nobody is to go on.
fn stand_by(link: UnixStream, other: u32) -> io::Result<Option<VecDeque<String>>> {
    let mut untold: VecDeque<(u64, String)> = VecDeque::new();
    for line in BufReader::new(link).lines() {
        // The other one may be killed at any point of what it says.
        let Ok(line) = line else { break };
        match line.split_once(' ').unwrap_or((&line, "")) {
            ("x", _) => return Ok(None),
            ("t", number) => untold.retain(|(known, _)| number.parse() != Ok(*known)),
            ("e", rest) => {
                let Some((number, event)) = rest.split_once(' ') else {
                    continue;
                };
                if let Ok(number) = number.parse() {
                    if untold.len() == ROOM {
                        untold.pop_front();
                    }
                    untold.push_back((number, event.to_owned()));
                }
            }
            _ => {}
        }
    }
    let end = Instant::now() + ORPHANED;
    let parent = || getppid().map(Pid::as_raw_pid);
    while parent() == i32::try_from(other).ok() {
        // It is still there: it has given this one up.
        if Instant::now() >= end {
            return Ok(None);
        }
        std::thread::sleep(LOOK);
    }
    Ok(Some(untold.into_iter().map(|(_, event)| event).collect()))
}

/// How often one was started again, after one that was there for so long.
fn counted(again: u32, lived: Duration) -> u32 {
    match lived >= STABLE {
        true => 0,
        false => again.saturating_add(1),
    }
}

/// The pause before the next one.
fn pause(again: u32) -> Duration {
    PAUSE
        .saturating_mul(1 << again.saturating_sub(1).min(16))
        .min(MAX_PAUSE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_get_longer_and_not_too_long() {
        let pauses = [1, 2, 3, 9, 10, u32::MAX].map(pause);
        let millis = pauses.map(|pause| pause.as_millis());
        assert_eq!(millis, [100, 200, 400, 25_600, 30_000, 30_000]);
        assert_eq!(counted(7, STABLE), 0);
        assert_eq!(counted(7, Duration::ZERO), 8);
        assert_eq!(counted(u32::MAX, Duration::ZERO), u32::MAX);
    }

    #[test]
    fn who_stands_by_knows_what_is_not_told() {
        let (ours, its) = UnixStream::pair().unwrap();
        let mirror = Mirror::default();
        mirror.add("before");
        mirror.content().connect(ours);
        for n in 0..ROOM {
            mirror.add(&format!("{{\"n\": {n}}}"));
        }
        mirror.told(2);
        drop(mirror);
        // No process has that number.
        let left = stand_by(its, 0).unwrap().unwrap();
        assert_eq!(left.len(), ROOM - 1);
        assert_eq!((&*left[0], &*left[1]), ("{\"n\": 0}", "{\"n\": 2}"));
    }

    #[test]
    fn nobody_goes_on_after_an_end_in_order() {
        let (ours, its) = UnixStream::pair().unwrap();
        let mirror = Mirror::default();
        mirror.content().connect(ours);
        mirror.add("never told");
        mirror.end();
        assert!(stand_by(its, 0).unwrap().is_none());
    }

    #[test]
    fn a_line_is_taken_after_it_was_given() {
        let (mut ours, its) = UnixStream::pair().unwrap();
        ours.write_all(b"one\ntwo\nrest").unwrap();
        let mut seen = Vec::new();
        let other = its.try_clone().unwrap();
        let mut ours = Some(ours);
        read_lines(&its, |line| {
            let mut first = [0; 3];
            recv(&other, &mut first[..], RecvFlags::PEEK).unwrap();
            assert_eq!(&first[..], &line.as_bytes()[..3]);
            seen.push(line.to_owned());
            drop(ours.take());
        })
        .unwrap();
        assert_eq!(seen, ["one", "two", "rest"]);
    }
}
