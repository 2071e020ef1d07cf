//! What operations cost in a catalog of thousands: as much as in one of ten. That is counted in statements and rows, not
//! measured; and of all those disks nobody finds a header, so whoever looks at them all fails.

use std::path::Path;

use installation::catalog::{DiskRecord, DiskState, LayerUse};
use installation::envelope::ResourceKind;
use installation::{CatalogAt, Counts, Installation, Place, database_counts};
use tempfile::TempDir;
use test_support::postgres::PostgresServer;
use time::OffsetDateTime;
use uuid::Uuid;

use super::{CreateRequest, create, delete, list_here, show};
use crate::import::Cancel;
use crate::layers::{LayerOp, SnapshotRequest, Unattached, delete_source, merge_all};
use crate::resource::disk::Disk;
use crate::resource::reconcile::reconcile_here;

const SNAPSHOT: ResourceKind = ResourceKind::Snapshot;

/// An installation with so many disks, none of which can be found.
fn filled(at: CatalogAt, rows: u32) -> (TempDir, Installation) {
    let dir = TempDir::new_in("/dev/shm").unwrap();
    let place = Place {
        state_dir: dir.path().join("state"),
        catalog: at,
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
    (dir, installation)
}

fn cost(work: impl FnOnce()) -> Counts {
    let before = database_counts();
    work();
    let after = database_counts();
    Counts {
        statements: after.statements - before.statements,
        rows: after.rows - before.rows,
    }
}

fn make(installation: &Installation, name: &str) {
    let request = CreateRequest {
        name: name.into(),
        size: Some(1 << 20),
        source: None,
        disk_encryption_set: None,
        sector_size: 4096,
        logical_sector_size: None,
        data_dir: None,
    };
    create(installation, &request, &Cancel::default(), |_| |_| ()).unwrap();
}

fn user(installation: &Installation, disk: &Disk, runtime: &Path) -> Unattached {
    let claim = disk.claim().unwrap();
    Unattached::settled(installation, disk, claim, runtime).unwrap()
}

/// What each operation costs.
fn costs(at: CatalogAt, rows: u32) -> Vec<(&'static str, Counts)> {
    let (dir, installation) = filled(at, rows);
    let (installation, runtime) = (&installation, dir.path());
    // It makes the platform's vault and key, too.
    make(installation, "first");
    let create = cost(|| make(installation, "d"));
    let show = cost(|| drop(show(installation, ResourceKind::Disk, "d").unwrap()));
    let snapshot = cost(|| {
        let disk = Disk::find(installation, "d").unwrap();
        let op = LayerOp::CreateSnapshot(SnapshotRequest {
            kind: SNAPSHOT,
            name: "s".into(),
            incremental: false,
            data_dir: None,
        });
        let mut user = user(installation, &disk, runtime);
        op.apply(installation, &disk, &mut user).unwrap();
    });
    let delete_snapshot = cost(|| {
        delete_source(installation, SNAPSHOT, "s", runtime).unwrap();
        let mut change = |disk: &Disk, op: &LayerOp| {
            let mut user = user(installation, disk, runtime);
            op.apply(installation, disk, &mut user)
        };
        merge_all(
            installation,
            &mut change,
            &Cancel::default(),
            &mut |_, _| {},
        )
        .unwrap();
    });
    let delete = cost(|| delete(installation, ResourceKind::Disk, "d", runtime).unwrap());
    let mut all = vec![
        ("create", create),
        ("show", show),
        ("snapshot create", snapshot),
        ("snapshot delete", delete_snapshot),
        ("delete", delete),
    ];
    if installation.catalog().is_shared() {
        let here = cost(|| {
            let views = list_here(installation, ResourceKind::Disk, &[]).unwrap();
            assert!(views.is_empty());
            reconcile_here(installation).unwrap();
        });
        all.push(("status", here));
    }
    all
}

fn assert_alike(at: impl Fn() -> CatalogAt) {
    let many = test_support::times("SEALDISK_ROWS", 1000);
    let (few, many) = (costs(at(), 10), costs(at(), many));
    for ((what, few), (_, many)) in few.iter().zip(&many) {
        let is_alike = |few: u64, many: u64| many <= few + few / 2;
        assert!(
            is_alike(few.statements, many.statements) && is_alike(few.rows, many.rows),
            "{what}: {few:?} in a catalog of ten, {many:?} in one of many"
        );
    }
}

#[test]
fn nothing_costs_more_in_a_catalog_of_thousands() {
    assert_alike(CatalogAt::default);
}

#[test]
fn nothing_costs_more_in_a_catalog_of_thousands_that_hosts_share() {
    let Some(server) = PostgresServer::shared() else {
        return;
    };
    assert_alike(|| CatalogAt::given(Some(&server.new_schema())).unwrap());
}
