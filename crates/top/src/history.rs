//! What was, for sparklines.

use std::collections::VecDeque;

use crate::look::Look;
use live::Rates;

/// Looks that are remembered.
const KEPT: usize = 240;

/// Rates of the last looks, of a disk or of all together. The last one is the newest.
#[derive(Debug, Clone, Default)]
pub(crate) struct History {
    looks: VecDeque<Moment>,
}

/// Rates of one look.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Moment {
    /// Reads and writes a second.
    pub(crate) requests: f64,
    /// Bytes read a second.
    pub(crate) read: f64,
    /// Bytes written a second.
    pub(crate) written: f64,
}

impl Moment {
    /// Of a disk; zeros while nothing is known.
    pub(crate) fn of(rates: Option<&Rates>) -> Self {
        rates.map_or_else(Self::default, |rates| Self {
            requests: rates.io.requests,
            read: rates.read.bytes,
            written: rates.write.bytes,
        })
    }

    pub(crate) fn add(&mut self, other: Self) {
        self.requests += other.requests;
        self.read += other.read;
        self.written += other.written;
    }
}

impl History {
    pub(crate) fn push(&mut self, moment: Moment) {
        if self.looks.len() == KEPT {
            self.looks.pop_front();
        }
        self.looks.push_back(moment);
    }

    /// The newest.
    pub(crate) fn now(&self) -> Moment {
        self.looks.back().copied().unwrap_or_default()
    }

    /// What was last, as many cells wide, the newest at the right; the highest that is shown fills its cell.
    pub(crate) fn sparkline(&self, of: fn(&Moment) -> f64, width: usize, look: Look) -> String {
        let shown = self.looks.len().min(width);
        let values = || self.looks.iter().skip(self.looks.len() - shown).map(of);
        let highest = values().fold(0.0, f64::max);
        let bar = |value: f64| {
            let eighths = match value > 0.0 && highest.is_finite() {
                // What is not nothing is to be seen.
                true => (value / highest * 8.0).round().clamp(1.0, 8.0),
                false => 0.0,
            };
            look.bar(eighths as usize)
        };
        let empty = std::iter::repeat_n(' ', width - shown);
        empty.chain(values().map(bar)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn history(requests: &[f64]) -> History {
        let mut history = History::default();
        for requests in requests {
            history.push(Moment {
                requests: *requests,
                ..Moment::default()
            });
        }
        history
    }

    #[test]
    fn a_sparkline_is_as_wide_as_wanted_and_the_newest_is_at_the_right() {
        let line = |history: &History, width| {
            history.sparkline(|moment| moment.requests, width, Look::best())
        };
        assert_eq!(line(&history(&[]), 4), "    ");
        assert_eq!(line(&history(&[0.0, 1.0, 400.0, 800.0]), 6), "   ▁▄█");
        assert_eq!(line(&history(&[9000.0, 2.0, 1.0]), 2), "█▄");
        assert_eq!(line(&history(&[1.0]), 0), "");
        assert_eq!(line(&history(&[f64::INFINITY, 1.0]), 2), "  ");
        let many = history(&[1.0; 2 * KEPT]);
        assert_eq!(many.looks.len(), KEPT);
        assert_eq!(line(&many, 300).trim_start().chars().count(), KEPT);
    }
}
