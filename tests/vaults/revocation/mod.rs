//! Revocation that reaches a running disk: the real attach process, data plane and vault, and a
//! frontend in user space instead of a guest.

mod audit;
mod captured;
mod death;
mod double;
mod full;
mod load;
mod memory;
mod modes;
mod no_space;
mod reasons;
mod replaced;
mod waiting;
mod watching;

use std::time::Duration;

const MIB: u64 = 1 << 20;

/// What the last successful request may be behind a refusal: an interval (1 s here, the shortest that there
/// is) and a second, and what a loaded machine adds.
const BOUND: Duration = Duration::from_secs(4);

const FAIL: &[&str] = &["--key-check-interval", "1s", "--on-revoke", "error"];
const PAUSE: &[&str] = &["--key-check-interval", "1s", "--on-revoke", "pause"];
