//! Telling a command or a webhook of events.
//!
//! Each target has a queue with a bound and a thread. Whoever has an event puts it into the queues and goes on: a
//! target that hangs, fails or is slow costs nobody else anything, and loses the oldest of what it does not take. An
//! attach and a served vault do not even have these threads: a process of its own, which was started before they had
//! a key, gets their events through a socket ([`spawn`], [`pass_on`]).

mod command;
mod held;
mod not_taken;
mod notifier;
mod process;
mod queue;
mod target;
#[cfg(test)]
mod tests;
mod webhook;

pub use notifier::{FAREWELL, Notifier};
pub use process::{EVENT_NOTIFIER, Place, pass_on, spawn};
pub use target::Target;
