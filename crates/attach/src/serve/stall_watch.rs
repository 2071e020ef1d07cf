//! Whether the requests of an attached disk end.
//!
//! A data plane whose thread hangs ends by itself (`crates/dataplane/src/queue/pulse.rs`). But storage may answer
//! nothing any more, and a data plane may be stopped or frozen as a whole, so that it can tell nobody. What it has
//! counted is in memory that this process reads without asking it.
//!
//! Nothing is ended for it: a write that is under way may still arrive, and storage may come back.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use time::OffsetDateTime;

use crate::serve::attached_disk::AttachedDisk;
use crate::serve::event_hub::EventHub;
use crate::serve::keeping::Counted;
use crate::status::KeyState;
use alarms::{Settings, Stall};
use protocol::{Commands, IoCounters, Limits, OpCounters};

/// How often it is looked at.
const PERIOD: Duration = Duration::from_secs(3);
/// How long a data plane may give no sign of life at least: it gives one every 3 s, unless its host is busy.
const SILENCE: Duration = Duration::from_secs(10);
/// Bytes of the longest request that waits for a limit as a whole.
const LONGEST: u64 = 4 << 20;

/// What is looked at, and where it is shown.
pub(crate) struct StallWatch {
    pub(crate) state_dir: PathBuf,
    pub(crate) attached_disk: Arc<AttachedDisk>,
    pub(crate) commands: Arc<Commands>,
    pub(crate) event_hub: Arc<EventHub>,
    pub(crate) counted: Arc<Counted>,
}

impl StallWatch {
    /// Looks from now on, until the end of the process.
    ///
    /// # Errors
    /// What the kernel says.
    pub(crate) fn spawn(self) -> io::Result<()> {
        let thread = std::thread::Builder::new().name("stalls".into());
        thread.spawn(move || self.run()).map(drop)
    }

    fn run(self) {
        // The program before this one may have shown one.
        let offered = self.event_hub.status().offered;
        let mut shown = offered.and_then(|offered| offered.stall);
        let mut progress = Progress::default();
        let mut last = Instant::now();
        loop {
            std::thread::sleep(PERIOD);
            // Both were stopped perhaps, and the data plane has not had its turn yet.
            if last.elapsed() > PERIOD * 3 {
                progress = Progress::default();
            }
            last = Instant::now();
            let now = (Instant::now(), OffsetDateTime::now_utc());
            let stall = progress.look(self.counted().as_ref(), now, || self.patience());
            match (&shown, &stall) {
                (None, Some(stall)) => log::warn!("{stall} since {}", vault::moment(stall.since)),
                (Some(_), None) => log::info!("requests end again"),
                _ => {}
            }
            if shown != stall {
                self.event_hub.set_stall(stall.clone());
                shown = stall;
            }
        }
    }

    /// What the data plane has counted, unless it has a reason to wait that is told as something else.
    fn counted(&self) -> Option<IoCounters> {
        let is_revoked = self.event_hub.status().state == KeyState::KeyRevoked;
        // One that ends flushes for as long as that takes, and one that has died is told of.
        let is_gone = self.commands.is_ending() || self.commands.has_ended();
        if is_revoked || is_gone || !self.attached_disk.is_held() {
            return None;
        }
        // Where nothing can be read nothing is known, and nothing is claimed.
        self.counted.counters().ok().flatten()
    }

    /// How long it is before something is a stall.
    fn patience(&self) -> Patience {
        let settings = Settings::load(&self.state_dir).unwrap_or_default();
        let time = settings.stall_time();
        Patience {
            requests: time + longest_wait(&self.attached_disk.limits()),
            silence: time.max(SILENCE),
        }
    }
}

/// How long one request may wait for the limits of its disk.
fn longest_wait(limits: &Limits) -> Duration {
    let takes = |much: u64, a_second: Option<u64>| match a_second {
        Some(a_second) => Duration::from_secs(much.div_ceil(a_second.max(1))),
        None => Duration::ZERO,
    };
    takes(1, limits.iops).max(takes(LONGEST, limits.bandwidth))
}

/// How long it is before something is a stall.
struct Patience {
    /// No request ends.
    requests: Duration,
    /// The data plane gives no sign of life.
    silence: Duration,
}

/// A moment, by the clock that counts no time in which the host sleeps, and by that of people.
type Now = (Instant, OffsetDateTime);

/// A count, and when it was last seen to change.
#[derive(Default)]
struct Count(Option<(u64, Now)>);

impl Count {
    /// How long it has stood still by now, and since when; `None` for one that need not go on.
    fn still(&mut self, count: Option<u64>, now: Now) -> Option<(Duration, OffsetDateTime)> {
        let Some(count) = count else {
            self.0 = None;
            return None;
        };
        let (last, (begun, since)) = *self.0.get_or_insert((count, now));
        if last != count {
            self.0 = Some((count, now));
            return None;
        }
        Some((now.0.saturating_duration_since(begun), since))
    }
}

/// What was seen of a data plane.
#[derive(Default)]
struct Progress {
    requests: Count,
    signs_of_life: Count,
}

impl Progress {
    /// Takes what is counted now.
    fn look(
        &mut self,
        counters: Option<&IoCounters>,
        now: Now,
        patience: impl FnOnce() -> Patience,
    ) -> Option<Stall> {
        let ended = |counters: &IoCounters| {
            let operations = counters.operations.iter().map(OpCounters::requests);
            operations.fold(0, u64::wrapping_add)
        };
        let under_way = counters.filter(|counters| counters.in_flight > 0);
        let requests = self.requests.still(under_way.map(ended), now);
        // Those of older versions give none.
        let signs = counters.map(|counters| counters.signs_of_life);
        let signs = signs.filter(|signs| *signs > 0);
        let silence = self.signs_of_life.still(signs, now);
        if requests.is_none() && silence.is_none() {
            return None;
        }
        let patience = patience();
        let requests = requests.filter(|(time, _)| *time >= patience.requests);
        let silence = silence.filter(|(time, _)| *time >= patience.silence);
        let sinces = [requests, silence].into_iter().flatten();
        Some(Stall {
            since: sinces.map(|(_, since)| since).min()?,
            requests: counters.map_or(0, |counters| counters.in_flight),
            wait_for_space: counters.map_or(0, |counters| counters.wait_for_space),
            is_silent: silence.is_some(),
        })
    }
}

#[cfg(test)]
mod tests {
    use protocol::Operation;

    use super::*;

    fn counters(in_flight: u64, ended: u64) -> IoCounters {
        IoCounters {
            operations: vec![OpCounters {
                operation: Operation::Read,
                bytes: 0,
                errors: 0,
                latency_ticks: 0,
                buckets: vec![(3, ended)],
            }],
            in_flight,
            ..IoCounters::default()
        }
    }

    /// Looks each second at what is counted then; when a stall is seen, and since when.
    fn stalls(seen: impl IntoIterator<Item = Option<IoCounters>>) -> Vec<(u64, i64)> {
        let mut progress = Progress::default();
        let (begun, start) = (Instant::now(), OffsetDateTime::UNIX_EPOCH);
        let mut stalls = Vec::new();
        for (second, counters) in (0..).zip(seen) {
            let after = Duration::from_secs(second);
            let patience = || Patience {
                requests: Duration::from_secs(2),
                silence: Duration::from_secs(3),
            };
            let now = (begun + after, start + after);
            let stall = progress.look(counters.as_ref(), now, patience);
            stalls.extend(stall.map(|stall| (second, stall.since.unix_timestamp())));
        }
        stalls
    }

    #[test]
    fn requests_of_which_none_ends_are_stalled() {
        let counted = [(2, 7), (2, 7), (2, 7), (2, 7), (1, 8), (1, 8)];
        let counted = counted.map(|(in_flight, ended)| Some(counters(in_flight, ended)));
        assert_eq!(stalls(counted), [(2, 0), (3, 0)]);
    }

    #[test]
    fn who_has_nothing_to_do_or_goes_on_is_not_stalled() {
        assert_eq!(stalls((0..9).map(|_| Some(counters(0, 7)))), []);
        assert_eq!(stalls((0..9).map(|ended| Some(counters(8, ended)))), []);
        // The next data plane counts anew, and what is not known is no stall.
        let anew = [Some(counters(1, 5)), Some(counters(1, 0)), None, None, None];
        assert_eq!(stalls(anew), []);
    }

    /// A request that comes after a pause is not late at once.
    #[test]
    fn a_pause_is_no_stall() {
        let counted = [0, 0, 0, 1, 1, 1].map(|in_flight| Some(counters(in_flight, 7)));
        assert_eq!(stalls(counted), [(5, 3)]);
    }

    /// Nothing is in flight in one that takes no requests any more.
    #[test]
    fn a_data_plane_that_gives_no_sign_of_life_is_stalled() {
        let looked = |signs_of_life| {
            Some(IoCounters {
                signs_of_life,
                ..counters(0, 7)
            })
        };
        let counted = [5, 6, 6, 6, 6, 6, 7].map(looked);
        assert_eq!(stalls(counted), [(4, 1), (5, 1)]);
        assert_eq!(stalls([0; 9].map(looked)), [], "of an older version");
    }

    #[test]
    fn a_limit_is_no_stall() {
        let limits = |iops, bandwidth| Limits {
            iops,
            bandwidth,
            ..Limits::default()
        };
        assert_eq!(longest_wait(&limits(None, None)), Duration::ZERO);
        assert_eq!(longest_wait(&limits(Some(1), None)).as_secs(), 1);
        assert_eq!(longest_wait(&limits(Some(1), Some(64 << 10))).as_secs(), 64);
        assert_eq!(longest_wait(&limits(None, Some(0))).as_secs(), LONGEST);
    }
}
