//! Attaching a disk: from a name to a data plane process that serves guests.
//!
//! This process unwraps the DEK, opens the files, hands both to the data plane over inherited
//! descriptors and a socket, and forgets the DEK. It stays for as long as the disk is attached: it
//! guards the disk's key (`guard`), waits for a signal or for the end of the data plane, and puts
//! things away afterwards.
//!
//! | Room | What is in it |
//! |---|---|
//! | `begin` | What is opened, claimed and started before the disk is served |
//! | `serve` | The life of an attached disk: supervision, changes of its layers, what others ask of it |
//! | `guard` | The key: when it is checked, destroyed and given back, and the record of that |
//! | `layer_changes` | Asking for a change of layers, whoever has the disk |

mod begin;
mod error;
mod guard;
mod layer_changes;
mod serve;
mod status;

pub use begin::{AttachRequest, Socket, SocketAccess, SocketSource, memory_limit, sandbox_rules};
pub use error::{AttachError, Refusal};
pub use layer_changes::LayerChanges;
pub use serve::{
    AttachedHere, CONTINUE, LAUNCHER, MAX_METRICS, MetricsAnswer, VERSIONS, Watchdog, attach,
    attach_versions, attached_here, continue_attach, events, events_question, is_told_to_end,
    key_status, metrics_answer, metrics_question, raise_file_limit, send_layer_op, set_limits,
    tell_systemd, tell_watchdog, upgrade, waiting_attaches,
};
pub use status::{
    AttachedLayer, CheckCounts, DekState, DiskHold, DiskMetrics, Event, EventKind, GuardOptions,
    JobStatus, KeyState, KeyStatus, LastRestart, LastUpgrade, Offered, Reason, ToldEvent, Upgraded,
};
