//! OpenTelemetry traces of what is done to disks and keys: snapshots, rotations, attaches, checks of keys, requests to
//! vaults.
//!
//! | Room | What is in it |
//! |---|---|
//! | `span` | Something that is done and takes time, and what it is a part of |
//! | `tracing` | Whether anything is traced, by the variables that OpenTelemetry has for it |
//! | `passed` | Spans on their way to the process that sends them |
//! | `exporter` | That process: a queue with a bound, and HTTP |
//! | `outgoing` | How this program sends something to an address of its operator |
//!
//! Whoever traces never waits for a collector. A span that has ended is put into a socket, without waiting, and is lost
//! when that is full. What reads it is a process of its own, as it is with events: no answer of a collector ever
//! reaches a process that has keys. Where nothing is traced there is neither a process nor a thread, and a span costs a
//! look at whether there is one.
//!
//! An attribute is a name, a number or a code. A message of an error stays on its host: nobody has to know of each
//! whether it may leave that.

mod exporter;
pub mod outgoing;
mod passed;
mod span;
mod tracing;

pub use exporter::{TRACE_EXPORTER, send_on};
pub use span::{Entered, Span, SpanKind, TRACEPARENT};
pub use tracing::{Service, are_on, finish, start};
