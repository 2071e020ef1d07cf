//! Vaults on a server, which hosts share: making, using and purging them, and what a host that dies in between leaves.

use std::fs;
use std::path::{Path, PathBuf};

use tempfile::TempDir;
use test_support::postgres::PostgresServer;
use vault::{
    EmbeddedVault, KeyId, KeySize, KeyVault, NewKey, VaultErrorCode, VaultSettings, WrapAlgorithm,
};

use crate::catalog::{CatalogError, Kind, schema_of};
use crate::vault_places::MADE;
use crate::{CatalogAt, Installation, InstallationError, Place};

/// Hosts that share an installation.
struct Fleet {
    server: &'static PostgresServer,
    url: String,
}

struct Host {
    dir: TempDir,
    installation: Installation,
}

impl Fleet {
    fn new() -> Option<Self> {
        let server = PostgresServer::shared()?;
        let url = server.new_schema();
        Some(Self { server, url })
    }

    /// A host that has no keys yet.
    fn host(&self) -> Host {
        let dir = tempfile::tempdir().unwrap();
        let installation = Installation::open(Place {
            state_dir: dir.path().into(),
            catalog: CatalogAt::given(Some(&self.url)).unwrap(),
        });
        Host {
            installation: installation.unwrap(),
            dir,
        }
    }

    /// The schemas of the installation's vaults, without the beginning of their names.
    fn schemas(&self, of: &Installation) -> Vec<String> {
        let beginning = schema_of(of.id(), "").replace("vault_", "");
        let found = self.server.sql(&format!(
            "SELECT substr(nspname, {}) FROM pg_namespace WHERE starts_with(nspname::text, '{beginning}') ORDER BY 1",
            beginning.len() + 1
        ));
        found.lines().map(Into::into).collect()
    }
}

impl Host {
    fn vaults(&self) -> PathBuf {
        self.dir.path().join("vaults")
    }

    /// What is in the directory of the vaults, but the lock.
    fn dirs(&self) -> Vec<String> {
        let entries = fs::read_dir(self.vaults()).unwrap();
        let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let mut names: Vec<_> = names.filter(|name| name != ".lock").collect();
        names.sort();
        names
    }

    fn make(&self, name: &str) -> EmbeddedVault {
        self.try_to_make(name).unwrap()
    }

    fn try_to_make(&self, name: &str) -> Result<EmbeddedVault, InstallationError> {
        self.installation
            .create_vault(name, &VaultSettings::default())
    }

    fn delete(&self, name: &str) {
        let deleted = self.installation.delete_vault(name, false, |_| Ok(()));
        deleted.unwrap();
    }

    fn give_master_key(&self, name: &str, other: &Self) {
        let of = |host: &Self| host.vaults().join(name).join("master.key");
        fs::create_dir_all(other.vaults().join(name)).unwrap();
        fs::copy(of(self), of(other)).unwrap();
    }
}

fn code<T>(result: Result<T, InstallationError>) -> &'static str {
    result.err().unwrap().code()
}

#[test]
fn hosts_use_one_vault_each_with_the_master_key() {
    let Some(fleet) = Fleet::new() else {
        return;
    };
    let (one, other) = (fleet.host(), fleet.host());
    let made = one.make("my-vault");
    let operator = one.installation.operator();
    let new = NewKey::new(KeySize::Rsa2048);
    made.create_key(&operator, "k", &new).unwrap();
    assert_eq!(fleet.schemas(&one.installation), ["vault_my_vault"]);
    assert_eq!(one.dirs(), ["my-vault"]);
    assert!(!one.vaults().join("my-vault/vault.db").exists());

    let refused = other.installation.vault("my-vault").err().unwrap();
    assert_eq!(refused.code(), "VaultMasterKey");
    let refused = refused.to_string();
    let file = other.vaults().join("my-vault/master.key");
    assert!(refused.contains(&file.display().to_string()), "{refused}");
    assert!(matches!(
        other.try_to_make("my-vault"),
        Err(InstallationError::Catalog(CatalogError::Exists { .. }))
    ));
    // What is seen of a vault without its keys.
    let looked = other.installation.look_at_vault("my-vault").unwrap();
    assert_eq!(looked.id(), made.id());
    assert_eq!(looked.seen_keys().unwrap().len(), 1);
    assert!(looked.connection().size().unwrap() > 0);

    one.give_master_key("my-vault", &other);
    let theirs = other.installation.vault("my-vault").unwrap();
    let key = |version: Option<String>| KeyId {
        name: "k".into(),
        version,
    };
    let algorithm = WrapAlgorithm::RsaOaep256;
    let wrapped = made.wrap_key(&operator, &key(None), algorithm, &[7; 64]);
    let wrapped = wrapped.unwrap();
    let version = key(Some(wrapped.key_version));
    let secret = theirs.unwrap_key(&operator, &version, algorithm, &wrapped.value);
    assert_eq!(secret.unwrap().as_slice(), &[7; 64]);
    let report = made.read_audit(|chain, db| chain.verify(db, "vault/my-vault", &[]).unwrap());
    assert_eq!(report.finding, None);
}

#[test]
fn a_maker_that_fails_leaves_nothing() {
    let Some(fleet) = Fleet::new() else {
        return;
    };
    let host = fleet.host();
    let settings = VaultSettings {
        retention_days: 1,
        ..VaultSettings::default()
    };
    let refused = host.installation.create_vault("vault", &settings);
    assert_eq!(code(refused), "BadParameter");
    assert!(fleet.schemas(&host.installation).is_empty());
    assert!(host.dirs().is_empty());
    host.make("vault");
}

/// What a maker leaves that dies at each step, as `vault_making.rs` has them.
#[test]
fn what_a_maker_leaves_is_ended_or_removed() {
    let Some(fleet) = Fleet::new() else {
        return;
    };
    let host = fleet.host();
    let id = host.make("first").id();
    let schema = schema_of(host.installation.id(), "first");
    let (named, made) = (
        host.vaults().join("first"),
        host.vaults().join(format!("{MADE}{id}")),
    );
    // After step 3: who opens it next ends it, and so does the next maker.
    for ended_by_maker in [false, true] {
        fs::rename(&named, &made).unwrap();
        match ended_by_maker {
            false => drop(host.installation.vault("first").unwrap()),
            true => drop(host.make("second")),
        }
        assert!(named.join("master.key").exists() && !made.exists());
        host.installation.vault("first").unwrap();
    }
    // After step 2: nobody has used it. After step 1 the directory has another name.
    for left in [&made, &host.vaults().join(".making")] {
        let (beginning, _) = schema.split_once("vault_").unwrap();
        let catalog = fleet.url.rsplit_once("%3D").unwrap().1;
        fleet.server.sql(&format!(
            "BEGIN; SET LOCAL search_path = {catalog}; ALTER SCHEMA {schema} RENAME TO {beginning}making_0; \
             DELETE FROM vaults WHERE name = 'first'; COMMIT"
        ));
        fs::rename(&named, left).unwrap();
        assert_eq!(code(host.installation.vault("first")), "VaultNotFound");
        host.make("first");
        let mut schemas = fleet.schemas(&host.installation);
        schemas.retain(|name| name != "vault_second");
        assert_eq!(schemas, ["vault_first"]);
        assert!(!left.exists());
        assert_eq!(host.dirs(), ["first", "second"]);
    }
}

#[test]
fn a_purged_vault_goes_from_all_hosts_and_its_name_is_free() {
    let Some(fleet) = Fleet::new() else {
        return;
    };
    let (one, other) = (fleet.host(), fleet.host());
    let made = one.make("vault");
    one.give_master_key("vault", &other);
    other.delete("vault");
    assert_eq!(one.installation.deleted_vaults().unwrap().len(), 1);
    let refused = one.try_to_make("vault");
    assert_eq!(code(refused), "VaultDeleted");
    other.installation.recover_vault("vault").unwrap();
    other.delete("vault");
    other.installation.purge_vault("vault").unwrap();
    assert!(fleet.schemas(&one.installation).is_empty());
    assert!(other.dirs().is_empty());
    assert_eq!(code(one.installation.vault("vault")), "VaultNotFound");
    let url = "https://vault.vault.localhost";
    let gone = one
        .installation
        .key_vault_at(url, &crate::catalog::DesIdentity::SystemAssigned);
    assert_eq!(code(gone), "KeyNotFound");
    // Who has it open finds out.
    let operator = one.installation.operator();
    let refused = made.keys(&operator).err().unwrap();
    assert_eq!(refused.code, VaultErrorCode::VaultNotFound);
    assert!(!made.is_current());

    // The master key of the old one does not stay in the way.
    assert_eq!(one.dirs(), ["vault"]);
    let again = one.make("vault");
    assert_ne!(again.id(), made.id());
    assert_eq!(one.dirs(), ["vault"]);
    assert!(again.older().is_none());
}

/// As after a server was put back to before a vault was made: nobody's master key goes for that.
#[test]
fn a_master_key_of_a_vault_that_is_lost_stays() {
    let Some(fleet) = Fleet::new() else {
        return;
    };
    let host = fleet.host();
    host.make("vault");
    let schema = schema_of(host.installation.id(), "vault");
    fleet.server.sql(&format!("DROP SCHEMA {schema} CASCADE"));
    let record = host.installation.catalog().vault("vault").unwrap().record;
    assert!(host.installation.is_lost(&record));
    assert_eq!(code(host.installation.vault("vault")), "VaultNotFound");
    let refused = host.try_to_make("vault").err().unwrap().to_string();
    assert!(refused.contains("its tables at"), "{refused}");
    let refused = host
        .installation
        .delete_vault("vault", false, |_| Ok(()))
        .err()
        .unwrap();
    assert_eq!(refused.code(), "Conflict");
    host.installation.catalog().forget_vault("vault").unwrap();
    let refused = host.try_to_make("vault").err().unwrap();
    assert_eq!(refused.code(), "Conflict");
    assert!(host.vaults().join("vault/master.key").exists());
    let kind = CatalogError::NotFound {
        kind: Kind::Vault,
        name: "vault".into(),
    };
    let missing = host.installation.catalog().vault("vault").err().unwrap();
    assert_eq!(missing.to_string(), kind.to_string());
}

/// As with a catalog that was put back alone.
#[test]
fn a_vault_that_the_catalog_does_not_know_is_registered() {
    let Some(fleet) = Fleet::new() else {
        return;
    };
    let host = fleet.host();
    let id = host.make("vault").id();
    for by_rebuild in [true, false] {
        host.installation.catalog().forget_vault("vault").unwrap();
        match by_rebuild {
            true => {
                let found = host.installation.register_found_vaults().unwrap();
                assert_eq!(
                    (found.registered, found.problems),
                    (vec!["vault".into()], vec![])
                );
            }
            false => assert_eq!(host.make("vault").id(), id),
        }
        assert_eq!(host.installation.vault("vault").unwrap().id(), id);
    }
}

/// Of many who make the vault of the platform key at once one does, whichever host it is on.
#[test]
fn policies_and_makers_are_one_at_a_time_on_all_hosts() {
    let Some(fleet) = Fleet::new() else {
        return;
    };
    let hosts = [fleet.host(), fleet.host()];
    let made = std::thread::scope(|scope| {
        let makers = hosts.each_ref().map(|host| {
            scope.spawn(move || {
                let policies = host.installation.lock_policies().unwrap();
                drop(policies);
                host.try_to_make("vault").is_ok()
            })
        });
        makers.map(|maker| maker.join().unwrap())
    });
    assert_eq!(made.into_iter().filter(|made| *made).count(), 1);
    let locked = hosts[0].installation.lock_policies().unwrap();
    let waits = std::thread::scope(|scope| {
        let waits = scope.spawn(|| drop(hosts[1].installation.lock_policies().unwrap()));
        std::thread::sleep(std::time::Duration::from_millis(200));
        let is_waiting = !waits.is_finished();
        drop(locked);
        waits.join().unwrap();
        is_waiting
    });
    assert!(waits);
    assert!(Path::new(&hosts[0].vaults()).is_dir());
}
