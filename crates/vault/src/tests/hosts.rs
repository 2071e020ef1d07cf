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
fn a_host_whose_clock_is_behind_keeps_nobody_from_the_vault() {
    on_each(|engine| {
        let fixture = Fixture::new(engine);
        let dir = tempfile::tempdir().unwrap();
        let master = |dir: &Path| dir.join("master.key");
        std::fs::copy(master(fixture.place.dir()), master(dir.path())).unwrap();
        for behind in [11, 15, 19, 60] {
            let now = fixture.clock.now();
            let clock = Arc::new(StoppedClock(Mutex::new(now - Duration::seconds(behind))));
            let keys = Arc::new(SoftwareKeys);
            let at = match fixture.place.schema() {
                None => fixture.place.vault(),
                Some(_) => fixture.place.with(dir.path()),
            };
            let other = EmbeddedVault::open_in(at, "vault", clock.clone(), keys).unwrap();
            let set = caller();
            let disks = Permissions::for_disks();
            fixture
                .vault
                .set_policy(&fixture.owner, set.object_id, &disks)
                .unwrap();
            let get = |vault: &EmbeddedVault| vault.key(&set, &latest("k")).map(drop);
            for _ in 0..10 {
                get(&fixture.vault).unwrap();
                get(&other).unwrap();
                fixture.clock.advance(Duration::seconds(1));
                clock.advance(Duration::seconds(1));
            }
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

/// As when a standby that was behind takes the place of the server.
#[test]
fn a_new_master_key_that_the_server_loses_leaves_the_old_one() {
    let Some(server) = PostgresServer::shared() else {
        return;
    };
    let fixture = Fixture::new(Engine::Postgres(server));
    let wrapped = fixture.wrap().unwrap();
    let schema = fixture.place.schema().unwrap();
    server.sql(&format!(
        "SET search_path = {schema};
         CREATE TABLE kept_vault AS SELECT * FROM vault;
         CREATE TABLE kept_keys AS SELECT * FROM key_versions;
         CREATE TABLE kept_log AS SELECT * FROM audit_log;"
    ));
    let before = std::fs::read(fixture.place.dir().join("master.key")).unwrap();
    let resealed = fixture.vault.reseal(&fixture.owner, &MasterPlace::Beside);
    let Some(MasterSource::File { path }) = resealed.unwrap().left else {
        panic!("the old key is not told of");
    };
    assert_eq!(std::fs::read(&path).unwrap(), before);
    assert!(!fixture.place.dir().join("master.key").exists());
    fixture.unwrap(&wrapped).unwrap();
    // What was set aside stays so.
    fixture
        .vault
        .reseal(&fixture.owner, &MasterPlace::Beside)
        .unwrap();
    assert!(path.exists());
    server.sql(&format!(
        "SET search_path = {schema};
         UPDATE vault SET master = kept.master, master_check = kept.master_check FROM kept_vault kept;
         UPDATE key_versions SET sealed = kept.sealed FROM kept_keys kept WHERE kept.seq = key_versions.seq;
         UPDATE audit_log SET sealed_key = kept.sealed_key FROM kept_log kept;
         DELETE FROM backup_keys;"
    ));
    std::fs::rename(&path, fixture.place.dir().join("master.key")).unwrap();
    let vault = fixture.reopen().unwrap();
    let key = version("k", &wrapped.key_version);
    let secret = vault.unwrap_key(&fixture.owner, &key, RSA_OAEP, &wrapped.value);
    assert_eq!(secret.unwrap().as_slice(), &[9; 64]);
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
