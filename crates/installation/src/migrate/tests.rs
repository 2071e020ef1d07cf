use std::cell::Cell;

use database::ErrorKind;
use tempfile::TempDir;
use test_support::postgres::PostgresServer;
use time::OffsetDateTime;

use super::*;
use crate::catalog::{
    CatalogError, DatabaseCatalog, DesIdentity, DiskEncryptionSetRecord, DiskRecord, DiskState,
    EncryptionType, IdentityOwner, IdentityRecord, LayerUse, VaultKind, VaultRecord,
};
use crate::envelope::ResourceKind;
use crate::{CatalogAt, Installation, Place};

/// More than go into one statement.
const DISKS: usize = 230;

/// An installation in a state directory, and a schema of a server to which it is moved.
struct Move {
    dir: TempDir,
    to: ServerUrl,
}

impl Move {
    fn new(server: &PostgresServer) -> Self {
        let made = Self {
            dir: tempfile::tempdir().unwrap(),
            to: ServerUrl::parse(&server.new_schema()).unwrap(),
        };
        fill(&Installation::open(made.dir.path()).unwrap());
        fill_rest(&made.file());
        made
    }

    fn file(&self) -> MovingCatalog {
        MovingCatalog::open(&self.dir.path().join(CATALOG_FILE)).unwrap()
    }

    fn run(&self) -> Result<Migrated, MigrateError> {
        migrate(self.dir.path(), &self.to, &|_| false)
    }

    fn on_server(&self) -> Place {
        Place {
            state_dir: self.dir.path().into(),
            catalog: CatalogAt::Server(self.to.clone()),
        }
    }

    /// Why the file is not used, if it is not.
    fn file_refused(&self) -> Option<String> {
        Installation::open(self.dir.path())
            .err()
            .map(|error| error.to_string())
    }

    /// Why the server's catalog is not used, if it is not.
    fn server_refused(&self) -> Option<String> {
        Installation::open(self.on_server())
            .err()
            .map(|error| error.to_string())
    }
}

fn vault(name: &str, kind: VaultKind) -> VaultRecord {
    VaultRecord {
        name: name.into(),
        url: format!("https://{name}.example"),
        kind,
        created: OffsetDateTime::now_utc(),
    }
}

/// What commands make.
fn fill(installation: &Installation) {
    let catalog = installation.catalog();
    let remote = VaultKind::Https {
        ca: None,
        token_endpoint: None,
    };
    catalog.insert_vault(&vault("far", remote)).unwrap();
    let set = DiskEncryptionSetRecord {
        name: "s".into(),
        identity: DesIdentity::SystemAssigned,
        principal_id: Uuid::new_v4(),
        key_url: "https://far.example/keys/k".into(),
        encryption_type: EncryptionType::default(),
        previous_keys: Vec::new(),
        auto_rotation: true,
        last_rotation: None,
        created: OffsetDateTime::now_utc(),
    };
    catalog.insert_des(&set).unwrap();
    catalog.identity_of_des("s").unwrap();
    let alice = IdentityRecord {
        object_id: Uuid::from_u128(1),
        client_id: Uuid::from_u128(2),
        owner: IdentityOwner::Named("it's älice".into()),
        secret_hash: Some([7; 32]),
        secret_ends: None,
        is_application: false,
        created: OffsetDateTime::now_utc(),
    };
    catalog.insert_identity(&alice).unwrap();
    for number in 0..DISKS as u128 {
        let layer = |under: Option<&str>| LayerUse {
            layer: Uuid::new_v4(),
            disk_encryption_set: under.map(Into::into),
            key_url: "https://far.example/keys/k/1".into(),
        };
        let disk = DiskRecord {
            id: Uuid::from_u128(1000 + number),
            kind: ResourceKind::Disk,
            name: format!("d{number}"),
            directory: format!("/disks/{number}").into(),
            size: 512 << number.min(40),
            disk_encryption_set: Some("s".into()),
            key_url: "https://far.example/keys/k/1".into(),
            layers: vec![layer(Some("s")), layer(None)],
            created: OffsetDateTime::now_utc(),
            state: DiskState::Ready,
        };
        catalog.insert_disk(&disk).unwrap();
    }
}

/// A row for every other table.
fn fill_rest(file: &MovingCatalog) {
    const TIME: &str = "2030-01-02T03:04:05Z";
    let (disk, alice) = (Uuid::from_u128(1000), Uuid::from_u128(1));
    for sql in [
        "merges VALUES ('00000000-0000-0000-0000-000000000001')".to_owned(),
        format!("departed VALUES ('i', 'disk', 'gone', '/x', '[]', 'NotFound', '{TIME}')"),
        format!("made_again VALUES (1, '{TIME}')"),
        "noted_vaults VALUES ('https://far.example')".into(),
        format!("restored VALUES (1, NULL, '{TIME}')"),
        format!("purged_vaults VALUES ('https://gone.example', '{TIME}')"),
        format!("resource_groups VALUES ('Web', 'local', '{{}}', '{TIME}')"),
        format!(
            "access_grants VALUES ('a', '{disk}', 'read', x'00ff', '{TIME}', '{TIME}', '{alice}')"
        ),
        format!("federated_credentials VALUES ('{alice}', 'f', 'i', 's', '[]', '{TIME}')"),
        format!("passwords VALUES ('{alice}', 'hash')"),
        format!("device_logins VALUES ('C', x'01', 'p', 'r', '{TIME}', '{TIME}', '{alice}')"),
        "used_assertions VALUES (x'02', 4102444800)".into(),
        format!(
            "operations VALUES ('o', 'web', 'd', 't', 'Running', 1, '{TIME}', '{alice}', '{TIME}', '{{}}', '{{}}')"
        ),
        format!(
            "placements VALUES ('disk', 'D0', 'WEB', 'local', '{{}}', '{{}}', '{TIME}', '{alice}', '{TIME}', '{alice}')"
        ),
        format!(
            "role_assignments VALUES ('r', '/s', 'Owner', '{alice}', 'User', '{TIME}', '{alice}')"
        ),
        format!("locks VALUES ('disk', 'd1', 'l', 'CanNotDelete', NULL, '{TIME}', '{alice}')"),
    ] {
        let sql = format!("INSERT INTO {sql}");
        file.database().execute(&sql, &[]).unwrap();
    }
}

#[test]
fn what_is_moved_is_the_same_and_is_used_in_one_place() {
    let Some(server) = PostgresServer::shared() else {
        return;
    };
    let of = Move::new(server);
    let before = Installation::open(of.dir.path()).unwrap();
    let moved = of.run().unwrap();
    assert_eq!(moved.installation, before.id());
    assert_eq!(moved.tables.len(), TABLES.len());
    for table in &moved.tables {
        let least = match table.table.as_str() {
            "resources" => DISKS as u64,
            "layer_uses" => 2 * DISKS as u64,
            "identities" | "resource_groups" => 2,
            _ => 1,
        };
        assert!(table.rows >= least, "{table:?}");
    }
    let after = Installation::open(of.on_server()).unwrap();
    let (old, new) = (before.catalog(), after.catalog());
    assert_eq!(after.id(), before.id());
    assert_eq!(after.operator(), before.operator());
    assert_eq!(new.resources().unwrap(), old.resources().unwrap());
    assert_eq!(new.vaults().unwrap(), old.vaults().unwrap());
    assert_eq!(new.all_des().unwrap(), old.all_des().unwrap());
    assert_eq!(new.identities().unwrap(), old.identities().unwrap());
    assert_eq!(new.placements().unwrap(), old.placements().unwrap());
    new.insert_merge(Uuid::from_u128(9)).unwrap();

    // Who has it open since before is refused, and told where it is.
    let refused = old.insert_merge(Uuid::from_u128(9)).unwrap_err();
    assert!(refused.to_string().contains("was moved to"), "{refused}");
    assert!(!before.is_current());
    let refused = before.renew().unwrap_err().to_string();
    assert!(refused.contains("was moved to"), "{refused}");
    after.renew().unwrap();
    assert!(after.is_current());

    // Whether the state directory knows it or not.
    let refused = of.file_refused().unwrap();
    assert!(refused.contains("give --catalog"), "{refused}");
    Installation::look(of.dir.path()).unwrap_err();
    std::fs::remove_file(crate::known_server::path_in(of.dir.path())).unwrap();
    let refused = of.file_refused().unwrap();
    assert!(refused.contains("was moved to"), "{refused}");
    Installation::look(of.dir.path()).unwrap_err();
    Installation::look(of.on_server()).unwrap();
    assert_eq!(of.server_refused(), None);

    let again = of.run().unwrap();
    assert!(again.tables.is_empty());
    assert_eq!(after.catalog().merges().unwrap().len(), 2);
}

#[test]
fn a_move_that_was_cut_off_goes_on_and_nobody_uses_half_of_it() {
    let Some(server) = PostgresServer::shared() else {
        return;
    };
    for cut_off_after in ["arrival", "some tables", "the mark", "the release"] {
        let of = Move::new(server);
        let file = of.file();
        let Arrival::Begun(target) = file.arrive(&of.to, false).unwrap() else {
            panic!("it is there already");
        };
        let tables = match cut_off_after {
            "arrival" => &TABLES[..0],
            "some tables" => &TABLES[..8],
            _ => TABLES,
        };
        let move_tables = |source: &database::Connection| {
            let part = Part {
                what: "catalog",
                file: source,
                server: &target,
                tables,
                verify: &|_| Ok(()),
            };
            part.move_rows(&of.to)
        };
        file.database()
            .transaction(Mode::Alone, |source| {
                move_tables(source)?;
                if cut_off_after.starts_with("the") {
                    file.leave(source, &of.to)?;
                }
                Ok::<_, MigrateError>(())
            })
            .unwrap();
        let is_released = cut_off_after == "the release";
        if is_released {
            MovingCatalog::release(&target).unwrap();
        }
        drop(file);

        assert_eq!(
            of.file_refused().is_some(),
            cut_off_after.starts_with("the"),
            "{cut_off_after}"
        );
        let refused = of.server_refused();
        assert_eq!(refused.is_none(), is_released, "{cut_off_after}");
        if let Some(refused) = refused {
            // The file's own catalog is what is used, or the move is to go on.
            assert!(refused.contains("catalog migrate"), "{refused}");
        }
        let made = of.run().unwrap();
        assert_eq!(made.tables.is_empty(), is_released, "{cut_off_after}");
        assert_eq!(of.server_refused(), None);
        assert!(of.file_refused().is_some());
        let moved = Installation::open(of.on_server()).unwrap();
        assert_eq!(moved.catalog().resources().unwrap().len(), DISKS);
    }
}

#[test]
fn what_was_changed_between_two_runs_is_moved_too() {
    let Some(server) = PostgresServer::shared() else {
        return;
    };
    let of = Move::new(server);
    let file = of.file();
    let Arrival::Begun(target) = file.arrive(&of.to, false).unwrap() else {
        panic!("it is there already");
    };
    let part = Part {
        what: "catalog",
        file: file.database(),
        server: &target,
        tables: TABLES,
        verify: &|_| Ok(()),
    };
    part.move_rows(&of.to).unwrap();
    // A set with all that refers to it, in tables that come before and behind.
    let before = Installation::open(of.dir.path()).unwrap();
    let disk = before.catalog().disk("d7").unwrap();
    let record = DiskRecord {
        size: 1024,
        ..disk.record
    };
    before.catalog().update_disk(disk.rev, &record).unwrap();
    before.catalog().insert_merge(Uuid::from_u128(5)).unwrap();
    of.run().unwrap();
    let after = Installation::open(of.on_server()).unwrap();
    assert_eq!(after.catalog().disk("d7").unwrap().record, record);
    assert_eq!(after.catalog().merges().unwrap().len(), 2);
}

#[test]
fn a_database_that_is_not_for_it_is_left_alone() {
    let Some(server) = PostgresServer::shared() else {
        return;
    };
    // It is another installation's, and that is in use or arrives.
    let (of, other) = (Move::new(server), tempfile::tempdir().unwrap());
    let place = Place {
        state_dir: other.path().into(),
        catalog: CatalogAt::Server(of.to.clone()),
    };
    let theirs = Installation::open(place).unwrap();
    let refused = of.run().unwrap_err().to_string();
    assert!(refused.contains(&theirs.id().to_string()), "{refused}");
    assert!(theirs.catalog().resources().unwrap().is_empty());
    assert_eq!(of.file_refused(), None);

    let (of, other) = (Move::new(server), Move::new(server));
    drop(other.file().arrive(&of.to, false).unwrap());
    let refused = of.run().unwrap_err().to_string();
    assert!(refused.contains("is being moved to"), "{refused}");

    // It has tables of somebody else.
    let of = Move::new(server);
    let schema = of.to.as_str().rsplit_once("%3D").unwrap().1;
    server.sql(&format!("CREATE TABLE {schema}.theirs (a integer)"));
    let refused = of.run().unwrap_err().to_string();
    assert!(refused.contains("of its own"), "{refused}");
    assert_eq!(of.file_refused(), None);
}

#[test]
fn what_was_moved_and_is_lost_is_not_moved_again() {
    let Some(server) = PostgresServer::shared() else {
        return;
    };
    let of = Move::new(server);
    of.run().unwrap();
    // Killed right before it was noted in the file that it was done, and used since.
    let path = of.dir.path().join(CATALOG_FILE);
    let unfinish = || {
        let file = of.file();
        let sql = "UPDATE moved SET finished = 0";
        file.database().execute(sql, &[]).unwrap();
    };
    unfinish();
    std::fs::remove_file(crate::known_server::path_in(of.dir.path())).unwrap();
    assert_eq!(of.server_refused(), None);
    let moved = DatabaseCatalog::moved_from(&path).unwrap().unwrap();
    assert!(moved.is_finished);
    unfinish();
    let schema = of.to.as_str().rsplit_once("%3D").unwrap().1.to_owned();
    server.sql(&format!(
        "DROP SCHEMA {schema} CASCADE; CREATE SCHEMA {schema}"
    ));
    for refused in [
        of.server_refused().unwrap(),
        of.run().unwrap_err().to_string(),
    ] {
        assert!(refused.contains("restore the server's backup"), "{refused}");
    }
    // An older file in the place of the one that was moved.
    let of = Move::new(server);
    let path = of.dir.path().join(CATALOG_FILE);
    drop(of.file());
    let old_one = std::fs::read(&path).unwrap();
    of.run().unwrap();
    for beside in ["catalog.db-wal", "catalog.db-shm"] {
        let _ = std::fs::remove_file(of.dir.path().join(beside));
    }
    std::fs::write(&path, old_one).unwrap();
    let refused = of.run().unwrap_err().to_string();
    assert!(refused.contains("an older one"), "{refused}");
    assert!(of.file_refused().unwrap().contains("give --catalog"));
}

#[test]
fn vaults_of_the_installation_keep_it_where_it_is() {
    let Some(server) = PostgresServer::shared() else {
        return;
    };
    let of = Move::new(server);
    let installation = Installation::open(of.dir.path()).unwrap();
    let catalog = installation.catalog();
    for name in ["here", "there"] {
        catalog
            .insert_vault(&vault(name, VaultKind::Embedded))
            .unwrap();
    }
    let refused = of.run().unwrap_err();
    assert_eq!(refused.code(), "OperationNotAllowed");
    assert!(refused.to_string().contains("here, there"), "{refused}");
    assert!(
        DatabaseCatalog::open_made_on_server(&of.to)
            .unwrap()
            .is_none()
    );
    assert_eq!(of.file_refused(), None);
    let none = tempfile::tempdir().unwrap();
    let refused = migrate(&none.path().join("state"), &of.to, &|_| false).unwrap_err();
    assert_eq!(refused.code(), "StateDirectory");
    assert!(!none.path().join("state").exists());
}

#[test]
fn what_the_server_cannot_hold_is_told_and_moved_later() {
    let Some(server) = PostgresServer::shared() else {
        return;
    };
    let of = Move::new(server);
    let file = of.file();
    // SQLite compares ASCII without case.
    for name in ["Äpfel", "äpfel"] {
        let sql = format!("INSERT INTO resource_groups VALUES ('{name}', 'local', '{{}}', 't')");
        file.database().execute(&sql, &[]).unwrap();
    }
    let refused = of.run().unwrap_err();
    assert!(
        matches!(&refused, MigrateError::Table { table, source, .. }
            if table == "resource_groups" && source.kind() == ErrorKind::Unique),
        "{refused}"
    );
    assert_eq!(of.file_refused(), None);
    let refused = of.server_refused().unwrap();
    assert!(refused.contains("catalog migrate"), "{refused}");
    let mended = "DELETE FROM resource_groups WHERE name = 'äpfel'";
    file.database().execute(mended, &[]).unwrap();
    of.run().unwrap();
    assert_eq!(of.server_refused(), None);
}

#[test]
fn a_disk_that_is_attached_while_rows_are_copied_keeps_the_file() {
    let Some(server) = PostgresServer::shared() else {
        return;
    };
    let of = Move::new(server);
    // At the first look at each nobody has it.
    let looks = Cell::new(0);
    let is_used = |_: &Path| {
        looks.set(looks.get() + 1);
        looks.get() > DISKS
    };
    let refused = migrate(of.dir.path(), &of.to, &is_used).unwrap_err();
    assert!(matches!(&refused, MigrateError::Used { names } if names.len() == DISKS));
    assert_eq!(of.file_refused(), None);
    assert!(of.server_refused().unwrap().contains("catalog migrate"));
    of.run().unwrap();
    assert_eq!(of.server_refused(), None);
}

#[test]
fn a_disk_that_is_in_use_is_named_before_anything_is_moved() {
    let dir = tempfile::tempdir().unwrap();
    fill(&Installation::open(dir.path()).unwrap());
    let nowhere = ServerUrl::parse("postgres://me@/d?host=/nowhere").unwrap();
    let is_used = |directory: &Path| directory == Path::new("/disks/3");
    let refused = migrate(dir.path(), &nowhere, &is_used).unwrap_err();
    assert_eq!(refused.code(), "OperationNotAllowed");
    assert!(refused.to_string().contains(": d3;"), "{refused}");
    let refused = DatabaseCatalog::look(&dir.path().join("none/catalog.db"));
    assert!(matches!(refused, Err(CatalogError::Open(_))));
}
