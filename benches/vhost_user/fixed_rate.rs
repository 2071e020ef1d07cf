//! Latency at a fixed rate: requests come when they are due, whether or not the one before is done.
//!
//! A closed loop asks the next thing when the last has ended, so that a back-end which stands still for
//! 10 ms spoils one request of each slot and not the hundreds that a guest would have had meanwhile. Here
//! each request has a time at which it is due, and its latency counts from then, even if it had to wait for
//! a free slot.

use std::time::Duration;

use crate::backends::{Backend, Kind, Place};
use crate::load::Load;
use crate::pattern::{Pattern, Work};
use crate::report::{Cell, Report};
use crate::run::{WARM_UP, timed};

/// Requests that may be in flight: more than any back-end has at half of its peak.
const DEPTH: u16 = 128;

/// The closed loops that were measured, of which the peaks are taken.
#[derive(Default)]
pub struct Peaks(Vec<(Kind, Pattern, f64)>);

impl Peaks {
    pub fn add(&mut self, kind: Kind, pattern: &Pattern, iops: f64) {
        self.0.push((kind, *pattern, iops));
    }

    /// The best rate of any depth, each the mean of its rounds.
    fn of(&self, kind: Kind, work: Work) -> Option<f64> {
        let of_kind = |p: &Pattern| p.work == work && p.bytes == 4096;
        let runs: Vec<_> = self
            .0
            .iter()
            .filter(|run| run.0 == kind && of_kind(&run.1))
            .collect();
        let mean = |depth| {
            let rates = runs.iter().filter(|run| run.1.depth == depth);
            let (count, sum) = rates.fold((0, 0.0), |(n, sum), run| (n + 1, sum + run.2));
            sum / f64::from(count)
        };
        runs.iter()
            .map(|run| mean(run.1.depth))
            .max_by(f64::total_cmp)
    }
}

/// How the measurement goes.
pub struct Measurement<'a> {
    pub place: &'a Place<'a>,
    pub limit: Duration,
    pub rounds: u32,
}

impl Measurement<'_> {
    /// Each back-end at half of its own peak, and all of them at half of QSD raw's.
    pub fn run(&self, backends: &mut [(Kind, Backend)], peaks: &Peaks, report: &mut Report) {
        for round in 0..self.rounds {
            for work in [Work::Read, Work::Write] {
                for (kind, backend) in &mut *backends {
                    if *kind == Kind::Layers8 {
                        continue;
                    }
                    for (whose, peak) in [
                        ("its peak", peaks.of(*kind, work)),
                        ("QSD raw's peak", peaks.of(Kind::QsdRaw, work)),
                    ] {
                        let Some(peak) = peak else { continue };
                        self.at(backend, *kind, round, (work, whose, peak / 2.0), report);
                    }
                }
            }
        }
    }

    fn at(
        &self,
        backend: &mut Backend,
        kind: Kind,
        round: u32,
        (work, whose, rate): (Work, &str, f64),
        report: &mut Report,
    ) {
        let pattern = Pattern::small(work, DEPTH);
        let processes = backend.processes();
        let queue = &mut backend.frontend.queues[0];
        // It looks at the ring all the time, for it has to be on time for the next request.
        let mut load = Load::new(queue, pattern, self.place.size, Duration::ZERO);
        load.run_at(rate, WARM_UP);
        let measured = timed(&processes, || load.run_at(rate, self.limit));
        let way = if work == Work::Read { "read" } else { "write" };
        let cell = Cell {
            name: format!("4 KiB rand{way} at half of {whose}"),
            rate: Some(rate),
            ..Cell::new(&pattern, kind, round)
        };
        report.add(&cell, &measured);
    }
}
