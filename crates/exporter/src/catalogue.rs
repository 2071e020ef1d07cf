//! All metrics that there are: docs/metrics.md has the same list, and a test compares the two.
//!
//! Names follow Prometheus' conventions: base units (seconds, bytes), `_total` for what only grows. The values of each
//! label are bounded by what the host has (disks, keys, vaults) or by this program (operations, states, codes).

/// What kind of metric it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// It only grows, or begins anew.
    Counter,
    /// What it is at the moment.
    Gauge,
    /// How often it was how much.
    Histogram,
}

impl Kind {
    /// Its name, as in Prometheus' formats.
    pub fn name(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Histogram => "histogram",
        }
    }
}

/// A metric.
#[derive(Debug, PartialEq, Eq)]
pub struct Metric {
    /// Its whole name.
    pub name: &'static str,
    /// What kind it is.
    pub kind: Kind,
    /// The names of its labels.
    pub labels: &'static [&'static str],
    /// What it says.
    pub help: &'static str,
}

impl Metric {
    /// Its name without `_total`, which OpenMetrics takes for no part of it.
    pub fn base_name(&self) -> &'static str {
        match self.kind {
            Kind::Counter => self.name.strip_suffix("_total").unwrap_or(self.name),
            Kind::Gauge | Kind::Histogram => self.name,
        }
    }
}

macro_rules! metrics {
    ($($id:ident: $kind:ident $name:literal [$($label:literal)*] $help:literal;)*) => {
        $(
            #[doc = $help]
            pub static $id: Metric = Metric {
                name: $name,
                kind: Kind::$kind,
                labels: &[$($label),*],
                help: $help,
            };
        )*

        /// All of them, in the order in which they are told.
        pub static ALL: &[&Metric] = &[$(&$id),*];
    };
}

metrics! {
    // Attached disks.
    DISK_UP: Gauge "sealdisk_disk_up" ["disk"]
        "Whether the attach process of the disk has answered in time";
    DISK_KNOWN: Gauge "sealdisk_disk_in_catalog" ["disk"]
        "Whether the catalog of the installation has the disk; only while it can be read";
    DISK_INFO: Gauge "sealdisk_disk_info" ["disk" "disk_id" "version"]
        "1 for each attached disk, with its id and the version of its data plane";
    DISK_SIZE: Gauge "sealdisk_disk_size_bytes" ["disk"]
        "Size of the disk as its guest sees it";
    DISK_QUEUES: Gauge "sealdisk_disk_queues" ["disk"]
        "Queues that the guest is offered";
    DISK_MEMORY: Gauge "sealdisk_disk_memory_limit_bytes" ["disk"]
        "Bytes that requests under way take at most";
    DISK_HELD: Gauge "sealdisk_disk_held" ["disk"]
        "Whether the attach has the disk (1), or waits for it or has let go of it (0)";
    DISK_WAITING: Gauge "sealdisk_disk_waiting_attaches" ["disk"]
        "Attaches that wait for the disk, or have let go of it";
    REQUESTS: Counter "sealdisk_disk_requests_total" ["disk" "operation"]
        "Requests of the guest that were answered";
    ERRORS: Counter "sealdisk_disk_request_errors_total" ["disk" "operation"]
        "Requests that failed or were refused";
    BYTES: Counter "sealdisk_disk_bytes_total" ["disk" "operation"]
        "Bytes that were read, written, discarded or zeroed";
    LATENCY: Histogram "sealdisk_disk_request_duration_seconds" ["disk" "operation"]
        "Time from the taking of a request to its answer";
    IN_FLIGHT: Gauge "sealdisk_disk_in_flight_requests" ["disk"]
        "Requests that were taken and not answered";
    WAIT_FOR_SPACE: Gauge "sealdisk_disk_space_waiting_requests" ["disk"]
        "Requests that wait for space on the host's storage now";
    SPACE_WAITS: Counter "sealdisk_disk_space_waits_total" ["disk"]
        "Requests that had to wait for space on the host's storage";
    LIMIT_WAITS: Counter "sealdisk_disk_limit_waits_total" ["disk"]
        "How often a request had to wait for a limit of the disk";
    LIMIT_WAIT_SECONDS: Counter "sealdisk_disk_limit_wait_seconds_total" ["disk"]
        "Time that requests waited for a limit of the disk, over all queues";
    KEY_WAITS: Counter "sealdisk_disk_key_waits_total" ["disk"]
        "How often a queue was without its key";
    KEY_WAIT_SECONDS: Counter "sealdisk_disk_key_wait_seconds_total" ["disk"]
        "Time that queues were without their key, once they have it again, over all queues";
    POLL_SECONDS: Counter "sealdisk_disk_poll_seconds_total" ["disk"]
        "Time that queues have busy-polled, over all queues";
    RESTARTS: Counter "sealdisk_disk_data_plane_restarts_total" ["disk"]
        "Data planes that died and were replaced since the disk was attached";
    LAST_RESTART: Gauge "sealdisk_disk_last_restart_timestamp_seconds" ["disk"]
        "When the last data plane died";
    JOB: Gauge "sealdisk_disk_job_info" ["disk" "kind"]
        "1 while a job of that kind goes on with the layers of the disk";
    JOB_DONE: Gauge "sealdisk_disk_job_done_bytes" ["disk"]
        "Bytes that the copy-up of the job has done";
    JOB_TOTAL: Gauge "sealdisk_disk_job_total_bytes" ["disk"]
        "Bytes that the copy-up of the job is about";
    JOB_PAUSED: Gauge "sealdisk_disk_job_paused" ["disk"]
        "Whether the job waits until somebody lets it go on";
    JOB_HELD_UP: Gauge "sealdisk_disk_job_held_up" ["disk"]
        "Whether an error holds the job up";

    // The keys of attached disks.
    KEY_STATE: Gauge "sealdisk_disk_key_state" ["disk" "state"]
        "1 for the state that the key of the disk is in: active, unreachable or revoked; else 0";
    KEY_SINCE: Gauge "sealdisk_disk_key_state_since_timestamp_seconds" ["disk"]
        "Since when the key is in its state";
    KEY_GRACE_END: Gauge "sealdisk_disk_key_grace_end_timestamp_seconds" ["disk"]
        "When an unreachable key counts as refused; only while it is unreachable";
    DEK_HELD: Gauge "sealdisk_disk_dek_held" ["disk"]
        "Whether the data plane has the data encryption key";
    KEY_LAST_CHECK: Gauge "sealdisk_disk_key_last_check_timestamp_seconds" ["disk"]
        "When the last check of the key began";
    KEY_LAST_GRANTED: Gauge "sealdisk_disk_key_last_granted_timestamp_seconds" ["disk"]
        "When the vault last granted the key: the last proof";
    KEY_INTERVAL: Gauge "sealdisk_disk_key_check_interval_seconds" ["disk"]
        "The longest time between two checks of the key";
    KEY_CHECKS: Counter "sealdisk_disk_key_checks_total" ["disk" "result"]
        "Checks of the key: granted, refused or unknown";
    DISK_KEY: Gauge "sealdisk_disk_key_info" ["disk" "key"]
        "1 for the key version that wraps the data encryption key of the disk";

    // Keys of the installation.
    KEY_ENABLED: Gauge "sealdisk_key_enabled" ["key"]
        "Whether the key version may be used: it is there, enabled, not deleted and within its time";
    KEY_GRANTED: Gauge "sealdisk_key_granted" ["key" "disk_encryption_set"]
        "Whether the vault lets the identity of the set unwrap with the key version that it needs";
    KEY_LATEST: Gauge "sealdisk_key_latest" ["key"]
        "Whether it is the latest version of its key";
    KEY_CREATED: Gauge "sealdisk_key_created_timestamp_seconds" ["key"]
        "When the key version was made";
    KEY_EXPIRES: Gauge "sealdisk_key_expires_timestamp_seconds" ["key"]
        "When the key version may no longer be used; not of one without an end";
    KEY_RESOURCES: Gauge "sealdisk_key_resources" ["key" "type"]
        "Disks, snapshots and images with a layer that the key version wraps";
    SET_KEY: Gauge "sealdisk_disk_encryption_set_key_info" ["disk_encryption_set" "key"]
        "1 for the key version with which the disk encryption set wraps new disks";

    // Vaults.
    VAULT_UP: Gauge "sealdisk_vault_up" ["vault"]
        "Whether the vault of this installation could be read";
    VAULT_REQUESTS: Counter "sealdisk_vault_requests_total" ["vault" "operation"]
        "What the vault was asked for since the exporter began, by its audit log";
    VAULT_REFUSALS: Counter "sealdisk_vault_refusals_total" ["vault" "code"]
        "What the vault refused since the exporter began, by its audit log";
    AUDIT_RECORDS: Counter "sealdisk_audit_records_total" ["log"]
        "The number of the last record of the audit log: of a vault by its name, or 'installation'";
    VAULT_BYTES: Gauge "sealdisk_vault_database_bytes" ["vault"]
        "Size of the vault's database, with its audit log";

    // The host.
    SPACE_FREE: Gauge "sealdisk_filesystem_free_bytes" ["directory"]
        "Bytes that can be written to the file system of the state, vaults or runtime directory";
    SPACE_SIZE: Gauge "sealdisk_filesystem_size_bytes" ["directory"]
        "Size of that file system";

    // The exporter itself.
    EXPORTER_INFO: Gauge "sealdisk_exporter_build_info" ["version"]
        "1, with the version of the exporter";
    EXPORTER_DISKS: Gauge "sealdisk_exporter_attached_disks" []
        "Control sockets of attached disks that were found";
    EXPORTER_SECONDS: Gauge "sealdisk_exporter_scrape_duration_seconds" []
        "How long it took to ask all disks";
    RUNTIME_UP: Gauge "sealdisk_exporter_runtime_directory_up" []
        "Whether the runtime directory is there and can be read";
    INSTALLATION_UP: Gauge "sealdisk_exporter_installation_up" []
        "Whether the catalog could be read when it was last tried";
    INSTALLATION_TIME: Gauge "sealdisk_exporter_installation_timestamp_seconds" []
        "When keys and vaults were last looked at";
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::path::Path;

    use super::*;

    #[test]
    fn names_follow_the_conventions() {
        let names: BTreeSet<_> = ALL.iter().map(|metric| metric.name).collect();
        assert_eq!(names.len(), ALL.len(), "one name for one metric");
        for metric in ALL {
            let Metric { name, help, .. } = metric;
            assert!(name.starts_with("sealdisk_"), "{name}");
            let is_plain = |c: char| c.is_ascii_lowercase() || c == '_';
            assert!(name.chars().all(is_plain), "{name}");
            assert_eq!(
                name.ends_with("_total"),
                metric.kind == Kind::Counter,
                "{name}"
            );
            assert!(!help.ends_with('.') && !help.contains('\n'), "{name}");
            for unit in ["_ms", "_us", "_ns", "_kb", "_mb", "_percent", "_minutes"] {
                assert!(!name.contains(unit), "{name} has no base unit");
            }
        }
    }

    #[test]
    fn the_document_has_each_metric() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/metrics.md");
        let text = std::fs::read_to_string(path).unwrap();
        let row = |line: &str| {
            let cells: Vec<_> = line.split('|').map(|cell| cell.trim().to_owned()).collect();
            let is_metric = cells.len() >= 6 && cells[1].starts_with("`sealdisk_");
            is_metric.then(|| cells[1..5].join(" | "))
        };
        let documented: Vec<String> = text.lines().filter_map(row).collect();
        let exported: Vec<String> = ALL
            .iter()
            .map(|metric| {
                let labels: Vec<_> = metric.labels.iter().map(|l| format!("`{l}`")).collect();
                let labels = labels.join(", ");
                let (name, kind) = (metric.name, metric.kind.name());
                format!("`{name}` | {kind} | {labels} | {}", metric.help)
            })
            .collect();
        for line in &exported {
            assert!(
                documented.contains(line),
                "docs/metrics.md lacks: | {line} |"
            );
        }
        for line in &documented {
            assert!(
                exported.contains(line),
                "docs/metrics.md has what is not exported: {line}"
            );
        }
    }

    /// The names of metrics in a text, each with what Prometheus adds to those of histograms.
    fn named_in(text: &str) -> BTreeSet<&str> {
        let is_name = |c: char| c.is_ascii_lowercase() || c == '_';
        text.match_indices("sealdisk_")
            .map(|(at, _)| {
                let rest = &text[at..];
                &rest[..rest.find(|c| !is_name(c)).unwrap_or(rest.len())]
            })
            .collect()
    }

    #[test]
    fn rules_and_dashboard_name_metrics_that_there_are() {
        let contrib = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../contrib");
        for file in ["prometheus/sealdisk.rules.yml", "grafana/sealdisk.json"] {
            let text = std::fs::read_to_string(contrib.join(file)).unwrap();
            let named = named_in(&text);
            assert!(named.len() > 20, "{file}");
            for name in named {
                let is_there = |metric: &&Metric| match metric.kind {
                    Kind::Histogram => {
                        let more = name.strip_prefix(metric.name);
                        more.is_some_and(|more| ["", "_bucket", "_sum", "_count"].contains(&more))
                    }
                    Kind::Counter | Kind::Gauge => metric.name == name,
                };
                assert!(ALL.iter().any(is_there), "{file}: {name}");
            }
        }
    }
}
