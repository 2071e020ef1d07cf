//! Alarms before harm: what on a host will break soon, or is broken and not noticed yet.
//!
//! | Room | What is in it |
//! |---|---|
//! | `alarm` | An alarm: its code, how grave it is, what it is about |
//! | `facts` | What is known of a host at a moment, without any judgement |
//! | `find` | From facts to alarms: a pure function |
//! | `settings` | From when on something is an alarm |
//! | `host` | The name of the host |
//! | `collect` | Finding out the facts of an installation |
//! | `tracker` | Which alarms are new, and which are over |
//! | `watcher` | All of that, again and again |
//! | `notify` | Telling a command or a webhook, without holding anybody up |
//!
//! `docs/alarms.md` has each code with what to do.

mod alarm;
mod collect;
mod error;
mod facts;
mod find;
mod host;
pub mod notify;
mod settings;
mod tracker;
mod watcher;

pub use alarm::{Alarm, AlarmCode, Severity, Subject, SubjectKind};
pub use collect::{Collector, OneDisk, Scope, certificate_end};
pub use error::AlarmsError;
pub use facts::{
    AttachedFacts, Attaches, BackupFacts, CertificateFacts, Facts, FileSystemFacts, KeyFacts,
    KeyRefusal, KeyStanding, NoAttaches, OldKey, ResourceFacts, ResourceState, Stall, Unknown,
    VaultFacts,
};
pub use find::find;
pub use host::host_name;
pub use settings::Settings;
pub use tracker::{Change, Tracker};
pub use watcher::Watcher;
