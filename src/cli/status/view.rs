//! What `sealdisk status` prints.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::PathBuf;

use serde::Serialize;
use time::OffsetDateTime;
use uuid::Uuid;

use crate::cli::output::{printable, time_cell};
use alarms::{Alarm, Facts, Severity, SubjectKind, host_name};
use attach::{KeyState, KeyStatus};
use disks::DiskView;
use installation::envelope::{JobKind, ResourceKind};

/// Lines of alarms on the screen at most.
const SHOWN: usize = 12;

/// All of a host.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct StatusView {
    host: String,
    #[serde(with = "time::serde::rfc3339")]
    time: OffsetDateTime,
    /// `Ok`, `Warning` or `Critical`.
    status: &'static str,
    disks: DisksView,
    keys: KeysView,
    vaults: Vec<VaultView>,
    space: Vec<SpaceView>,
    jobs: Vec<JobView>,
    #[serde(with = "time::serde::rfc3339::option")]
    last_backup: Option<OffsetDateTime>,
    alarms: Vec<Alarm>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct DisksView {
    total: usize,
    /// How many there are in each state, by the names that `disk list` has; `NotKnown` are those that are attached and
    /// that the catalog does not have.
    states: BTreeMap<&'static str, usize>,
    snapshots: usize,
    images: usize,
    /// Disks of other installations that are attached with the same runtime directory: they are none of these.
    #[serde(skip_serializing_if = "is_none")]
    of_other_installations: usize,
}

fn is_none(count: &usize) -> bool {
    *count == 0
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct KeysView {
    /// Key versions that something needs.
    total: usize,
    /// Attached disks whose key is granted, unreachable or revoked, and those whose attach does not answer.
    granted: usize,
    unreachable: usize,
    revoked: usize,
    not_known: usize,
    /// Vaults of this host that cannot be read: how many keys they have is not known.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    unreadable_vaults: Vec<UnreadableView>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct UnreadableView {
    name: String,
    why: String,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct VaultView {
    name: String,
    /// How much of its limit the identity has used that is nearest to it, in per cent.
    quota_used_percent: u64,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct SpaceView {
    path: PathBuf,
    available_bytes: u64,
    total_bytes: u64,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct JobView {
    disk: String,
    kind: JobKind,
    paused: bool,
    bytes_done: u64,
    bytes_total: u64,
}

impl StatusView {
    pub(super) fn new(
        facts: &Facts,
        resources: &[DiskView],
        attached: &BTreeMap<Uuid, KeyStatus>,
        alarms: &[Alarm],
    ) -> Self {
        let vaults = facts.vaults.iter().map(|vault| VaultView {
            name: vault.name.clone(),
            quota_used_percent: vault.busiest.as_ref().map_or(0, |(_, used)| *used),
        });
        let space = facts.file_systems.iter().map(|found| SpaceView {
            path: found.path.clone(),
            available_bytes: found.available,
            total_bytes: found.total,
        });
        Self {
            host: host_name(),
            time: facts.now,
            status: match alarms.iter().map(|alarm| alarm.severity).max() {
                None => "Ok",
                Some(Severity::Warning) => "Warning",
                Some(Severity::Critical) => "Critical",
            },
            disks: disks_view(facts, resources),
            keys: keys_view(facts, resources, attached),
            vaults: vaults.collect(),
            space: space.collect(),
            jobs: jobs(resources, attached),
            last_backup: facts.backup.and_then(|backup| backup.last),
            alarms: alarms.to_vec(),
        }
    }
}

fn disks_view(facts: &Facts, resources: &[DiskView]) -> DisksView {
    let of_kind = |kind| resources.iter().filter(move |view| view.kind == kind);
    let mut states = BTreeMap::new();
    for disk in of_kind(ResourceKind::Disk) {
        *states.entry(disk.disk_state).or_default() += 1;
    }
    let strangers = facts.strangers.len();
    if strangers > 0 {
        states.insert("NotKnown", strangers);
    }
    DisksView {
        total: of_kind(ResourceKind::Disk).count() + strangers,
        states,
        snapshots: of_kind(ResourceKind::Snapshot).count(),
        images: of_kind(ResourceKind::Image).count(),
        of_other_installations: facts.elsewhere.len(),
    }
}

fn keys_view(
    facts: &Facts,
    resources: &[DiskView],
    attached: &BTreeMap<Uuid, KeyStatus>,
) -> KeysView {
    // Of what the catalog does not have nothing is known, whatever its process says.
    let is_ours = |id: &Uuid| !facts.strangers.contains(id) && !facts.elsewhere.contains(id);
    let ours = || attached.iter().filter(|(id, _)| is_ours(id));
    let in_state = |state| ours().filter(|(_, key)| key.state == state).count();
    let is_attached = |view: &&DiskView| view.disk_state == "Attached";
    let silent = |view: &&DiskView| !attached.contains_key(&view.unique_id);
    let vaults = facts.unknown.iter();
    let vaults = vaults.filter(|unknown| unknown.subject.kind == SubjectKind::Vault);
    // Each was looked at for its keys and for its limits.
    let vaults: BTreeMap<_, _> = vaults
        .map(|unknown| (&unknown.subject.name, &unknown.why))
        .collect();
    KeysView {
        unreadable_vaults: vaults
            .into_iter()
            .map(|(name, why)| UnreadableView {
                name: name.clone(),
                why: why.clone(),
            })
            .collect(),
        total: facts.keys.len(),
        granted: in_state(KeyState::Active),
        unreachable: in_state(KeyState::KeyUnreachable),
        revoked: in_state(KeyState::KeyRevoked),
        not_known: resources.iter().filter(is_attached).filter(silent).count()
            + facts.strangers.len(),
    }
}

/// The jobs, as the attach knows them, else as the header does.
fn jobs(resources: &[DiskView], attached: &BTreeMap<Uuid, KeyStatus>) -> Vec<JobView> {
    let job = |view: &DiskView| {
        let header = view.job.as_ref()?;
        let running = attached
            .get(&view.unique_id)
            .and_then(|key| key.job.as_ref());
        let running = running.filter(|job| job.bytes_total > 0);
        Some(JobView {
            disk: view.name.clone(),
            kind: header.job.kind,
            paused: header.job.paused,
            bytes_done: running
                .map_or(header.bytes_done, |job| Some(job.bytes_done))
                .unwrap_or(0),
            bytes_total: running
                .map_or(header.bytes_total, |job| Some(job.bytes_total))
                .unwrap_or(0),
        })
    };
    resources.iter().filter_map(job).collect()
}

/// How many alarms there are of each degree.
pub(super) fn counted(alarms: &[Alarm]) -> String {
    let count = |severity| {
        alarms
            .iter()
            .filter(|alarm| alarm.severity == severity)
            .count()
    };
    match (count(Severity::Critical), count(Severity::Warning)) {
        (0, 0) => "no alarm".into(),
        (0, 1) => "1 warning".into(),
        (0, warnings) => format!("{warnings} warnings"),
        (critical, 0) => format!("{critical} critical"),
        (critical, 1) => format!("{critical} critical, 1 warning"),
        (critical, warnings) => format!("{critical} critical, {warnings} warnings"),
    }
}

/// All of it on one screen.
pub(super) fn screen(view: &StatusView) -> String {
    let mut text = String::new();
    let time = time_cell(Some(view.time));
    line(
        &mut text,
        &view.host,
        &format!("{time}: {}", counted(&view.alarms)),
    );
    text.push('\n');
    line(&mut text, "disks", &disks_line(&view.disks));
    line(&mut text, "keys", &keys_line(&view.keys));
    let vaults = view
        .vaults
        .iter()
        .map(|vault| match vault.quota_used_percent {
            0 => vault.name.clone(),
            used => format!("{} ({used} % of its limit used)", vault.name),
        });
    line(&mut text, "vaults", &listed(vaults));
    for (number, space) in view.space.iter().enumerate() {
        let name = if number == 0 { "space" } else { "" };
        let (left, whole) = (size(space.available_bytes), size(space.total_bytes));
        line(
            &mut text,
            name,
            &format!("{left} of {whole} left in {}", space.path.display()),
        );
    }
    let jobs = view.jobs.iter().map(|job| {
        let percent = job
            .bytes_done
            .saturating_mul(100)
            .checked_div(job.bytes_total);
        let state = if job.paused { ", paused" } else { "" };
        let percent = percent.unwrap_or(0);
        format!("{} of {} ({percent} %{state})", job.kind, job.disk)
    });
    line(&mut text, "jobs", &listed(jobs));
    let backup = match view.last_backup {
        Some(_) => time_cell(view.last_backup),
        None => "none is known".into(),
    };
    line(&mut text, "backup", &backup);
    if !view.alarms.is_empty() {
        text.push('\n');
    }
    for alarm in view.alarms.iter().take(SHOWN) {
        let Alarm {
            code,
            severity,
            message,
            remedy,
            ..
        } = alarm;
        // A `String` takes all that is written.
        let _ = match alarm.since {
            Some(_) => writeln!(text, "{severity} {code} since {}", time_cell(alarm.since)),
            None => writeln!(text, "{severity} {code}"),
        };
        let _ = writeln!(text, "  {}", printable(message));
        let _ = writeln!(text, "  → {}", printable(remedy));
    }
    if let Some(more) = view
        .alarms
        .len()
        .checked_sub(SHOWN)
        .filter(|more| *more > 0)
    {
        let _ = writeln!(text, "and {more} more: `sealdisk status -o json` has all");
    }
    text
}

fn disks_line(disks: &DisksView) -> String {
    let states = disks
        .states
        .iter()
        .map(|(state, count)| format!("{count} {state}"));
    let mut text = format!("{}", disks.total);
    if disks.total > 0 {
        let _ = write!(text, ": {}", listed(states));
    }
    let _ = write!(
        text,
        "; {} snapshots, {} images",
        disks.snapshots, disks.images
    );
    if disks.of_other_installations > 0 {
        let _ = write!(
            text,
            "; {} of other installations in the same runtime directory",
            disks.of_other_installations
        );
    }
    text
}

fn keys_line(keys: &KeysView) -> String {
    let parts = [
        ("granted", keys.granted),
        ("unreachable", keys.unreachable),
        ("revoked", keys.revoked),
        ("not known", keys.not_known),
    ];
    let parts = parts.iter().filter(|(_, count)| *count > 0);
    let parts: Vec<_> = parts
        .map(|(name, count)| format!("{count} {name}"))
        .collect();
    let in_use = match parts.is_empty() {
        true => format!("{} in use", keys.total),
        false => format!(
            "{} in use; of attached disks {}",
            keys.total,
            parts.join(", ")
        ),
    };
    // "I don't know" is never shown as a number.
    let unreadable = keys.unreadable_vaults.iter();
    let unreadable: Vec<_> = unreadable
        .map(|vault| format!("the vault {} cannot be read ({})", vault.name, vault.why))
        .collect();
    match unreadable.is_empty() {
        true => in_use,
        false => format!(
            "error: {}; in what can be read {in_use}",
            unreadable.join("; ")
        ),
    }
}

fn line(text: &mut String, name: &str, what: &str) {
    let _ = writeln!(text, "{:<8} {}", printable(name), printable(what));
}

fn listed(parts: impl Iterator<Item = String>) -> String {
    let parts: Vec<_> = parts.collect();
    match parts.is_empty() {
        true => "none".into(),
        false => parts.join(", "),
    }
}

/// Bytes as people read them.
fn size(bytes: u64) -> String {
    const UNITS: [(&str, u32); 4] = [("TiB", 40), ("GiB", 30), ("MiB", 20), ("KiB", 10)];
    let unit = UNITS.iter().find(|(_, shift)| bytes >> shift >= 10);
    match unit {
        Some((name, shift)) => format!("{} {name}", bytes >> shift),
        None => format!("{bytes} bytes"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_in_the_unit_that_fits() {
        assert_eq!(size(0), "0 bytes");
        assert_eq!(size(10 << 10), "10 KiB");
        assert_eq!(size(250 << 30), "250 GiB");
        assert_eq!(size(9 << 40), "9216 GiB");
        assert_eq!(size(u64::MAX), "16777215 TiB");
    }
}
