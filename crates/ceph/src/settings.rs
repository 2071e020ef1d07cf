//! Who a client is, and what is set of it.

use std::path::PathBuf;

/// Who a client of a cluster is, as every Ceph client is told it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// The user without `client.`, as `--id` has it.
    pub id: String,
    /// The name of the cluster, which is that of its configuration: `/etc/ceph/NAME.conf`.
    pub cluster: String,
    /// The configuration; else the one that every client looks for.
    pub conf: Option<PathBuf>,
    /// Where the user's key is; else where the configuration says.
    pub keyring: Option<PathBuf>,
    /// Arguments as of every client, such as `--mon-host`: what `CEPH_ARGS` has.
    pub arguments: Vec<String>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            id: "admin".into(),
            cluster: "ceph".into(),
            conf: None,
            keyring: None,
            arguments: Vec::new(),
        }
    }
}

impl Settings {
    /// Its full name.
    pub fn name(&self) -> String {
        format!("client.{}", self.id)
    }
}

/// What is set whatever the configuration says, and why. A library that does not know an option has none of what it
/// is for.
pub(crate) const FORCED: [(&str, &str); 13] = [
    // What was completed has to survive this process: nothing may wait in its memory, or in a cache of this host.
    ("rbd_cache", "false"),
    ("rbd_persistent_cache_mode", "disabled"),
    ("rbd_plugins", ""),
    ("rbd_parent_cache_enabled", "false"),
    // Space of single blocks is given back. By default less than 64 KiB stays, and is not even zeros.
    ("rbd_discard_granularity_bytes", "4096"),
    // Who is fenced is blocklisted; for how long, 16.2 can take nothing but the default.
    ("rbd_blocklist_on_break_lock", "true"),
    ("rbd_blocklist_expire_seconds", "0"),
    // An operation that was given up may still land.
    ("rados_osd_op_timeout", "0"),
    ("rados_mon_op_timeout", "0"),
    // Whoever waits for a cluster that nobody reaches is told sooner than after five minutes.
    ("client_mount_timeout", "30"),
    // It is confined, and has one place for what it has to say.
    ("log_file", ""),
    ("admin_socket", ""),
    ("log_to_stderr", "false"),
];

/// Options of an image by which completed writes could be lost with this process, and what they have to be. They can
/// be set for a pool and for an image, which is before everything that a client says.
pub(crate) const REQUIRED: [(&str, &str); 2] = [
    ("rbd_cache", "false"),
    ("rbd_persistent_cache_mode", "disabled"),
];
