//! Several processes that have a vault open, on several hosts where its database is on a server.

use tempfile::TempDir;
use test_support::postgres::PostgresServer;

use super::*;

/// A vault as another process has it open, on another host where that can be.
struct Other {
    vault: EmbeddedVault,
    _dir: TempDir,
}

impl Other {
    fn of(fixture: &Fixture) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let vault = match fixture.place.schema() {
            None => fixture.reopen(),
            Some(_) => {
                let master = |dir: &Path| dir.join("master.key");
                std::fs::copy(master(fixture.place.dir()), master(dir.path())).unwrap();
                fixture.open_with(dir.path())
            }
        };
        Self {
            vault: vault.unwrap(),
            _dir: dir,
        }
    }
}

#[test]
fn uses_by_several_at_once_are_each_recorded_once() {
    on_each(|engine| {
        let fixture = Fixture::new(engine);
        let others = [Other::of(&fixture), Other::of(&fixture)];
        let wrapped = fixture.wrap().unwrap();
        let key = version("k", &wrapped.key_version);
        let before = fixture.vault.audit_log().unwrap().len();
        std::thread::scope(|scope| {
            let (owner, key, wrapped) = (&fixture.owner, &key, &wrapped.value);
            for vault in [&fixture.vault, &others[0].vault, &others[1].vault] {
                vault.cache_private_keys(4);
                for _ in 0..2 {
                    scope.spawn(move || {
                        for _ in 0..5 {
                            let secret = vault.unwrap_key(owner, key, RSA_OAEP, wrapped);
                            assert_eq!(secret.unwrap().as_slice(), &[9; 64]);
                        }
                    });
                }
            }
        });
        let log = fixture.vault.audit_log().unwrap();
        assert_eq!(log.len(), before + 30);
        let uses = fixture.vault.last_uses("k", None).unwrap();
        let unwraps = uses.iter().find(|uses| uses.operation == "KeyUnwrap");
        assert_eq!(unwraps.unwrap().uses, 30);
        let report = fixture
            .vault
            .read_audit(|chain, db| chain.verify(db, "vault", &[]).unwrap());
        assert_eq!(report.finding, None);
    });
}

#[test]
fn the_limit_of_an_identity_is_one_for_all() {
    on_each(|engine| {
        let fixture = Fixture::new(engine);
        let other = Other::of(&fixture);
        let vaults = [&fixture.vault, &other.vault];
        fixture
            .vault
            .set_operations_limit(&fixture.owner, 100)
            .unwrap();
        let set = caller();
        fixture
            .vault
            .set_policy(&fixture.owner, set.object_id, &Permissions::for_disks())
            .unwrap();
        let get = |vault: &EmbeddedVault| vault.key(&set, &latest("k")).map(drop);
        let admitted = vaults.iter().cycle().take(200);
        let admitted = admitted.take_while(|vault| get(vault).is_ok()).count();
        assert!((98..=101).contains(&admitted), "{admitted}");
        for vault in vaults {
            assert_eq!(code(get(vault)), VaultErrorCode::Throttled);
        }
    });
}

#[test]
fn a_new_master_key_is_followed_by_whoever_can_read_it() {
    on_each(|engine| {
        let fixture = Fixture::new(engine);
        let other = Other::of(&fixture);
        other.vault.cache_private_keys(4);
        let wrapped = fixture.wrap().unwrap();
        let key = version("k", &wrapped.key_version);
        let unwrap = |vault: &EmbeddedVault, key: &KeyId, wrapped: &Wrapped| {
            let secret = vault.unwrap_key(&fixture.owner, key, RSA_OAEP, &wrapped.value);
            assert_eq!(secret.unwrap().as_slice(), &[9; 64]);
        };
        unwrap(&other.vault, &key, &wrapped);
        let both = tempfile::tempdir().unwrap();
        let place = MasterPlace::File(both.path().join("master.key"));
        fixture.vault.reseal(&fixture.owner, &place).unwrap();
        unwrap(&other.vault, &key, &wrapped);
        let backup = other.vault.backup_key(&fixture.owner, "k").unwrap();
        let new = rsa2048();
        other.vault.create_key(&fixture.owner, "new", &new).unwrap();
        let of_new = fixture
            .vault
            .wrap_key(&fixture.owner, &latest("new"), RSA_OAEP, &[9; 64])
            .unwrap();
        unwrap(
            &fixture.vault,
            &version("new", &of_new.key_version),
            &of_new,
        );
        fixture.vault.delete_key(&fixture.owner, "k").unwrap();
        fixture.vault.purge_key(&fixture.owner, "k").unwrap();
        fixture.vault.restore_key(&fixture.owner, &backup).unwrap();
        unwrap(&other.vault, &key, &wrapped);
    });
}

#[test]
fn a_host_without_the_master_key_is_told_how_it_gets_it() {
    let Some(server) = PostgresServer::shared() else {
        return;
    };
    let fixture = Fixture::new(Engine::Postgres(server));
    let dir = tempfile::tempdir().unwrap();
    let refused = |says: &[&str]| {
        let error = fixture.open_with(dir.path()).err().unwrap();
        assert_eq!(error.code, VaultErrorCode::MasterKey);
        for words in says {
            assert!(error.message.contains(words), "{words}: {error}");
        }
    };
    let key = dir.path().join("master.key");
    let path = key.display().to_string();
    refused(&["has not got the master key", "sealdisk-vault-vault", &path]);
    // That of another vault.
    let other = Fixture::new(Engine::Sqlite);
    std::fs::copy(other.place.dir().join("master.key"), &key).unwrap();
    refused(&["is not the one", &path]);
    let elsewhere = dir.path().join("elsewhere.key");
    let place = MasterPlace::File(elsewhere.clone());
    fixture.vault.reseal(&fixture.owner, &place).unwrap();
    fixture.open_with(dir.path()).unwrap();
    std::fs::remove_file(&elsewhere).unwrap();
    refused(&["copy ", &elsewhere.display().to_string()]);

    let tpm = MasterPlace::Tpm2 {
        pcrs: None,
        device: None,
    };
    let error = fixture.vault.reseal(&fixture.owner, &tpm).unwrap_err();
    assert_eq!(error.code, VaultErrorCode::BadParameter);
    assert!(error.message.contains("systemd-creds"), "{error}");
}

/// As of one that was purged by another host.
#[test]
fn a_vault_whose_tables_are_gone_is_not_current() {
    let Some(server) = PostgresServer::shared() else {
        return;
    };
    let fixture = Fixture::new(Engine::Postgres(server));
    let wrapped = fixture.wrap().unwrap();
    let schema = fixture.place.schema().unwrap();
    server.sql(&format!("ALTER SCHEMA {schema} RENAME TO {schema}_gone"));
    assert_eq!(
        code(fixture.unwrap(&wrapped)),
        VaultErrorCode::VaultNotFound
    );
    assert!(!fixture.vault.is_current());
    assert_eq!(code(fixture.reopen()), VaultErrorCode::VaultNotFound);
    server.sql(&format!("ALTER SCHEMA {schema}_gone RENAME TO {schema}"));
    fixture.reopen().unwrap();
}

/// The tables are those of another vault, and what is kept in memory is of the one before.
#[test]
fn another_vault_in_the_place_of_one_that_is_open_is_not_taken_for_it() {
    let Some(server) = PostgresServer::shared() else {
        return;
    };
    let fixture = Fixture::new(Engine::Postgres(server));
    fixture.vault.cache_private_keys(4);
    let wrapped = fixture.wrap().unwrap();
    fixture.unwrap(&wrapped).unwrap();
    let schema = fixture.place.schema().unwrap();
    server.sql(&format!(
        "DROP SCHEMA {schema} CASCADE; CREATE SCHEMA {schema}"
    ));
    let dir = tempfile::tempdir().unwrap();
    let (at, clock) = (fixture.place.with(dir.path()), fixture.clock.clone());
    let (settings, keys) = (VaultSettings::default(), Arc::new(SoftwareKeys));
    let new = EmbeddedVault::create_in(at, "vault", &settings, clock, keys, None).unwrap();
    assert_eq!(
        code(fixture.unwrap(&wrapped)),
        VaultErrorCode::VaultNotFound
    );
    assert_eq!(
        code(fixture.vault.keys(&fixture.owner)),
        VaultErrorCode::VaultNotFound
    );
    assert!(!fixture.vault.is_current());
    assert!(new.is_current());
    assert!(new.audit_log().unwrap().is_empty());
}
