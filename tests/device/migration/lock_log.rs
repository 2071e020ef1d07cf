//! The lock log: when which attach has taken the disk, and when it has let go of it, from the logs of all of them.

use std::collections::BTreeMap;

use test_support::Daemon;

/// What each attach has said of the lock, and when others were killed.
#[derive(Default)]
pub struct LockLog {
    /// By attach: when it took the disk or let go of it, in nanoseconds.
    held: BTreeMap<String, Vec<(u128, bool)>>,
    /// When the processes of an attach were gone.
    killed: BTreeMap<String, u128>,
}

impl LockLog {
    /// Takes what an attach has said so far. One whose log is taken twice is in here once.
    pub fn read(&mut self, daemon: &Daemon) {
        let mut said: BTreeMap<String, Vec<(u128, bool)>> = BTreeMap::new();
        for line in daemon.log().lines() {
            let Some((attach, takes, at)) = parse(line) else {
                continue;
            };
            said.entry(attach).or_default().push((at, takes));
        }
        self.held.extend(said);
    }

    /// The same of an attach that has been killed by now.
    pub fn read_killed(&mut self, daemon: &Daemon) {
        let now = std::time::UNIX_EPOCH.elapsed().unwrap().as_nanos();
        let before = self.held.len();
        self.read(daemon);
        assert!(self.held.len() >= before);
        for line in daemon.log().lines() {
            if let Some((attach, ..)) = parse(line) {
                self.killed.insert(attach, now);
            }
        }
    }

    /// All times during which somebody had the disk.
    fn intervals(&self) -> Vec<(u128, u128, &str)> {
        let mut intervals = Vec::new();
        for (attach, held) in &self.held {
            let mut since = None;
            for (at, takes) in held {
                match (since, takes) {
                    (None, true) => since = Some(*at),
                    (Some(from), false) => {
                        intervals.push((from, *at, attach.as_str()));
                        since = None;
                    }
                    _ => panic!("attach {attach} takes or lets go twice: {held:?}"),
                }
            }
            if let Some(from) = since {
                let until = self.killed.get(attach).copied().unwrap_or(u128::MAX);
                intervals.push((from, until, attach));
            }
        }
        intervals.sort_unstable();
        intervals
    }

    /// There was one writer at every moment; how often the disk was taken.
    pub fn assert_one_at_a_time(&self) -> usize {
        let intervals = self.intervals();
        for pair in intervals.windows(2) {
            let ((_, end, one), (start, _, other)) = (&pair[0], &pair[1]);
            // Who is killed has the lock until the kernel has taken it apart, before the test knows.
            let end = match self.killed.contains_key(*one) {
                true => start,
                false => end,
            };
            assert!(
                end <= start,
                "{one} has the disk until {end}, and {other} takes it at {start}: {intervals:?}"
            );
        }
        intervals.len()
    }
}

/// Of a line of a log about the lock: which attach, whether it takes the disk, and when.
fn parse(line: &str) -> Option<(String, bool, u128)> {
    let (_, rest) = line.split_once("attach ")?;
    let (attach, rest) = rest.split_once(' ')?;
    let takes = if rest.starts_with("has taken the disk") {
        true
    } else if rest.starts_with("lets go of the disk") {
        false
    } else {
        return None;
    };
    let at = rest.split_once('(')?.1.strip_suffix(" ns)")?;
    Some((attach.into(), takes, at.parse().ok()?))
}

#[test]
fn two_at_a_time_are_seen() {
    let mut log = LockLog::default();
    let one = parse("[x INFO y] attach a has taken the disk disk (5 ns)").unwrap();
    assert_eq!(one, ("a".into(), true, 5));
    assert_eq!(
        parse("attach b lets go of the disk disk (7 ns)").unwrap().2,
        7
    );
    assert!(parse("attach 1 is what").is_none());
    log.held.insert("a".into(), vec![(5, true), (9, false)]);
    log.held.insert("b".into(), vec![(9, true)]);
    assert_eq!(log.assert_one_at_a_time(), 2);
    log.held.insert("b".into(), vec![(8, true)]);
    let seen = std::panic::catch_unwind(|| log.assert_one_at_a_time());
    assert!(seen.is_err(), "they overlap");
}
