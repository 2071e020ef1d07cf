//! The edges of what is an alarm: ends that are exactly now, clocks that go back, facts that are missing.

use std::collections::BTreeSet;

use super::*;
use crate::facts::{KeyFacts, KeyRefusal, Unknown};
use proptest::prelude::*;

const DAY: i64 = 24 * 3600;

fn at(seconds: i64) -> OffsetDateTime {
    OffsetDateTime::from_unix_timestamp(seconds).unwrap()
}

fn now() -> OffsetDateTime {
    at(1_800_000_000)
}

fn settings() -> Settings {
    Settings::default()
}

fn key(expires: Option<OffsetDateTime>) -> KeyFacts {
    KeyFacts {
        url: "https://v.vault.localhost/keys/k/1".into(),
        refusals: Vec::new(),
        expires,
        created: None,
        needed_by: Vec::new(),
        unserved: Vec::new(),
        sets: Vec::new(),
    }
}

fn disk(state: ResourceState) -> ResourceFacts {
    ResourceFacts {
        kind: SubjectKind::Disk,
        name: "d".into(),
        state,
        lost_header_copy: false,
        old_keys: Vec::new(),
        attached: None,
    }
}

fn attached(key: KeyStanding) -> ResourceFacts {
    ResourceFacts {
        attached: Some(AttachedFacts {
            key,
            last_granted: now(),
            deaths_in_a_row: 0,
            last_death: None,
            job_error: None,
            stall: None,
            launcher_ended: None,
            installation: None,
        }),
        ..disk(ResourceState::Fine)
    }
}

fn of(facts: Facts) -> Vec<(AlarmCode, Severity)> {
    let alarms = find(&facts, &settings());
    alarms
        .iter()
        .map(|alarm| (alarm.code, alarm.severity))
        .collect()
}

fn of_key(expires: OffsetDateTime) -> Vec<(AlarmCode, Severity)> {
    of(Facts {
        keys: vec![key(Some(expires))],
        ..Facts::none(now())
    })
}

fn of_resource(resource: ResourceFacts) -> Vec<(AlarmCode, Severity)> {
    of(Facts {
        resources: vec![resource],
        ..Facts::none(now())
    })
}

#[test]
fn nothing_known_is_no_alarm_and_what_could_not_be_looked_at_is_one() {
    assert!(of(Facts::none(now())).is_empty());
    let unknown = Unknown {
        subject: Subject::new(SubjectKind::Vault, "far"),
        why: "no answer".into(),
    };
    let facts = Facts {
        unknown: vec![unknown],
        ..Facts::none(now())
    };
    assert_eq!(of(facts), [(AlarmCode::NotKnown, Severity::Warning)]);
}

#[test]
fn a_key_that_ends_now_has_ended() {
    use AlarmCode::{KeyExpired, KeyNearExpiry};
    use Severity::{Critical, Warning};
    assert_eq!(of_key(now()), [(KeyExpired, Critical)]);
    let second = Duration::SECOND;
    assert_eq!(of_key(now() - second), [(KeyExpired, Critical)]);
    assert_eq!(
        of_key(now() + Duration::NANOSECOND),
        [(KeyNearExpiry, Critical)]
    );
    assert_eq!(
        of_key(now() + Duration::days(7)),
        [(KeyNearExpiry, Critical)]
    );
    assert_eq!(
        of_key(now() + Duration::days(7) + second),
        [(KeyNearExpiry, Warning)]
    );
    assert_eq!(
        of_key(now() + Duration::days(30)),
        [(KeyNearExpiry, Warning)]
    );
    assert_eq!(of_key(now() + Duration::days(30) + second), []);
}

#[test]
fn a_key_without_an_end_and_one_that_is_disabled_and_nothing_needs_are_no_alarm() {
    let disabled = KeyFacts {
        refusals: vec![KeyRefusal::Disabled],
        ..key(Some(now()))
    };
    for key in [key(None), disabled] {
        let facts = Facts {
            keys: vec![key],
            ..Facts::none(now())
        };
        assert_eq!(of(facts), []);
    }
}

#[test]
fn a_key_that_is_refused_is_one_alarm_by_what_needs_it() {
    let granted = KeyRefusal::NotGranted {
        set: Some("s".into()),
        identity: uuid::Uuid::nil(),
        wanted: vec!["get", "unwrapKey"],
    };
    let disks = |count: usize| (0..count).map(|n| format!("the disk d{n}")).collect();
    let refused = |needed_by: usize, refusals: &[KeyRefusal]| {
        let version = "0".repeat(32);
        let key = KeyFacts {
            url: format!("https://myvault.vault.localhost/keys/k/{version}"),
            refusals: refusals.to_vec(),
            needed_by: disks(needed_by),
            unserved: disks(needed_by),
            sets: vec!["s".into()],
            ..key(Some(now()))
        };
        let facts = Facts {
            keys: vec![key],
            ..Facts::none(now())
        };
        find(&facts, &settings())
    };
    let [alarm] = &refused(0, &[KeyRefusal::Disabled])[..] else {
        panic!("one alarm");
    };
    assert_eq!(
        (alarm.code, alarm.severity),
        (AlarmCode::KeyUnusable, Severity::Warning)
    );
    let [alarm] = &refused(1000, &[KeyRefusal::Disabled, granted.clone()])[..] else {
        panic!("one alarm");
    };
    assert_eq!(
        (alarm.code, alarm.severity),
        (AlarmCode::KeyUnusable, Severity::Critical)
    );
    for part in [
        "0000 is disabled",
        "is not granted",
        "the disk d0, ",
        "and 997 more",
        "the disk encryption set s",
    ] {
        assert!(alarm.message.contains(part), "{part}: {}", alarm.message);
    }
    assert!(
        alarm
            .remedy
            .contains("set-attributes k --vault-name myvault"),
        "{}",
        alarm.remedy
    );
    // Those that are served are told of by what serves them.
    let served = KeyFacts {
        refusals: vec![KeyRefusal::Disabled],
        needed_by: disks(1),
        sets: vec!["s".into()],
        ..key(None)
    };
    let facts = Facts {
        keys: vec![served],
        ..Facts::none(now())
    };
    assert_eq!(of(facts), []);
    // Who may not use it does not matter to those who may, until it ends.
    let codes: Vec<_> = refused(1, &[granted])
        .iter()
        .map(|alarm| alarm.code)
        .collect();
    assert_eq!(codes, [AlarmCode::KeyUnusable, AlarmCode::KeyExpired]);
}

#[test]
fn a_key_is_not_near_its_end_before_it_was_made() {
    let made = now() - Duration::hours(1);
    let facts = |created| Facts {
        keys: vec![KeyFacts {
            created,
            ..key(Some(now() + Duration::days(2)))
        }],
        ..Facts::none(now())
    };
    let since = |created| find(&facts(created), &settings())[0].since;
    assert_eq!(since(Some(made)), Some(made));
    assert_eq!(since(None), Some(now() - Duration::days(28)));
}

#[test]
fn a_certificate_near_its_end_is_told() {
    let certificate = |days| Facts {
        certificates: vec![CertificateFacts {
            path: "/etc/v.pem".into(),
            expires: now() + Duration::days(days),
            renewed: false,
        }],
        ..Facts::none(now())
    };
    use AlarmCode::{CertificateExpired, CertificateNearExpiry};
    assert_eq!(of(certificate(15)), []);
    assert_eq!(
        of(certificate(14)),
        [(CertificateNearExpiry, Severity::Warning)]
    );
    assert_eq!(
        of(certificate(3)),
        [(CertificateNearExpiry, Severity::Critical)]
    );
    assert_eq!(
        of(certificate(0)),
        [(CertificateExpired, Severity::Critical)]
    );
}

#[test]
fn a_grace_period_is_graver_in_its_last_quarter() {
    let unreachable = |since: i64, until: Option<i64>| {
        of_resource(attached(KeyStanding::Unreachable {
            since: now() + Duration::seconds(since),
            until: until.map(|until| now() + Duration::seconds(until)),
            reason: "no route".into(),
        }))
    };
    let code = AlarmCode::KeyUnreachable;
    assert_eq!(unreachable(-10, Some(3590)), [(code, Severity::Warning)]);
    assert_eq!(unreachable(-2700, Some(900)), [(code, Severity::Warning)]);
    assert_eq!(unreachable(-2701, Some(899)), [(code, Severity::Critical)]);
    assert_eq!(unreachable(-3600, Some(0)), [(code, Severity::Critical)]);
    assert_eq!(unreachable(-10, None), [(code, Severity::Warning)]);
    // The clock went back: it began in the future.
    assert_eq!(unreachable(600, Some(4200)), [(code, Severity::Warning)]);
}

#[test]
fn a_disk_that_is_not_well_is_told_by_what_is_the_matter() {
    use AlarmCode::{DiskDamaged, DiskDirty, KeyRevoked, SyncFailed};
    let dirty = |map_lost| ResourceState::Dirty {
        since: now(),
        map_lost,
    };
    assert_eq!(of_resource(disk(ResourceState::Fine)), []);
    assert_eq!(
        of_resource(disk(dirty(false))),
        [(DiskDirty, Severity::Warning)]
    );
    assert_eq!(
        of_resource(disk(dirty(true))),
        [(DiskDirty, Severity::Critical)]
    );
    let failed = ResourceState::SyncFailed {
        since: now(),
        error: "EIO".into(),
    };
    assert_eq!(
        of_resource(disk(failed)),
        [(SyncFailed, Severity::Critical)]
    );
    let damaged = ResourceState::Damaged { why: "torn".into() };
    assert_eq!(
        of_resource(disk(damaged)),
        [(DiskDamaged, Severity::Critical)]
    );
    let revoked = KeyStanding::Revoked {
        since: now(),
        reason: "KeyDisabled".into(),
    };
    assert_eq!(
        of_resource(attached(revoked)),
        [(KeyRevoked, Severity::Critical)]
    );
    assert_eq!(of_resource(attached(KeyStanding::Granted)), []);
}

#[test]
fn a_rotation_may_take_its_time() {
    let old = |since: Option<i64>| {
        of_resource(ResourceFacts {
            old_keys: vec![OldKey {
                set: Some("s".into()),
                url: "old".into(),
                active: "new".into(),
                since: since.map(|since| now() + Duration::seconds(since)),
            }],
            ..disk(ResourceState::Fine)
        })
    };
    let told = [(AlarmCode::OldKeyVersion, Severity::Warning)];
    assert_eq!(old(Some(-2 * DAY)), told);
    assert_eq!(old(Some(-2 * DAY + 1)), []);
    assert_eq!(old(None), told, "nobody knows since when");
    assert_eq!(old(Some(DAY)), [], "the clock went back");
}

#[test]
fn data_planes_that_die_again_and_again_are_a_loop_while_it_lasts() {
    let died = |deaths: u64, last: Option<i64>| {
        let mut resource = attached(KeyStanding::Granted);
        let attached = resource.attached.as_mut().unwrap();
        attached.deaths_in_a_row = deaths;
        attached.last_death = last.map(|last| now() + Duration::seconds(last));
        of_resource(resource)
    };
    let told = [(AlarmCode::CrashLoop, Severity::Critical)];
    assert_eq!(died(2, Some(0)), []);
    assert_eq!(died(3, Some(0)), told);
    assert_eq!(died(3, Some(-600)), told);
    assert_eq!(died(3, Some(-601)), []);
    assert_eq!(died(3, Some(60)), told, "the clock went back");
    assert_eq!(died(3, None), []);
}

#[test]
fn a_job_that_does_not_go_on_is_told() {
    let mut resource = attached(KeyStanding::Granted);
    resource.attached.as_mut().unwrap().job_error = Some("full".into());
    assert_eq!(
        of_resource(resource),
        [(AlarmCode::JobHeldUp, Severity::Warning)]
    );
}

#[test]
fn a_file_system_that_fills_up_is_told() {
    let space = |available: u64, total: u64, audit: bool| {
        of(Facts {
            file_systems: vec![FileSystemFacts {
                path: "/var/lib/sealdisk".into(),
                available,
                total,
                audit_warning: audit.then(|| "little".into()),
            }],
            ..Facts::none(now())
        })
    };
    let code = AlarmCode::FileSystemFilling;
    assert_eq!(space(10, 100, false), []);
    assert_eq!(space(9, 100, false), [(code, Severity::Warning)]);
    assert_eq!(space(3, 100, false), [(code, Severity::Warning)]);
    assert_eq!(space(2, 100, false), [(code, Severity::Critical)]);
    assert_eq!(space(50, 100, true), [(code, Severity::Critical)]);
    assert_eq!(space(u64::MAX, u64::MAX, false), []);
    assert_eq!(space(0, 0, false), [], "it does not say how large it is");
}

#[test]
fn an_identity_near_the_limit_of_its_vault_is_told() {
    let quota = |used: Option<u64>| {
        of(Facts {
            vaults: vec![VaultFacts {
                name: "v".into(),
                busiest: used.map(|used| ("id".into(), used)),
                limit: 4000,
            }],
            ..Facts::none(now())
        })
    };
    let code = AlarmCode::VaultNearQuota;
    assert_eq!(quota(None), []);
    assert_eq!(quota(Some(79)), []);
    assert_eq!(quota(Some(80)), [(code, Severity::Warning)]);
    assert_eq!(quota(Some(100)), [(code, Severity::Critical)]);
}

#[test]
fn a_backup_that_is_too_old_or_was_never_made_is_told() {
    let backup = |last: Option<i64>, needed: Option<i64>| {
        let day = |days: i64| now() - Duration::days(days);
        of(Facts {
            backup: Some(BackupFacts {
                last: last.map(day),
                needed_since: needed.map(day),
            }),
            ..Facts::none(now())
        })
    };
    let code = AlarmCode::BackupTooOld;
    assert_eq!(backup(None, None), [], "there is nothing to back up");
    assert_eq!(
        backup(None, Some(2)),
        [],
        "an installation that was just made"
    );
    assert_eq!(backup(None, Some(3)), [(code, Severity::Warning)]);
    assert_eq!(backup(Some(2), Some(300)), []);
    assert_eq!(backup(Some(3), Some(300)), [(code, Severity::Warning)]);
    assert_eq!(backup(Some(14), Some(300)), [(code, Severity::Critical)]);
    // The clock went back: the backup is not old, and the clock is in doubt.
    let behind = AlarmCode::ClockBehind;
    assert_eq!(backup(Some(-1), Some(300)), [(behind, Severity::Warning)]);
}

/// Times around now, and far away from it.
fn times() -> impl Strategy<Value = OffsetDateTime> {
    prop_oneof![
        (-100_i64..100).prop_map(|seconds| now() + Duration::seconds(seconds)),
        (-400_i64..400).prop_map(|days| now() + Duration::days(days)),
        Just(now()),
        Just(OffsetDateTime::UNIX_EPOCH),
        Just(at(-377_705_116_800)),
        Just(at(253_402_300_799)),
    ]
}

fn resources() -> impl Strategy<Value = ResourceFacts> {
    let state = prop_oneof![
        Just(ResourceState::Fine),
        (times(), any::<bool>())
            .prop_map(|(since, map_lost)| ResourceState::Dirty { since, map_lost }),
        times().prop_map(|since| ResourceState::SyncFailed {
            since,
            error: "EIO\nagain".into()
        }),
    ];
    let standing = prop_oneof![
        Just(KeyStanding::Granted),
        (times(), proptest::option::of(times())).prop_map(|(since, until)| {
            let reason = "why".into();
            KeyStanding::Unreachable {
                since,
                until,
                reason,
            }
        }),
        times().prop_map(|since| KeyStanding::Revoked {
            since,
            reason: "why".into()
        }),
    ];
    let attached = (
        standing,
        times(),
        any::<u64>(),
        proptest::option::of(times()),
    )
        .prop_map(
            |(key, last_granted, deaths_in_a_row, last_death)| AttachedFacts {
                key,
                last_granted,
                deaths_in_a_row,
                last_death,
                job_error: None,
                stall: None,
                launcher_ended: None,
                installation: None,
            },
        );
    let old = proptest::option::of(times()).prop_map(|since| OldKey {
        set: None,
        url: "old".into(),
        active: "new".into(),
        since,
    });
    let parts = (
        "[a-c]",
        state,
        proptest::option::of(attached),
        proptest::collection::vec(old, 0..3),
    );
    parts.prop_map(|(name, state, attached, old_keys)| ResourceFacts {
        name,
        old_keys,
        attached,
        ..disk(state)
    })
}

fn facts() -> impl Strategy<Value = Facts> {
    let keys = (proptest::option::of(times()), proptest::option::of(times())).prop_map(
        |(expires, created)| KeyFacts {
            created,
            ..key(expires)
        },
    );
    let file_systems =
        (any::<u64>(), any::<u64>()).prop_map(|(available, total)| FileSystemFacts {
            path: "/x".into(),
            available,
            total,
            audit_warning: None,
        });
    let backup = (proptest::option::of(times()), proptest::option::of(times()))
        .prop_map(|(last, needed_since)| BackupFacts { last, needed_since });
    let parts = (
        times(),
        proptest::collection::vec(keys, 0..3),
        proptest::collection::vec(resources(), 0..4),
        proptest::collection::vec(file_systems, 0..2),
        proptest::option::of(backup),
    );
    parts.prop_map(|(now, keys, resources, file_systems, backup)| Facts {
        keys,
        resources,
        file_systems,
        backup,
        ..Facts::none(now)
    })
}

proptest! {
    /// Whatever the facts and the clock are: no two alarms are the same, none begins in the future, each says
    /// what it is and what to do in one line, and the gravest come first.
    #[test]
    fn alarms_are_well_formed_by_any_facts(facts in facts()) {
        let alarms = find(&facts, &settings());
        let ids: BTreeSet<_> = alarms.iter().map(|alarm| (alarm.code, alarm.subject.clone())).collect();
        prop_assert_eq!(ids.len(), alarms.len());
        prop_assert!(alarms.windows(2).all(|pair| pair[0].severity >= pair[1].severity));
        for alarm in &alarms {
            prop_assert!(alarm.since.is_none_or(|since| since <= facts.now), "{:?}", alarm);
            for text in [&alarm.message, &alarm.remedy] {
                prop_assert!(!text.is_empty() && !text.contains(char::is_control), "{:?}", alarm);
            }
        }
    }

    /// A key never gets less urgent as time goes by.
    #[test]
    fn a_key_gets_no_less_urgent_with_time(first in 0_i64..60 * DAY, more in 0_i64..60 * DAY) {
        let end = now() + Duration::days(40);
        let urgency = |passed: i64| {
            let facts = Facts { keys: vec![key(Some(end))], ..Facts::none(now() + Duration::seconds(passed)) };
            find(&facts, &settings()).first().map(|alarm| (alarm.severity, alarm.code == AlarmCode::KeyExpired))
        };
        prop_assert!(urgency(first) <= urgency(first + more));
    }

    /// What is known less has no other alarms than what is known more.
    #[test]
    fn a_fact_that_is_missing_takes_only_its_own_alarms_away(facts in facts()) {
        let all = find(&facts, &settings());
        let fewer = Facts { backup: None, keys: Vec::new(), file_systems: Vec::new(), ..facts };
        for alarm in find(&fewer, &settings()) {
            if alarm.code != AlarmCode::ClockBehind {
                prop_assert!(all.contains(&alarm), "{:?}", alarm);
            }
        }
    }
}
