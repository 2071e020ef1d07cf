//! What is looked at, and how it is shown.

use std::collections::HashMap;
use std::path::PathBuf;
use std::time::Duration;

use uuid::Uuid;

use crate::view::View;

/// What is looked at, and how it is shown.
#[derive(Debug, Clone)]
pub struct Options {
    /// Where the control sockets of attached disks are.
    pub runtime_dir: PathBuf,
    /// The name of this host, for the title.
    pub host: String,
    /// The names of disks by their ids, for those that do not tell theirs.
    pub names: HashMap<Uuid, String>,
    /// How often disks are asked.
    pub interval: Duration,
    /// Which disks are shown, and in which order.
    pub view: View,
}
