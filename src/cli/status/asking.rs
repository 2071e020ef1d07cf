//! Asking the attaches of this host.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;

use uuid::Uuid;

use crate::cli::Context;
use alarms::{AttachedFacts, Settings};
use attach::KeyStatus;
use installation::{Installation, runtime_dir};

/// The exit status when what is to be said is not known, as monitoring plugins have it.
pub(super) const UNKNOWN: u8 = 3;

/// What the attaches of this host say, each asked once.
pub(super) struct Attaches {
    runtime_dir: PathBuf,
    pub(super) answers: RefCell<BTreeMap<Uuid, KeyStatus>>,
}

impl Attaches {
    pub(super) fn of(context: &Context) -> Self {
        Self {
            runtime_dir: runtime_dir(context.runtime_dir.as_deref()),
            answers: RefCell::default(),
        }
    }
}

impl alarms::Attaches for Attaches {
    fn ask(&self, disk: Uuid) -> Option<AttachedFacts> {
        let asked = attach::key_status(&self.runtime_dir, disk);
        let status = asked
            .inspect_err(|error| {
                log::debug!("the attach of the disk {disk} does not answer: {error}");
            })
            .ok()?;
        let facts = status.facts();
        self.answers.borrow_mut().insert(disk, status);
        Some(facts)
    }

    fn here(&self) -> io::Result<Vec<Uuid>> {
        // Else one that is not there has no disks.
        std::fs::metadata(&self.runtime_dir)?;
        let here = attach::attached_here(&self.runtime_dir)?;
        Ok(here.into_iter().map(|here| here.disk).collect())
    }
}

/// The settings of an installation, or the defaults, with a word about why.
pub(super) fn settings_of(installation: &Installation) -> Settings {
    Settings::load(installation.state_dir()).unwrap_or_else(|error| {
        log::warn!("{error}");
        Settings::default()
    })
}
