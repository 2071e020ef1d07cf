//! Vaults, the log and the keys of servers, moved with the catalog.

use std::fs;
use std::path::PathBuf;

use tempfile::TempDir;
use test_support::postgres::PostgresServer;
use vault::{
    EmbeddedVault, KeyId, KeySize, KeyVault, NewKey, VaultSettings, WrapAlgorithm, Wrapped,
};

use super::*;
use crate::catalog::schema_of;
use crate::{CatalogAt, Installation};

const ALGORITHM: WrapAlgorithm = WrapAlgorithm::RsaOaep256;

/// An installation with two vaults, and what was wrapped by a key of one.
struct Move {
    dir: TempDir,
    to: ServerUrl,
    wrapped: Wrapped,
}

impl Move {
    fn new(server: &PostgresServer) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let installation = Installation::open(dir.path()).unwrap();
        let operator = installation.operator();
        let settings = VaultSettings::default();
        let new = NewKey::new(KeySize::Rsa2048);
        for name in ["one", "other"] {
            let vault = installation.create_vault(name, &settings).unwrap();
            for key in ["k", "gone"] {
                vault.create_key(&operator, key, &new).unwrap();
            }
            vault.delete_key(&operator, "gone").unwrap();
        }
        let vault = installation.vault("one").unwrap();
        vault.purge_key(&operator, "gone").unwrap();
        let wrapped = vault.wrap_key(&operator, &key(None), ALGORITHM, &[7; 64]);
        installation.create_identity("alice").unwrap();
        for (kind, name) in [("tokens", "1-a.p8"), ("tls", "ca.pem")] {
            let keys = installation.key_store(kind).unwrap().open().unwrap();
            keys.put(name, name.as_bytes(), true).unwrap();
        }
        Self {
            to: ServerUrl::parse(&server.new_schema()).unwrap(),
            wrapped: wrapped.unwrap(),
            dir,
        }
    }

    fn run(&self) -> Result<Migrated, MigrateError> {
        migrate(self.dir.path(), &self.to)
    }

    fn on_server(&self) -> Result<Installation, InstallationError> {
        Installation::open(Place {
            state_dir: self.dir.path().into(),
            catalog: CatalogAt::Server(self.to.clone()),
        })
    }

    fn files(&self) -> [PathBuf; 3] {
        ["vaults/one/vault.db", "vaults/other/vault.db", "audit.db"]
            .map(|name| self.dir.path().join(name))
    }

    /// All of it is on the server, and goes on there.
    fn is_moved(&self) {
        let installation = self.on_server().unwrap();
        let vault = installation.vault("one").unwrap();
        let operator = installation.operator();
        self.unwraps(&vault, &installation);
        // Its number is larger than any that was given before, also to a key that is gone.
        let new = NewKey::new(KeySize::Rsa2048);
        vault.create_key(&operator, "new", &new).unwrap();
        let keys = installation.look_at_vault("one").unwrap();
        let numbers =
            keys.connection()
                .select("SELECT name FROM key_versions ORDER BY seq", &[], |row| {
                    row.get::<String>(0)
                });
        let numbers: Result<_, database::Error> = numbers;
        assert_eq!(numbers.unwrap(), ["k", "new"]);
        let last: i64 = keys
            .connection()
            .the_value("SELECT max(seq) FROM key_versions", &[])
            .unwrap();
        assert_eq!(last, 3);
        installation.delete_identity("alice").unwrap();
        for log in installation.log_databases().unwrap() {
            let report = log.verify(&[]).unwrap();
            assert_eq!(report.finding, None, "{}", log.name);
        }
        let log = installation.audit_log().unwrap();
        assert!(log.older().is_none());
        assert!(vault.older().is_none());
        for (kind, name) in [("tokens", "1-a.p8"), ("tls", "ca.pem")] {
            let keys = installation.key_store(kind).unwrap().open().unwrap();
            let key = keys.read(name).unwrap().unwrap();
            assert_eq!(key.as_slice(), name.as_bytes());
        }
        for file in self.files() {
            let moved = match file.ends_with("audit.db") {
                true => vault::MovingFile::log(&file),
                false => vault::MovingFile::vault(&file),
            };
            assert!(moved.unwrap().moved_to().unwrap().is_some(), "{file:?}");
        }
    }

    fn unwraps(&self, vault: &EmbeddedVault, installation: &Installation) {
        let operator = installation.operator();
        let version = key(Some(self.wrapped.key_version.clone()));
        let secret = vault.unwrap_key(&operator, &version, ALGORITHM, &self.wrapped.value);
        assert_eq!(secret.unwrap().as_slice(), &[7; 64]);
    }
}

fn key(version: Option<String>) -> KeyId {
    KeyId {
        name: "k".into(),
        version,
    }
}

#[test]
fn vaults_logs_and_shared_keys_come_along() {
    let Some(server) = PostgresServer::shared() else {
        return;
    };
    let of = Move::new(server);
    let before = Installation::open(of.dir.path()).unwrap();
    let (vault, log) = (before.vault("one").unwrap(), before.audit_log().unwrap());
    let moved = of.run().unwrap();
    let rows = |part: &str, name: &str| {
        let mut tables = moved.tables.iter();
        let found = tables.find(|table| table.part == part && table.table == name);
        found.unwrap().rows
    };
    assert_eq!(rows("key vault 'one'", "key_versions"), 1);
    assert_eq!(rows("key vault 'other'", "deleted_keys"), 1);
    assert!(rows("key vault 'one'", "audit") >= 6);
    assert!(rows("installation's log", "audit") >= 2);
    of.is_moved();
    // Who has them open since before is told.
    let operator = before.operator();
    let refused = vault.delete_key(&operator, "k").unwrap_err().to_string();
    assert!(refused.contains("was moved to"), "{refused}");
    let record = AuditRecord::new(operator.object_id, &operator.origin, "Test");
    let refused = log.append(&record).unwrap_err().to_string();
    assert!(refused.contains("was moved to"), "{refused}");
    for file in of.files() {
        let reserve = file.with_file_name("audit.reserve");
        assert!(!reserve.exists(), "{reserve:?}");
    }
    assert!(of.run().unwrap().tables.is_empty());
}

/// Cut off behind each step, it goes on, and until then nobody uses half of it.
#[test]
fn a_move_with_vaults_goes_on_from_each_step() {
    let Some(server) = PostgresServer::shared() else {
        return;
    };
    for step in 2..=6 {
        let of = Move::new(server);
        let catalog = MovingCatalog::open(&of.dir.path().join(CATALOG_FILE)).unwrap();
        let Arrival::Begun(target) = catalog.arrive(&of.to).unwrap() else {
            panic!("it is there already");
        };
        let files = Files::open(of.dir.path(), &catalog).unwrap();
        files.move_all(&target, &of.to).unwrap();
        if step == 2 {
            // What is changed until it goes on comes along, too.
            let installation = Installation::open(of.dir.path()).unwrap();
            of.unwraps(&installation.vault("one").unwrap(), &installation);
        }
        if step >= 4 {
            move_catalog(&target, &catalog, &of.to).unwrap();
        }
        if step >= 5 {
            files.leave_all(&target, &of.to).unwrap();
        }
        if step >= 6 {
            shared::move_keys(of.dir.path(), catalog.own().id(), &of.to).unwrap();
        }
        drop((catalog, files));
        let file_is_used = Installation::open(of.dir.path()).is_ok();
        assert_eq!(file_is_used, step < 4, "{step}");
        let refused = of.on_server().err().unwrap().to_string();
        assert!(refused.contains("catalog migrate"), "{step}: {refused}");
        of.run().unwrap();
        of.is_moved();
    }
}

#[test]
fn a_log_that_was_tampered_with_is_not_moved() {
    let Some(server) = PostgresServer::shared() else {
        return;
    };
    let of = Move::new(server);
    let db = rusqlite::Connection::open(&of.files()[1]).unwrap();
    let change = |caller: &str| {
        let sql = "UPDATE audit SET caller = ? WHERE seq = 2";
        let before: String = db
            .query_row("SELECT caller FROM audit WHERE seq = 2", [], |row| {
                row.get(0)
            })
            .unwrap();
        db.execute(sql, [caller]).unwrap();
        before
    };
    let before = change("mallory");
    let refused = of.run().unwrap_err();
    assert_eq!(refused.code(), AuditError::TAMPERED);
    assert!(refused.to_string().contains("'other'"), "{refused}");
    Installation::open(of.dir.path()).unwrap();
    change(&before);
    of.run().unwrap();
    of.is_moved();
}

/// What is on the server of a vault by the name of one that is moved is that of a move before this one.
#[test]
fn what_is_put_into_a_schema_meanwhile_is_replaced() {
    let Some(server) = PostgresServer::shared() else {
        return;
    };
    let of = Move::new(server);
    let catalog = MovingCatalog::open(&of.dir.path().join(CATALOG_FILE)).unwrap();
    let Arrival::Begun(target) = catalog.arrive(&of.to).unwrap() else {
        panic!("it is there already");
    };
    let files = Files::open(of.dir.path(), &catalog).unwrap();
    files.move_all(&target, &of.to).unwrap();
    let schema = schema_of(catalog.own().id(), "one");
    server.sql(&format!("DELETE FROM {schema}.key_versions"));
    fs::remove_file(of.dir.path().join("audit.seen")).unwrap();
    drop((catalog, files));
    of.run().unwrap();
    of.is_moved();
}
