//! The life of an attached disk: one process supervises its data plane, changes its layers, and answers what
//! other processes ask.

mod alarm_watch;
mod attach;
mod attach_state;
pub(crate) mod attached_disk;
mod audit_space;
mod candidate;
pub(crate) mod control_client;
mod control_name;
mod control_request;
pub(crate) mod control_socket;
mod event_hub;
mod event_targets;
mod followers;
mod jobs;
pub(crate) mod keeping;
pub(crate) mod kept_keys;
mod launcher_end;
mod letting_go;
mod lives;
mod marker;
mod metrics;
mod migration;
mod not_shared;
mod passed;
mod replace;
mod restart;
mod resume;
mod stall_watch;
mod supervise;
mod systemd;
mod taken_over;
mod trouble;
mod turn;
mod upgrade;
mod upgrades;

pub use attach::{LAUNCHER, attach};
pub use attach_state::{VERSIONS, attach_versions};
pub use control_client::{
    events, key_status, send_layer_op, set_limits, upgrade, waiting_attaches,
};
pub use keeping::raise_file_limit;
pub use metrics::{
    AttachedHere, MAX_METRICS, MetricsAnswer, attached_here, events_question, metrics_answer,
    metrics_question,
};
pub use replace::{CONTINUE, is_told_to_end};
pub use resume::continue_attach;
pub use systemd::{Watchdog, tell_systemd, tell_watchdog};
