//! Limits of resources (setrlimit(2)).

use std::io;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Lets this process have at most `most` of a resource, for good. A limit that is lower stays.
///
/// # Errors
/// What the kernel says.
pub fn limit(resource: Resource, most: u64) -> io::Result<()> {
    let now = getrlimit(resource);
    let lower = |limit: Option<u64>| Some(limit.map_or(most, |limit| limit.min(most)));
    let limit = Rlimit {
        current: lower(now.current),
        maximum: lower(now.maximum),
    };
    Ok(setrlimit(resource, limit)?)
}

/// Lets this process have at least `least` of a resource, if it is privileged to; else as much as it may.
pub fn raise(resource: Resource, least: u64) {
    let now = getrlimit(resource);
    let enough = now.maximum.is_none_or(|most| most >= least);
    let maximum = match enough {
        true => now.maximum,
        false => Some(least),
    };
    let raised = Rlimit {
        current: maximum,
        maximum,
    };
    if setrlimit(resource, raised).is_err() {
        let all = Rlimit {
            current: now.maximum,
            maximum: now.maximum,
        };
        // Where that fails it stays what it is.
        let _ = setrlimit(resource, all);
    }
}
