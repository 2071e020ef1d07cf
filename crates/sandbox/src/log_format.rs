//! The form of the log, which all processes of an attach have in common.

use std::sync::OnceLock;

/// The variable of the environment that has it. An option would be unknown to an older program that takes over.
pub const LOG_FORMAT: &str = "SEALDISK_LOG_FORMAT";

static FORMAT: OnceLock<&'static str> = OnceLock::new();

/// Says which form the log of this process has, once. Processes that it starts as a part of an attach get the same.
pub fn set_log_format(format: &'static str) {
    // It is said at the start of a process and stays.
    let _ = FORMAT.set(format);
}

/// The form, if it was said.
pub fn log_format() -> Option<&'static str> {
    FORMAT.get().copied()
}
