//! The embedded vault as its callers see it.

use std::path::Path;
use std::sync::{Arc, Mutex};

use time::{Duration, OffsetDateTime};
use uuid::Uuid;

use super::*;
use crate::audit::Entry;
use contract::{Engine, Place, on_each};
use keys::LockedBytes;

mod concurrent;
mod contract;
mod due;
mod hosts;
mod incomplete;
mod lifecycle;
mod migration;
mod names;
mod recording;
mod revoked;
mod seen;

const RSA_OAEP: WrapAlgorithm = WrapAlgorithm::RsaOaep256;

/// A clock that stands still until it is set.
struct StoppedClock(Mutex<OffsetDateTime>);

impl StoppedClock {
    fn advance(&self, by: Duration) {
        *self.0.lock().unwrap() += by;
    }
}

impl Clock for StoppedClock {
    fn now(&self) -> OffsetDateTime {
        *self.0.lock().unwrap()
    }
}

struct Fixture {
    place: Place,
    clock: Arc<StoppedClock>,
    vault: EmbeddedVault,
    owner: Caller,
}

impl Fixture {
    /// A vault with the key `k`, of which `owner` may do everything.
    fn new(engine: Engine) -> Self {
        Self::with(engine, VaultSettings::default())
    }

    fn with(engine: Engine, settings: VaultSettings) -> Self {
        let place = Place::new(engine);
        let clock = Arc::new(StoppedClock(Mutex::new(OffsetDateTime::now_utc())));
        let (at, keys) = (place.vault(), Arc::new(SoftwareKeys));
        let vault =
            EmbeddedVault::create_in(at, "vault", &settings, clock.clone(), keys, None).unwrap();
        let owner = caller();
        vault
            .set_policy(&owner, owner.object_id, &Permissions::all())
            .unwrap();
        vault.create_key(&owner, "k", &rsa2048()).unwrap();
        Self {
            place,
            clock,
            vault,
            owner,
        }
    }

    /// Lets time go by in which the vault is used.
    fn live_on(&self, time: Duration) {
        live_on(&self.vault, &self.owner, &self.clock, time);
    }

    fn reopen(&self) -> Result<EmbeddedVault, VaultError> {
        self.open(self.place.vault())
    }

    /// The vault with another directory than its first one, as on another host.
    fn open_with(&self, dir: &Path) -> Result<EmbeddedVault, VaultError> {
        self.open(self.place.with(dir))
    }

    fn open(&self, at: VaultPlace) -> Result<EmbeddedVault, VaultError> {
        EmbeddedVault::open_in(at, "vault", self.clock.clone(), Arc::new(SoftwareKeys))
    }

    fn wrap(&self) -> Result<Wrapped, VaultError> {
        self.vault
            .wrap_key(&self.owner, &latest("k"), RSA_OAEP, &[9; 64])
    }

    fn unwrap(&self, wrapped: &Wrapped) -> Result<LockedBytes, VaultError> {
        let key = version("k", &wrapped.key_version);
        self.vault
            .unwrap_key(&self.owner, &key, RSA_OAEP, &wrapped.value)
    }

    fn set(&self, change: AttributeChange) -> Result<KeyBundle, VaultError> {
        self.vault
            .update_key(&self.owner, &latest("k"), &change.into())
    }

    fn last_audit(&self) -> Entry {
        self.vault.audit_log().unwrap().pop().unwrap()
    }

    /// Changes the database behind the vault's back.
    fn tamper(&self, sql: &str) {
        assert!(self.place.connect().execute(sql, &[]).unwrap() > 0, "{sql}");
    }

    /// How many versions of keys there are, with those that nobody sees.
    fn stored_versions(&self) -> i64 {
        let sql = "SELECT count(*) FROM key_versions";
        self.place.connect().the_value(sql, &[]).unwrap()
    }
}

fn live_on(vault: &EmbeddedVault, owner: &Caller, clock: &StoppedClock, time: Duration) {
    let step = Duration::days(5);
    let mut left = time;
    while left > step {
        clock.advance(step);
        left -= step;
        vault.deleted_keys(owner).unwrap();
    }
    clock.advance(left);
}

fn caller() -> Caller {
    Caller::local(Uuid::new_v4())
}

fn rsa2048() -> NewKey {
    NewKey::new(KeySize::Rsa2048)
}

fn latest(name: &str) -> KeyId {
    KeyId {
        name: name.into(),
        version: None,
    }
}

fn version(name: &str, version: &str) -> KeyId {
    KeyId {
        name: name.into(),
        version: Some(version.into()),
    }
}

fn code<T>(result: Result<T, VaultError>) -> VaultErrorCode {
    result.err().unwrap().code
}

#[test]
fn a_wrapped_secret_comes_back_after_reopening_and_under_its_own_version() {
    on_each(|engine| {
        let fixture = Fixture::new(engine);
        let first = fixture.wrap().unwrap();
        fixture
            .vault
            .create_key(&fixture.owner, "k", &rsa2048())
            .unwrap();
        let second = fixture.wrap().unwrap();
        assert_ne!(first.key_version, second.key_version);
        let vault = fixture.reopen().unwrap();
        for wrapped in [&first, &second] {
            let key = version("k", &wrapped.key_version);
            let secret = vault
                .unwrap_key(&fixture.owner, &key, RSA_OAEP, &wrapped.value)
                .unwrap();
            assert_eq!(secret.as_slice(), &[9; 64]);
        }
        let crossed = version("k", &second.key_version);
        let result = vault.unwrap_key(&fixture.owner, &crossed, RSA_OAEP, &first.value);
        assert_eq!(code(result), VaultErrorCode::UnwrapFailed);
        let result = vault.unwrap_key(&fixture.owner, &latest("k"), RSA_OAEP, &second.value);
        assert_eq!(code(result), VaultErrorCode::BadParameter);
        let versions = vault.key_versions(&fixture.owner, "k").unwrap();
        assert_eq!(versions.len(), 2);
        assert!(versions[1].key.kid.ends_with(&second.key_version));
        assert_eq!(vault.keys(&fixture.owner).unwrap(), versions[1..]);
    });
}

#[test]
fn each_operation_needs_its_own_permission_and_names_it() {
    on_each(|engine| {
        use KeyPermission::*;
        let fixture = Fixture::new(engine);
        let (vault, owner) = (&fixture.vault, &fixture.owner);
        let wrapped = fixture.wrap().unwrap();
        let used = version("k", &wrapped.key_version);
        let pem = "no key";
        type Attempt<'a> = Box<dyn Fn(&Caller) -> Result<(), VaultError> + 'a>;
        let attempts: Vec<(KeyPermission, Attempt<'_>)> = vec![
            (Get, Box::new(|c| vault.key(c, &used).map(drop))),
            (List, Box::new(|c| vault.keys(c).map(drop))),
            (List, Box::new(|c| vault.key_versions(c, "k").map(drop))),
            (
                Create,
                Box::new(|c| vault.create_key(c, "n", &rsa2048()).map(drop)),
            ),
            (
                Import,
                Box::new(|c| {
                    vault
                        .import_key(c, "n", &KeyMaterial::Pem(pem), &KeyChange::default())
                        .map(drop)
                }),
            ),
            (
                Update,
                Box::new(|c| vault.update_key(c, &used, &KeyChange::default()).map(drop)),
            ),
            (
                WrapKey,
                Box::new(|c| vault.wrap_key(c, &used, RSA_OAEP, &[1]).map(drop)),
            ),
            (
                UnwrapKey,
                Box::new(|c| {
                    vault
                        .unwrap_key(c, &used, RSA_OAEP, &wrapped.value)
                        .map(drop)
                }),
            ),
        ];
        for (permission, attempt) in attempts {
            let all_but_it: Permissions = KeyPermission::ALL
                .iter()
                .copied()
                .filter(|p| *p != permission)
                .collect();
            let poor = caller();
            // Refusals of one kind are counted for a second.
            let attempt = |caller: &Caller| {
                fixture.clock.advance(Duration::seconds(2));
                attempt(caller)
            };
            let refused = |error: VaultError| {
                assert_eq!(error.code, VaultErrorCode::Forbidden, "{permission}");
                assert!(
                    error.message.contains(&format!("'{permission}'")),
                    "{error}"
                );
                let audit = fixture.last_audit();
                assert_eq!(audit.event.caller, poor.object_id.to_string());
                assert_eq!(audit.event.code.as_deref(), Some("Forbidden"));
            };
            refused(attempt(&poor).unwrap_err());
            vault
                .set_policy(owner, poor.object_id, &all_but_it)
                .unwrap();
            refused(attempt(&poor).unwrap_err());

            let only_it: Permissions = [permission].into_iter().collect();
            vault.set_policy(owner, poor.object_id, &only_it).unwrap();
            match attempt(&poor) {
                Ok(()) => assert_eq!(fixture.last_audit().event.code, None),
                // The import is let through to its PEM, which is none.
                Err(e) => assert_eq!(e.code, VaultErrorCode::BadParameter, "{permission}: {e}"),
            }
            vault.delete_policy(owner, poor.object_id).unwrap();
            refused(attempt(&poor).unwrap_err());
        }
    });
}

#[test]
fn the_refusal_of_a_disk_permission_gives_the_command_that_grants_it() {
    on_each(|engine| {
        let fixture = Fixture::new(engine);
        let identity = caller();
        let id = identity.object_id;
        let lists: Permissions = "list wrapKey".parse().unwrap();
        fixture
            .vault
            .set_policy(&fixture.owner, id, &lists)
            .unwrap();
        let error = fixture.vault.key(&identity, &latest("k")).unwrap_err();
        let command = format!(
            "`sealdisk keyvault set-policy vault --object-id {id} --key-permissions \
             get list wrapKey unwrapKey`"
        );
        assert!(error.message.contains(&command), "{error}");
    });
}

#[test]
fn a_key_is_used_only_while_enabled_and_valid() {
    on_each(|engine| {
        let fixture = Fixture::new(engine);
        let wrapped = fixture.wrap().unwrap();
        let both = |expected: Option<VaultErrorCode>| {
            let outcomes = [
                fixture.wrap().err().map(|e| e.code),
                fixture.unwrap(&wrapped).err().map(|e| e.code),
            ];
            assert_eq!(outcomes, [expected; 2]);
            let recorded = fixture.last_audit().event.code;
            assert_eq!(recorded.as_deref(), expected.map(VaultErrorCode::as_str));
        };
        let enabled = |enabled| AttributeChange {
            enabled: Some(enabled),
            ..AttributeChange::default()
        };
        fixture.set(enabled(false)).unwrap();
        both(Some(VaultErrorCode::KeyDisabled));
        let bundle = fixture.vault.key(&fixture.owner, &latest("k")).unwrap();
        assert!(
            !bundle.attributes.enabled,
            "a disabled key can still be looked at"
        );
        fixture.set(enabled(true)).unwrap();
        both(None);

        let now = fixture.clock.now();
        fixture
            .set(AttributeChange {
                enabled: None,
                not_before: Some(Some(now + Duration::HOUR)),
                expires: Some(Some(now + 2 * Duration::HOUR)),
            })
            .unwrap();
        both(Some(VaultErrorCode::KeyNotYetValid));
        fixture.clock.advance(Duration::HOUR);
        both(None);
        fixture.clock.advance(Duration::HOUR - Duration::NANOSECOND);
        both(None);
        fixture.clock.advance(Duration::NANOSECOND);
        both(Some(VaultErrorCode::KeyExpired));

        let reversed = AttributeChange {
            expires: Some(Some(now)),
            ..AttributeChange::default()
        };
        assert_eq!(code(fixture.set(reversed)), VaultErrorCode::BadParameter);
    });
}

#[test]
fn missing_keys_and_bad_names_are_told_apart_and_recorded() {
    on_each(|engine| {
        let fixture = Fixture::new(engine);
        let (vault, owner) = (&fixture.vault, &fixture.owner);
        let missing = version("k", &"0".repeat(32));
        assert_eq!(
            code(vault.key(owner, &missing)),
            VaultErrorCode::KeyNotFound
        );
        assert_eq!(
            code(vault.key(owner, &latest("x"))),
            VaultErrorCode::KeyNotFound
        );
        let wrap = vault.wrap_key(owner, &latest("x"), RSA_OAEP, &[1]);
        assert_eq!(code(wrap), VaultErrorCode::KeyNotFound);
        assert_eq!(
            code(vault.key_versions(owner, "x")),
            VaultErrorCode::KeyNotFound
        );
        let long = "x".repeat(10_000);
        let bad = vault.create_key(owner, &long, &rsa2048());
        assert_eq!(code(bad), VaultErrorCode::BadParameter);
        let audit = fixture.last_audit();
        assert_eq!(audit.event.operation, "KeyCreate");
        assert_eq!(audit.event.key.unwrap().len(), 127);
        assert_eq!(audit.event.code.as_deref(), Some("BadParameter"));
        assert_eq!(
            code(vault.delete_policy(owner, Uuid::new_v4())),
            VaultErrorCode::PolicyNotFound
        );
    });
}

#[test]
fn the_audit_log_tells_who_did_what_with_which_version() {
    on_each(|engine| {
        let fixture = Fixture::new(engine);
        let wrapped = fixture.wrap().unwrap();
        fixture.unwrap(&wrapped).unwrap();
        fixture
            .set(AttributeChange {
                enabled: Some(false),
                ..AttributeChange::default()
            })
            .unwrap();
        fixture.unwrap(&wrapped).err().unwrap();
        let log = fixture.reopen().unwrap().audit_log().unwrap();
        let lines: Vec<_> = log
            .iter()
            .map(|r| (r.event.operation.as_str(), r.event.code.as_deref()))
            .collect();
        assert_eq!(
            lines,
            [
                ("VaultSetPolicy", None),
                ("KeyCreate", None),
                ("KeyWrap", None),
                ("KeyUnwrap", None),
                ("KeyUpdate", None),
                ("KeyUnwrap", Some("KeyDisabled")),
            ]
        );
        assert!(
            log.iter()
                .all(|r| r.event.caller == fixture.owner.object_id.to_string())
        );
        assert_eq!(log[2].event.version.as_ref(), Some(&wrapped.key_version));
        assert_eq!(log[4].event.detail.as_deref(), Some("enabled=false"));
    });
}

#[test]
fn what_cannot_be_recorded_is_not_answered() {
    on_each(|engine| {
        let fixture = Fixture::new(engine);
        let wrapped = fixture.wrap().unwrap();
        fixture.place.refuse_records(true);
        assert_eq!(code(fixture.unwrap(&wrapped)), VaultErrorCode::Internal);
        let (vault, owner) = (&fixture.vault, &fixture.owner);
        let made = vault.create_key(owner, "new", &rsa2048());
        assert_eq!(code(made), VaultErrorCode::Internal);
        fixture.place.refuse_records(false);
        assert_eq!(
            code(vault.key(owner, &latest("new"))),
            VaultErrorCode::KeyNotFound
        );
        fixture.unwrap(&wrapped).unwrap();
    });
}

#[test]
fn a_key_that_was_tampered_with_at_rest_is_refused() {
    on_each(|engine| {
        let changes = [
            "UPDATE key_versions SET sealed = n",
            "UPDATE key_versions SET n = (SELECT n FROM key_versions WHERE name = 'other')",
            "UPDATE key_versions SET sealed = (SELECT sealed FROM key_versions WHERE name = 'other')",
            "UPDATE key_versions SET e = n",
        ];
        for change in changes {
            let fixture = Fixture::new(engine);
            let (vault, owner) = (&fixture.vault, &fixture.owner);
            vault.create_key(owner, "other", &rsa2048()).unwrap();
            let wrapped = fixture.wrap().unwrap();
            fixture.tamper(&format!("{change} WHERE name = 'k'"));
            assert_eq!(
                code(fixture.unwrap(&wrapped)),
                VaultErrorCode::Tampered,
                "{change}"
            );
            assert_eq!(code(fixture.wrap()), VaultErrorCode::Tampered, "{change}");
        }
    });
}

#[test]
fn no_private_key_is_in_the_clear_in_the_vaults_files() {
    use rsa::pkcs8::EncodePrivateKey;
    use rsa::traits::PrivateKeyParts;
    let fixture = Fixture::new(Engine::Sqlite);
    let key = rsa::PrivateKey::new(&mut getrandom::SysRng, 2048).unwrap();
    let pem = key.to_pkcs8_pem(rsa::pkcs8::LineEnding::LF).unwrap();
    fixture
        .vault
        .import_key(
            &fixture.owner,
            "imported",
            &KeyMaterial::Pem(&pem),
            &KeyChange::default(),
        )
        .unwrap();
    let prime = key.primes()[0].to_be_bytes();
    for entry in std::fs::read_dir(fixture.place.dir()).unwrap() {
        let bytes = std::fs::read(entry.unwrap().path()).unwrap();
        let found = bytes.windows(32).any(|w| w == &prime[..32]);
        assert!(!found);
    }
}

#[test]
fn another_vaults_master_key_and_a_missing_vault_are_refused() {
    on_each(|engine| {
        let fixture = Fixture::new(engine);
        let other = Fixture::new(engine);
        let master = |f: &Fixture| f.place.dir().join("master.key");
        std::fs::copy(master(&other), master(&fixture)).unwrap();
        let error = fixture.reopen().err().unwrap();
        assert_eq!(error.code, VaultErrorCode::MasterKey);
        assert!(error.message.contains("not the one"), "{error}");
        std::fs::remove_file(master(&fixture)).unwrap();
        assert_eq!(code(fixture.reopen()), VaultErrorCode::MasterKey);
        let (clock, keys) = (fixture.clock.clone(), Arc::new(SoftwareKeys));
        let renamed = EmbeddedVault::open_in(other.place.vault(), "renamed", clock, keys);
        assert_eq!(code(renamed), VaultErrorCode::VaultNotFound);
        let (clock, keys) = (fixture.clock.clone(), Arc::new(SoftwareKeys));
        let empty = Place::new(engine);
        let none = EmbeddedVault::open_in(empty.vault(), "vault", clock, keys);
        assert_eq!(code(none), VaultErrorCode::VaultNotFound);
        assert_eq!(empty.dir().read_dir().unwrap().count(), 0);
    });
}
