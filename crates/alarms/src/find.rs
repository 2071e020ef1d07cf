//! From facts to alarms: a pure function, which asks nobody and knows no clock but the one of the facts.

use std::fmt::Write as _;

use time::{Duration, OffsetDateTime};

use self::words::{near_end, span};
use crate::alarm::{Alarm, AlarmCode, Severity, Subject, SubjectKind};
use crate::facts::{
    AttachedFacts, BackupFacts, CertificateFacts, Facts, FileSystemFacts, KeyStanding, OldKey,
    ResourceFacts, ResourceState, VaultFacts,
};
use crate::settings::{Settings, seconds};
use vault::moment;

/// How far a moment that was noted may be in the future before the clock is doubted: other hosts' clocks differ.
const SKEW: Duration = Duration::minutes(5);

/// What is wrong by the facts, the gravest first. The same facts have the same alarms, and no two alarms have the
/// same code and subject.
pub fn find(facts: &Facts, settings: &Settings) -> Vec<Alarm> {
    let (now, mut alarms) = (facts.now, Vec::new());
    for key in &facts.keys {
        alarms.extend(key::end_alarm(key, now, settings));
        alarms.extend(key::use_alarm(key));
    }
    for certificate in &facts.certificates {
        alarms.extend(certificate_alarm(certificate, now, settings));
    }
    for resource in &facts.resources {
        resource_alarms(resource, now, settings, &mut alarms);
    }
    for file_system in &facts.file_systems {
        alarms.extend(space_alarm(file_system, settings));
    }
    for vault in &facts.vaults {
        alarms.extend(quota_alarm(vault, settings));
    }
    alarms.extend(
        facts
            .backup
            .and_then(|backup| backup_alarm(backup, now, settings)),
    );
    alarms.extend(clock_alarm(facts));
    alarms.extend(facts.unknown.iter().map(|unknown| Alarm {
        code: AlarmCode::NotKnown,
        severity: Severity::Warning,
        subject: unknown.subject.clone(),
        since: None,
        message: format!(
            "the {} could not be looked at: {}",
            unknown.subject, unknown.why
        ),
        remedy: "see to it that it can be: what is not known is not safe".into(),
    }));
    alarms.extend(facts.strangers.iter().map(|disk| Alarm {
        code: AlarmCode::NotKnown,
        severity: Severity::Warning,
        subject: Subject::new(SubjectKind::Disk, disk.to_string()),
        since: None,
        message: format!(
            "a process has the disk {disk} attached, and the catalog does not have that disk: nothing else is known \
             of it here"
        ),
        remedy: "have the catalog made anew (`sealdisk catalog rebuild`) if it is a disk of this installation; give \
                 another installation a --runtime-dir of its own"
            .into(),
    }));
    for alarm in &mut alarms {
        // A clock that was put back makes nothing begin in the future.
        alarm.since = alarm.since.map(|since| since.min(now));
        // What others have said may have any characters.
        let plain = |c: char| if c.is_control() { ' ' } else { c };
        alarm.message = alarm.message.chars().map(plain).collect();
        alarm.remedy = alarm.remedy.chars().map(plain).collect();
    }
    alarms.sort_by(|one, other| {
        let order = |alarm: &Alarm| (std::cmp::Reverse(alarm.severity), alarm.code);
        (order(one), &one.subject).cmp(&(order(other), &other.subject))
    });
    // The gravest of those that are the same is the first.
    let mut seen = std::collections::BTreeSet::new();
    alarms.retain(|alarm| seen.insert((alarm.code, alarm.subject.clone())));
    alarms
}

fn certificate_alarm(
    certificate: &CertificateFacts,
    now: OffsetDateTime,
    settings: &Settings,
) -> Option<Alarm> {
    let thresholds = (
        settings.certificate_warning_seconds,
        settings.certificate_critical_seconds,
    );
    let near = near_end(certificate.expires, now, thresholds)?;
    let path = certificate.path.display().to_string();
    Some(Alarm {
        code: match near.ended {
            true => AlarmCode::CertificateExpired,
            false => AlarmCode::CertificateNearExpiry,
        },
        severity: near.severity,
        message: format!("the certificate {path} {}; clients refuse the vault then", near.when),
        subject: Subject::new(SubjectKind::Certificate, path),
        since: Some(near.since),
        remedy: match certificate.renewed {
            true => "restart `sealdisk keyvault serve`, which renews it, and give the new one to the clients",
            false => "renew it; `sealdisk keyvault serve` reads the file again when it changes",
        }
        .into(),
    })
}

fn resource_alarms(
    resource: &ResourceFacts,
    now: OffsetDateTime,
    settings: &Settings,
    alarms: &mut Vec<Alarm>,
) {
    let alarm = |code, severity, since, message: String, remedy: String| Alarm {
        code,
        severity,
        subject: Subject::new(resource.kind, &resource.name),
        since,
        message: format!("the {} {} {message}", resource.kind, resource.name),
        remedy,
    };
    let name = &resource.name;
    match &resource.state {
        ResourceState::Fine => {}
        ResourceState::Dirty { since, map_lost } => alarms.push(match map_lost {
            true => alarm(
                AlarmCode::DiskDirty,
                Severity::Critical,
                Some(*since),
                "was left by an attach that did not end in order, and its runtime map is lost".into(),
                format!(
                    "look for the map in the runtime directory of that attach, or give up what was not flushed \
                     (`sealdisk disk check {name} --repair --discard-unflushed`)"
                ),
            ),
            false => alarm(
                AlarmCode::DiskDirty,
                Severity::Warning,
                Some(*since),
                "was left by an attach that did not end in order: the next one needs its runtime map, which is lost \
                 when the host restarts"
                    .into(),
                "attach it, and detach it in order, before the host is restarted".into(),
            ),
        }),
        ResourceState::SyncFailed { since, error } => alarms.push(alarm(
            AlarmCode::SyncFailed,
            Severity::Critical,
            Some(*since),
            format!("had a sync that failed, so that completed writes may be lost ({error})"),
            format!("look at its storage, detach it and repair it (`sealdisk disk check {name} --repair`)"),
        )),
        ResourceState::Damaged { why } => alarms.push(alarm(
            AlarmCode::DiskDamaged,
            Severity::Critical,
            None,
            format!("has a header that cannot be read ({why})"),
            "bring its files back from a copy (`sealdisk disk copy`, docs/disaster-recovery.md)".into(),
        )),
    }
    if resource.lost_header_copy {
        alarms.push(alarm(
            AlarmCode::DiskDamaged,
            Severity::Warning,
            None,
            "has lost one of the two copies of its header: without the other one nothing can be read".into(),
            lost_copy_remedy(resource),
        ));
    }
    if let Some(old) = worst_old_key(&resource.old_keys, now, settings) {
        let set = match &old.set {
            Some(set) => format!("the disk encryption set {set}"),
            None => "the platform".into(),
        };
        alarms.push(alarm(
            AlarmCode::OldKeyVersion,
            Severity::Warning,
            old.since,
            format!("is still under {}, though {set} uses {} now", old.url, old.active),
            match old.set {
                Some(_) => "run `sealdisk disk-encryption-set rotate`, or `update` with the key again where the set does \
                            not follow its key, and do not disable the old version before"
                    .into(),
                None => format!("wrap it anew (`sealdisk disk update {name} --platform-managed`)"),
            },
        ));
    }
    if let Some(attached) = &resource.attached {
        attached_alarms(attached, now, settings, &alarm, alarms);
    }
}

/// What makes the lost copy of a header again.
fn lost_copy_remedy(resource: &ResourceFacts) -> String {
    match resource.kind {
        SubjectKind::Disk => format!(
            "look at its storage, and detach and repair it (`sealdisk disk check {} --repair`)",
            resource.name
        ),
        _ => "look at its storage, and copy it elsewhere while it can be read".into(),
    }
}

/// The key version that should have been replaced for the longest time, past the grace.
fn worst_old_key<'a>(
    old: &'a [OldKey],
    now: OffsetDateTime,
    settings: &Settings,
) -> Option<&'a OldKey> {
    let grace = seconds(settings.rotation_grace_seconds);
    // Of which nobody knows since when counts at once.
    let is_late = |old: &&OldKey| old.since.is_none_or(|since| now - since >= grace);
    old.iter().filter(is_late).min_by_key(|old| old.since)
}

type Make<'a> = dyn Fn(AlarmCode, Severity, Option<OffsetDateTime>, String, String) -> Alarm + 'a;

fn attached_alarms(
    attached: &AttachedFacts,
    now: OffsetDateTime,
    settings: &Settings,
    alarm: &Make<'_>,
    alarms: &mut Vec<Alarm>,
) {
    match &attached.key {
        KeyStanding::Granted => {}
        KeyStanding::Unreachable {
            since,
            until,
            reason,
        } => {
            let served = match until {
                Some(until) => format!(
                    "; it is served until {}, for {} more",
                    moment(*until),
                    span((*until - now).max(Duration::ZERO))
                ),
                None => String::new(),
            };
            alarms.push(alarm(
                AlarmCode::KeyUnreachable,
                grace_severity(*since, *until, now),
                Some(*since),
                format!("has a key that cannot be checked ({reason}){served}"),
                "see to it that the vault answers before the disk is stopped".into(),
            ));
        }
        KeyStanding::Revoked { since, reason } => alarms.push(alarm(
            AlarmCode::KeyRevoked,
            Severity::Critical,
            Some(*since),
            format!("is stopped, since its key is revoked ({reason})"),
            "grant the key again, if that was not on purpose: the disk goes on by itself then"
                .into(),
        )),
    }
    let window = seconds(settings.crash_loop_seconds);
    if let Some(last) = attached.last_death
        && attached.deaths_in_a_row >= settings.crash_loop_deaths
        // A death in the future is one before the clock was put back.
        && now - last <= window
    {
        alarms.push(alarm(
            AlarmCode::CrashLoop,
            Severity::Critical,
            None,
            format!(
                "has a data plane that dies again and again: {} times in a row, the last time at {}",
                attached.deaths_in_a_row,
                moment(last)
            ),
            "its guest waits: see the log of `sealdisk attach` for what they died of".into(),
        ));
    }
    if let Some(stall) = &attached.stall {
        let remedy = match (stall.is_silent, stall.wait_for_space) {
            (true, _) => {
                "its guest waits: see whether the data plane was stopped or frozen (`ps` shows T or D for its state), let it \
                 go on, or kill it, and another goes on for it"
            }
            (false, 0) => "its guest waits: see whether the host's storage answers",
            (false, _) => "make space where its files are: they go on by themselves then",
        };
        alarms.push(alarm(
            AlarmCode::RequestsStalled,
            Severity::Critical,
            Some(stall.since),
            format!("is stalled: {stall}"),
            remedy.into(),
        ));
    }
    if let Some(since) = attached.launcher_ended {
        alarms.push(alarm(
            AlarmCode::LauncherEnded,
            Severity::Warning,
            Some(since),
            "has a data plane that can be neither restarted nor upgraded, since its launcher has ended".into(),
            "attach it again when its guest allows it; until then it is served, and its key is guarded".into(),
        ));
    }
    if let Some(error) = &attached.job_error {
        alarms.push(alarm(
            AlarmCode::JobHeldUp,
            Severity::Warning,
            None,
            format!("has a job that does not go on ({error})"),
            "it is tried again by itself; remove what holds it up".into(),
        ));
    }
}

/// A grace period of which less than a quarter is left is critical, and so is one that is over.
fn grace_severity(
    since: OffsetDateTime,
    until: Option<OffsetDateTime>,
    now: OffsetDateTime,
) -> Severity {
    let Some(until) = until else {
        return Severity::Warning;
    };
    let (whole, left) = (until - since, until - now);
    match left <= Duration::ZERO || left < whole / 4 {
        true => Severity::Critical,
        false => Severity::Warning,
    }
}

fn space_alarm(file_system: &FileSystemFacts, settings: &Settings) -> Option<Alarm> {
    let FileSystemFacts {
        path,
        available,
        total,
        audit_warning,
    } = file_system;
    if *total == 0 {
        return None;
    }
    let below =
        |percent: u8| u128::from(*available) * 100 < u128::from(*total) * u128::from(percent);
    let severity = match (
        below(settings.space_critical_percent) || audit_warning.is_some(),
        below(settings.space_warning_percent),
    ) {
        (true, _) => Severity::Critical,
        (false, true) => Severity::Warning,
        (false, false) => return None,
    };
    let mut message = format!(
        "the file system of {} has {} MiB left of {} MiB ({} %)",
        path.display(),
        available >> 20,
        total >> 20,
        u128::from(*available) * 100 / u128::from(*total),
    );
    if let Some(warning) = audit_warning {
        // A `String` takes all that is written.
        let _ = write!(message, "; {warning}");
    }
    Some(Alarm {
        code: AlarmCode::FileSystemFilling,
        severity,
        subject: Subject::new(SubjectKind::FileSystem, path.display().to_string()),
        since: None,
        message,
        remedy: "make room: archive audit records (`sealdisk audit archive`), delete snapshots, move disks".into(),
    })
}

fn quota_alarm(vault: &VaultFacts, settings: &Settings) -> Option<Alarm> {
    let (caller, used) = vault.busiest.as_ref()?;
    if *used < u64::from(settings.quota_warning_percent) {
        return None;
    }
    let name = &vault.name;
    Some(Alarm {
        code: AlarmCode::VaultNearQuota,
        severity: match *used >= 100 {
            true => Severity::Critical,
            false => Severity::Warning,
        },
        subject: Subject::new(SubjectKind::Vault, name),
        since: None,
        message: format!(
            "the identity {caller} has used {used} % of what the key vault {name} takes of one identity ({} \
             operations in 10 s; a refusal counts as 10)",
            vault.limit
        ),
        remedy: format!(
            "find out what it does (`sealdisk audit list --vault {name}`), or raise the limit (`sealdisk \
             keyvault update {name} --operations-limit N`)"
        ),
    })
}

fn backup_alarm(backup: BackupFacts, now: OffsetDateTime, settings: &Settings) -> Option<Alarm> {
    let from = backup.last.or(backup.needed_since)?;
    let age = (now - from).max(Duration::ZERO);
    let (warning, critical) = (
        seconds(settings.backup_warning_seconds),
        seconds(settings.backup_critical_seconds),
    );
    let severity = match (age >= critical, age >= warning) {
        (true, _) => Severity::Critical,
        (false, true) => Severity::Warning,
        (false, false) => return None,
    };
    let what = match backup.last {
        Some(last) => format!("the last backup is of {}, {} ago", moment(last), span(age)),
        None => format!("there was no backup in {}", span(age)),
    };
    Some(Alarm {
        code: AlarmCode::BackupTooOld,
        severity,
        subject: Subject::new(SubjectKind::Installation, "backup"),
        since: Some(from.saturating_add(warning)),
        message: format!("{what}: keys that were made since are lost with this host"),
        remedy: "make one (`sealdisk backup create`), and have the timer sealdisk-backup run"
            .into(),
    })
}

/// Whether something is known to have happened later than now.
fn clock_alarm(facts: &Facts) -> Option<Alarm> {
    let of_keys = facts.keys.iter().filter_map(|key| key.created);
    let of_attaches = facts.resources.iter().filter_map(|resource| {
        let attached = resource.attached.as_ref()?;
        Some(attached.last_granted)
    });
    let of_backup = facts.backup.and_then(|backup| backup.last);
    let latest = of_keys.chain(of_attaches).chain(of_backup).max()?;
    let behind = latest - facts.now;
    (behind > SKEW).then(|| Alarm {
        code: AlarmCode::ClockBehind,
        severity: Severity::Warning,
        subject: Subject::new(SubjectKind::Installation, "clock"),
        since: None,
        message: format!(
            "the clock of this host is {} behind something that happened at {}: what ends when is not reliable",
            span(behind),
            moment(latest)
        ),
        remedy: "set the clock (chrony, systemd-timesyncd), here or where that happened".into(),
    })
}

mod key;
#[cfg(test)]
mod tests;
mod words;
