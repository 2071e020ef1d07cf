//! Deleting and recovering, backing up and restoring, rotating, and the rules of the vault.

use super::*;

fn days(n: i64) -> Duration {
    Duration::days(n)
}

fn operations(vault: &EmbeddedVault) -> Vec<(String, Option<String>)> {
    let log = vault.audit_log().unwrap();
    log.into_iter()
        .map(|e| (e.event.operation, e.event.code))
        .collect()
}

#[test]
fn a_deleted_key_is_gone_until_it_is_recovered_as_it_was() {
    on_each(|engine| {
        let fixture = Fixture::new(engine);
        let (vault, owner) = (&fixture.vault, &fixture.owner);
        let wrapped = fixture.wrap().unwrap();
        let before = vault.key(owner, &latest("k")).unwrap();
        let deleted = vault.delete_key(owner, "k").unwrap();
        assert_eq!(deleted.bundle, before);
        assert_eq!(
            deleted.recovery_id,
            "https://vault.vault.localhost/deletedkeys/k"
        );
        assert_eq!(deleted.scheduled_purge - deleted.deleted, days(90));

        let gone = |code| assert_eq!(code, VaultErrorCode::KeyNotFound);
        gone(code(vault.key(owner, &latest("k"))));
        gone(code(fixture.wrap()));
        gone(code(vault.key_versions(owner, "k")));
        gone(code(vault.delete_key(owner, "k")));
        gone(code(vault.rotate_key(owner, "k")));
        gone(code(vault.backup_key(owner, "k")));
        let error = fixture.unwrap(&wrapped).err().unwrap();
        assert!(error.message.contains("key recover k"), "{error}");
        assert_eq!(error.code.verdict(), Verdict::Refused);
        assert!(vault.keys(owner).unwrap().is_empty());

        // Its name is taken.
        let taken = vault.create_key(owner, "k", &rsa2048());
        assert_eq!(code(taken), VaultErrorCode::KeyDeleted);
        let azure = VaultErrorCode::KeyDeleted.azure();
        assert_eq!(azure.inner, Some("ObjectIsDeletedButRecoverable"));
        assert_eq!(vault.deleted_keys(owner).unwrap()[0], deleted);
        assert_eq!(vault.deleted_key(owner, "k").unwrap(), deleted);
        gone(code(vault.deleted_key(owner, "other")));

        let reopened = fixture.reopen().unwrap();
        assert_eq!(reopened.recover_key(owner, "k").unwrap(), before);
        gone(code(vault.recover_key(owner, "k")));
        fixture.unwrap(&wrapped).unwrap();
        assert!(vault.deleted_keys(owner).unwrap().is_empty());
    });
}

#[test]
fn a_purged_key_is_gone_for_good_and_its_name_is_free() {
    on_each(|engine| {
        let fixture = Fixture::new(engine);
        let (vault, owner) = (&fixture.vault, &fixture.owner);
        let wrapped = fixture.wrap().unwrap();
        assert_eq!(
            code(vault.purge_key(owner, "k")),
            VaultErrorCode::KeyNotFound
        );
        vault.delete_key(owner, "k").unwrap();
        vault.purge_key(owner, "k").unwrap();
        assert_eq!(
            code(vault.recover_key(owner, "k")),
            VaultErrorCode::KeyNotFound
        );
        vault.create_key(owner, "k", &rsa2048()).unwrap();
        assert_eq!(code(fixture.unwrap(&wrapped)), VaultErrorCode::KeyNotFound);
        assert_eq!(fixture.stored_versions(), 1);
    });
}

#[test]
fn purge_protection_and_retention_are_kept_and_time_purges() {
    on_each(|engine| {
        let settings = VaultSettings {
            retention_days: 7,
            purge_protection: false,
        };
        let fixture = Fixture::with(engine, settings);
        let (vault, owner) = (&fixture.vault, &fixture.owner);
        let attributes = vault.key(owner, &latest("k")).unwrap().attributes;
        assert_eq!(attributes.recoverable_days, Some(7));
        let level = attributes.recovery_level.unwrap();
        assert_eq!(level, "CustomizedRecoverable+Purgeable");
        let protect = |purge_protection, retention_days| {
            let settings = VaultSettings {
                purge_protection,
                retention_days,
            };
            vault.update_settings(owner, &settings)
        };
        // The retention time never changes, whether deleted keys are protected or not.
        for days in [6, 8, 90] {
            assert_eq!(code(protect(false, days)), VaultErrorCode::BadParameter);
        }
        protect(true, 7).unwrap();
        assert_eq!(code(protect(false, 7)), VaultErrorCode::ForbiddenByPolicy);
        for days in [8, 90] {
            let error = protect(true, days).unwrap_err();
            assert_eq!(error.code, VaultErrorCode::BadParameter);
            assert!(error.message.contains("can't be modified"), "{error}");
        }
        let settings = fixture.reopen().unwrap().settings().unwrap();
        assert_eq!(
            (settings.retention_days, settings.purge_protection),
            (7, true)
        );

        vault.delete_key(owner, "k").unwrap();
        assert_eq!(
            code(vault.purge_key(owner, "k")),
            VaultErrorCode::ForbiddenByPolicy
        );
        fixture.clock.advance(days(7) - Duration::SECOND);
        vault.recover_key(owner, "k").unwrap();
        vault.delete_key(owner, "k").unwrap();
        vault.create_key(owner, "other", &rsa2048()).unwrap();
        vault.delete_key(owner, "other").unwrap();
        fixture.clock.advance(days(7));
        // Whatever looks first carries it out.
        assert_eq!(
            code(vault.recover_key(owner, "k")),
            VaultErrorCode::KeyNotFound
        );
        assert!(vault.deleted_keys(owner).unwrap().is_empty());
        let log = operations(vault);
        let purges = log
            .iter()
            .filter(|(operation, code)| operation == "KeyPurge" && code.is_none());
        assert_eq!(purges.count(), 2);
        let by = vault.audit_log().unwrap();
        let by = by
            .iter()
            .rfind(|e| e.event.operation == "KeyPurge")
            .unwrap();
        assert_eq!(
            (by.event.origin.as_str(), by.event.caller.as_str()),
            ("vault", Uuid::nil().to_string().as_str())
        );
        vault.create_key(owner, "k", &rsa2048()).unwrap();
    });
}

#[test]
fn opening_and_running_what_is_due_purge_too() {
    on_each(|engine| {
        let fixture = Fixture::new(engine);
        let (vault, owner) = (&fixture.vault, &fixture.owner);
        vault.delete_key(owner, "k").unwrap();
        assert_eq!(vault.run_due().unwrap(), Due::default());
        fixture.live_on(days(90));
        let keys = || fixture.stored_versions();
        assert_eq!(keys(), 1);
        fixture.reopen().unwrap();
        assert_eq!(keys(), 0);
        vault.create_key(owner, "k", &rsa2048()).unwrap();
        vault.delete_key(owner, "k").unwrap();
        fixture.live_on(days(90));
        assert_eq!(vault.run_due().unwrap().done, ["purged the key 'k'"]);
        assert_eq!(keys(), 0);
    });
}

#[test]
fn a_backup_brings_back_everything_and_only_under_its_master_key() {
    on_each(|engine| {
        let fixture = Fixture::new(engine);
        let (vault, owner) = (&fixture.vault, &fixture.owner);
        let wrapped = fixture.wrap().unwrap();
        let tags: Tags = [("a".into(), "b".into())].into();
        let second = NewKey {
            tags,
            key_ops: "unwrapKey".parse().unwrap(),
            ..rsa2048()
        };
        vault.create_key(owner, "k", &second).unwrap();
        let policy = rotation("P30D");
        let policy = vault.set_rotation_policy(owner, "k", &policy).unwrap();
        let versions = vault.key_versions(owner, "k").unwrap();
        let backup = vault.backup_key(owner, "k").unwrap();

        let restore = |backup: &[u8]| vault.restore_key(owner, backup);
        assert_eq!(code(restore(&backup)), VaultErrorCode::Conflict);
        vault.delete_key(owner, "k").unwrap();
        assert_eq!(code(restore(&backup)), VaultErrorCode::KeyDeleted);
        vault.purge_key(owner, "k").unwrap();
        for n in (0..backup.len()).step_by(97) {
            let mut changed = backup.clone();
            changed[n] ^= 1;
            assert_eq!(code(restore(&changed)), VaultErrorCode::BadParameter);
            assert_eq!(code(restore(&backup[..n])), VaultErrorCode::BadParameter);
        }
        assert_eq!(restore(&backup).unwrap(), versions[1]);
        assert_eq!(vault.key_versions(owner, "k").unwrap(), versions);
        assert_eq!(vault.rotation_policy(owner, "k").unwrap(), policy);
        fixture.unwrap(&wrapped).unwrap();

        let other = Fixture::new(engine);
        other.vault.delete_key(&other.owner, "k").unwrap();
        other.vault.purge_key(&other.owner, "k").unwrap();
        let foreign = other.vault.restore_key(&other.owner, &backup);
        assert_eq!(code(foreign), VaultErrorCode::BadParameter);
        let entry = other.last_audit();
        assert_eq!(
            (entry.event.operation.as_str(), entry.event.key),
            ("KeyRestore", None)
        );
    });
}

fn rotation(after: &str) -> RotationPolicy {
    RotationPolicy {
        lifetime_actions: vec![LifetimeAction {
            trigger: RotationTrigger {
                time_after_create: Some(after.parse().unwrap()),
                time_before_expiry: None,
            },
            action: RotationAction {
                kind: RotationActionKind::Rotate,
            },
        }],
        attributes: RotationAttributes {
            expiry_time: Some("P60D".parse().unwrap()),
            ..RotationAttributes::default()
        },
    }
}

#[test]
fn keys_rotate_on_request_and_when_their_policy_says_so() {
    on_each(|engine| {
        let fixture = Fixture::new(engine);
        let (vault, owner) = (&fixture.vault, &fixture.owner);
        assert_eq!(
            vault.rotation_policy(owner, "k").unwrap(),
            RotationPolicy::default()
        );
        let new = NewKey {
            key_ops: "wrapKey unwrapKey".parse().unwrap(),
            tags: [("a".into(), "b".into())].into(),
            size: KeySize::Rsa3072,
            ..rsa2048()
        };
        let first = vault.create_key(owner, "r", &new).unwrap();
        vault
            .set_rotation_policy(owner, "r", &rotation("P30D"))
            .unwrap();
        assert_eq!(
            code(vault.set_rotation_policy(owner, "r", &rotation("P6D"))),
            VaultErrorCode::BadParameter
        );
        let second = vault.rotate_key(owner, "r").unwrap();
        assert_ne!(first.key.n, second.key.n);
        assert_eq!(first.key.n.len(), second.key.n.len());
        assert_eq!(
            (&first.tags, &first.key.key_ops),
            (&second.tags, &second.key.key_ops)
        );
        assert_eq!(
            second.attributes.expires,
            Some(fixture.clock.now() + days(60))
        );

        let versions = || vault.key_versions(owner, "r").unwrap().len();
        fixture.clock.advance(days(30) - Duration::SECOND);
        assert_eq!(vault.run_due().unwrap(), Due::default());
        fixture.clock.advance(Duration::SECOND);
        // Several processes come to it at once; one rotates.
        let done: usize = std::thread::scope(|scope| {
            let runs: Vec<_> = (0..3)
                .map(|_| scope.spawn(|| fixture.reopen().unwrap().run_due().unwrap().done.len()))
                .collect();
            runs.into_iter().map(|run| run.join().unwrap()).sum()
        });
        assert_eq!((done, versions()), (1, 3));
        assert_eq!(vault.run_due().unwrap(), Due::default());
        fixture.clock.advance(days(30));
        vault.delete_key(owner, "r").unwrap();
        assert_eq!(
            vault.run_due().unwrap(),
            Due::default(),
            "a deleted key does not rotate"
        );
    });
}

#[test]
fn a_key_does_only_what_its_operations_permit() {
    on_each(|engine| {
        use EncryptionAlgorithm::{RsaOaep, RsaOaep256};
        let fixture = Fixture::new(engine);
        let (vault, owner) = (&fixture.vault, &fixture.owner);
        let permitted = |ops: &str| {
            let change = KeyChange {
                key_ops: Some(ops.parse().unwrap()),
                ..KeyChange::default()
            };
            let bundle = vault.update_key(owner, &latest("k"), &change).unwrap();
            assert_eq!(bundle.key.key_ops.join(" "), ops);
        };
        let key = latest("k");
        for algorithm in [RsaOaep, RsaOaep256] {
            let wrapped = vault.wrap(owner, &key, algorithm, &[4; 32]).unwrap();
            let used = version("k", &wrapped.key_version);
            let secret = vault
                .unwrap(owner, &used, algorithm, &wrapped.value)
                .unwrap();
            assert_eq!(secret.as_slice(), [4; 32]);
            let sealed = vault.encrypt(owner, &key, algorithm, b"data").unwrap();
            let opened = vault
                .decrypt(owner, &used, algorithm, &sealed.value)
                .unwrap();
            assert_eq!(opened.as_slice(), b"data");
            let other = if algorithm == RsaOaep {
                RsaOaep256
            } else {
                RsaOaep
            };
            let crossed = vault.unwrap(owner, &used, other, &wrapped.value);
            assert_eq!(code(crossed), VaultErrorCode::UnwrapFailed);
        }
        permitted("decrypt unwrapKey");
        let forbidden = VaultErrorCode::KeyOperationForbidden;
        assert_eq!(code(fixture.wrap()), forbidden);
        assert_eq!(
            code(vault.encrypt(owner, &key, RsaOaep256, b"x")),
            forbidden
        );
        permitted("wrapKey");
        let wrapped = fixture.wrap().unwrap();
        assert_eq!(code(fixture.unwrap(&wrapped)), forbidden);
        let used = version("k", &wrapped.key_version);
        assert_eq!(
            code(vault.decrypt(owner, &used, RsaOaep256, &wrapped.value)),
            forbidden
        );
        assert_eq!(
            fixture.last_audit().event.code.as_deref(),
            Some("KeyOperationForbidden")
        );
        assert!("RSA1_5".parse::<EncryptionAlgorithm>().is_err());
    });
}

#[test]
fn tags_pages_and_random_bytes_have_azures_limits() {
    on_each(|engine| {
        let fixture = Fixture::new(engine);
        let (vault, owner) = (&fixture.vault, &fixture.owner);
        let many: Tags = (0..16).map(|n| (n.to_string(), String::new())).collect();
        let change = KeyChange {
            tags: Some(many.clone()),
            ..KeyChange::default()
        };
        let refused = vault.update_key(owner, &latest("k"), &change);
        assert_eq!(code(refused), VaultErrorCode::BadParameter);
        let new = NewKey {
            tags: many,
            ..rsa2048()
        };
        assert_eq!(
            code(vault.create_key(owner, "t", &new)),
            VaultErrorCode::BadParameter
        );

        for name in ["a", "b", "z"] {
            vault.create_key(owner, name, &rsa2048()).unwrap();
        }
        vault.create_key(owner, "a", &rsa2048()).unwrap();
        let mut seen = Vec::new();
        let mut after = None;
        loop {
            let page = vault.keys_page(owner, after.as_deref(), 3).unwrap();
            assert!(page.items.len() <= 3);
            seen.extend(page.items);
            after = page.next;
            if after.is_none() {
                break;
            }
        }
        assert_eq!(seen, vault.keys(owner).unwrap());
        assert_eq!(seen.len(), 4);
        let first = vault.key_versions_page(owner, "a", None, 1).unwrap();
        let rest = vault
            .key_versions_page(owner, "a", first.next.as_deref(), 1)
            .unwrap();
        let both = [first.items, rest.items].concat();
        assert_eq!(both, vault.key_versions(owner, "a").unwrap());
        let senseless = vault.key_versions_page(owner, "a", Some("x"), 1);
        assert_eq!(code(senseless), VaultErrorCode::BadParameter);

        assert_eq!(vault.random_bytes(owner, 128).unwrap().len(), 128);
        for count in [0, 129, usize::MAX] {
            assert_eq!(
                code(vault.random_bytes(owner, count)),
                VaultErrorCode::BadParameter
            );
        }
        assert_eq!(
            code(vault.random_bytes(&caller(), 1)),
            VaultErrorCode::Forbidden
        );
    });
}

#[test]
fn the_log_says_from_where_and_verifies() {
    on_each(|engine| {
        let fixture = Fixture::new(engine);
        let (vault, owner) = (&fixture.vault, &fixture.owner);
        let address = "192.0.2.7:4711".parse().unwrap();
        let remote = Caller::remote(owner.object_id, address);
        vault.key(&remote, &latest("k")).unwrap();
        assert_eq!(fixture.last_audit().event.origin, "192.0.2.7:4711");
        vault.key(owner, &latest("k")).unwrap();
        let local = format!(
            "local, uid {}, pid {}",
            rustix::process::geteuid().as_raw(),
            std::process::id()
        );
        assert_eq!(fixture.last_audit().event.origin, local);
        let verify = || vault.read_audit(|chain, db| chain.verify(db, "vault", &[]).unwrap());
        assert_eq!(verify().finding, None);
        fixture.tamper("UPDATE audit SET caller = '' WHERE seq = 2");
        assert_eq!(verify().finding.unwrap().seq, 2);
        // An operation goes on from what was signed, and launders nothing.
        vault.key(owner, &latest("k")).unwrap();
        assert_eq!(verify().finding.unwrap().seq, 2);
        fixture.tamper("UPDATE audit_head SET hash = (SELECT hash FROM audit WHERE seq = 1)");
        assert_eq!(
            code(vault.key(owner, &latest("k"))),
            VaultErrorCode::Tampered
        );
    });
}

/// The way back names the version that was refused: without it the latest would be meant.
#[test]
fn a_refused_version_is_named_in_what_is_to_be_done() {
    on_each(|engine| {
        let fixture = Fixture::new(engine);
        let wrapped = fixture.wrap().unwrap();
        let off = AttributeChange {
            enabled: Some(false),
            ..AttributeChange::default()
        };
        fixture.set(off).unwrap();
        let refused = fixture.unwrap(&wrapped).err().unwrap();
        assert_eq!(refused.code, VaultErrorCode::KeyDisabled);
        let option = format!("--version {} --enabled true", wrapped.key_version);
        assert!(refused.message.contains(&option), "{}", refused.message);
    });
}
