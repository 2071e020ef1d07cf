//! Commands in a catalog of thousands of disks, none of which can be found: whoever looks at them all fails.
//!
//! What they ask of the catalog is counted in `crates/disks/src/lifecycle/scale.rs`. Here they are measured too, where
//! `SEALDISK_ROWS` says with how many rows.

use std::time::{Duration, Instant};

use installation::catalog::{DiskRecord, DiskState, LayerUse};
use installation::envelope::ResourceKind;
use installation::{CatalogAt, Installation, Place};
use test_support::Host;
use test_support::postgres::PostgresServer;
use time::OffsetDateTime;
use uuid::Uuid;

/// With rows in a file, or at a URL.
fn host_with(rows: u32, url: Option<&str>) -> Host {
    let mut host = Host::that_attaches();
    if let Some(url) = url {
        host.set_env("SEALDISK_CATALOG", url);
    }
    // It makes the platform's vault.
    host.ok("disk create first --size 1MiB");
    let place = Place {
        state_dir: host.state(),
        catalog: CatalogAt::given(url).unwrap(),
    };
    let installation = Installation::open(&place).unwrap();
    for number in 0..rows {
        let key_url = "https://far.vault.localhost/keys/k/0".to_owned();
        let record = DiskRecord {
            id: Uuid::new_v4(),
            kind: ResourceKind::Disk,
            name: format!("far{number}"),
            directory: format!("/nonexistent/disks/far{number}").into(),
            size: 1 << 20,
            disk_encryption_set: None,
            key_url: key_url.clone(),
            layers: vec![LayerUse {
                layer: Uuid::new_v4(),
                disk_encryption_set: None,
                key_url,
            }],
            created: OffsetDateTime::UNIX_EPOCH,
            state: DiskState::Ready,
        };
        installation.catalog().insert_disk(&record).unwrap();
    }
    host
}

/// How long each command takes, at best.
fn times(host: &Host) -> Vec<(&'static str, Duration)> {
    const ROUNDS: usize = 5;
    let mut best: Vec<(&'static str, Duration)> = Vec::new();
    for _ in 0..ROUNDS {
        let mut took = Vec::new();
        let mut measured = |what, work: &mut dyn FnMut()| {
            let begun = Instant::now();
            work();
            took.push((what, begun.elapsed()));
        };
        measured("create", &mut || drop(host.ok("disk create d --size 1MiB")));
        measured("show", &mut || drop(host.ok("disk show d")));
        let mut daemon = None;
        measured("attach", &mut || daemon = Some(host.attach("d")));
        if let Some(daemon) = daemon {
            daemon.stop();
        }
        host.ok("snapshot create s --source d");
        measured("snapshot delete", &mut || {
            drop(host.ok("snapshot delete s --yes"))
        });
        host.ok("disk delete d --yes");
        match best.is_empty() {
            true => best = took,
            false => {
                for ((_, best), (_, now)) in best.iter_mut().zip(took) {
                    *best = now.min(*best);
                }
            }
        }
    }
    best
}

fn compare(few: &Host, many: &Host) {
    let (few, many) = (times(few), times(many));
    for ((what, few), (_, many)) in few.iter().zip(&many) {
        println!("{what}: {few:?} in a catalog of ten, {many:?} in one of many");
        if std::env::var("SEALDISK_ROWS").is_ok() {
            assert!(*many <= *few + *few / 2, "{what}: {few:?}, {many:?}");
        }
    }
}

fn many() -> u32 {
    test_support::times("SEALDISK_ROWS", 300)
}

#[test]
fn commands_look_at_what_they_are_about() {
    compare(&host_with(10, None), &host_with(many(), None));
}

#[test]
fn commands_look_at_what_they_are_about_in_a_catalog_that_hosts_share() {
    let Some(server) = PostgresServer::shared() else {
        return;
    };
    let [few, many] = [10, many()].map(|rows| host_with(rows, Some(&server.new_schema())));
    compare(&few, &many);
}
