//! Values with their size, and what evaluation may use up.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::limits::{MAX_DEPTH, MAX_SHARED, MAX_STEPS, MAX_TIME, MAX_TOTAL, MAX_VALUE, OWN};

/// A value that nobody changes any more.
pub(crate) type Shared = Arc<Measured>;

#[derive(Debug, PartialEq)]
pub(crate) struct Measured {
    pub value: Value,
    /// About the memory that it takes.
    pub size: usize,
    depth: usize,
}

impl Measured {
    pub fn new(value: Value) -> Self {
        let (size, depth) = measure(&value);
        Self { value, size, depth }
    }
}

/// The memory of a value, and its levels.
fn measure(value: &Value) -> (usize, usize) {
    const NODE: usize = size_of::<Value>();
    let below = |(size, depth): (usize, usize), value: &Value| {
        let (more, levels) = measure(value);
        (size + more, depth.max(levels + 1))
    };
    match value {
        Value::Null | Value::Bool(_) | Value::Number(_) => (NODE, 0),
        Value::String(text) => (NODE + text.len(), 0),
        Value::Array(elements) => elements.iter().fold((NODE, 0), below),
        Value::Object(map) => map.iter().fold((NODE, 0), |sum, (key, value)| {
            let (size, depth) = below(sum, value);
            (size + key.len() + NODE, depth)
        }),
    }
}

/// What the deployments of this process have of [`MAX_SHARED`].
static SHARED: AtomicUsize = AtomicUsize::new(0);

/// What a deployment may still use up.
#[derive(Debug)]
pub(crate) struct Budget {
    bytes: usize,
    steps: usize,
    /// How long it may still compute, not counting the time between its steps.
    time: Duration,
    /// Since when it computes.
    since: Instant,
    /// What it has of the memory for all.
    shared: usize,
}

impl Drop for Budget {
    fn drop(&mut self) {
        SHARED.fetch_sub(self.shared, Ordering::Relaxed);
    }
}

impl Budget {
    pub fn new() -> Self {
        Self {
            bytes: MAX_TOTAL,
            steps: MAX_STEPS,
            time: MAX_TIME,
            since: Instant::now(),
            shared: 0,
        }
    }

    /// Time counts from now on.
    pub fn resume(&mut self) {
        self.since = Instant::now();
    }

    /// Time does not count until it is resumed.
    pub fn pause(&mut self) {
        self.time = self.time.saturating_sub(self.since.elapsed());
    }

    /// Pays for steps before they are made.
    pub fn steps(&mut self, count: usize) -> Result<(), String> {
        match self.steps.checked_sub(count) {
            Some(_) if self.since.elapsed() > self.time => Err(format!(
                "The template takes more than {} seconds to evaluate: make it smaller.",
                MAX_TIME.as_secs()
            )),
            Some(rest) => {
                self.steps = rest;
                Ok(())
            }
            None => {
                self.steps = 0;
                Err(format!(
                    "The template takes more than {MAX_STEPS} steps to evaluate: make it smaller."
                ))
            }
        }
    }

    /// Takes a new value, if it is neither too large nor one too many.
    pub fn admit(&mut self, value: Value) -> Result<Shared, String> {
        let measured = Measured::new(value);
        room(measured.size)?;
        if measured.depth > MAX_DEPTH {
            return Err(format!(
                "The value of a language expression has more than {MAX_DEPTH} levels."
            ));
        }
        self.bytes(measured.size)?;
        Ok(Arc::new(measured))
    }

    /// Pays for the memory of a value that is made or copied.
    pub fn bytes(&mut self, size: usize) -> Result<(), String> {
        match self.bytes.checked_sub(size) {
            Some(rest) => {
                self.bytes = rest;
                self.share()
            }
            None => {
                self.bytes = 0;
                Err(format!(
                    "The values of all language expressions take more than {} MiB: make the template smaller.",
                    MAX_TOTAL >> 20
                ))
            }
        }
    }
}

impl Budget {
    /// Takes what is more than a deployment has for itself from what all of them have together.
    fn share(&mut self) -> Result<(), String> {
        let wanted = (MAX_TOTAL - self.bytes).saturating_sub(OWN);
        let more = wanted.saturating_sub(self.shared);
        let taken = SHARED.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |used| {
            used.checked_add(more).filter(|used| *used <= MAX_SHARED)
        });
        match taken {
            Ok(_) => {
                self.shared += more;
                Ok(())
            }
            Err(_) => Err(
                "The templates that are deployed at this moment take too much memory, and this one is among the large \
                 ones: try again later."
                    .to_owned(),
            ),
        }
    }
}

/// Whether a value may have this size; to be asked before it is made where it can be much larger than what it is
/// made of.
pub(crate) fn room(size: usize) -> Result<(), String> {
    if size <= MAX_VALUE {
        return Ok(());
    }
    Err(format!(
        "The value of a language expression takes more than {} MiB: make it smaller.",
        MAX_VALUE >> 20
    ))
}

/// What Azure calls the type of a value.
pub(crate) fn type_name(value: &Value) -> &'static str {
    match value {
        Value::Null => "Null",
        Value::Bool(_) => "Boolean",
        Value::Number(number) if number.is_f64() => "Float",
        Value::Number(_) => "Integer",
        Value::String(_) => "String",
        Value::Array(_) => "Array",
        Value::Object(_) => "Object",
    }
}

/// A property by its name in any case.
pub(crate) fn property<'a>(
    map: &'a serde_json::Map<String, Value>,
    name: &str,
) -> Option<&'a Value> {
    map.get(name).or_else(|| {
        let mut all = map.iter();
        all.find(|(key, _)| key.eq_ignore_ascii_case(name))
            .map(|(_, value)| value)
    })
}

/// A value as `string` and `format` write it.
pub(crate) fn display(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::Bool(true) => "True".to_owned(),
        Value::Bool(false) => "False".to_owned(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_counts_while_it_is_not_paused() {
        let mut budget = Budget::new();
        budget.pause();
        let left = budget.time;
        budget.resume();
        assert!(budget.steps(1).is_ok() && budget.time == left);
        budget.time = Duration::ZERO;
        let refused = budget.steps(1).unwrap_err();
        assert!(refused.contains("more than 5 seconds"), "{refused}");
    }

    #[test]
    fn large_templates_share_memory_and_small_ones_always_have_some() {
        let full = || {
            let mut budget = Budget::new();
            budget.bytes(MAX_TOTAL).map(|()| budget)
        };
        // Other tests of this process have little.
        let mut all: Vec<Budget> = std::iter::from_fn(|| full().ok()).collect();
        assert!(
            (1..=MAX_SHARED / (MAX_TOTAL - OWN)).contains(&all.len()),
            "{}",
            all.len()
        );
        let mut small = Budget::new();
        small.bytes(OWN).unwrap();
        assert!(small.bytes(MAX_TOTAL - OWN).is_err());
        all.pop();
        full().unwrap();
    }
}
