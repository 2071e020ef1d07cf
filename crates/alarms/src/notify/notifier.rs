//! A queue and a thread for each target.

use std::io;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::command;
use super::not_taken::NotTaken;
use super::queue::{Delivery, Next, Queue};
use super::target::Target;
use super::webhook::Webhook;
use crate::host::host_name;

/// How long one try may take.
pub(super) const TRY_LIMIT: Duration = Duration::from_secs(10);
/// How long the last events have before a process ends: longer than a try, so that no command is left behind.
pub const FAREWELL: Duration = Duration::from_secs(12);
/// What of that is kept for the end of the last try.
const MARGIN: Duration = Duration::from_millis(500);
/// Tries of one event.
pub(super) const TRIES: u32 = 4;
/// How long the first pause between two tries is; each next one is twice as long.
const PAUSE: Duration = Duration::from_millis(500);
/// How often it is looked at the end whether all is told.
pub(super) const LOOK: Duration = Duration::from_millis(10);

/// Tells targets of events.
pub struct Notifier {
    workers: Vec<(Arc<Queue>, JoinHandle<()>)>,
}

impl Notifier {
    /// Begins to tell these targets.
    ///
    /// # Errors
    /// A thread or an HTTP client cannot be had.
    pub fn start(targets: &[Target]) -> io::Result<Self> {
        let mut workers = Vec::new();
        for target in targets {
            let sender = Sender::of(target)?;
            let queue = Arc::new(Queue::new());
            let (taken, shown) = (queue.clone(), target.to_string());
            let work = move || work(&taken, &sender, &shown);
            let thread = std::thread::Builder::new().name("event-target".into());
            workers.push((queue, thread.spawn(work)?));
        }
        Ok(Self { workers })
    }

    /// Has each target told of an event, a line of JSON. It returns at once.
    pub fn tell(&self, event: &str) {
        self.put(event, None);
    }

    /// The same, and what `told` is of is over for all of them when it is dropped.
    pub(super) fn put(&self, event: &str, told: Option<Delivery>) {
        let told = told.map(Arc::new);
        for (queue, _) in &self.workers {
            queue.put(event, told.clone());
        }
    }

    /// Waits until all that was put is told, but no longer than `patience`: [`FAREWELL`], unless a command may be left
    /// behind.
    pub fn finish(self, patience: Duration) {
        let now = Instant::now();
        let end = now + patience;
        for (queue, _) in &self.workers {
            queue.close(now + patience.saturating_sub(MARGIN));
        }
        for (_, thread) in self.workers {
            // One that is stuck goes with the process.
            while !thread.is_finished() && Instant::now() < end {
                std::thread::sleep(LOOK);
            }
        }
    }
}

/// What a target's thread tells with.
enum Sender {
    Command(Vec<String>),
    Webhook(Box<Webhook>),
}

impl Sender {
    fn of(target: &Target) -> io::Result<Self> {
        Ok(match target {
            Target::Command(words) => Self::Command(words.clone()),
            Target::Webhook(url) => Self::Webhook(Box::new(Webhook::new(url.clone())?)),
        })
    }

    /// Tells of an event once.
    fn tell(&self, event: &str, limit: Duration) -> Result<(), NotTaken> {
        match self {
            Self::Command(words) => command::run(words, event, limit),
            Self::Webhook(webhook) => webhook.post(event, limit),
        }
    }
}

/// Tells a target of what is put into its queue, until that is closed and empty.
fn work(queue: &Queue, sender: &Sender, shown: &str) {
    while let Next::Event {
        event,
        missed,
        told,
    } = queue.take()
    {
        let event = with_origin(&event, missed);
        let mut pause = PAUSE;
        for number in 1..=TRIES {
            let limit = queue
                .time_left()
                .map_or(TRY_LIMIT, |left| left.min(TRY_LIMIT));
            match sender.tell(&event, limit) {
                Ok(()) => break,
                Err(NotTaken { why, again }) if !again || number == TRIES => {
                    log::warn!("{shown} was not told of an event: {why}");
                    break;
                }
                Err(NotTaken { why, .. }) => {
                    log::debug!("{shown} was not told of an event, and is told again: {why}");
                }
            }
            if !queue.pause(pause) {
                log::warn!("{shown} was not told of an event before the end");
                return;
            }
            pause *= 2;
        }
        drop(told);
    }
}

/// An event with the host that it is of, and how many were lost before it.
fn with_origin(event: &str, missed: u64) -> String {
    let Ok(Value::Object(mut fields)) = serde_json::from_str(event) else {
        return event.to_owned();
    };
    fields.entry("host").or_insert(host_name().into());
    if missed > 0 {
        fields.insert("missed".into(), missed.into());
    }
    Value::Object(fields).to_string()
}
