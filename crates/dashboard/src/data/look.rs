//! Looking at an installation, again and again.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use time::OffsetDateTime;
use uuid::Uuid;

use super::audit_logs::verify_again_and_again;
use super::shared::{Part, Rows, Shared};
use super::timeline::LOOK_BACK;
use super::views;
use crate::error::DashboardError;
use alarms::{
    Alarm, AlarmCode, AttachedFacts, Attaches, Collector, Facts, Scope, Settings, SubjectKind, find,
};
use disks::des::Dependencies;
use installation::{Installation, Place};
use live::{DiskRow, Standing};
use vault::audit::{Entry, Pin};
use web::ServeError;

/// A look takes this share of the time at most.
const SHARE: u32 = 10;
/// How long a look waits for what attached disks say, after somebody has come back.
const PATIENCE: Duration = Duration::from_secs(2);

/// Has threads look at an installation every `period`, and verify its audit logs, for as long as somebody looks at the
/// page.
///
/// # Errors
/// When a thread cannot be started.
pub(crate) fn look_again_and_again(
    shared: &Arc<Shared>,
    place: &Place,
    pins: Vec<Pin>,
    period: Duration,
) -> Result<(), DashboardError> {
    let spawn = |name: &str, work: Box<dyn FnOnce() + Send>| {
        let started = std::thread::Builder::new().name(name.into()).spawn(work);
        started.map_err(ServeError::system("start a thread that looks"))
    };
    let (told, of) = (shared.clone(), place.clone());
    spawn(
        "look",
        Box::new(move || {
            let mut looker = Looker::new(told, of);
            loop {
                let started = Instant::now();
                let returns = looker.shared.returns();
                looker.look(returns);
                let pause = period.max(started.elapsed() * SHARE);
                looker.shared.wait(pause, returns);
            }
        }),
    )?;
    let (told, of) = (shared.clone(), place.clone());
    let verify = move || verify_again_and_again(&told, &of, &pins, period);
    spawn("verify", Box::new(verify))?;
    Ok(())
}

/// What was seen of an installation.
struct Seen {
    sections: Vec<(&'static str, Vec<views::Item>)>,
    all: Dependencies,
    elsewhere: HashSet<Uuid>,
}

/// What looks.
struct Looker {
    shared: Arc<Shared>,
    place: Place,
    collector: Collector,
    /// The last record of each log that was seen.
    records: HashMap<String, u64>,
    /// Why nothing was seen last, so that it is logged once.
    failure: Option<String>,
}

impl Looker {
    fn new(shared: Arc<Shared>, place: Place) -> Self {
        Self {
            shared,
            place,
            collector: Collector::new(),
            records: HashMap::new(),
            failure: None,
        }
    }

    /// Looks, for whoever came back then.
    fn look(&mut self, returns: u64) {
        let (seen, failure) = match self.look_at_installation() {
            Ok(Some(seen)) => (Some(seen), None),
            Ok(None) => {
                let there = match self.place.catalog.server() {
                    Some(url) => format!("at {url}"),
                    None => format!("in {}", self.place.state_dir.display()),
                };
                (None, Some(format!("there is no installation {there}")))
            }
            Err(error) => (None, Some(error)),
        };
        if failure != self.failure {
            if let Some(failure) = &failure {
                log::warn!("disks, keys and vaults are not looked at: {failure}");
            }
            self.failure.clone_from(&failure);
        }
        let host = views::host(failure);
        self.shared.put(Part::State, returns, |content| {
            if let Some(Seen {
                sections,
                all,
                elsewhere,
            }) = seen
            {
                for (name, items) in sections {
                    content.state.put(name, items);
                }
                content.dependencies = Some(Arc::new(all));
                content.elsewhere = elsewhere;
            }
            content.state.put("host", [host]);
        });
    }

    /// Nothing where there is none.
    fn look_at_installation(&mut self) -> Result<Option<Seen>, String> {
        let say = |error: &dyn std::error::Error| error.to_string();
        let opened = Installation::open_if_there(&self.place);
        let Some(installation) = opened.map_err(|e| say(&e))? else {
            return Ok(None);
        };
        // Before the catalog: what is attached later may be younger than it was.
        let rows = self.shared.rows_within(PATIENCE);
        let seen = Dependencies::look(&installation).map_err(|e| say(&e))?;
        let (facts, alarms) = self
            .alarms(&installation, &seen, rows.as_ref())
            .map_err(|e| say(&e))?;
        let records = self.new_records(&installation);
        let now = OffsetDateTime::now_utc();
        let sections = views::sections(&installation, &seen, &facts, &alarms, now);
        // They are new once, and say when they were.
        let mut content = self.shared.content();
        for (log, entries) in records {
            for entry in entries {
                content.timeline.add_record(&log, entry);
            }
        }
        drop(content);
        Ok(Some(Seen {
            sections,
            all: seen,
            elsewhere: facts.elsewhere.into_iter().collect(),
        }))
    }

    /// What will break. Attached disks are not asked again: what they said last is known.
    fn alarms(
        &self,
        installation: &Installation,
        seen: &Dependencies,
        rows: Option<&Rows>,
    ) -> Result<(Facts, Vec<Alarm>), alarms::AlarmsError> {
        let settings = Settings::load(installation.state_dir()).unwrap_or_else(|error| {
            log::debug!("{error}");
            Settings::default()
        });
        let told = LastAnswers::of(rows);
        let scope = Scope::Seen(&seen.resources);
        let (facts, _) = self
            .collector
            .collect(installation, &settings, scope, &told)?;
        let mut found = find(&facts, &settings);
        found.retain(|alarm| {
            let is_of_disk = alarm.subject.kind == SubjectKind::Disk;
            alarm.code != AlarmCode::NotKnown || !is_of_disk || !is_asked(rows, &alarm.subject.name)
        });
        Ok((facts, found))
    }

    /// The records of each log that were not seen yet. A log that cannot be read has none; verifying it says why.
    fn new_records(&mut self, installation: &Installation) -> BTreeMap<String, Vec<Entry>> {
        let mut new = BTreeMap::new();
        for log in installation.log_databases().unwrap_or_default() {
            let mut entries = Vec::new();
            let seen = self.records.entry(log.name.clone()).or_default();
            match log.visit_last(*seen, LOOK_BACK, |entry| entries.push(entry)) {
                Ok(last) => *seen = last,
                Err(error) => log::debug!("the audit log {} is not read: {error}", log.name),
            }
            new.insert(log.name, entries);
        }
        new
    }
}

/// Whether a disk has had no time to answer: before it has, nothing is known of it, which is no alarm.
fn is_asked(rows: Option<&Rows>, name: &str) -> bool {
    match rows {
        None => true,
        Some(Err(_)) => false,
        Some(Ok(rows)) => rows
            .iter()
            .any(|row| row.name == name && row.standing == Standing::Asked),
    }
}

/// What attached disks have said last, or why they cannot be found.
struct LastAnswers<'a>(Result<HashMap<Uuid, &'a DiskRow>, &'a io::Error>);

impl<'a> LastAnswers<'a> {
    fn of(rows: Option<&'a Rows>) -> Self {
        Self(match rows {
            None => Ok(HashMap::new()),
            Some(Ok(rows)) => Ok(rows.iter().map(|row| (row.id, row)).collect()),
            Some(Err(error)) => Err(&**error),
        })
    }
}

impl Attaches for LastAnswers<'_> {
    fn ask(&self, disk: Uuid) -> Option<AttachedFacts> {
        let rows = self.0.as_ref().ok()?;
        rows.get(&disk).and_then(|row| facts_of(row))
    }

    fn here(&self) -> io::Result<Vec<Uuid>> {
        match &self.0 {
            Ok(rows) => Ok(rows.keys().copied().collect()),
            Err(error) => Err(io::Error::new(error.kind(), error.to_string())),
        }
    }
}

/// What alarms are found by, of a disk that has answered.
fn facts_of(row: &DiskRow) -> Option<AttachedFacts> {
    let key = row.key.as_ref()?;
    let serving = row.serving.as_ref();
    let reason = key.reason.as_ref();
    Some(AttachedFacts {
        key: key.state.standing(key.since, key.until, reason),
        last_granted: key.last_granted,
        deaths_in_a_row: serving.map_or(0, |serving| serving.deaths_in_a_row),
        last_death: serving.and_then(|serving| Some(serving.last_restart.as_ref()?.time)),
        job_error: row.job.as_ref().and_then(|job| job.error.clone()),
        stall: serving.and_then(|serving| serving.stall.clone()),
        launcher_ended: serving.and_then(|serving| serving.launcher_ended),
        installation: serving.and_then(|serving| serving.installation),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is not known of an installation whose note of the last backup is damaged.
    fn not_known(rows: Option<Rows>) -> Vec<String> {
        let dir = tempfile::tempdir().unwrap();
        let installation = Installation::open(dir.path()).unwrap();
        std::fs::write(dir.path().join("last-backup.json"), "{").unwrap();
        let looker = Looker::new(Arc::new(Shared::new()), dir.path().into());
        let seen = Dependencies::look(&installation).unwrap();
        let (_, found) = looker.alarms(&installation, &seen, rows.as_ref()).unwrap();
        let found = found.into_iter();
        let not_known = found.filter(|alarm| alarm.code == AlarmCode::NotKnown);
        not_known.map(|alarm| alarm.subject.name).collect()
    }

    #[test]
    fn what_is_not_known_is_told_where_no_disk_is_attached_too() {
        assert_eq!(not_known(Some(Ok(Arc::default()))), ["backup"]);
        assert_eq!(not_known(None), ["backup"], "before disks were asked");
        let mut asked = DiskRow::unknown(Uuid::nil(), std::path::PathBuf::from("/nowhere"));
        asked.name = "disk".into();
        let rows: Rows = Ok(Arc::new(vec![asked]));
        assert!(is_asked(Some(&rows), "disk") && !is_asked(Some(&rows), "other"));
        let denied = io::Error::from(io::ErrorKind::PermissionDenied);
        let mut found = not_known(Some(Err(Arc::new(denied))));
        found.sort();
        assert_eq!(found, ["backup", "runtime directory"]);
    }
}
