//! How much the log takes: limits for each identity, and what is only counted.

use super::*;

fn checking(caller: &Caller, disk: &str) -> Caller {
    let mut caller = caller.for_layer(disk, Uuid::nil());
    caller.purpose.check = true;
    caller
}

#[test]
fn the_checks_of_a_running_disk_are_a_few_records_that_say_how_many() {
    on_each(|engine| {
        let fixture = Fixture::new(engine);
        let (vault, owner) = (&fixture.vault, &fixture.owner);
        let wrapped = fixture.wrap().unwrap();
        let key = version("k", &wrapped.key_version);
        let before = vault.audit_log().unwrap().len();
        let check = |disk: &str| {
            vault
                .unwrap_key(&checking(owner, disk), &key, RSA_OAEP, &wrapped.value)
                .map(drop)
        };
        let begin = fixture.clock.now();
        // One every 10 seconds for an hour.
        for _ in 0..360 {
            check("web").unwrap();
            fixture.clock.advance(Duration::seconds(10));
        }
        // A refusal is on record behind what was before it.
        vault
            .update_key(
                owner,
                &key,
                &AttributeChange {
                    enabled: Some(false),
                    ..Default::default()
                }
                .into(),
            )
            .unwrap();
        assert_eq!(code(check("web")), VaultErrorCode::KeyDisabled);
        let log = vault.audit_log().unwrap().split_off(before);
        let kinds: Vec<_> = log
            .iter()
            .map(|e| (e.event.operation.as_str(), e.event.code.as_deref()))
            .collect();
        let unwrap = ("KeyUnwrap", None);
        let expected = [
            unwrap,
            unwrap,
            unwrap,
            unwrap,
            unwrap,
            ("KeyUpdate", None),
            ("KeyUnwrap", Some("KeyDisabled")),
        ];
        assert_eq!(kinds, expected);
        let counts: Vec<u64> = log[1..5]
            .iter()
            .map(|e| {
                let detail = e.event.detail.as_deref().unwrap();
                let (_, counted) = detail.rsplit_once("; ").unwrap();
                counted.split(' ').next().unwrap().parse().unwrap()
            })
            .collect();
        assert_eq!(1 + counts.iter().sum::<u64>(), 360, "{counts:?}");
        let first = &log[1];
        assert_eq!(first.event.disk.as_deref(), Some("web"));
        assert_eq!(first.event.version.as_deref(), key.version.as_deref());
        assert_eq!(first.event.caller, owner.object_id.to_string());
        let uses = vault.last_uses("k", None).unwrap();
        let last = uses.iter().find(|u| u.disk.is_some()).unwrap();
        assert_eq!((last.uses, last.first), (360, begin));
        let report = vault.read_audit(|chain, db| chain.verify(db, "vault", &[]).unwrap());
        assert_eq!(report.finding, None);
    });
}

#[test]
fn an_identity_over_its_limit_is_refused_and_its_running_disks_are_not() {
    on_each(|engine| {
        let fixture = Fixture::new(engine);
        let (vault, owner) = (&fixture.vault, &fixture.owner);
        let wrapped = fixture.wrap().unwrap();
        let key = version("k", &wrapped.key_version);
        vault.set_operations_limit(owner, 100).unwrap();
        let set = caller();
        vault
            .set_policy(owner, set.object_id, &Permissions::for_disks())
            .unwrap();
        let check = |disk: &str| {
            vault
                .unwrap_key(&checking(&set, disk), &key, RSA_OAEP, &wrapped.value)
                .map(drop)
        };
        check("web").unwrap();
        let get = || vault.key(&set, &latest("k")).map(drop);
        let admitted = (0..200).take_while(|_| get().is_ok()).count();
        assert!((98..=101).contains(&admitted), "{admitted}");
        let refused = get().unwrap_err();
        assert_eq!(refused.code, VaultErrorCode::Throttled);
        assert!(refused.message.contains("--operations-limit"), "{refused}");
        assert_eq!(refused.code.verdict(), Verdict::Unknown);

        // The disk that runs goes on; one that is made up does not pass for it.
        check("web").unwrap();
        assert_eq!(code(check("made-up")), VaultErrorCode::Throttled);
        // Others have their own limit, and nobody is kept from taking access away.
        vault.key(owner, &latest("k")).unwrap();
        vault
            .update_key(&set, &key, &AttributeChange::default().into())
            .map_err(|e| assert_eq!(e.code, VaultErrorCode::Forbidden))
            .unwrap_err();
        let log = vault.audit_log().unwrap();
        let throttled: Vec<_> = log
            .iter()
            .filter(|e| e.event.operation == "Throttled")
            .collect();
        assert_eq!(throttled.len(), 1, "{throttled:?}");
        fixture.clock.advance(Duration::seconds(60));
        get().unwrap();

        // A refusal weighs ten times as much.
        let stranger = caller();
        let tried = (0..200)
            .take_while(|_| code(vault.key(&stranger, &latest("k"))) == VaultErrorCode::Forbidden)
            .count();
        assert!((9..=11).contains(&tried), "{tried}");
        // How near somebody is can be seen without being recorded.
        let database = fixture.place.database();
        let (busiest, limit) = database.busiest(fixture.clock.now()).unwrap();
        let (busiest, used) = busiest.unwrap();
        assert_eq!((busiest, limit), (stranger.object_id.to_string(), 100));
        assert!((90..=200).contains(&used), "{used}");
        fixture.clock.advance(Duration::seconds(60));
        let (busiest, _) = database.busiest(fixture.clock.now()).unwrap();
        assert_eq!(busiest, None);
        let none = vault.set_operations_limit(owner, 0);
        assert_eq!(code(none), VaultErrorCode::BadParameter);
    });
}

#[test]
fn what_fails_in_the_database_is_recorded_and_changes_nothing() {
    on_each(|engine| {
        let fixture = Fixture::new(engine);
        let (vault, owner) = (&fixture.vault, &fixture.owner);
        let before = vault.audit_log().unwrap().len();
        fixture.place.refuse("access_policies", true);
        let set = vault.set_policy(owner, Uuid::new_v4(), &Permissions::for_disks());
        assert_eq!(code(set), VaultErrorCode::Internal);
        fixture.place.refuse("access_policies", false);
        let log = vault.audit_log().unwrap().split_off(before);
        let [failed] = log.as_slice() else {
            panic!("{log:?}");
        };
        assert_eq!(failed.event.operation, "VaultSetPolicy");
        assert_eq!(failed.event.code.as_deref(), Some("InternalError"));
        assert_eq!(failed.event.caller, owner.object_id.to_string());
        let report = vault.read_audit(|chain, db| chain.verify(db, "vault", &[]).unwrap());
        assert_eq!(report.finding, None);
    });
}
