//! Asking the attaches of this host.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use uuid::Uuid;

use crate::cli::Context;
use alarms::{AttachedFacts, Settings};
use attach::KeyStatus;
use installation::{Installation, runtime_dir};

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

    pub(super) fn ask(&self, disk: Uuid) -> Option<AttachedFacts> {
        let status = ask(&self.runtime_dir, disk)?;
        let facts = status.facts();
        self.answers.borrow_mut().insert(disk, status);
        Some(facts)
    }
}

/// What the attach of a disk says, if it answers.
pub(super) fn ask(runtime_dir: &Path, disk: Uuid) -> Option<KeyStatus> {
    let asked = attach::key_status(runtime_dir, disk);
    asked
        .inspect_err(|error| log::debug!("the attach of the disk {disk} does not answer: {error}"))
        .ok()
}

/// The settings of an installation, or the defaults, with a word about why.
pub(super) fn settings_of(installation: &Installation) -> Settings {
    Settings::load(installation.state_dir()).unwrap_or_else(|error| {
        log::warn!("{error}");
        Settings::default()
    })
}
