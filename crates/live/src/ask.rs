//! Asking attached disks through their control sockets, all at the same time, and none for longer than is said.

use std::collections::{HashMap, HashSet};
use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::task::JoinSet;
use tokio::time::timeout;
use uuid::Uuid;

use attach::{
    AttachedHere, MAX_METRICS, MetricsAnswer, ToldEvent, attached_here, events_question,
    metrics_answer, metrics_question,
};

/// Bytes of all events that a disk keeps at most: several times what they take.
const MAX_EVENTS: u64 = 1 << 20;

/// An attached disk, and what it has answered.
#[derive(Debug)]
pub struct Asked {
    /// The disk.
    pub here: AttachedHere,
    /// What it has answered, or why it has not, as the end of a sentence.
    pub answer: Result<MetricsAnswer, String>,
    /// When the answer had come.
    pub at: Instant,
}

impl Asked {
    /// Asks a disk, which may take that long.
    pub(crate) async fn ask(here: AttachedHere, patience: Duration) -> Self {
        let answer = within(patience, ask(&here.socket)).await;
        Self {
            here,
            answer,
            at: Instant::now(),
        }
    }

    /// The name of the disk, if it tells it.
    pub(crate) fn name(&self) -> Option<&str> {
        match &self.answer {
            Ok(MetricsAnswer::Metrics(metrics)) => Some(&metrics.disk),
            _ => None,
        }
    }
}

/// Asks all disks that are attached with a runtime directory, each of which may take that long. They are in the order
/// of their ids.
///
/// # Errors
/// When the directory cannot be read.
pub async fn ask_all(runtime_dir: &Path, patience: Duration) -> io::Result<Vec<Asked>> {
    let mut asking = JoinSet::new();
    for here in attached_here(runtime_dir)? {
        asking.spawn(Asked::ask(here, patience));
    }
    let mut asked = asking.join_all().await;
    asked.sort_by_key(|one| one.here.disk);
    Ok(asked)
}

/// A name for each disk, no two of which are the same: the one that it tells, else that in `known`, else its id. Disks
/// of two installations may have one name; the second one's is `NAME@ID` then.
pub fn names_of(asked: &[Asked], known: &HashMap<Uuid, String>) -> Vec<String> {
    let told = asked.iter().map(|one| (one.here.disk, one.name()));
    unique_names(told.map(|(disk, name)| {
        let name = name.or_else(|| known.get(&disk).map(String::as_str));
        (disk, name)
    }))
}

pub(crate) fn unique_names<'a>(
    disks: impl Iterator<Item = (Uuid, Option<&'a str>)>,
) -> Vec<String> {
    let mut taken = HashSet::new();
    let name = |(disk, name): (Uuid, Option<&str>)| {
        let name = name.map_or_else(|| disk.to_string(), str::to_owned);
        match taken.insert(name.clone()) {
            true => name,
            false => format!("{name}@{disk}"),
        }
    };
    disks.map(name).collect()
}

/// The events that an attached disk keeps, the last one last; a line that is none is passed over.
///
/// # Errors
/// Why there is no answer, as the end of a sentence.
pub async fn ask_events(socket: &Path, patience: Duration) -> Result<Vec<ToldEvent>, String> {
    let talked = async {
        let mut answer = question(socket, &events_question(), MAX_EVENTS).await?;
        let mut events = Vec::new();
        let mut line = String::new();
        while answer.read_line(&mut line).await? > 0 {
            events.extend(ToldEvent::of_line(&line));
            line.clear();
        }
        Ok(events)
    };
    within(patience, async {
        talked.await.map_err(|error: io::Error| error.to_string())
    })
    .await
}

async fn within<T>(
    patience: Duration,
    talked: impl Future<Output = Result<T, String>>,
) -> Result<T, String> {
    match timeout(patience, talked).await {
        Ok(answer) => answer,
        Err(_) => Err(format!("it does not answer within {patience:?}")),
    }
}

/// What a disk tells, by what it knows to tell.
async fn ask(socket: &Path) -> Result<MetricsAnswer, String> {
    match ask_once(socket, false).await? {
        MetricsAnswer::Unknown => ask_once(socket, true).await,
        answer => Ok(answer),
    }
}

async fn ask_once(socket: &Path, older: bool) -> Result<MetricsAnswer, String> {
    let mut line = String::new();
    let talked: io::Result<()> = async {
        let mut answer = question(socket, &metrics_question(older), MAX_METRICS).await?;
        answer.read_line(&mut line).await?;
        Ok(())
    }
    .await;
    talked.map_err(|error| error.to_string())?;
    metrics_answer(&line, older)
}

/// Sends a question; what is answered is read from what this gives.
async fn question(
    socket: &Path,
    line: &str,
    max_answer: u64,
) -> io::Result<impl AsyncBufReadExt + Unpin + use<>> {
    // Not even this waits where the attach process takes no clients.
    let mut stream = UnixStream::connect(socket).await?;
    stream.write_all(line.as_bytes()).await?;
    Ok(BufReader::new(stream.take(max_answer)))
}
