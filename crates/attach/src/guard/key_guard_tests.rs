//! The guard against a scripted vault, data plane and clock.

use std::time::{Duration, Instant};

use proptest::prelude::*;
use time::OffsetDateTime;

use crate::guard::key_guard::{
    Finding, Guard, GuardActions, GuardEvent, LayerKeys, Moment, Unanswered,
};
use crate::status::{DekState, EventKind, GuardOptions, KeyState, Reason};
use keys::Dek;
use protocol::OnRevoke;

const INTERVAL: Duration = Duration::from_secs(10);
const GRACE: Duration = Duration::from_secs(60);

/// What the guard has asked for.
#[derive(Default)]
struct World {
    /// Whether the DEK was wanted, for each check.
    checks: Vec<bool>,
    destroys: u32,
    restores: u32,
    kills: Vec<Unanswered>,
    /// The DEK is kept for the next data plane.
    kept: bool,
    events: Vec<EventKind>,
    reasons: Vec<Option<Reason>>,
}

impl GuardActions for World {
    fn check(&mut self, with_key: bool) {
        self.checks.push(with_key);
    }

    fn destroy(&mut self, mode: OnRevoke) {
        assert_eq!(mode, OnRevoke::Pause);
        self.destroys += 1;
        self.kept = false;
    }

    fn restore(&mut self, _: &LayerKeys) {
        self.restores += 1;
        self.kept = true;
    }

    fn forget(&mut self) {
        self.kept = false;
    }

    fn kill(&mut self, told: Unanswered) {
        self.kills.push(told);
    }

    fn tell(&mut self, event: GuardEvent) {
        self.events.push(event.event);
        self.reasons.push(event.reason);
    }
}

struct Bench {
    guard: Guard,
    world: World,
    now: Moment,
}

impl Bench {
    fn new() -> Self {
        Self::with_grace(GRACE)
    }

    fn with_grace(grace: Duration) -> Self {
        let now = Moment {
            instant: Instant::now(),
            time: OffsetDateTime::UNIX_EPOCH,
        };
        let options = GuardOptions {
            interval: INTERVAL,
            grace,
            on_revoke: OnRevoke::Pause,
        };
        Self {
            guard: Guard::new(options, "key1".into(), now),
            world: World {
                kept: true,
                ..World::default()
            },
            now,
        }
    }

    fn pass(&mut self, time: Duration) {
        self.now.instant += time;
        self.now.time += time;
        self.guard.tick(self.now, &mut self.world);
    }

    /// Lets an interval pass, in which there must be one check, and answers it.
    fn check(&mut self, finding: Finding) {
        let before = self.world.checks.len();
        self.pass(INTERVAL);
        assert_eq!(self.world.checks.len(), before + 1);
        self.found(finding);
    }

    fn found(&mut self, finding: Finding) {
        self.guard.found(finding, self.now, &mut self.world);
        self.guard.tick(self.now, &mut self.world);
    }

    /// Another program goes on for this one.
    fn upgrade(&mut self) {
        let state = serde_json::to_string(&self.guard.state(self.now).unwrap()).unwrap();
        let (options, state) = (self.guard.options(), serde_json::from_str(&state).unwrap());
        self.guard = Guard::resumed(options, state, self.now);
        self.guard.tick(self.now, &mut self.world);
    }

    fn destroyed(&mut self) {
        self.guard.destroyed(self.now, &mut self.world);
    }

    fn restored(&mut self) {
        self.guard.restored(self.now, &mut self.world);
    }

    fn state(&self) -> (KeyState, DekState) {
        let status = self.guard.status();
        (status.state, status.dek)
    }

    fn last(&self) -> Option<EventKind> {
        self.world.events.last().copied()
    }
}

fn reason(code: &str) -> Reason {
    Reason {
        code: code.into(),
        message: "why".into(),
    }
}

fn granted() -> Finding {
    Finding::Granted {
        key_url: "key1".into(),
        keys: None,
    }
}

fn granted_with_key() -> Finding {
    Finding::Granted {
        key_url: "key1".into(),
        keys: Some(LayerKeys {
            layers: vec![uuid::Uuid::nil()],
            deks: Dek::generate().unwrap().into(),
        }),
    }
}

fn refused() -> Finding {
    Finding::Refused(reason("KeyDisabled"))
}

fn unknown() -> Finding {
    Finding::Unknown(reason("VaultUnreachable"))
}

#[test]
fn a_granted_key_is_asked_for_at_least_once_an_interval_and_nothing_happens() {
    let mut bench = Bench::new();
    for _ in 0..100 {
        assert!(bench.guard.deadline() <= bench.now.instant + INTERVAL);
        bench.check(granted());
    }
    assert_eq!(bench.state(), (KeyState::Active, DekState::Held));
    assert!(bench.world.events.is_empty());
    assert!(bench.world.checks.iter().all(|with_key| !with_key));
    assert_eq!(bench.world.destroys, 0);
}

#[test]
fn a_refusal_destroys_the_key_at_once_and_a_grant_brings_it_back() {
    let mut bench = Bench::new();
    bench.check(refused());
    assert_eq!(bench.world.destroys, 1);
    assert_eq!(
        bench.state(),
        (KeyState::KeyRevoked, DekState::BeingDestroyed)
    );
    bench.destroyed();
    assert_eq!(bench.state(), (KeyState::KeyRevoked, DekState::Destroyed));
    assert_eq!(
        bench.world.reasons.last(),
        Some(&Some(reason("KeyDisabled")))
    );
    // From now on the DEK is wanted; until it is granted nothing changes.
    bench.check(refused());
    assert_eq!(bench.world.checks.last(), Some(&true));
    bench.check(unknown());
    assert_eq!(bench.guard.status().reason.unwrap().code, "KeyDisabled");
    assert_eq!(bench.world.destroys, 1);

    bench.check(granted_with_key());
    assert_eq!(bench.world.restores, 1);
    assert_eq!(
        bench.state(),
        (KeyState::KeyRevoked, DekState::BeingRestored)
    );
    bench.restored();
    assert_eq!(bench.state(), (KeyState::Active, DekState::Held));
    let expected = [
        EventKind::KeyRevoked,
        EventKind::DekDestroyed,
        EventKind::KeyRestored,
    ];
    assert_eq!(bench.world.events, expected);
    bench.check(granted());
    assert_eq!(bench.world.checks.last(), Some(&false));
}

#[test]
fn an_unreachable_vault_stops_nothing_within_the_grace_period() {
    let mut bench = Bench::new();
    bench.check(unknown());
    assert_eq!(bench.state(), (KeyState::KeyUnreachable, DekState::Held));
    let until = bench.guard.status().until.unwrap();
    assert_eq!(until, bench.now.time + GRACE);
    for _ in 0..4 {
        bench.check(unknown());
    }
    assert_eq!(bench.world.destroys, 0);
    bench.check(granted());
    assert_eq!(bench.state(), (KeyState::Active, DekState::Held));
    let expected = [EventKind::KeyUnreachable, EventKind::KeyReachable];
    assert_eq!(bench.world.events, expected);
}

#[test]
fn the_end_of_the_grace_period_stops_the_disk_whether_or_not_a_check_is_under_way() {
    for hanging in [false, true] {
        let mut bench = Bench::new();
        bench.check(unknown());
        if hanging {
            bench.pass(INTERVAL);
        }
        let end = bench.now.instant + GRACE - if hanging { INTERVAL } else { Duration::ZERO };
        while bench.now.instant < end {
            assert_eq!(bench.world.destroys, 0);
            let next = bench.guard.deadline().min(end);
            bench.pass(next - bench.now.instant);
            if !hanging && bench.now.instant < end {
                bench.found(unknown());
            }
        }
        assert_eq!(bench.world.destroys, 1, "hanging: {hanging}");
        let reason = bench.guard.status().reason.unwrap();
        assert!(reason.message.contains("grace period of 60 s"), "{reason}");
        bench.destroyed();
        if hanging {
            // The check that hung had not asked for the DEK: the next one does, at once.
            bench.found(granted());
            assert_eq!(bench.world.checks.last(), Some(&true));
            bench.found(granted_with_key());
        } else {
            bench.check(granted_with_key());
        }
        bench.restored();
        assert_eq!(bench.state(), (KeyState::Active, DekState::Held));
    }
}

#[test]
fn without_a_grace_period_the_first_failure_stops_the_disk() {
    let mut bench = Bench::with_grace(Duration::ZERO);
    bench.check(unknown());
    assert_eq!(bench.world.destroys, 1);
}

#[test]
fn a_vault_that_does_not_answer_is_unreachable_since_it_was_asked() {
    let mut bench = Bench::new();
    bench.pass(INTERVAL);
    let asked = bench.now.time;
    bench.pass(INTERVAL);
    assert_eq!(bench.state().0, KeyState::KeyUnreachable);
    let status = bench.guard.status();
    assert_eq!(status.until, Some(asked + GRACE));
    assert_eq!(status.reason.unwrap().code, "VaultUnreachable");
    assert_eq!(bench.world.checks.len(), 1, "one at a time");
    bench.found(granted());
    assert_eq!(bench.last(), Some(EventKind::KeyReachable));
}

#[test]
fn a_refusal_while_the_key_is_restored_takes_it_away_again() {
    let mut bench = Bench::new();
    bench.check(refused());
    bench.destroyed();
    bench.check(granted_with_key());
    bench.check(refused());
    assert_eq!(bench.world.destroys, 2, "it may have come already");
    assert!(!bench.world.kept);
    bench.restored();
    assert_eq!(bench.world.destroys, 2);
    bench.destroyed();
    assert_eq!(bench.state(), (KeyState::KeyRevoked, DekState::Destroyed));
    assert!(!bench.world.events.contains(&EventKind::KeyRestored));
}

#[test]
fn a_grant_while_the_key_is_destroyed_waits_for_that() {
    let mut bench = Bench::new();
    bench.check(refused());
    bench.check(granted());
    assert_eq!(bench.world.restores, 0);
    assert_eq!(
        bench.state(),
        (KeyState::KeyRevoked, DekState::BeingDestroyed)
    );
    bench.destroyed();
    bench.check(granted_with_key());
    assert_eq!(bench.world.restores, 1);
}

#[test]
fn a_data_plane_that_cannot_use_the_key_gets_it_again() {
    let mut bench = Bench::new();
    bench.check(refused());
    bench.destroyed();
    bench.check(granted_with_key());
    bench
        .guard
        .not_restored("no memory", bench.now, &mut bench.world);
    assert_eq!(bench.last(), Some(EventKind::KeyNotRestored));
    let told = bench.world.events.len();
    bench.check(granted_with_key());
    assert_eq!(bench.world.restores, 2);
    bench
        .guard
        .not_restored("no memory", bench.now, &mut bench.world);
    assert_eq!(bench.world.events.len(), told, "told again");
    bench.check(granted_with_key());
    bench.restored();
    assert_eq!(bench.guard.status().last_failure, None);
}

#[test]
fn a_key_that_cannot_be_handed_out_stays_away_and_that_is_shown() {
    let mut bench = Bench::new();
    bench.check(refused());
    bench.destroyed();
    for _ in 0..3 {
        bench.check(Finding::Withheld(reason("AuditLog")));
    }
    let expected = [
        EventKind::KeyRevoked,
        EventKind::DekDestroyed,
        EventKind::KeyNotRestored,
    ];
    assert_eq!(bench.world.events, expected);
    assert_eq!(bench.world.restores, 0);
    let status = bench.guard.status();
    assert_eq!(status.last_failure, Some(reason("AuditLog")));
    assert_eq!(status.reason, Some(reason("KeyDisabled")));
    bench.check(granted_with_key());
    bench.restored();
    assert_eq!(bench.state(), (KeyState::Active, DekState::Held));
}

#[test]
fn a_data_plane_that_keeps_the_key_is_killed_once() {
    let mut bench = Bench::new();
    bench.check(refused());
    bench.pass(Duration::from_secs(29));
    assert!(bench.world.kills.is_empty());
    bench.pass(Duration::from_secs(1));
    bench.pass(Duration::from_secs(100));
    assert_eq!(bench.world.kills, [Unanswered::Destroy]);
    assert!(bench.guard.holds_key(), "until its end is seen");
}

/// Nobody knows whether it has read the key, so a refusal waits for no answer of it.
#[test]
fn a_data_plane_that_does_not_say_whether_it_has_the_key_again_loses_it_by_a_refusal() {
    let mut bench = Bench::new();
    bench.check(refused());
    bench.destroyed();
    bench.check(granted_with_key());
    bench.check(refused());
    assert_eq!(bench.world.destroys, 2, "it is told at once");
    assert!(!bench.world.kept);
    bench.pass(Duration::from_secs(29));
    assert!(bench.world.kills.is_empty());
    bench.pass(Duration::from_secs(1));
    assert_eq!(bench.world.kills, [Unanswered::Destroy]);
}

#[test]
fn a_data_plane_that_never_says_that_it_serves_again_is_killed_and_the_next_gets_the_key() {
    let mut bench = Bench::new();
    bench.check(refused());
    bench.destroyed();
    bench.check(granted_with_key());
    // A check that hangs makes it no longer.
    bench.pass(INTERVAL);
    bench.pass(INTERVAL);
    let due = bench.now.instant + Duration::from_secs(10);
    assert_eq!(bench.guard.deadline(), due);
    bench.pass(Duration::from_secs(10));
    assert_eq!(bench.world.kills, [Unanswered::Restore]);
    assert!(!bench.world.kept);
    assert_eq!(bench.last(), Some(EventKind::KeyNotRestored));
    // What it says now is of a key that it is to lose.
    bench.restored();
    assert_eq!(
        bench.state(),
        (KeyState::KeyRevoked, DekState::BeingDestroyed)
    );
    bench.pass(Duration::from_secs(100));
    assert_eq!(bench.world.kills.len(), 1);
    bench.guard.without_data_plane(bench.now, &mut bench.world);
    assert_eq!(bench.last(), Some(EventKind::DekDestroyed));
    bench.found(granted());
    bench.found(granted_with_key());
    bench.restored();
    assert_eq!(bench.state(), (KeyState::Active, DekState::Held));
}

/// The program is replaced more often than the vault is given time to answer.
#[test]
fn upgrades_do_not_hide_that_the_vault_does_not_answer() {
    let mut bench = Bench::new();
    bench.pass(INTERVAL);
    let asked = bench.now.time;
    for upgrade in 1..=3 {
        bench.pass(INTERVAL / 4);
        bench.upgrade();
        assert_eq!(
            bench.world.checks.len(),
            1 + upgrade,
            "what was asked is lost"
        );
        assert_eq!(bench.state().0, KeyState::Active);
    }
    bench.pass(INTERVAL / 4);
    assert_eq!(bench.state().0, KeyState::KeyUnreachable);
    assert_eq!(bench.guard.status().until, Some(asked + GRACE));
    bench.upgrade();
    assert_eq!(bench.guard.status().until, Some(asked + GRACE));
    bench.found(granted());
    assert_eq!(bench.state().0, KeyState::Active);
    // One that was answered is no concern of the next program.
    bench.upgrade();
    bench.pass(INTERVAL / 2);
    assert_eq!(bench.state().0, KeyState::Active);
}

#[test]
fn an_older_program_is_told_nothing_that_it_does_not_read() {
    let mut bench = Bench::new();
    let json = |state| serde_json::to_string(&state).unwrap();
    assert!(!json(bench.guard.state(bench.now).unwrap()).contains("asked"));
    bench.pass(INTERVAL);
    let state = bench.guard.state(bench.now).unwrap();
    assert!(json(state.clone()).contains("asked"));
    assert!(!json(state.of_version_1()).contains("asked"));
}

/// The vault refuses the key between the end of a data plane and the moment in which the next one gets the disk.
#[test]
fn a_data_plane_that_is_started_over_a_refusal_gets_no_key() {
    let mut bench = Bench::new();
    let next_has_key = |bench: &mut Bench| bench.guard.next_has_key(bench.now, &mut bench.world);
    assert!(next_has_key(&mut bench));
    bench.check(refused());
    assert!(!next_has_key(&mut bench));
    assert_eq!(bench.last(), Some(EventKind::DekDestroyed));
    assert_eq!(bench.state(), (KeyState::KeyRevoked, DekState::Destroyed));
    bench.check(granted_with_key());
    assert!(!next_has_key(&mut bench), "it was for the one before");
    assert!(!bench.world.kept);
    bench.check(granted_with_key());
    bench.restored();
    assert!(next_has_key(&mut bench));
}

#[test]
fn another_key_version_is_noticed() {
    let mut bench = Bench::new();
    bench.check(Finding::Granted {
        key_url: "key2".into(),
        keys: None,
    });
    assert_eq!(bench.world.events, [EventKind::KeyChanged]);
    assert_eq!(bench.guard.status().key_url, "key2");
}

proptest! {
    /// Whatever the vault says and however long things take: there is one check at a time, the data
    /// plane keeps its key while the vault grants it, and after a refusal it has none before the
    /// vault grants it again.
    #[test]
    fn the_data_plane_has_the_key_exactly_while_it_is_granted(steps in prop::collection::vec((0u8..8, 1u64..30), 1..200)) {
        let mut bench = Bench::new();
        let (mut wants_key, mut last_refused) = (None, false);
        for (step, seconds) in steps {
            let (destroys, restores) = (bench.world.destroys, bench.world.restores);
            let checks = bench.world.checks.len();
            bench.pass(Duration::from_secs(seconds));
            if bench.world.checks.len() > checks {
                prop_assert!(wants_key.is_none(), "two checks at once");
                wants_key = bench.world.checks.last().copied();
            }
            match (step, wants_key) {
                (0, Some(with_key)) => {
                    let checks = bench.world.checks.len();
                    last_refused = false;
                    bench.found(if with_key { granted_with_key() } else { granted() });
                    wants_key = (bench.world.checks.len() > checks)
                        .then(|| bench.world.checks.last().copied()).flatten();
                }
                (1, Some(_)) => { last_refused = true; bench.found(refused()); wants_key = None; }
                (2, Some(_)) => { bench.found(unknown()); wants_key = None; }
                (3, _) => bench.destroyed(),
                (4, _) => bench.restored(),
                (5, _) => bench.guard.not_restored("x", bench.now, &mut bench.world),
                (6, _) => {
                    bench.guard.without_data_plane(bench.now, &mut bench.world);
                    let dek = bench.state().1;
                    prop_assert!(matches!(dek, DekState::Held | DekState::Destroyed));
                }
                _ => {}
            }
            prop_assert!(bench.world.destroys - destroys <= 1);
            prop_assert!(bench.world.restores - restores <= 1);
            let (state, dek) = bench.state();
            let may_be_kept = matches!(dek, DekState::Held | DekState::BeingRestored);
            prop_assert_eq!(bench.world.kept, may_be_kept, "{:?}", dek);
            if last_refused {
                prop_assert_eq!(state, KeyState::KeyRevoked);
                prop_assert!(dek != DekState::Held);
            }
            if state != KeyState::KeyRevoked {
                prop_assert_eq!(dek, DekState::Held);
            }
        }
    }
}
