//! Who asks a vault, and from where.

use std::fmt;
use std::net::SocketAddr;

use uuid::Uuid;

/// Who asks: an identity and where its request came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caller {
    /// The object id (Azure's `principalId`) that the vault's access policies are keyed by.
    pub object_id: Uuid,
    /// Where it asks from, for the audit log.
    pub origin: Origin,
    /// What it says that it wants a key for, for the audit log.
    pub purpose: Purpose,
    /// Whether it is a disk encryption set, as whoever has checked its token knows. What comes over no network needs no
    /// such mark.
    pub is_service: bool,
}

/// What a caller says that it wants a key for. It decides nothing: a vault writes it into its log as
/// a claim of the caller's.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Purpose {
    /// The disk, snapshot or image whose DEK is wrapped or unwrapped: its name where it is kept.
    pub disk: Option<String>,
    /// The layer that the DEK is of.
    pub layer: Option<Uuid>,
    /// The use is one of the checks that a running disk makes at short intervals.
    pub check: bool,
}

/// The header in which a client over HTTPS may say for which disk it wants a key; see [`Purpose`].
pub const DISK_HEADER: &str = "x-sealdisk-disk";
/// The header in which it may say for which layer of it.
pub const LAYER_HEADER: &str = "x-sealdisk-layer";
/// The header in which it may say, with `true`, that it only checks whether it still may.
pub const CHECK_HEADER: &str = "x-sealdisk-check";

/// Where a request came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// A process of this host that reached the vault's files itself.
    Local {
        /// Its effective user.
        uid: u32,
        /// Its process id.
        pid: u32,
    },
    /// A client over the network.
    Remote(SocketAddr),
    /// The vault's own rules: a rotation policy, the end of a retention time.
    Vault,
}

impl Caller {
    /// The identity asks from within this process.
    pub fn local(object_id: Uuid) -> Self {
        let origin = Origin::Local {
            uid: rustix::process::geteuid().as_raw(),
            pid: std::process::id(),
        };
        Self {
            object_id,
            origin,
            purpose: Purpose::default(),
            is_service: false,
        }
    }

    /// The identity asks over the network.
    pub fn remote(object_id: Uuid, address: SocketAddr) -> Self {
        Self {
            object_id,
            origin: Origin::Remote(address),
            purpose: Purpose::default(),
            is_service: false,
        }
    }

    /// The same caller, who wants the DEK of that layer of a disk.
    #[must_use]
    pub fn for_layer(&self, disk: &str, layer: Uuid) -> Self {
        Self {
            purpose: Purpose {
                disk: Some(disk.into()),
                layer: Some(layer),
                check: self.purpose.check,
            },
            ..self.clone()
        }
    }

    /// Nobody asks; the vault carries out a rule of its own.
    pub(super) fn vault() -> Self {
        Self {
            object_id: Uuid::nil(),
            origin: Origin::Vault,
            purpose: Purpose::default(),
            is_service: false,
        }
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Local { uid, pid } => write!(f, "local, uid {uid}, pid {pid}"),
            Self::Remote(address) => write!(f, "{address}"),
            Self::Vault => f.write_str("vault"),
        }
    }
}
