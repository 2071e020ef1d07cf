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
}

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
        Self { object_id, origin }
    }

    /// The identity asks over the network.
    pub fn remote(object_id: Uuid, address: SocketAddr) -> Self {
        Self {
            object_id,
            origin: Origin::Remote(address),
        }
    }

    /// Nobody asks; the vault carries out a rule of its own.
    pub(super) fn vault() -> Self {
        Self {
            object_id: Uuid::nil(),
            origin: Origin::Vault,
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
