//! What an attach process and a store process say to each other. Each command has one answer, and none comes unasked.

use std::path::PathBuf;

use ceph::Settings;
use serde::{Deserialize, Serialize};
use store_ring::Layout;
use uuid::Uuid;

use crate::PlaceError;
use crate::place::{PlaceAnswer, PlaceCommand};

/// The version of what is said here, in the first command. Both are of the same program, but during an upgrade.
pub(crate) const VERSION: u32 = 1;

/// What the store process is told.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) enum Command {
    /// The first command: work on files, which come as descriptors, the data of the layers from the top down and then the
    /// map of the top one.
    Files {
        /// [`VERSION`].
        version: u32,
        /// Nothing is written to.
        read_only: bool,
    },
    /// The first command: work on a pool of a cluster.
    Rbd {
        /// [`VERSION`].
        version: u32,
        /// The pool.
        of: PoolOf,
    },
    /// Something of the pool as a place of resources.
    Place(PlaceCommand),
    /// Work on these layers, from the top down, which are to be read only or have the lock of the top one. Maps come back as
    /// descriptors, in the same order.
    Open {
        /// The layers.
        layers: Vec<LayerOf>,
        /// Nothing is written to.
        read_only: bool,
        /// The address of the client from which the lock may be taken.
        take_from: Option<String>,
    },
    /// Make the top layer longer.
    Grow {
        /// Bytes of its ciphertext.
        data_len: u64,
        /// Bytes of its map.
        map_len: u64,
    },
    /// Work on no layers any more, and give the lock up.
    Close,
    /// Serve the lanes of another data plane. The memory comes as a descriptor, and then both eventfds of each lane, the
    /// one that wakes the store process first.
    Lanes(LanesOf),
    /// Tell how it is.
    State,
    /// Take nothing more from lanes, and answer when nothing is under way.
    Drain,
}

/// A pool, and who sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PoolOf {
    /// Its name.
    pub pool: String,
    /// A namespace of it, or an empty text.
    pub namespace: String,
    /// Who the client is.
    pub client: ClientOf,
}

/// Who a client of a cluster is, as `ceph::Settings` has it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ClientOf {
    /// The user without `client.`.
    pub id: String,
    /// The name of the cluster.
    pub cluster: String,
    /// Its configuration, if that is not the usual one.
    pub conf: Option<PathBuf>,
    /// Where the user's key is, if not where the configuration says.
    pub keyring: Option<PathBuf>,
    /// What `CEPH_ARGS` has.
    pub arguments: Vec<String>,
}

impl From<Settings> for ClientOf {
    fn from(settings: Settings) -> Self {
        let Settings {
            id,
            cluster,
            conf,
            keyring,
            arguments,
        } = settings;
        Self {
            id,
            cluster,
            conf,
            keyring,
            arguments,
        }
    }
}

impl From<ClientOf> for Settings {
    fn from(client: ClientOf) -> Self {
        let ClientOf {
            id,
            cluster,
            conf,
            keyring,
            arguments,
        } = client;
        Self {
            id,
            cluster,
            conf,
            keyring,
            arguments,
        }
    }
}

/// A layer, and how long its parts are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct LayerOf {
    /// Its id.
    pub layer: Uuid,
    /// Bytes of its ciphertext.
    pub data_len: u64,
    /// Bytes of its map.
    pub map_len: u64,
}

/// What there is in the memory that is shared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct LanesOf {
    lanes: u16,
    small: u16,
    chunks: u16,
}

impl From<Layout> for LanesOf {
    fn from(layout: Layout) -> Self {
        let Layout {
            lanes,
            small,
            chunks,
        } = layout;
        Self {
            lanes,
            small,
            chunks,
        }
    }
}

impl From<LanesOf> for Layout {
    fn from(layout: LanesOf) -> Self {
        let LanesOf {
            lanes,
            small,
            chunks,
        } = layout;
        Self {
            lanes,
            small,
            chunks,
        }
    }
}

/// What it answers.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) enum Answer {
    /// It is done.
    Done,
    /// It has reached the cluster, and is seen there at this address.
    Connected {
        /// By which it is fenced.
        address: String,
    },
    /// What the place of resources says. Bytes may follow.
    Place(PlaceAnswer),
    /// The layers are open; their maps come along.
    Opened,
    /// The cluster did not do it, or would not.
    NotDone(PlaceError),
    /// How it is.
    State(State),
    /// It is not done, and why: one line.
    Refused(String),
}

/// How a store process is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct State {
    /// For how many milliseconds operations have been under way of which none has ended; nothing while none is.
    pub waits_ms: Option<u64>,
}
