//! The thread that asks the disks, again and again.

use std::path::PathBuf;
use std::thread;
use std::time::Duration;

use time::OffsetDateTime;
use tokio::runtime::{Builder, Runtime};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};
use uuid::Uuid;

use crate::error::TopError;
use crate::options::Options;
use attach::ToldEvent;
use live::{DiskRow, Watcher, ask_events};

/// How long a disk may take to answer.
pub(crate) const PATIENCE: Duration = Duration::from_secs(2);

/// What is seen of the host at a moment.
#[derive(Debug)]
pub(crate) struct Snapshot {
    /// When.
    pub(crate) time: OffsetDateTime,
    /// The disks, or why they cannot be found.
    pub(crate) rows: Result<Vec<DiskRow>, String>,
}

/// What the sampler tells.
#[derive(Debug)]
pub(crate) enum Sampled {
    /// All disks.
    Host(Snapshot),
    /// The events of the disk that is followed, or why there are none.
    Events(Uuid, Result<Vec<ToldEvent>, String>),
}

/// What the sampler is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Command {
    /// Ask this disk for its events, and again when it has more; none any more.
    Follow(Option<Uuid>),
    /// Ask as often.
    Interval(Duration),
}

/// A way to the thread, which ends with it.
#[derive(Debug)]
pub(crate) struct Sampler(UnboundedSender<Command>);

impl Sampler {
    /// Starts the thread; `tell` is given what it sees, and says whether anybody listens.
    ///
    /// # Errors
    /// [`TopError::System`].
    pub(crate) fn start(
        options: &Options,
        tell: impl Fn(Sampled) -> bool + Send + 'static,
    ) -> Result<Self, TopError> {
        let (commands, heard) = unbounded_channel();
        let runtime = runtime()?;
        let mut work = Work {
            watcher: watcher(options),
            options: options.clone(),
            followed: None,
            asking: JoinSet::new(),
        };
        thread::Builder::new()
            .name("sampler".into())
            .spawn(move || runtime.block_on(work.run(heard, tell)))
            .map_err(TopError::system("start the thread that asks the disks"))?;
        Ok(Self(commands))
    }

    /// Tells it something.
    pub(crate) fn tell(&self, command: Command) {
        // Without it there is nothing more to see, which shows.
        let _ = self.0.send(command);
    }
}

/// What drives questions.
///
/// # Errors
/// [`TopError::System`].
pub(crate) fn runtime() -> Result<Runtime, TopError> {
    let mut builder = Builder::new_current_thread();
    let runtime = builder.enable_all().build();
    runtime.map_err(TopError::system("wait for many disks at once"))
}

/// What asks them.
pub(crate) fn watcher(options: &Options) -> Watcher {
    // Each disk takes a descriptor.
    attach::raise_file_limit();
    Watcher::new(options.runtime_dir.clone(), PATIENCE)
}

struct Work {
    watcher: Watcher,
    options: Options,
    followed: Option<Followed>,
    /// A question for events.
    asking: JoinSet<(Uuid, Result<Vec<ToldEvent>, String>)>,
}

struct Followed {
    disk: Uuid,
    /// How many events there were when it was last asked for them.
    known: Option<u64>,
}

impl Work {
    async fn run(&mut self, mut heard: UnboundedReceiver<Command>, tell: impl Fn(Sampled) -> bool) {
        loop {
            let started = Instant::now();
            let rows = self.watcher.look(&self.options.names).await;
            if let Ok(rows) = &rows {
                self.ask_events(rows);
            }
            let snapshot = Snapshot {
                time: OffsetDateTime::now_utc(),
                rows: rows.map_err(|error| error.to_string()),
            };
            if !tell(Sampled::Host(snapshot)) {
                return;
            }
            // A look that takes long is followed by as long a pause: never more than half of the time.
            let next = started + self.options.interval.max(started.elapsed() * 2);
            loop {
                tokio::select! {
                    () = sleep_until(next) => break,
                    Some(Ok((disk, events))) = self.asking.join_next() => {
                        if !tell(Sampled::Events(disk, events)) {
                            return;
                        }
                    }
                    command = heard.recv() => match command {
                        Some(Command::Interval(interval)) => {
                            self.options.interval = interval;
                            break;
                        }
                        Some(Command::Follow(disk)) => {
                            self.followed = disk.map(|disk| Followed { disk, known: None });
                            break;
                        }
                        // Nobody looks any more.
                        None => return,
                    },
                }
            }
        }
    }

    /// Asks the disk that is followed for its events, if it has some that are not known.
    fn ask_events(&mut self, rows: &[DiskRow]) {
        let Some(followed) = &mut self.followed else {
            return;
        };
        let disk = followed.disk;
        let Some(row) = rows.iter().find(|row| row.id == disk) else {
            return;
        };
        // An attach of an older version does not say how many there are.
        let counts = row.last_event.is_some();
        if counts && followed.known == Some(row.events) || !self.asking.is_empty() {
            return;
        }
        followed.known = Some(row.events);
        let socket: PathBuf = row.socket.clone();
        self.asking
            .spawn(async move { (disk, ask_events(&socket, PATIENCE).await) });
    }
}
