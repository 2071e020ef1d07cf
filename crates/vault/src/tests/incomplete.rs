//! A vault that was restored, or made in the place of a lost one, decides nothing about what it does not know.

use super::*;

/// What an identity that has no policy, and one that asks for a version that there never was, are told.
fn told(fixture: &Fixture, wrapped: &Wrapped) -> [VaultErrorCode; 2] {
    let vault = &fixture.vault;
    let known = version("k", &wrapped.key_version);
    let unknown = version("k", &"0".repeat(32));
    let unwrap =
        |caller: &Caller, key| code(vault.unwrap_key(caller, key, RSA_OAEP, &wrapped.value));
    [unwrap(&caller(), &known), unwrap(&fixture.owner, &unknown)]
}

#[test]
fn what_may_only_be_lacking_is_not_refused_for_good_while_the_mark_is_there() {
    on_each(|engine| {
        use VaultErrorCode::{Forbidden, Incomplete, KeyNotFound};
        let fixture = Fixture::new(engine);
        let wrapped = fixture.wrap().unwrap();
        assert_eq!(told(&fixture, &wrapped), [Forbidden, KeyNotFound]);
        // Another process finds the mark, too.
        let database = fixture.place.database();
        database.mark_incomplete(fixture.clock.now()).unwrap();
        assert_eq!(
            fixture.vault.incomplete().unwrap(),
            Some(fixture.clock.now())
        );
        assert_eq!(told(&fixture, &wrapped), [Incomplete, Incomplete]);
        assert_eq!(Incomplete.verdict(), Verdict::Unknown);
        let log = fixture.vault.audit_log().unwrap();
        let mut codes = log.iter().filter_map(|entry| entry.event.code.as_deref());
        assert!(codes.any(|code| code == Incomplete.as_str()));
        assert_eq!(fixture.unwrap(&wrapped).unwrap().as_slice(), [9; 64]);
        // What is no unwrap is refused as ever: nothing runs on it.
        assert_eq!(
            code(fixture.vault.key(&fixture.owner, &latest("none"))),
            KeyNotFound
        );
        fixture.vault.clear_incomplete(&fixture.owner).unwrap();
        assert_eq!(fixture.vault.incomplete().unwrap(), None);
        assert_eq!(told(&fixture, &wrapped), [Forbidden, KeyNotFound]);
    });
}

/// Whatever else is lacking.
#[test]
fn what_the_vault_knows_of_a_key_decides_in_spite_of_the_mark() {
    on_each(|engine| {
        let fixture = Fixture::new(engine);
        let (vault, owner) = (&fixture.vault, &fixture.owner);
        let wrapped = fixture.wrap().unwrap();
        vault.mark_incomplete(owner).unwrap();
        let enabled = |enabled| {
            fixture
                .set(AttributeChange {
                    enabled: Some(enabled),
                    ..AttributeChange::default()
                })
                .unwrap()
        };
        enabled(false);
        assert_eq!(code(fixture.unwrap(&wrapped)), VaultErrorCode::KeyDisabled);
        assert_eq!(told(&fixture, &wrapped)[0], VaultErrorCode::Forbidden);
        enabled(true);
        vault.delete_key(owner, "k").unwrap();
        assert_eq!(code(fixture.unwrap(&wrapped)), VaultErrorCode::KeyNotFound);
    });
}
