//! What is wrong with a key: its end, and that its vault lets nobody use it.

use time::OffsetDateTime;

use super::words::{listed, near_end};
use crate::alarm::{Alarm, AlarmCode, Severity, Subject, SubjectKind};
use crate::facts::{KeyFacts, KeyRefusal};
use crate::settings::Settings;
use vault::{KeyUrl, moment};

/// A key whose end is near.
pub(super) fn end_alarm(key: &KeyFacts, now: OffsetDateTime, settings: &Settings) -> Option<Alarm> {
    // One that may not be used protects nothing that its end could stop.
    if key.refusals.iter().any(KeyRefusal::is_of_all) {
        return None;
    }
    let thresholds = (settings.key_warning_seconds, settings.key_critical_seconds);
    let near = near_end(key.expires?, now, thresholds)?;
    let begun = match near.ended {
        true => near.since,
        // A key that was made with a near end was not there before.
        false => key
            .created
            .map_or(near.since, |created| near.since.max(created)),
    };
    Some(Alarm {
        code: match near.ended {
            true => AlarmCode::KeyExpired,
            false => AlarmCode::KeyNearExpiry,
        },
        severity: near.severity,
        subject: Subject::new(SubjectKind::Key, &key.url),
        since: Some(begun),
        message: format!("the key {} {}{}", key.url, near.when, needed_by(key, &key.needed_by)),
        remedy: "rotate it (`sealdisk keyvault key rotate`) and have the disks follow (`sealdisk \
                 disk-encryption-set rotate`), or give it a later end (`sealdisk keyvault key set-attributes \
                 --expires`)"
            .into(),
    })
}

/// A key that may not be used by all who need it: one alarm, whoever they are. What is served is told of by itself.
pub(super) fn use_alarm(key: &KeyFacts) -> Option<Alarm> {
    let is_only_served = key.unserved.is_empty() && !key.needed_by.is_empty();
    if is_only_served || (key.unserved.is_empty() && key.sets.is_empty()) {
        return None;
    }
    let first = key.refusals.first()?;
    let why: Vec<_> = key.refusals.iter().map(reason).collect();
    let (severity, what_then) = match key.unserved.is_empty() {
        true => (Severity::Warning, "no disk can be made with it"),
        false => (
            Severity::Critical,
            "what is not attached cannot be attached or read",
        ),
    };
    Some(Alarm {
        code: AlarmCode::KeyUnusable,
        severity,
        subject: Subject::new(SubjectKind::Key, &key.url),
        since: None,
        message: format!(
            "the key {} {}: {what_then}{}",
            key.url,
            listed(&why),
            needed_by(key, &key.unserved)
        ),
        remedy: remedy(key, first),
    })
}

/// Who needs a key, as the end of a sentence.
fn needed_by(key: &KeyFacts, resources: &[String]) -> String {
    let sets: Vec<_> = key.sets.iter().map(|set| set_named(set)).collect();
    match (resources.is_empty(), sets.is_empty()) {
        (true, true) => String::new(),
        (true, false) => format!("; needed by {}", listed(&sets)),
        (false, true) => format!("; needed by {}", listed(resources)),
        (false, false) => format!(
            "; needed by {}, in the name of {}",
            listed(resources),
            listed(&sets)
        ),
    }
}

fn set_named(set: &str) -> String {
    format!("the disk encryption set {set}")
}

/// Why it may not be used, as the end of a sentence.
fn reason(refusal: &KeyRefusal) -> String {
    match refusal {
        KeyRefusal::Disabled => "is disabled".into(),
        KeyRefusal::NotYet { from } => format!("may not be used before {}", moment(*from)),
        KeyRefusal::Deleted => "is deleted".into(),
        KeyRefusal::VaultDeleted => "is in a key vault that is deleted".into(),
        KeyRefusal::Missing => "is not in its key vault, since it was purged or never made".into(),
        KeyRefusal::NotGranted { set, identity, .. } => {
            let whose = match set {
                Some(set) => set_named(set),
                None => "the platform".into(),
            };
            format!("is not granted to the identity {identity} of {whose}")
        }
        KeyRefusal::NoIdentity { set } => {
            format!("is needed by {}, which has no identity", set_named(set))
        }
        KeyRefusal::Said { why } => format!("is refused by its key vault ({why})"),
    }
}

/// What to do about the first reason; the next one is told once that is gone.
fn remedy(key: &KeyFacts, refusal: &KeyRefusal) -> String {
    let parsed = key.url.parse::<KeyUrl>().ok();
    let vault = parsed.as_ref().and_then(KeyUrl::vault_name);
    let (Some(url), Some(vault)) = (&parsed, vault) else {
        return "have its key vault let it be used, if that was not on purpose".into();
    };
    let name = &url.key.name;
    let version = match &url.key.version {
        Some(version) => format!(" --version {version}"),
        None => String::new(),
    };
    let attribute = |option: &str| {
        format!(
            "`sealdisk keyvault key set-attributes {name} --vault-name {vault}{version} {option}`"
        )
    };
    let command = match refusal {
        KeyRefusal::Disabled => attribute("--enabled true"),
        KeyRefusal::NotYet { .. } => attribute("--not-before TIME"),
        KeyRefusal::Deleted => {
            format!("`sealdisk keyvault key recover {name} --vault-name {vault}`")
        }
        KeyRefusal::VaultDeleted => format!("`sealdisk keyvault recover {vault}`"),
        KeyRefusal::Missing => {
            return "bring the key vault back from a backup that has it (docs/disaster-recovery.md): without \
                    the key nothing under it can be read again"
                .into();
        }
        KeyRefusal::NotGranted {
            identity, wanted, ..
        } => format!(
            "`sealdisk keyvault set-policy {vault} --object-id {identity} --key-permissions {}`",
            wanted.join(" ")
        ),
        KeyRefusal::NoIdentity { set } => {
            format!("`sealdisk disk-encryption-set identity assign {set}`, and grant it the key")
        }
        KeyRefusal::Said { .. } => "have it let the key be used".into(),
    };
    format!("{command}, if that was not on purpose")
}
