//! Looks for what will break about an attached disk, and tells it as events: a key near its end, a disk that is still
//! under an old key version, data planes that die again and again, a job that does not go on.
//!
//! A thread of its own does that, which nobody waits for: vaults may take their time. What has an event of its own (a
//! revoked key, a failed sync) is not told twice, and what concerns the host as a whole (room, backups) is told by
//! `sealdisk status`, not by each of its disks.

use std::io;
use std::sync::Arc;

use time::OffsetDateTime;
use uuid::Uuid;

use crate::serve::attached_disk::AttachedDisk;
use crate::serve::event_hub::EventHub;
use crate::status::{Event, EventKind};
use alarms::{
    Alarm, AlarmCode, AlarmsError, AttachedFacts, Attaches, Change, OneDisk, Scope, Settings,
    SubjectKind, Watcher,
};
use disks::{Disk, DiskError};
use installation::Installation;
use installation::envelope::LayerRecord;

/// What is looked at, and where it is told.
pub(crate) struct AlarmWatch {
    pub(crate) installation: Arc<Installation>,
    pub(crate) disk: Arc<Disk>,
    pub(crate) attached_disk: Arc<AttachedDisk>,
    pub(crate) event_hub: Arc<EventHub>,
}

impl AlarmWatch {
    /// Looks from now on, until the end of the process.
    ///
    /// # Errors
    /// What the kernel says.
    pub(crate) fn spawn(self) -> io::Result<()> {
        let thread = std::thread::Builder::new().name("alarms".into());
        thread.spawn(move || self.run()).map(drop)
    }

    fn run(self) {
        let mut watcher = Watcher::resume(told(&self.event_hub.history()));
        let mut known = None;
        loop {
            let settings = self.settings(&mut known);
            std::thread::sleep(settings.look_interval());
            // Whoever has the disk looks at it.
            if !self.attached_disk.is_held() {
                continue;
            }
            let changes = self.look(&mut watcher, &settings).unwrap_or_else(|error| {
                note(&mut known, &error);
                watcher.blind(&error)
            });
            if !watcher.is_blind() {
                known = None;
            }
            changes.iter().for_each(|change| self.tell(change));
        }
    }

    /// The settings as they are now, or the defaults where they cannot be read.
    fn settings(&self, known: &mut Option<String>) -> Settings {
        Settings::load(self.installation.state_dir()).unwrap_or_else(|error| {
            note(known, &error);
            Settings::default()
        })
    }

    fn look(&self, watcher: &mut Watcher, settings: &Settings) -> Result<Vec<Change>, AlarmsError> {
        self.installation.renew().map_err(DiskError::from)?;
        // Whoever rotates a key writes the header without asking this process.
        let header = self.disk.header_file()?;
        let header = header.read().map_err(DiskError::from)?;
        let layers = header.claims().layers.iter();
        let keys = layers.flat_map(LayerRecord::envelopes);
        let keys = keys.map(|(set, envelope)| (set.map(str::to_owned), envelope.key_url()));
        let keys: Vec<_> = keys.collect();
        let scope = Scope::Disk(OneDisk {
            name: self.disk.name(),
            id: self.disk.id(),
            keys: &keys,
        });
        watcher.look(&self.installation, settings, scope, self)
    }

    fn tell(&self, change: &Change) {
        let alarm = change.alarm();
        let is_blind = alarm.subject.kind == SubjectKind::Installation;
        if alarm.code.has_own_event() || (alarm.code == AlarmCode::NotKnown && !is_blind) {
            return;
        }
        let event = match change {
            Change::Raised(_) => EventKind::AlarmRaised,
            Change::Cleared(_) => EventKind::AlarmCleared,
        };
        let event = Event {
            time: OffsetDateTime::now_utc(),
            event,
            disk: self.disk.name().into(),
            disk_id: self.disk.id(),
            key_url: self.event_hub.status().key_url,
            reason: None,
            until: None,
            attach: None,
            alarm: Some(change.alarm().clone()),
        };
        match change {
            Change::Raised(_) => log::warn!("{event}"),
            Change::Cleared(_) => log::info!("{event}"),
        }
        self.event_hub.publish(&event);
    }
}

impl Attaches for AlarmWatch {
    fn ask(&self, _: Uuid) -> Option<AttachedFacts> {
        Some(self.event_hub.status().facts())
    }

    fn here(&self) -> io::Result<Vec<Uuid>> {
        Ok(vec![self.disk.id()])
    }
}

/// Says what keeps it from looking, once.
fn note(known: &mut Option<String>, error: &AlarmsError) {
    let error = error.to_string();
    if known.as_ref() != Some(&error) {
        log::warn!("alarms of the disk are not looked for: {error}");
        *known = Some(error);
    }
}

/// The alarms that were told of, by this program or the one before it in this process, and are not over.
fn told(history: &[Arc<str>]) -> Vec<Alarm> {
    let mut told: Vec<Alarm> = Vec::new();
    for line in history {
        let Ok(Event {
            event,
            alarm: Some(alarm),
            ..
        }) = serde_json::from_str(line)
        else {
            continue;
        };
        told.retain(|known| known.id() != alarm.id());
        if event == EventKind::AlarmRaised {
            told.push(alarm);
        }
    }
    told
}

#[cfg(test)]
mod tests {
    use super::*;
    use alarms::{Severity, Subject};

    fn line(kind: EventKind, code: Option<AlarmCode>) -> Arc<str> {
        let event = Event {
            time: OffsetDateTime::UNIX_EPOCH,
            event: kind,
            disk: "d".into(),
            disk_id: Uuid::nil(),
            key_url: "k".into(),
            reason: None,
            until: None,
            attach: None,
            alarm: code.map(|code| Alarm {
                code,
                severity: Severity::Warning,
                subject: Subject::new(SubjectKind::Disk, "d"),
                since: Some(OffsetDateTime::UNIX_EPOCH),
                message: "m".into(),
                remedy: "r".into(),
            }),
        };
        serde_json::to_string(&event).unwrap().into()
    }

    #[test]
    fn a_program_that_takes_over_knows_what_was_told() {
        use EventKind::{AlarmCleared, AlarmRaised, Attached};
        let (looped, old) = (Some(AlarmCode::CrashLoop), Some(AlarmCode::OldKeyVersion));
        let history = [
            line(Attached, None),
            line(AlarmRaised, looped),
            line(AlarmRaised, old),
            line(AlarmRaised, old),
            line(AlarmCleared, looped),
            "nonsense".into(),
        ];
        let codes: Vec<_> = told(&history).iter().map(|alarm| alarm.code).collect();
        assert_eq!(codes, [AlarmCode::OldKeyVersion]);
    }
}
