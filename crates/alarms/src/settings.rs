//! From when on something is an alarm. An installation that was told nothing has the defaults.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use time::Duration;
use uuid::Uuid;

use crate::error::AlarmsError;
use installation::files::sync_dir;

/// The file in the state directory.
const FILE: &str = "alarms.json";
/// Bytes of it at most.
const MAX_LEN: u64 = 64 * 1024;
/// Seconds of a day.
const DAY: u64 = 24 * 3600;
/// The longest time that a setting may be, in seconds: a hundred years.
const MAX_SECONDS: u64 = 100 * 366 * DAY;

/// From when on something is an alarm. Times are in seconds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Settings {
    /// A key that ends within this time is a warning.
    pub key_warning_seconds: u64,
    /// A key that ends within this time is critical.
    pub key_critical_seconds: u64,
    /// A certificate that ends within this time is a warning.
    pub certificate_warning_seconds: u64,
    /// A certificate that ends within this time is critical.
    pub certificate_critical_seconds: u64,
    /// How long after a rotation something may still be under an old key version.
    pub rotation_grace_seconds: u64,
    /// A file system with less room than this is a warning, in per cent of its size.
    pub space_warning_percent: u8,
    /// A file system with less room than this is critical, in per cent of its size.
    pub space_critical_percent: u8,
    /// An identity that has used this much of its vault's limit is a warning, in per cent.
    pub quota_warning_percent: u8,
    /// A backup that is older than this is a warning.
    pub backup_warning_seconds: u64,
    /// A backup that is older than this is critical.
    pub backup_critical_seconds: u64,
    /// So many data planes that die one after the other are a crash loop.
    pub crash_loop_deaths: u64,
    /// How long after the last death it still is one.
    pub crash_loop_seconds: u64,
    /// A disk of which no request ends for so long, while some are under way, is stalled.
    pub stall_seconds: u64,
    /// How often whatever watches looks.
    pub look_seconds: u64,
    /// Certificates (PEM) that are looked at beside those that Sealdisk makes.
    pub certificates: Vec<PathBuf>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            key_warning_seconds: 30 * DAY,
            key_critical_seconds: 7 * DAY,
            certificate_warning_seconds: 14 * DAY,
            certificate_critical_seconds: 3 * DAY,
            rotation_grace_seconds: 2 * DAY,
            space_warning_percent: 10,
            space_critical_percent: 3,
            quota_warning_percent: 80,
            backup_warning_seconds: 3 * DAY,
            backup_critical_seconds: 14 * DAY,
            crash_loop_deaths: 3,
            crash_loop_seconds: 600,
            stall_seconds: 30,
            look_seconds: 60,
            certificates: Vec::new(),
        }
    }
}

impl Settings {
    /// The settings of the installation in `state_dir`.
    ///
    /// # Errors
    /// [`AlarmsError::Settings`] for a file that cannot be read, or has something else in it.
    pub fn load(state_dir: &Path) -> Result<Self, AlarmsError> {
        let path = state_dir.join(FILE);
        let fail = |source| AlarmsError::Settings {
            what: "read",
            path: path.clone(),
            source,
        };
        let text = match fs::metadata(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Self::default()),
            Err(error) => return Err(fail(error)),
            Ok(found) if found.len() > MAX_LEN => {
                return Err(fail(io::Error::other("it is too long")));
            }
            Ok(_) => fs::read_to_string(&path).map_err(fail)?,
        };
        let settings: Self = serde_json::from_str(&text).map_err(|e| fail(e.into()))?;
        settings
            .check()
            .map_err(|error| fail(io::Error::other(error.to_string())))?;
        Ok(settings)
    }

    /// Keeps the settings. They are whole in the file at any moment.
    ///
    /// # Errors
    /// [`AlarmsError::Argument`] for what makes no sense, [`AlarmsError::Settings`].
    pub fn save(&self, state_dir: &Path) -> Result<(), AlarmsError> {
        self.check()?;
        let path = state_dir.join(FILE);
        let made = state_dir.join(format!(".{FILE}.{}", Uuid::new_v4()));
        let write = || -> io::Result<()> {
            let mut options = File::options();
            let mut file = options
                .write(true)
                .create_new(true)
                .mode(0o600)
                .open(&made)?;
            file.write_all(serde_json::to_string_pretty(self)?.as_bytes())?;
            file.write_all(b"\n")?;
            file.sync_all()?;
            fs::rename(&made, &path)?;
            sync_dir(state_dir)
        };
        write().map_err(|source| {
            // It may have its name already.
            let _ = fs::remove_file(&made);
            AlarmsError::Settings {
                what: "write",
                path: path.clone(),
                source,
            }
        })
    }

    /// How often whatever watches looks.
    pub fn look_interval(&self) -> std::time::Duration {
        std::time::Duration::from_secs(self.look_seconds.clamp(1, DAY))
    }

    /// How long no request may end, while some are under way.
    pub fn stall_time(&self) -> std::time::Duration {
        std::time::Duration::from_secs(self.stall_seconds)
    }

    /// Whether the settings make sense.
    fn check(&self) -> Result<(), AlarmsError> {
        let times = [
            self.key_warning_seconds,
            self.key_critical_seconds,
            self.certificate_warning_seconds,
            self.certificate_critical_seconds,
            self.rotation_grace_seconds,
            self.backup_warning_seconds,
            self.backup_critical_seconds,
            self.crash_loop_seconds,
            self.stall_seconds,
        ];
        if times.iter().any(|time| *time > MAX_SECONDS) {
            return argument("a time of more than a hundred years is no threshold of an alarm");
        }
        if !(1..=DAY).contains(&self.look_seconds) {
            return argument("the time between two looks is from 1 s to 1 day");
        }
        if self.stall_seconds == 0 {
            return argument("a disk is stalled after 1 s at the earliest");
        }
        if self.crash_loop_deaths < 2 {
            return argument("a crash loop is two deaths at least");
        }
        let orders = [
            ("key", self.key_critical_seconds <= self.key_warning_seconds),
            (
                "certificate",
                self.certificate_critical_seconds <= self.certificate_warning_seconds,
            ),
            (
                "backup",
                self.backup_warning_seconds <= self.backup_critical_seconds,
            ),
            (
                "space",
                self.space_critical_percent <= self.space_warning_percent,
            ),
        ];
        if let Some((what, _)) = orders.iter().find(|(_, in_order)| !in_order) {
            return argument(&format!(
                "the {what} is critical before it is a warning; change both thresholds"
            ));
        }
        match self.space_warning_percent <= 100 {
            true => Ok(()),
            false => argument("the room of a file system is 100 per cent at most"),
        }
    }
}

fn argument(why: &str) -> Result<(), AlarmsError> {
    Err(AlarmsError::Argument(why.into()))
}

/// A setting in seconds as a duration.
pub(crate) fn seconds(setting: u64) -> Duration {
    Duration::seconds(i64::try_from(setting.min(MAX_SECONDS)).unwrap_or(i64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_is_read_again_and_what_is_missing_is_the_default() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(Settings::load(dir.path()).unwrap(), Settings::default());
        let settings = Settings {
            key_warning_seconds: 90 * DAY,
            certificates: vec!["/etc/ssl/vault.pem".into()],
            ..Settings::default()
        };
        settings.save(dir.path()).unwrap();
        assert_eq!(Settings::load(dir.path()).unwrap(), settings);
        let entries = fs::read_dir(dir.path()).unwrap();
        assert_eq!(entries.count(), 1, "nothing else is left");
        fs::write(dir.path().join(FILE), "{\"lookSeconds\": 5}").unwrap();
        let read = Settings::load(dir.path()).unwrap();
        assert_eq!(read.look_seconds, 5);
        assert_eq!(read.key_warning_seconds, 30 * DAY);
    }

    #[test]
    fn what_makes_no_sense_is_refused_and_changes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        for bad in [
            "{\"lookSeconds\": 0}",
            "{\"crashLoopDeaths\": 1}",
            "{\"keyCriticalSeconds\": 9999999999999}",
            "{\"keyCriticalSeconds\": 9000000}",
            "{\"backupWarningSeconds\": 9000000}",
            "{\"spaceCriticalPercent\": 50}",
            "{\"spaceWarningPercent\": 101}",
            "{\"bogus\": 1}",
            "{",
        ] {
            fs::write(dir.path().join(FILE), bad).unwrap();
            let error = Settings::load(dir.path()).unwrap_err();
            assert!(error.to_string().contains("alarms.json"), "{bad}: {error}");
        }
        let before = fs::read(dir.path().join(FILE)).unwrap();
        let bad = Settings {
            look_seconds: 0,
            ..Settings::default()
        };
        assert!(bad.save(dir.path()).is_err());
        assert_eq!(fs::read(dir.path().join(FILE)).unwrap(), before);
    }
}
