//! Many at once: group commit answers nobody early and mixes nobody up.

use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use super::*;

const CLIENTS: usize = 16;

#[test]
fn every_use_has_its_own_answer_and_its_own_record() {
    on_each(|engine| {
        let fixture = Fixture::new(engine);
        let vault = &fixture.vault;
        vault.cache_private_keys(4);
        let before = vault.audit_log().unwrap().len();
        let barrier = Barrier::new(CLIENTS);
        let callers: Vec<Caller> = (0..CLIENTS).map(|_| caller()).collect();
        // Every other one may not unwrap.
        for caller in callers.iter().step_by(2) {
            let disks = Permissions::for_disks();
            vault
                .set_policy(&fixture.owner, caller.object_id, &disks)
                .unwrap();
        }
        let policies = CLIENTS / 2;
        std::thread::scope(|scope| {
            for (n, caller) in callers.iter().enumerate() {
                let (fixture, barrier) = (&fixture, &barrier);
                scope.spawn(move || {
                    let secret = [n as u8; 32];
                    let wrapped = fixture
                        .vault
                        .wrap_key(&fixture.owner, &latest("k"), RSA_OAEP, &secret)
                        .unwrap();
                    let used = version("k", &wrapped.key_version);
                    barrier.wait();
                    for _ in 0..4 {
                        let answer =
                            fixture
                                .vault
                                .unwrap_key(caller, &used, RSA_OAEP, &wrapped.value);
                        match n % 2 {
                            0 => assert_eq!(answer.unwrap().as_slice(), secret),
                            _ => assert_eq!(code(answer), VaultErrorCode::Forbidden),
                        }
                        let bad = fixture.vault.unwrap_key(
                            &fixture.owner,
                            &used,
                            RSA_OAEP,
                            &wrapped.value[1..],
                        );
                        assert_eq!(code(bad), VaultErrorCode::UnwrapFailed);
                    }
                });
            }
        });
        // Refusals of one kind are recorded once and then counted.
        let log = vault.audit_log().unwrap();
        let counters = vault.read_audit(|chain, db| chain.counters(db).unwrap());
        let counted: u64 = counters.iter().map(|counter| counter.count).sum();
        let told = log.len() + usize::try_from(counted).unwrap();
        assert_eq!(told, before + policies + CLIENTS + CLIENTS * 8);
        for (n, caller) in callers.iter().enumerate() {
            let id = caller.object_id.to_string();
            let own: Vec<_> = log.iter().filter(|e| e.event.caller == id).collect();
            let counter = counters.iter().find(|counter| counter.event.caller == id);
            let (records, more, code) = match n % 2 {
                0 => (4, 0, None),
                _ => (1, 3, Some("Forbidden")),
            };
            assert_eq!((own.len(), counter.map_or(0, |c| c.count)), (records, more));
            assert!(own.iter().all(|e| e.event.code.as_deref() == code));
        }
        let report = vault.read_audit(|chain, db| chain.verify(db, "vault", &[]).unwrap());
        assert_eq!(report.finding, None);
    });
}

/// Once a key is disabled, nobody gets an answer any more, though RSA runs before the last check:
/// the log has no allowed use behind the disabling.
#[test]
fn a_use_that_is_under_way_sees_a_key_disabled() {
    on_each(|engine| {
        let fixture = Fixture::new(engine);
        let wrapped = fixture.wrap().unwrap();
        // The phase is odd while the key is certainly disabled, and never the same twice: a use that
        // lasts from one such phase into the next may have been allowed between them.
        let (stop, phase) = (AtomicBool::new(false), AtomicU32::new(0));
        let set = |enabled| {
            fixture
                .set(AttributeChange {
                    enabled: Some(enabled),
                    ..AttributeChange::default()
                })
                .unwrap();
        };
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    while !stop.load(Ordering::SeqCst) {
                        let before = phase.load(Ordering::SeqCst);
                        let answer = fixture.unwrap(&wrapped);
                        let after = phase.load(Ordering::SeqCst);
                        if before == after && before % 2 == 1 {
                            assert_eq!(code(answer), VaultErrorCode::KeyDisabled);
                        }
                    }
                });
            }
            for _ in 0..8 {
                set(false);
                phase.fetch_add(1, Ordering::SeqCst);
                std::thread::sleep(std::time::Duration::from_millis(10));
                phase.fetch_add(1, Ordering::SeqCst);
                set(true);
                std::thread::sleep(std::time::Duration::from_millis(5));
            }
            stop.store(true, Ordering::SeqCst);
        });
        let mut enabled = true;
        let mut refused = 0;
        for entry in fixture.vault.audit_log().unwrap() {
            match (entry.event.operation.as_str(), entry.event.code.as_deref()) {
                ("KeyUpdate", None) => {
                    enabled = entry.event.detail.as_deref() == Some("enabled=true")
                }
                ("KeyUnwrap", code) => {
                    assert_eq!(code.is_none(), enabled, "record {}", entry.seq);
                    refused += u32::from(code.is_some());
                }
                _ => {}
            }
        }
        assert!(refused > 0, "nothing was under way");
    });
}

#[test]
fn a_batch_that_cannot_be_recorded_answers_nobody() {
    on_each(|engine| {
        let fixture = Fixture::new(engine);
        let wrapped = fixture.wrap().unwrap();
        fixture.place.refuse_records(true);
        std::thread::scope(|scope| {
            for _ in 0..CLIENTS {
                scope
                    .spawn(|| assert_eq!(code(fixture.unwrap(&wrapped)), VaultErrorCode::Internal));
            }
        });
        fixture.place.refuse_records(false);
        fixture.unwrap(&wrapped).unwrap();
        let report = fixture
            .vault
            .read_audit(|chain, db| chain.verify(db, "vault", &[]).unwrap());
        assert_eq!(report.finding, None);
    });
}

#[test]
fn a_cached_key_is_not_used_for_a_row_that_was_tampered_with() {
    on_each(|engine| {
        let fixture = Fixture::new(engine);
        fixture.vault.cache_private_keys(1);
        let wrapped = fixture.wrap().unwrap();
        fixture.unwrap(&wrapped).unwrap();
        fixture.unwrap(&wrapped).unwrap();
        fixture.tamper("UPDATE key_versions SET e = n");
        assert_eq!(code(fixture.unwrap(&wrapped)), VaultErrorCode::Tampered);
    });
}
