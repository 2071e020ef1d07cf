//! Alerts that fire for what really is the matter: a real Prometheus, with the rules that are shipped, scrapes a real
//! exporter of attached disks, and each is brought about as it comes about on a host.
//!
//! Nobody waits here for minutes: `for:` is one second in each rule, and nothing else is changed. Not brought about are
//!
//! - `SealdiskDiskThrottled`, for which a disk has to wait for its limits for half of 15 minutes,
//! - `SealdiskKeyCheckOverdue`, for which a check has to hang for a minute while the attach process answers: a vault that
//!   does not answer is given up before,
//! - `SealdiskAuditGrowsFast`, which takes 100,000 records,
//! - `SealdiskDiskNotInCatalog`, whose metric the tests of the exporter bring about.
//!
//! `promtool` has tests of these too (`prometheus.rs`).

use std::fs;
use std::time::{Duration, Instant};

use tempfile::TempDir;
use test_support::small_fs::SmallFs;
use test_support::{
    AttachOptions, Customer, Daemon, Disk, Host, PATIENCE, data_plane_of, kill, stop,
};

use super::Exporter;
use super::prometheus::{Prometheus, is_there, rules};
use crate::supervise::{MIB_8, is_qsd};

const OFTEN: &[&str] = &["--key-check-interval", "1s", "--on-revoke", "error"];
const WITH_GRACE: &[&str] = &["--key-check-interval", "1s", "--key-grace", "10m"];

/// A host that Prometheus watches.
struct Watched {
    exporter: Exporter,
    prometheus: Prometheus,
    _dir: TempDir,
}

impl Watched {
    fn new(host: &Host) -> Self {
        let exporter = Exporter::of(host);
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("rules.yml");
        let shipped = fs::read_to_string(rules().join("sealdisk.rules.yml")).unwrap();
        fs::write(&path, sooner(&shipped)).unwrap();
        let prometheus = Prometheus::with_rules(exporter.0.address, &[], &path);
        let mut watched = Self {
            exporter,
            prometheus,
            _dir: dir,
        };
        // Of what has changed before that nobody knows.
        watched
            .prometheus
            .await_query("count_over_time(up[1m])", |scrapes| scrapes >= 2.0);
        watched
    }

    /// Waits until an alert fires.
    fn fires(&mut self, alert: &str) {
        let query = format!("ALERTS{{alertname=\"{alert}\",alertstate=\"firing\"}}");
        self.prometheus.await_query(&query, |value| value == 1.0);
    }
}

/// The rules with an alert after a second of what is the matter.
fn sooner(shipped: &str) -> String {
    let line = |line: &str| match line.split_once("for: ") {
        Some((indent, _)) if indent.trim().is_empty() => format!("{indent}for: 1s\n"),
        _ => format!("{line}\n"),
    };
    shipped.lines().map(line).collect()
}

/// The data plane of an attach, once there is one.
fn data_plane(daemon: &Daemon) -> u32 {
    let end = Instant::now() + PATIENCE;
    loop {
        if let Some(pid) = data_plane_of(daemon.pid()) {
            return pid;
        }
        assert!(Instant::now() < end, "there is no data plane");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn is_skipped() -> bool {
    is_qsd() || !is_there("prometheus")
}

#[test]
fn rules_that_fire_sooner_are_else_those_that_are_shipped() {
    let shipped = fs::read_to_string(rules().join("sealdisk.rules.yml")).unwrap();
    let sooner = sooner(&shipped);
    assert_eq!(shipped.lines().count(), sooner.lines().count());
    let mut changed = 0;
    for (one, other) in shipped.lines().zip(sooner.lines()) {
        if one != other {
            assert!(one.starts_with("        for: ") && other == "        for: 1s");
            changed += 1;
        }
    }
    assert!(changed > 10, "{changed}");
    // Each is brought about, or it is said above why it is not.
    let brought_about = include_str!("alerts.rs");
    for alert in shipped
        .lines()
        .filter_map(|line| line.trim().strip_prefix("- alert: "))
    {
        let fires = format!("fires(\"{alert}\")");
        let is_named = brought_about.contains(&format!("`{alert}`"));
        assert!(brought_about.contains(&fires) != is_named, "{alert}");
    }
}

#[test]
#[ignore = "takes minutes: scripts/test --full"]
fn disks_that_die_stand_still_or_fail() {
    if is_skipped() {
        return;
    }
    let customer = Customer::new(MIB_8);
    let daemon = customer.attach(OFTEN);
    let mut watched = Watched::new(&customer);
    let mut frontend = daemon.connect();
    frontend.queues[0].write(0, &[7; 4096]).unwrap();
    drop(frontend);

    let restarts = "sealdisk_disk_data_plane_restarts_total{disk=\"disk\"}";
    for death in 1..=5 {
        kill(data_plane(&daemon));
        watched.exporter.await_value(restarts, f64::from(death));
        if death == 1 {
            watched.fires("SealdiskDataPlaneRestarted");
        }
        customer.wait_served();
    }
    watched.fires("SealdiskCrashLoop");

    // The next data plane is started later each time, and no layer is pushed while there is none.
    let mut frontend = daemon.connect();
    assert_eq!(frontend.queues[0].read(0, 4096), Ok(vec![7; 4096]));
    // So slow that it is under way when it is paused.
    customer.ok("disk rotate-dek disk --rate 4KiB");
    customer.ok("disk rotate-dek disk --pause");
    watched.fires("SealdiskJobPaused");

    customer.enable(false);
    customer.wait_stopped();
    assert!(frontend.queues[0].write(0, &[7; 4096]).is_err());
    // What was not counted once before is new to Prometheus, and no increase.
    watched.prometheus.await_query(
        "sealdisk_disk_request_errors_total{operation=\"write\"}",
        |n| n >= 1.0,
    );
    assert!(frontend.queues[0].write(0, &[7; 4096]).is_err());
    watched.fires("SealdiskRequestsFail");

    stop(daemon.pid());
    watched.fires("SealdiskDiskDown");
}

#[test]
#[ignore = "takes minutes: scripts/test --full"]
fn storage_that_is_full() {
    let Some(fs) = SmallFs::mount("tmpfs").filter(|_| !is_skipped()) else {
        return;
    };
    let disk = fs.disk(16 << 20);
    let daemon = disk.attach(&AttachOptions::default());
    let mut frontend = daemon.connect();
    let queue = &mut frontend.queues[0];
    for at in 0..8 {
        queue.write(at * 2048, &vec![7; 1 << 20]).unwrap();
    }
    queue.flush().unwrap();
    disk.ok("disk rotate-dek disk --rate 4KiB");
    let full = fs.fill();
    disk.ok("disk rotate-dek disk --resume --rate 1GiB");
    std::thread::scope(|scope| {
        // It waits for space.
        let writes = scope.spawn(|| queue.write(16 * 2048 - 8, &[7; 4096]));
        let mut watched = Watched::new(&disk);
        watched.fires("SealdiskStorageFull");
        watched.fires("SealdiskDiskStuck");
        watched.fires("SealdiskJobHeldUp");
        drop(full);
        writes.join().unwrap().unwrap();
        watched.fires("SealdiskLatencyHigh");
    });
}

#[test]
#[ignore = "takes minutes: scripts/test --full"]
fn keys_that_end_are_gone_or_are_old() {
    if is_skipped() {
        return;
    }
    let customer = Customer::new(MIB_8);
    let daemon = customer.attach(WITH_GRACE);
    let mut watched = Watched::new(&customer);
    let in_days = |days: i64| {
        let end = time::OffsetDateTime::now_utc() + time::Duration::days(days);
        let format = &time::format_description::well_known::Rfc3339;
        end.replace_nanosecond(0).unwrap().format(format).unwrap()
    };
    customer.set_key(&["--expires", &in_days(20)]);
    watched.fires("SealdiskKeyExpiresSoon");
    customer.set_key(&["--expires", &in_days(2)]);
    watched.fires("SealdiskKeyExpiresNow");

    customer.hide_vault();
    watched.fires("SealdiskKeyUnreachable");
    watched.fires("SealdiskKeyGraceEnds");
    watched.fires("SealdiskVaultUnreadable");
    customer.show_vault();
    customer.wait_served();

    // The set does not follow its key.
    customer.create_key();
    watched.fires("SealdiskOldKeyVersionInUse");
    let old = customer.wrapping_key();
    let version = old.rsplit('/').next().unwrap();
    customer.set_key(&["--version", version, "--enabled", "false"]);
    watched.fires("SealdiskKeyRevoked");
    watched.fires("SealdiskKeyNotUsable");
    customer.revoke_policy();
    watched.fires("SealdiskKeyNotGranted");
    daemon.stop();
}

#[test]
#[ignore = "takes minutes: scripts/test --full"]
fn vaults_that_refuse_and_have_no_room() {
    let Some(fs) = SmallFs::mount("tmpfs").filter(|_| !is_skipped()) else {
        return;
    };
    let mut host = Host::that_attaches();
    let state = fs.path().join("state");
    host.set_env("SEALDISK_STATE_DIR", state.to_str().unwrap());
    host.ok("keyvault create myvault");
    let mut watched = Watched::new(&host);
    for number in 0..80 {
        host.refused(&format!(
            "keyvault key show none{number} --vault-name myvault"
        ));
    }
    watched.fires("SealdiskVaultRefuses");
    // A file system of 32 MiB never has the room that audit logs are to have.
    watched.fires("SealdiskAuditSpaceOut");
    // It grows, a little at a time.
    for number in 0..24 {
        let grown = fs::write(fs.path().join(number.to_string()), vec![7; 1 << 20]);
        if grown.is_err() {
            break;
        }
        std::thread::sleep(Duration::from_millis(300));
    }
    watched.fires("SealdiskSpaceOutSoon");
    let _full = fs.fill();
    watched.fires("SealdiskSpaceLow");
}

#[test]
#[ignore = "takes minutes: scripts/test --full"]
fn an_exporter_that_sees_nothing_and_one_that_is_gone() {
    if is_skipped() {
        return;
    }
    let disk = Disk::new(MIB_8);
    let mut watched = Watched::new(&disk);
    let runtime = disk.runtime();
    let aside = runtime.with_extension("aside");
    fs::rename(runtime, &aside).unwrap();
    watched.fires("SealdiskRuntimeDirectoryNotSeen");
    fs::rename(&aside, runtime).unwrap();
    let catalog = disk.state().join("catalog.db");
    fs::write(&catalog, [b'x'; 8192]).unwrap();
    for beside in ["catalog.db-wal", "catalog.db-shm"] {
        let _ = fs::remove_file(disk.state().join(beside));
    }
    watched.fires("SealdiskInstallationNotSeen");
    watched.exporter.0.terminate();
    watched.fires("SealdiskExporterDown");
}
