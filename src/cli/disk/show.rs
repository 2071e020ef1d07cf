//! What a disk is, and what happens to it: `sealdisk disk show` and `events`.

use serde::Serialize;

use crate::cli::output::{NOTHING, key_cell, optional_size_cell, size_cell};
use crate::cli::{CliError, Context, Tabular};
use attach::{KeyStatus, Offered};
use disks::DiskView;
use installation::envelope::ResourceKind;
use installation::runtime_dir;

/// A disk, and the key of its attach.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct AttachedDiskView {
    #[serde(flatten)]
    disk: DiskView,
    #[serde(skip_serializing_if = "Option::is_none")]
    key_access: Option<KeyStatus>,
    /// What the attach has of the host.
    #[serde(skip_serializing_if = "Option::is_none")]
    serving: Option<Offered>,
    /// Attaches that do not have the disk: they wait for it, or have let go of it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    waiting: Vec<Offered>,
}

impl Tabular for DiskView {
    const COLUMNS: &'static [&'static str] =
        &["name", "state", "size", "used", "data", "set", "key"];

    const FIELDS: &'static [&'static str] = &[
        "kind",
        "name",
        "uniqueId",
        "diskState",
        "diskSizeBytes",
        "logicalSectorSize",
        "usedBytes",
        "sharedBytes",
        "dataBytes",
        "timeCreated",
        "encryption",
        "generation",
        "incremental",
        "source",
        "job",
        "cache",
        "session",
        "attachment",
        "awaitedBy",
        "failedSync",
        "accessUntil",
        "directory",
        "layers",
        "problem",
        "lostHeaderCopy",
    ];

    fn cells(&self) -> Vec<String> {
        let set = self.encryption.disk_encryption_set_id.as_deref();
        vec![
            self.name.clone(),
            self.disk_state.into(),
            size_cell(self.disk_size_bytes),
            size_cell(self.used_bytes),
            optional_size_cell(self.data_bytes),
            set.unwrap_or(NOTHING).into(),
            key_cell(&self.encryption.key_url),
        ]
    }
}

/// Prints a disk with what its attach knows of its key, if there is one and it answers.
pub(super) fn show(context: &Context, mut disk: DiskView) -> Result<(), CliError> {
    let runtime_dir = runtime_dir(context.runtime_dir.as_deref());
    let mut key_access = match disk.disk_state {
        "Attached" | "SyncFailed" => attach::key_status(&runtime_dir, disk.unique_id).ok(),
        _ => None,
    };
    let running = key_access.as_ref().and_then(|key| key.job.as_ref());
    if let (Some(job), Some(running)) = (&mut disk.job, running.filter(|job| job.bytes_total > 0)) {
        job.bytes_done = Some(running.bytes_done);
        job.bytes_total = Some(running.bytes_total);
    }
    let serving = key_access.as_mut().and_then(|key| key.offered.take());
    let waiting = attach::waiting_attaches(&runtime_dir, disk.unique_id);
    let waiting = waiting.into_iter().filter_map(|key| key.offered).collect();
    context.output.show(&AttachedDiskView {
        disk,
        key_access,
        serving,
        waiting,
    })
}

pub(super) fn show_disk(context: &Context, name: &str) -> Result<(), CliError> {
    show(
        context,
        disks::show(&context.installation()?, ResourceKind::Disk, name)?,
    )
}

/// The fields that an event may have.
const EVENT_FIELDS: [&str; 9] = [
    "time", "event", "disk", "diskId", "keyUrl", "reason", "until", "attach", "alarm",
];
/// What an event is like.
const EXAMPLE: &str = r#"{"time":"2026-11-30T05:48:21Z","event":"KeyRevoked","disk":"web1","reason":{"code":"KeyDisabled"}}"#;

pub(super) fn events(context: &Context, name: &str, follow: bool) -> Result<(), CliError> {
    context.output.check_query_of_each(EXAMPLE)?;
    let disk = disks::show(&context.installation()?, ResourceKind::Disk, name)?;
    let runtime_dir = runtime_dir(context.runtime_dir.as_deref());
    let print = |line: &str| context.output.event_with(line, &EVENT_FIELDS);
    Ok(attach::events(&runtime_dir, disk.unique_id, follow, print)?)
}
