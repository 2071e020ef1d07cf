//! The exporter itself: what it says of disks that do not answer, of keys and vaults, and of its own state.

use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::time::Instant;

use rustix::process::{Pid, Signal, kill_process};
use test_support::{AttachOptions, Customer, Disk, PATIENCE, alive, stop, text};

use super::Exporter;
use crate::supervise::{MIB_8, is_qsd};

#[test]
fn a_disk_that_hangs_holds_up_no_scrape() {
    if is_qsd() {
        return;
    }
    let disk = Disk::new(MIB_8);
    disk.ok("disk create other --size 8MiB");
    let daemon = disk.attach(&AttachOptions::default());
    let other = disk.attach_with("other", &[]);
    let exporter = Exporter::of(&disk);
    let up = |name: &str| format!("sealdisk_disk_up{{disk=\"{name}\"}}");
    let scrape = exporter.scrape();
    let both = (scrape.value(&up("disk")), scrape.value(&up("other")));
    assert_eq!(both, (Some(1.0), Some(1.0)), "{}", scrape.0);
    stop(daemon.pid());
    // It does not even take connections.
    for _ in 0..3 {
        let scrape = exporter.scrape();
        let both = (scrape.value(&up("disk")), scrape.value(&up("other")));
        assert_eq!(both, (Some(0.0), Some(1.0)), "{}", scrape.0);
    }
    kill_process(Pid::from_raw(daemon.pid() as i32).unwrap(), Signal::CONT).unwrap();
    exporter.await_value(&up("disk"), 1.0);
    other.stop();
    daemon.stop();
    let scrape = exporter.scrape();
    assert_eq!(scrape.value(&up("disk")), None, "it is attached no more");
    assert_eq!(scrape.value("sealdisk_exporter_attached_disks"), Some(0.0));
}

/// However long a disk may take, the scraper gets what the others have answered while it still waits.
#[test]
fn a_disk_that_hangs_takes_no_longer_than_the_scraper_waits() {
    if is_qsd() {
        return;
    }
    let disk = Disk::new(MIB_8);
    disk.ok("disk create other --size 8MiB");
    let daemon = disk.attach(&AttachOptions::default());
    let other = disk.attach_with("other", &[]);
    let exporter = Exporter::with(&disk, "--timeout 60");
    stop(daemon.pid());
    let head = "X-Prometheus-Scrape-Timeout-Seconds: 1\r\n";
    let (status, text) = exporter.get_with("/metrics", head);
    kill_process(Pid::from_raw(daemon.pid() as i32).unwrap(), Signal::CONT).unwrap();
    assert_eq!(status, 200, "{text}");
    for up in [
        "sealdisk_disk_up{disk=\"disk\"} 0",
        "sealdisk_disk_up{disk=\"other\"} 1",
    ] {
        assert!(text.contains(up), "{text}");
    }
    other.stop();
    daemon.stop();
}

#[test]
fn keys_are_told_from_their_making_to_their_revocation() {
    if is_qsd() {
        return;
    }
    let customer = Customer::new(MIB_8);
    let daemon = customer.attach(&["--key-check-interval", "1"]);
    let exporter = Exporter::of(&customer);
    let key = customer.wrapping_key();
    let of_key = |name: &str| format!("{name}{{key=\"{key}\"}}");
    exporter.await_value(&of_key("sealdisk_key_enabled"), 1.0);
    let scrape = exporter.scrape();
    let resources = format!("sealdisk_key_resources{{key=\"{key}\",type=\"disk\"}}");
    for (series, value) in [
        (of_key("sealdisk_key_latest"), 1.0),
        (resources, 1.0),
        (
            format!("sealdisk_disk_key_info{{disk=\"disk\",key=\"{key}\"}}"),
            1.0,
        ),
        (
            "sealdisk_disk_key_state{disk=\"disk\",state=\"active\"}".into(),
            1.0,
        ),
        ("sealdisk_disk_dek_held{disk=\"disk\"}".into(), 1.0),
        ("sealdisk_vault_up{vault=\"customer\"}".into(), 1.0),
        (
            format!("sealdisk_key_granted{{key=\"{key}\",disk_encryption_set=\"set\"}}"),
            1.0,
        ),
        ("sealdisk_disk_in_catalog{disk=\"disk\"}".into(), 1.0),
    ] {
        assert_eq!(scrape.value(&series), Some(value), "{series}\n{}", scrape.0);
    }
    customer.enable(false);
    customer.wait_stopped();
    let revoked = "sealdisk_disk_key_state{disk=\"disk\",state=\"revoked\"}";
    exporter.await_value(revoked, 1.0);
    exporter.await_value("sealdisk_disk_dek_held{disk=\"disk\"}", 0.0);
    exporter.await_value(&of_key("sealdisk_key_enabled"), 0.0);
    let scrape = exporter.scrape();
    let refused = "sealdisk_disk_key_checks_total{disk=\"disk\",result=\"refused\"}";
    assert!(scrape.value(refused) > Some(0.0), "{}", scrape.0);
    customer.enable(true);
    customer.wait_served();
    exporter.await_value(revoked, 0.0);
    customer.create_key();
    exporter.await_value(&of_key("sealdisk_key_latest"), 0.0);
    customer.revoke_policy();
    let granted = format!("sealdisk_key_granted{{key=\"{key}\",disk_encryption_set=\"set\"}}");
    exporter.await_value(&granted, 0.0);
    customer.grant();
    customer.wait_served();
    daemon.stop();
}

#[test]
fn health_and_readiness_are_told() {
    if is_qsd() {
        return;
    }
    let disk = Disk::new(MIB_8);
    let exporter = Exporter::of(&disk);
    assert_eq!(exporter.get("/healthz"), (200, "ok\n".into()));
    let end = Instant::now() + PATIENCE;
    while exporter.get("/readyz").0 != 200 {
        assert!(Instant::now() < end, "{:?}", exporter.get("/readyz"));
    }
    assert_eq!(exporter.get("/elsewhere").0, 404);
    // Without it no attached disk is seen.
    let runtime = disk.runtime();
    let aside = runtime.with_extension("aside");
    std::fs::rename(runtime, &aside).unwrap();
    let (status, why) = exporter.get("/readyz");
    assert!(
        status == 503 && why.contains(runtime.to_str().unwrap()),
        "{status} {why}"
    );
    exporter.await_value("sealdisk_exporter_runtime_directory_up", 0.0);
    std::fs::rename(&aside, runtime).unwrap();
    exporter.await_value("sealdisk_exporter_runtime_directory_up", 1.0);
    assert_eq!(exporter.get("/readyz").0, 200);
    exporter.0.terminate();
    // Disks are told of all the same.
    std::fs::write(disk.state().join("catalog.db"), "no database").unwrap();
    let exporter = Exporter::of(&disk);
    exporter.await_value("sealdisk_exporter_installation_up", 0.0);
    let (status, why) = exporter.get("/readyz");
    assert!(
        status == 503 && why.contains("catalog.db"),
        "{status} {why}"
    );
    assert_eq!(exporter.get("/healthz").0, 200);
}

#[test]
fn a_socket_is_for_its_owner_alone_and_one_that_was_left_is_replaced() {
    if is_qsd() {
        return;
    }
    let disk = Disk::new(MIB_8);
    let path = disk.path("metrics.sock");
    let start = || {
        let listen = format!("unix:{}", text(&path));
        let serve = ["metrics", "serve", "--listen", &listen];
        let mut process = disk.command(&serve[..]).spawn().unwrap();
        let end = Instant::now() + PATIENCE;
        while UnixStream::connect(&path).is_err() {
            assert!(Instant::now() < end && process.try_wait().unwrap().is_none());
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        process
    };
    let mut process = start();
    let mode = path.symlink_metadata().unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    process.kill().unwrap();
    process.wait().unwrap();
    assert!(path.exists());
    let mut process = start();
    kill_process(Pid::from_child(&process), Signal::TERM).unwrap();
    assert!(process.wait().unwrap().success());
    assert!(!path.exists() && !alive(process.id()));
}
