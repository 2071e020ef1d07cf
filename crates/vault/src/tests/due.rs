//! What is due and fails stops nothing; who used a key last.

use super::*;
use crate::private_keys::PrivateKeys;
use std::sync::atomic::{AtomicBool, Ordering};

/// Keys as in the database, of a type that a device has, whose destruction can be refused.
struct Device {
    refuses: AtomicBool,
}

impl PrivateKeys for Device {
    fn key_type(&self) -> KeyType {
        KeyType::RsaHsm
    }

    fn generate(&self, id: &PrivateKeyId<'_>, size: KeySize) -> Result<NewPrivateKey, VaultError> {
        match self.refuses.load(Ordering::Relaxed) {
            true => Err(VaultError::new(VaultErrorCode::Unreachable, "no")),
            false => SoftwareKeys.generate(id, size),
        }
    }

    fn import(&self, id: &PrivateKeyId<'_>, key: &RsaKey) -> Result<NewPrivateKey, VaultError> {
        SoftwareKeys.import(id, key)
    }

    fn open(&self, material: &[u8]) -> Result<Arc<dyn PrivateKey>, VaultError> {
        SoftwareKeys.open(material)
    }

    fn delete(&self, _: &[u8]) -> Result<(), VaultError> {
        match self.refuses.load(Ordering::Relaxed) {
            true => Err(VaultError::new(VaultErrorCode::Unreachable, "no")),
            false => Ok(()),
        }
    }
}

struct DeviceVault {
    _place: Place,
    device: Arc<Device>,
    clock: Arc<StoppedClock>,
    vault: EmbeddedVault,
    owner: Caller,
}

impl DeviceVault {
    fn new(engine: Engine) -> Self {
        let place = Place::new(engine);
        let clock = Arc::new(StoppedClock(Mutex::new(OffsetDateTime::now_utc())));
        let device = Arc::new(Device {
            refuses: AtomicBool::new(false),
        });
        let settings = VaultSettings::default();
        let (at, now) = (place.vault(), clock.clone());
        let vault =
            EmbeddedVault::create_in(at, "vault", &settings, now, device.clone(), None).unwrap();
        let owner = caller();
        vault
            .set_policy(&owner, owner.object_id, &Permissions::all())
            .unwrap();
        for name in ["k", "stubborn", "other"] {
            vault.create_key(&owner, name, &rsa2048()).unwrap();
        }
        Self {
            _place: place,
            device,
            clock,
            vault,
            owner,
        }
    }

    fn refuse(&self, refuses: bool) {
        self.device.refuses.store(refuses, Ordering::Relaxed);
    }

    fn purges(&self) -> Vec<Option<String>> {
        let log = self.vault.audit_log().unwrap().into_iter();
        log.filter(|e| {
            e.event.operation == "KeyPurge" && e.event.key.as_deref() == Some("stubborn")
        })
        .map(|e| e.event.code)
        .collect()
    }
}

#[test]
fn a_purge_that_fails_is_tried_again_after_pauses_that_grow() {
    on_each(|engine| {
        let fixture = DeviceVault::new(engine);
        let (vault, owner) = (&fixture.vault, &fixture.owner);
        vault.delete_key(owner, "stubborn").unwrap();
        live_on(vault, owner, &fixture.clock, Duration::days(90));
        fixture.refuse(true);
        // Whatever is asked of the vault does not touch the device.
        let wrapped = vault.wrap_key(owner, &latest("k"), RSA_OAEP, &[9; 64]);
        wrapped.unwrap();
        assert_eq!(fixture.purges(), []);
        for (minutes, tries) in [(0, 1), (0, 1), (1, 2), (1, 2), (1, 3), (3, 3), (1, 4)] {
            fixture.clock.advance(Duration::minutes(minutes));
            let due = vault.run_due().unwrap();
            assert!(due.done.is_empty(), "{due:?}");
            assert_eq!(fixture.purges().len(), tries);
        }
        let unreachable = Some("VaultUnreachable".to_owned());
        assert!(fixture.purges().iter().all(|code| *code == unreachable));
        let taken = vault.create_key(owner, "stubborn", &rsa2048());
        assert_eq!(code(taken), VaultErrorCode::KeyBeingPurged);
        assert!(vault.deleted_keys(owner).unwrap().is_empty());

        fixture.refuse(false);
        assert_eq!(vault.run_due().unwrap(), Due::default());
        vault.end_pauses().unwrap();
        assert_eq!(vault.run_due().unwrap().done.len(), 1);
        assert_eq!(fixture.purges().pop(), Some(None));
        vault.create_key(owner, "stubborn", &rsa2048()).unwrap();
    });
}

#[test]
fn a_key_that_is_purged_on_request_cannot_be_recovered_though_the_device_fails() {
    on_each(|engine| {
        let fixture = DeviceVault::new(engine);
        let (vault, owner) = (&fixture.vault, &fixture.owner);
        vault.delete_key(owner, "stubborn").unwrap();
        fixture.refuse(true);
        let failed = vault.purge_key(owner, "stubborn").unwrap_err();
        assert_eq!(failed.code, VaultErrorCode::Unreachable);
        let gone = vault.recover_key(owner, "stubborn");
        assert_eq!(code(gone), VaultErrorCode::KeyNotFound);
        fixture.refuse(false);
        vault.end_pauses().unwrap();
        assert_eq!(vault.run_due().unwrap().done.len(), 1);
        let unreachable = Some("VaultUnreachable".to_owned());
        assert_eq!(fixture.purges(), [None, unreachable, None]);
    });
}

#[test]
fn a_rotation_that_fails_keeps_the_others_from_nothing() {
    on_each(|engine| {
        let fixture = DeviceVault::new(engine);
        let (vault, owner) = (&fixture.vault, &fixture.owner);
        let policy = r#"{"lifetimeActions": [{"trigger": {"timeAfterCreate": "P30D"},
            "action": {"type": "Rotate"}}], "attributes": {}}"#;
        let policy: RotationPolicy = serde_json::from_str(policy).unwrap();
        for name in ["k", "other"] {
            vault.set_rotation_policy(owner, name, &policy).unwrap();
        }
        fixture.clock.advance(Duration::days(31));
        fixture.refuse(true);
        assert_eq!(vault.run_due().unwrap().failed.len(), 2);
        assert_eq!(
            vault.run_due().unwrap(),
            Due::default(),
            "they are left alone"
        );
        fixture.refuse(false);
        fixture.clock.advance(Duration::minutes(1));
        assert_eq!(vault.run_due().unwrap().done.len(), 2);
    });
}

#[test]
fn the_last_use_of_each_key_version_is_known() {
    on_each(|engine| {
        let fixture = Fixture::new(engine);
        let (vault, owner) = (&fixture.vault, &fixture.owner);
        let layer = Uuid::new_v4();
        let (web, db) = (owner.for_layer("web", layer), owner.for_layer("db", layer));
        let wrapped = vault
            .wrap_key(&web, &latest("k"), RSA_OAEP, &[9; 64])
            .unwrap();
        let first = version("k", &wrapped.key_version);
        for (caller, seconds) in [(&web, 1), (&db, 2), (&web, 3)] {
            fixture.clock.advance(Duration::seconds(seconds));
            vault
                .unwrap_key(caller, &first, RSA_OAEP, &wrapped.value)
                .unwrap();
        }
        let stranger = caller();
        let refused = vault.unwrap_key(&stranger, &first, RSA_OAEP, &wrapped.value);
        assert_eq!(code(refused), VaultErrorCode::Forbidden);
        vault.create_key(owner, "k", &rsa2048()).unwrap();

        let now = fixture.clock.now();
        let uses = vault.last_uses("k", first.version.as_deref()).unwrap();
        let seen: Vec<_> = uses
            .iter()
            .map(|u| (u.operation.as_str(), u.disk.as_deref(), u.uses))
            .collect();
        let expected = [
            ("KeyUnwrap", Some("db"), 1),
            ("KeyUnwrap", Some("web"), 2),
            ("KeyWrap", Some("web"), 1),
        ];
        assert_eq!(seen, expected);
        assert!(uses.iter().all(|u| u.caller == owner.object_id));
        assert_eq!(
            (uses[1].last, uses[0].last),
            (now, now - Duration::seconds(3))
        );
        assert_eq!(uses[1].last - uses[1].first, Duration::seconds(5));
        assert_eq!(vault.last_uses("k", None).unwrap(), uses);
        assert!(vault.last_uses("k", Some("0")).unwrap().is_empty());
        let entry = &vault.audit_log().unwrap()[3];
        assert_eq!(entry.event.disk.as_deref(), Some("web"));
        assert_eq!(entry.event.detail, Some(format!("layer {layer}")));
    });
}

#[test]
fn disks_that_a_client_makes_up_do_not_fill_the_vault() {
    on_each(|engine| {
        let fixture = Fixture::new(engine);
        let (vault, owner) = (&fixture.vault, &fixture.owner);
        for n in 0..300 {
            let disk = owner.for_layer(&format!("disk{n}"), Uuid::nil());
            vault
                .wrap_key(&disk, &latest("k"), RSA_OAEP, &[9; 64])
                .unwrap();
        }
        let uses = vault.last_uses("k", None).unwrap();
        assert_eq!(uses.len(), 257);
        assert_eq!(uses.iter().map(|u| u.uses).sum::<u64>(), 300);
    });
}

#[test]
fn a_clock_that_jumps_ahead_destroys_nothing_that_was_deleted() {
    on_each(|engine| {
        let fixture = Fixture::new(engine);
        let (vault, owner) = (&fixture.vault, &fixture.owner);
        vault.create_key(owner, "other", &rsa2048()).unwrap();
        vault.delete_key(owner, "k").unwrap();
        fixture.clock.advance(Duration::days(100));
        // Whatever comes first, and though a record of that time comes before it.
        vault
            .wrap_key(owner, &latest("other"), RSA_OAEP, &[9; 64])
            .unwrap();
        vault.key(owner, &latest("other")).unwrap();
        vault.deleted_keys(owner).unwrap();
        fixture.reopen().unwrap();
        vault.end_pauses().unwrap();
        assert_eq!(vault.run_due().unwrap(), Due::default());
        // It is put right.
        fixture.clock.advance(-Duration::days(100));
        vault.recover_key(owner, "k").unwrap();
        vault.delete_key(owner, "k").unwrap();
        fixture.live_on(Duration::days(90));
        assert_eq!(vault.run_due().unwrap().done.len(), 1);
    });
}

#[test]
fn a_vault_that_nobody_has_used_for_long_purges_a_day_later() {
    on_each(|engine| {
        let fixture = Fixture::new(engine);
        let (vault, owner) = (&fixture.vault, &fixture.owner);
        vault.delete_key(owner, "k").unwrap();
        fixture.clock.advance(Duration::days(100));
        assert_eq!(vault.run_due().unwrap(), Due::default());
        fixture.clock.advance(Duration::DAY - Duration::SECOND);
        assert_eq!(vault.run_due().unwrap(), Due::default());
        fixture.clock.advance(Duration::SECOND);
        assert_eq!(vault.run_due().unwrap().done, ["purged the key 'k'"]);
    });
}

#[test]
fn a_vault_that_is_used_now_and_then_purges_when_it_is_used_again() {
    on_each(|engine| {
        let fixture = Fixture::new(engine);
        fixture.vault.delete_key(&fixture.owner, "k").unwrap();
        fixture.clock.advance(Duration::days(100));
        assert_eq!(fixture.vault.run_due().unwrap(), Due::default());
        fixture.clock.advance(Duration::days(8));
        let done = fixture.vault.run_due().unwrap().done;
        assert_eq!(done, ["purged the key 'k'"]);
    });
}

#[test]
fn the_end_of_a_whole_vault_is_put_off_likewise() {
    on_each(|engine| {
        let fixture = Fixture::new(engine);
        fixture.vault.delete(&fixture.owner).unwrap();
        let database = fixture.place.database();
        let puts_off = || database.puts_off_purge(fixture.clock.now()).unwrap();
        assert!(!puts_off(), "it was used just now");
        fixture.clock.advance(Duration::days(100));
        assert!(puts_off() && puts_off());
        fixture.clock.advance(Duration::DAY);
        assert!(!puts_off());
    });
}

/// A purge that was begun before goes on by whatever clock, and its record is of that clock.
#[test]
fn the_record_of_one_purge_has_the_clock_believed_for_no_other() {
    on_each(|engine| {
        let fixture = DeviceVault::new(engine);
        let (vault, owner) = (&fixture.vault, &fixture.owner);
        vault.delete_key(owner, "k").unwrap();
        live_on(vault, owner, &fixture.clock, Duration::days(90));
        fixture.refuse(true);
        assert_eq!(vault.run_due().unwrap().failed.len(), 1);
        vault.delete_key(owner, "stubborn").unwrap();
        fixture.refuse(false);
        fixture.clock.advance(Duration::days(100));
        assert_eq!(vault.run_due().unwrap().done, ["purged the key 'k'"]);
    });
}
