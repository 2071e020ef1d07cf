//! What is seen of a vault from outside.

use super::*;

#[test]
fn keys_are_seen_without_a_record() {
    on_each(|engine| {
        let fixture = Fixture::new(engine);
        let (vault, owner) = (&fixture.vault, &fixture.owner);
        vault.rotate_key(owner, "k").unwrap();
        vault.create_key(owner, "old", &rsa2048()).unwrap();
        vault.delete_key(owner, "old").unwrap();
        let before = vault.audit_log().unwrap().len();
        let seen = fixture.place.database().seen_keys().unwrap();
        let seen: Vec<_> = seen
            .iter()
            .map(|key| {
                (
                    key.name.as_str(),
                    key.is_latest,
                    key.is_deleted,
                    key.enabled,
                )
            })
            .collect();
        let expected = [
            ("k", false, false, true),
            ("k", true, false, true),
            ("old", true, true, true),
        ];
        assert_eq!(seen, expected);
        assert_eq!(vault.audit_log().unwrap().len(), before);
    });
}

#[test]
fn what_was_asked_for_is_counted_as_often_as_the_log_says() {
    on_each(|engine| {
        let fixture = Fixture::new(engine);
        let (vault, owner) = (&fixture.vault, &fixture.owner);
        let wrapped = fixture.wrap().unwrap();
        let database = fixture.place.database();
        let mut seen = SeenRecords::from_now_on(&database).unwrap();
        let mut checking = owner.for_layer("web", Uuid::nil());
        checking.purpose.check = true;
        let key = version("k", &wrapped.key_version);
        for _ in 0..7 {
            let unwrapped = vault.unwrap_key(&checking, &key, RSA_OAEP, &wrapped.value);
            drop(unwrapped.unwrap());
            fixture.clock.advance(Duration::seconds(1));
        }
        assert_eq!(
            code(vault.key(owner, &latest("none"))),
            VaultErrorCode::KeyNotFound
        );
        // What was counted is on record at the end of its window; one that comes later is counted anew.
        fixture.clock.advance(Duration::hours(1));
        drop(
            vault
                .unwrap_key(&checking, &key, RSA_OAEP, &wrapped.value)
                .unwrap(),
        );
        seen.look(&database).unwrap();
        assert_eq!(seen.operations.get("KeyUnwrap"), Some(&7), "{seen:?}");
        assert_eq!(seen.refusals.get("KeyNotFound"), Some(&1), "{seen:?}");
        let again = seen.clone();
        seen.look(&database).unwrap();
        assert_eq!(seen, again);
    });
}

/// What a log has that was put back to an earlier state was counted before, or is older than the watch.
#[test]
fn nothing_is_counted_again_of_a_vault_that_was_restored() {
    on_each(|engine| {
        let fixture = Fixture::new(engine);
        let database = fixture.place.database();
        let before = SeenRecords::from_now_on(&database).unwrap().last;
        let mut seen = SeenRecords {
            last: before + 5,
            ..SeenRecords::default()
        };
        seen.look(&database).unwrap();
        assert_eq!(seen.last, before);
        assert!(seen.operations.is_empty(), "{seen:?}");
        fixture.wrap().unwrap();
        seen.look(&database).unwrap();
        assert_eq!(seen.operations.get("KeyWrap"), Some(&1), "{seen:?}");
        assert_eq!(seen.operations.len(), 1, "{seen:?}");
    });
}
