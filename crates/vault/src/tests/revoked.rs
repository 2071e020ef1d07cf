//! A process that serves many requests keeps keys ready, and uses that were allowed in mind. None of that
//! lets anybody do what is not allowed any more, whoever took it away.

use super::*;

/// A vault with keys kept ready, of which a use was just allowed, and what it unwrapped.
fn used(engine: Engine) -> (Fixture, Wrapped) {
    let fixture = Fixture::new(engine);
    fixture.vault.cache_private_keys(4);
    let wrapped = fixture.wrap().unwrap();
    for _ in 0..2 {
        assert_eq!(fixture.unwrap(&wrapped).unwrap().as_slice(), [9; 64]);
    }
    assert_eq!(fixture.vault.ready(), (1, 2), "a key, a wrap and an unwrap");
    (fixture, wrapped)
}

fn change(change: AttributeChange) -> KeyChange {
    change.into()
}

fn disabled() -> KeyChange {
    change(AttributeChange {
        enabled: Some(false),
        ..AttributeChange::default()
    })
}

/// The very next use is refused and recorded as that, and once it is, a key that nobody may use now is in
/// memory no more.
fn is_refused_at_once(
    what: VaultErrorCode,
    keys_left: usize,
    revoke: impl Fn(&Fixture, &EmbeddedVault),
) {
    on_each(|engine| {
        for elsewhere in [false, true] {
            let (fixture, wrapped) = used(engine);
            let before = fixture.vault.audit_log().unwrap().len();
            match elsewhere {
                true => revoke(&fixture, &fixture.reopen().unwrap()),
                false => revoke(&fixture, &fixture.vault),
            }
            let changes = fixture.vault.audit_log().unwrap().len() - before;
            assert_eq!(
                code(fixture.unwrap(&wrapped)),
                what,
                "elsewhere: {elsewhere}"
            );
            let log = fixture.vault.audit_log().unwrap();
            assert_eq!(log.len(), before + changes + 1);
            let last = &log[log.len() - 1].event;
            assert_eq!(last.operation, "KeyUnwrap");
            assert_eq!(last.code.as_deref(), Some(what.as_str()));
            let (keys, _) = fixture.vault.ready();
            assert_eq!(keys, keys_left, "elsewhere: {elsewhere}");
        }
    });
}

#[test]
fn a_disabled_key_is_refused_at_once() {
    is_refused_at_once(VaultErrorCode::KeyDisabled, 0, |fixture, vault| {
        vault
            .update_key(&fixture.owner, &latest("K"), &disabled())
            .unwrap();
    });
}

#[test]
fn a_deleted_key_is_refused_at_once() {
    is_refused_at_once(VaultErrorCode::KeyNotFound, 0, |fixture, vault| {
        vault.delete_key(&fixture.owner, "K").unwrap();
    });
}

#[test]
fn an_expired_key_is_refused_at_once() {
    is_refused_at_once(VaultErrorCode::KeyExpired, 0, |fixture, vault| {
        let expires = change(AttributeChange {
            expires: Some(Some(fixture.clock.now() + Duration::HOUR)),
            ..AttributeChange::default()
        });
        vault
            .update_key(&fixture.owner, &latest("k"), &expires)
            .unwrap();
        fixture.clock.advance(Duration::HOUR);
    });
}

#[test]
fn an_identity_without_permission_is_refused_at_once() {
    // Others may use the key still.
    is_refused_at_once(VaultErrorCode::Forbidden, 1, |fixture, vault| {
        vault
            .delete_policy(&fixture.owner, fixture.owner.object_id)
            .unwrap();
    });
}

/// Time passes without any change of the key.
#[test]
fn a_key_that_expires_between_two_uses_is_refused() {
    on_each(|engine| {
        let fixture = Fixture::new(engine);
        fixture.vault.cache_private_keys(4);
        let soon = AttributeChange {
            expires: Some(Some(fixture.clock.now() + Duration::HOUR)),
            ..AttributeChange::default()
        };
        fixture.set(soon).unwrap();
        let wrapped = fixture.wrap().unwrap();
        fixture.unwrap(&wrapped).unwrap();
        fixture.clock.advance(Duration::HOUR);
        assert_eq!(code(fixture.unwrap(&wrapped)), VaultErrorCode::KeyExpired);
    });
}

#[test]
fn a_use_that_cannot_be_recorded_is_not_answered_though_it_was_allowed_last() {
    on_each(|engine| {
        let (fixture, wrapped) = used(engine);
        fixture.place.refuse_records(true);
        assert_eq!(code(fixture.unwrap(&wrapped)), VaultErrorCode::Internal);
        fixture.place.refuse_records(false);
        fixture.unwrap(&wrapped).unwrap();
    });
}

/// The latest version is looked up for each use that names none.
#[test]
fn a_new_version_is_used_at_once() {
    on_each(|engine| {
        let (fixture, first) = used(engine);
        let other = fixture.reopen().unwrap();
        other.create_key(&fixture.owner, "k", &rsa2048()).unwrap();
        let second = fixture.wrap().unwrap();
        assert_ne!(first.key_version, second.key_version);
        fixture.unwrap(&second).unwrap();
        fixture.unwrap(&first).unwrap();
    });
}

/// Uses that are under way when a key is disabled do not leave it in memory.
#[test]
fn a_disabled_key_is_not_made_ready_again_by_uses_under_way() {
    on_each(|engine| {
        for _ in 0..8 {
            let (fixture, wrapped) = used(engine);
            std::thread::scope(|scope| {
                for _ in 0..4 {
                    scope.spawn(|| (0..1000).all(|_| fixture.unwrap(&wrapped).is_ok()));
                }
                std::thread::sleep(std::time::Duration::from_millis(10));
                fixture
                    .vault
                    .update_key(&fixture.owner, &latest("k"), &disabled())
                    .unwrap();
            });
            assert_eq!(fixture.vault.ready().0, 0);
        }
    });
}

#[test]
fn a_process_that_keeps_no_keys_keeps_nothing() {
    on_each(|engine| {
        let fixture = Fixture::new(engine);
        let wrapped = fixture.wrap().unwrap();
        fixture.unwrap(&wrapped).unwrap();
        assert_eq!(fixture.vault.ready(), (0, 0));
    });
}
