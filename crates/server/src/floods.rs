//! What is refused before it reaches a vault's log: logins, and identities over their limit.
//!
//! Whoever is not known can make as many of these as the network carries, so none of them writes
//! anything itself. The first of a kind is recorded at once, by a thread; those that follow are
//! counted in memory, and their number is recorded after a second, and then after pauses that double
//! up to a minute for as long as it goes on. The end of the server records what is left; if it is
//! killed, the counts of the last pause are lost, the first of each kind is not. Beyond [`KINDS`] at a
//! time, details and addresses are told apart no more; of whoever is known it is still told who was
//! refused what, up to [`CALLERS`]. Those who are not known take nothing of that room.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use uuid::Uuid;

use vault::audit::AuditRecord;

/// Kinds that are told apart at a time, of callers who are known, and of those who are not.
const KINDS: usize = 32;
/// Kinds of known callers at a time, when neither details nor addresses are told apart any more.
const CALLERS: usize = 4 * KINDS;
/// The first pause.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
/// The longest pause.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// In place of an address.
const MANY: &str = "many addresses";

/// What was refused, as far as that tells it from others.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Refused {
    /// As the log names it.
    pub operation: &'static str,
    /// The identity, if it is known who asks.
    pub caller: Uuid,
    /// The code of the refusal.
    pub code: String,
    /// What exactly; never a secret.
    pub detail: String,
}

struct Kind {
    count: u64,
    /// Of the first and the last that were counted.
    times: (OffsetDateTime, OffsetDateTime),
    due: Instant,
    pause: Duration,
}

#[derive(Default)]
struct State {
    /// By what was refused, and the address without its port.
    kinds: HashMap<(Refused, String), Kind>,
    /// What is to be recorded now.
    records: Vec<AuditRecord>,
    ended: bool,
}

impl State {
    /// As what a refusal is counted, for which there is room.
    fn key(&self, refused: Refused, place: String) -> (Refused, String) {
        let is_known = !refused.caller.is_nil();
        let of_these = |(other, _): &&(Refused, String)| other.caller.is_nil() != is_known;
        let count = self.kinds.keys().filter(of_these).count();
        let has_room = |key: &(Refused, String), most| self.kinds.contains_key(key) || count < most;
        let mut key = (refused, place);
        if has_room(&key, KINDS) {
            return key;
        }
        key.0.detail = "and others".into();
        key.1 = MANY.into();
        // Of those who are not known there are as many kinds then as there are operations and codes.
        if is_known && !has_room(&key, CALLERS) {
            key.0.detail = "by many identities".into();
            key.0.caller = Uuid::nil();
        }
        key
    }
}

/// The refusals of a server, on their way to the installation's log.
#[derive(Clone, Default)]
pub struct Floods(Arc<(Mutex<State>, Condvar)>);

impl Floods {
    /// Notes a refusal. It does not wait for anything.
    pub fn note(&self, refused: Refused, peer: SocketAddr) {
        let (_, wake) = &*self.0;
        let mut state = self.state();
        let key = state.key(refused, peer.ip().to_string());
        let now = OffsetDateTime::now_utc();
        if let Some(kind) = state.kinds.get_mut(&key) {
            if kind.count == 0 {
                kind.times.0 = now;
            }
            kind.times.1 = now;
            kind.count += 1;
            return;
        }
        let origin = match key.1 == MANY {
            true => MANY.into(),
            false => peer.to_string(),
        };
        let first = record(&key.0, origin, key.0.detail.clone(), now);
        state.records.push(first);
        let kind = Kind {
            count: 0,
            times: (now, now),
            due: Instant::now() + FIRST_PAUSE,
            pause: FIRST_PAUSE,
        };
        state.kinds.insert(key, kind);
        wake.notify_one();
    }

    /// Records, with `append`, what is noted, until [`end`](Self::end). What cannot be recorded is
    /// logged.
    pub fn run(&self, append: impl Fn(&AuditRecord) -> Result<(), String>) {
        let (_, wake) = &*self.0;
        let mut state = self.state();
        loop {
            let ended = state.ended;
            let counted = close(&mut state.kinds, ended);
            state.records.extend(counted);
            let records = std::mem::take(&mut state.records);
            drop(state);
            for record in &records {
                if let Err(e) = append(record) {
                    log::error!("not in the audit log, since {e}: {record:?}");
                }
            }
            if ended {
                return;
            }
            state = self.state();
            if state.records.is_empty() && !state.ended {
                let waited = wake.wait_timeout(state, FIRST_PAUSE);
                state = waited.unwrap_or_else(PoisonError::into_inner).0;
            }
        }
    }

    /// Has [`run`](Self::run) record what is left, and end.
    pub fn end(&self) {
        self.state().ended = true;
        self.0.1.notify_all();
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The records of the counts whose pause is over, or of all; what was quiet meanwhile is forgotten.
fn close(kinds: &mut HashMap<(Refused, String), Kind>, all: bool) -> Vec<AuditRecord> {
    let now = Instant::now();
    let mut records = Vec::new();
    kinds.retain(|(refused, place), kind| {
        if now < kind.due && !all {
            return true;
        }
        if kind.count == 0 {
            return false;
        }
        let text = |time: OffsetDateTime| time.format(&Rfc3339).unwrap_or_default();
        let detail = format!(
            "{}; {} more from {} to {}",
            refused.detail,
            kind.count,
            text(kind.times.0),
            text(kind.times.1)
        );
        let time = OffsetDateTime::now_utc();
        records.push(record(refused, place.clone(), detail, time));
        kind.count = 0;
        kind.pause = (2 * kind.pause).min(LONGEST_PAUSE);
        kind.due = now + kind.pause;
        true
    });
    records
}

fn record(refused: &Refused, origin: String, detail: String, time: OffsetDateTime) -> AuditRecord {
    AuditRecord::new(refused.caller, origin, refused.operation)
        .at(time)
        .with_detail(detail)
        .with_code(refused.code.clone())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(detail: &str) -> Refused {
        Refused {
            operation: "LoginRefused",
            caller: Uuid::nil(),
            code: "Unauthorized".into(),
            detail: detail.into(),
        }
    }

    #[test]
    fn a_flood_is_a_few_records_and_none_of_it_is_lost() {
        let floods = Floods::default();
        let records = Mutex::new(Vec::new());
        let peer = |host: u8| SocketAddr::from(([10, 0, 0, host], 4711));
        std::thread::scope(|scope| {
            scope.spawn(|| {
                floods.run(|record| {
                    records.lock().unwrap().push(record.clone());
                    Ok(())
                });
            });
            for _ in 0..5000 {
                floods.note(refused("wrong secret"), peer(1));
            }
            for host in 0..200 {
                floods.note(refused("expired"), peer(host));
            }
            floods.end();
        });
        let records = records.into_inner().unwrap();
        assert!(records.len() < 2 * (KINDS + 1) + 2, "{}", records.len());
        assert_eq!(records[0].event.detail.as_deref(), Some("wrong secret"));
        assert_eq!(records[0].event.origin, "10.0.0.1:4711");
        let count = |record: &AuditRecord| {
            let detail = record.event.detail.as_deref().unwrap();
            let counted = detail.split("; ").nth(1);
            counted.map_or(1, |text| {
                text.split(' ').next().unwrap().parse::<u64>().unwrap()
            })
        };
        assert_eq!(records.iter().map(count).sum::<u64>(), 5200);
        assert!(records.iter().any(|record| record.event.origin == MANY));
    }

    #[test]
    fn who_is_not_known_hides_nobody_who_is() {
        let floods = Floods::default();
        let peer = SocketAddr::from(([10, 0, 0, 1], 4711));
        for n in 0..1000 {
            floods.note(refused(&format!("path {n}")), peer);
        }
        let refused_to = |caller: u128, n: u32| Refused {
            operation: "ManagementRefused",
            caller: Uuid::from_u128(caller),
            ..refused(&format!("action {n}"))
        };
        let has = |caller: u128, detail: &str| {
            let caller = Uuid::from_u128(caller).to_string();
            let state = floods.state();
            let mut found = state.records.iter().map(|record| &record.event);
            found.any(|e| e.caller == caller && e.detail.as_deref() == Some(detail))
        };
        floods.note(refused_to(1, 0), peer);
        assert!(has(1, "action 0"));
        // One who is known does not hide who the next is.
        for n in 0..1000 {
            floods.note(refused_to(1, n), peer);
        }
        floods.note(refused_to(2, 0), peer);
        assert!(has(2, "and others"));
        for caller in 3..1000 {
            floods.note(refused_to(caller, 0), peer);
        }
        assert!(has(0, "by many identities"));
        assert!(floods.state().kinds.len() <= KINDS + CALLERS + 2);
    }
}
