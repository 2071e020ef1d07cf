//! Looking again and again.

use std::collections::HashMap;
use std::io;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use tokio::task::JoinSet;
use tokio::time::timeout_at;
use uuid::Uuid;

use crate::ask::{Asked, unique_names};
use crate::rates::Rates;
use crate::row::DiskRow;
use attach::{AttachedHere, MetricsAnswer, attached_here};
use protocol::IoCounters;

/// How long a look waits for disks that have answered before. A host under load needs some of it; a disk that takes
/// longer is shown by a later look.
const WAIT: Duration = Duration::from_millis(500);

/// Looks at the attached disks of a host, and remembers what it has seen.
///
/// A disk that does not answer holds up nothing: it is waited for once, and from then on its answer is taken when it is
/// there.
#[derive(Debug)]
pub struct Watcher {
    runtime_dir: PathBuf,
    patience: Duration,
    disks: HashMap<Uuid, Watched>,
    /// Questions under way. Those of disks that are gone end by themselves.
    asking: JoinSet<Asked>,
}

#[derive(Debug)]
struct Watched {
    row: DiskRow,
    /// The name that it has told.
    name: Option<String>,
    counted: Option<Counted>,
    /// It was asked and has not answered yet.
    is_asked: bool,
    /// It is not waited for, since it did not answer in time.
    is_slow: bool,
}

/// What a disk had counted when it last answered.
#[derive(Debug)]
struct Counted {
    counters: IoCounters,
    /// Which attach of the disk that was: another one counts anew.
    attach: Option<Uuid>,
    at: Instant,
}

impl Watcher {
    /// Of the disks that are attached with a runtime directory. One that does not answer for `patience` is silent.
    pub fn new(runtime_dir: PathBuf, patience: Duration) -> Self {
        Self {
            runtime_dir,
            patience,
            disks: HashMap::new(),
            asking: JoinSet::new(),
        }
    }

    /// Asks all disks, and takes what they have answered. It returns within half a second, whatever they do. `names`
    /// has the names of disks by their ids, for those that do not tell theirs. Rows are in the order of their names.
    ///
    /// # Errors
    /// When the runtime directory cannot be read.
    pub async fn look(&mut self, names: &HashMap<Uuid, String>) -> io::Result<Vec<DiskRow>> {
        let found = attached_here(&self.runtime_dir)?;
        self.take_in(&found);
        for here in found {
            let Some(watched) = self.disks.get_mut(&here.disk) else {
                continue;
            };
            if !std::mem::replace(&mut watched.is_asked, true) {
                self.asking.spawn(Asked::ask(here, self.patience));
            }
        }
        let end = tokio::time::Instant::now() + WAIT;
        while self.disks.values().any(Watched::is_waited_for) {
            match timeout_at(end, self.asking.join_next()).await {
                Ok(Some(Ok(asked))) => self.put(asked),
                // A task of ours that panicked: its disk is asked no more, which shows.
                Ok(Some(Err(_))) => {}
                Ok(None) | Err(_) => break,
            }
        }
        while let Some(joined) = self.asking.try_join_next() {
            if let Ok(asked) = joined {
                self.put(asked);
            }
        }
        for watched in self.disks.values_mut().filter(|one| one.is_asked) {
            watched.is_slow = true;
        }
        Ok(self.rows(names))
    }

    /// Knows the disks that are there, and no others.
    fn take_in(&mut self, found: &[AttachedHere]) {
        let mut before = std::mem::take(&mut self.disks);
        for here in found {
            let watched = before.remove(&here.disk).unwrap_or_else(|| Watched {
                row: DiskRow::unknown(here.disk, here.socket.clone()),
                name: None,
                counted: None,
                is_asked: false,
                is_slow: false,
            });
            self.disks.insert(here.disk, watched);
        }
        for here in found {
            if let Some(watched) = self.disks.get_mut(&here.disk) {
                watched.row.waiting_attaches = here.waiting;
            }
        }
    }

    fn put(&mut self, asked: Asked) {
        // It may be gone by now, or another one have its name.
        let Some(watched) = self.disks.get_mut(&asked.here.disk) else {
            return;
        };
        watched.put(asked);
    }

    fn rows(&self, names: &HashMap<Uuid, String>) -> Vec<DiskRow> {
        let mut watched: Vec<_> = self.disks.iter().collect();
        watched.sort_by_key(|(id, _)| **id);
        let named = watched.iter().map(|(id, watched)| {
            let known = watched.name.as_ref().or_else(|| names.get(*id));
            (**id, known.map(String::as_str))
        });
        let named = unique_names(named);
        let mut rows: Vec<_> = watched
            .into_iter()
            .zip(named)
            .map(|((_, watched), name)| DiskRow {
                name,
                ..watched.row.clone()
            })
            .collect();
        rows.sort_by(|one, other| one.name.cmp(&other.name));
        rows
    }
}

impl Watched {
    fn is_waited_for(&self) -> bool {
        self.is_asked && !self.is_slow
    }

    fn put(&mut self, asked: Asked) {
        self.is_asked = false;
        self.is_slow = asked.answer.is_err();
        let now = Counted::of(&asked);
        let rates = match (&self.counted, &now) {
            (Some(before), Some(now)) => before.rates_until(now),
            _ => None,
        };
        if let Some(name) = asked.name() {
            self.name = Some(name.to_owned());
        }
        self.counted = now;
        let waiting = self.row.waiting_attaches;
        self.row.put(asked.answer, rates);
        self.row.waiting_attaches = waiting;
    }
}

impl Counted {
    fn of(asked: &Asked) -> Option<Self> {
        let Ok(MetricsAnswer::Metrics(metrics)) = &asked.answer else {
            return None;
        };
        Some(Self {
            counters: metrics.counters.clone()?,
            attach: metrics.status.offered.as_ref().map(|of| of.attach),
            at: asked.at,
        })
    }

    fn rates_until(&self, now: &Self) -> Option<Rates> {
        if self.attach != now.attach {
            return None;
        }
        let time = now.at.saturating_duration_since(self.at);
        Rates::between(&self.counters, &now.counters, time)
    }
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader, Write};
    use std::os::unix::net::UnixListener;
    use std::path::Path;
    use std::sync::atomic::{AtomicU64, Ordering};
    use std::sync::{Arc, Mutex};

    use super::*;
    use crate::row::Standing;

    const PATIENCE: Duration = Duration::from_secs(2);

    /// What an attach answers with.
    #[derive(Clone)]
    struct Attach {
        name: &'static str,
        state: Arc<Mutex<&'static str>>,
        requests: Arc<AtomicU64>,
        attach: Arc<AtomicU64>,
        hangs: Arc<Mutex<bool>>,
        /// Who is not answered.
        hanging: Arc<Mutex<Vec<std::os::unix::net::UnixStream>>>,
    }

    impl Attach {
        fn start(dir: &Path, disk: u128, name: &'static str) -> Self {
            let this = Self {
                name,
                state: Arc::new(Mutex::new("Active")),
                requests: Arc::default(),
                attach: Arc::default(),
                hangs: Arc::default(),
                hanging: Arc::default(),
            };
            let socket = dir.join(format!("{}.control", Uuid::from_u128(disk)));
            let listener = UnixListener::bind(socket).unwrap();
            let serving = this.clone();
            std::thread::spawn(move || {
                for client in listener.incoming() {
                    let mut client = client.unwrap();
                    if *serving.hangs.lock().unwrap() {
                        serving.hanging.lock().unwrap().push(client);
                        continue;
                    }
                    let mut line = String::new();
                    BufReader::new(&client).read_line(&mut line).unwrap();
                    client.write_all(serving.answer().as_bytes()).unwrap();
                }
            });
            this
        }

        fn answer(&self) -> String {
            let requests = self.requests.load(Ordering::Relaxed);
            let (state, name) = (*self.state.lock().unwrap(), self.name);
            let attach = Uuid::from_u128(self.attach.load(Ordering::Relaxed).into());
            let status = format!(
                r#"{{"state":"{state}","since":"2025-01-01T00:00:00Z","dek":"Held","keyUrl":"u","lastCheck":"2025-01-01T00:00:00Z","lastGranted":"2025-01-01T00:00:00Z","checkIntervalSeconds":60,"graceSeconds":60,"onRevoke":"error","offered":{{"queues":1,"memoryBytes":1,"attach":"{attach}"}}}}"#
            );
            let counters = format!(
                r#"{{"operations":[{{"operation":"read","bytes":{},"errors":1,"latencyTicks":0,"buckets":[[40,{requests}]]}}],"inFlight":3,"waitForSpace":0,"limitWaits":0,"limitWaitTicks":0,"spaceWaits":0,"keyWaits":0,"keyWaitTicks":0,"pollTicks":0}}"#,
                requests * 4096
            );
            format!(
                r#"{{"ok":{{"disk":"{name}","diskId":"{}","sizeBytes":7,"status":{status},"counters":{counters}}}}}"#,
                Uuid::nil()
            ) + "\n"
        }
    }

    /// A watcher, and what drives its questions.
    struct Looking {
        watcher: Watcher,
        runtime: tokio::runtime::Runtime,
    }

    impl Looking {
        fn at(dir: &Path) -> Self {
            let mut builder = tokio::runtime::Builder::new_current_thread();
            Self {
                watcher: Watcher::new(dir.into(), PATIENCE),
                runtime: builder.enable_all().build().unwrap(),
            }
        }

        /// Looks until what is seen is as wanted.
        fn until(&mut self, wanted: impl Fn(&[DiskRow]) -> bool) -> Vec<DiskRow> {
            self.runtime.block_on(async {
                let end = Instant::now() + Duration::from_secs(60);
                loop {
                    let rows = self.watcher.look(&HashMap::new()).await.unwrap();
                    if wanted(&rows) {
                        return rows;
                    }
                    assert!(Instant::now() < end, "{rows:#?}");
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            })
        }
    }

    fn row<'a>(rows: &'a [DiskRow], name: &str) -> &'a DiskRow {
        rows.iter().find(|row| row.name == name).unwrap()
    }

    #[test]
    fn two_answers_give_rates_and_another_attach_counts_anew() {
        let dir = tempfile::tempdir().unwrap();
        let disk = Attach::start(dir.path(), 1, "one");
        let mut looking = Looking::at(dir.path());
        let rows = looking.until(|rows| rows[0].in_flight == Some(3));
        let one = row(&rows, "one");
        assert!(one.rates.is_none(), "there is one answer");
        assert_eq!((one.errors, one.standing), (Some(1), Standing::Served));
        disk.requests.fetch_add(100, Ordering::Relaxed);
        let rows = looking.until(|rows| {
            rows[0]
                .rates
                .as_ref()
                .is_some_and(|rates| rates.io.requests > 0.0)
        });
        let rates = rows[0].rates.as_ref().unwrap();
        let requests = rates.io.requests * rates.seconds;
        assert!((requests - 100.0).abs() < 1e-6, "{requests}");
        let each = rates.read.bytes / rates.read.requests;
        assert!((each - 4096.0).abs() < 1e-6, "{each}");
        // Another attach has counted more in less time.
        disk.attach.store(7, Ordering::Relaxed);
        disk.requests.fetch_add(5000, Ordering::Relaxed);
        let rows = looking.until(|rows| rows[0].rates.is_none());
        assert_eq!(rows[0].standing, Standing::Served);
        looking.until(|rows| rows[0].rates.is_some());
    }

    #[test]
    fn disks_come_and_go_and_a_hung_one_holds_up_none() {
        let dir = tempfile::tempdir().unwrap();
        let none = Uuid::from_u128(9);
        let mut looking = Looking::at(&dir.path().join("none"));
        looking.until(<[_]>::is_empty);
        let mut looking = Looking::at(dir.path());
        looking.until(<[_]>::is_empty);
        let one = Attach::start(dir.path(), 1, "one");
        let two = Attach::start(dir.path(), 2, "two");
        drop(UnixListener::bind(dir.path().join(format!("{none}.control"))).unwrap());
        let known = |rows: &[DiskRow]| {
            rows.len() == 3 && rows.iter().all(|row| row.standing != Standing::Asked)
        };
        let rows = looking.until(known);
        let dead = row(&rows, &none.to_string());
        assert_eq!(dead.standing, Standing::Silent);
        assert!(
            dead.silent.as_ref().unwrap().contains("refused"),
            "{dead:?}"
        );

        *two.hangs.lock().unwrap() = true;
        *one.state.lock().unwrap() = "KeyRevoked";
        // The one is seen while the other one is waited for.
        let rows = looking.until(|rows| row(rows, "one").standing == Standing::KeyRevoked);
        assert_eq!(
            row(&rows, "two").standing,
            Standing::Served,
            "it is not late yet"
        );
        let rows = looking.until(|rows| row(rows, "two").standing == Standing::Silent);
        let hung = row(&rows, "two");
        assert!(
            hung.rates.is_none() && hung.key.is_none(),
            "what it did is over"
        );
        assert!(hung.silent.as_ref().unwrap().contains("does not answer"));
        *two.hangs.lock().unwrap() = false;
        looking.until(|rows| row(rows, "two").standing == Standing::Served);

        std::fs::remove_file(dir.path().join(format!("{none}.control"))).unwrap();
        looking.until(|rows| rows.len() == 2);
    }

    #[test]
    fn rows_are_json() {
        let dir = tempfile::tempdir().unwrap();
        let disk = Attach::start(dir.path(), 1, "one");
        let mut looking = Looking::at(dir.path());
        looking.until(|rows| rows[0].key.is_some());
        disk.requests.fetch_add(8, Ordering::Relaxed);
        let rows = looking.until(|rows| rows[0].rates.is_some());
        let json = serde_json::to_value(&rows).unwrap();
        let one = &json[0];
        assert_eq!(
            (&one["standing"], &one["key"]["state"]),
            (&"served".into(), &"Active".into())
        );
        assert_eq!(one["serving"]["queues"], 1);
        assert!(
            one["rates"]["io"]["requests"].as_f64().unwrap() > 0.0,
            "{one}"
        );
        assert_eq!(one["rates"]["flush"]["p99"], serde_json::Value::Null);
    }
}
