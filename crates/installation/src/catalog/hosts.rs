//! The hosts that share a catalog, and which of them has which disk.
//!
//! # Leases
//!
//! A host has a lease while a process of it that lives for long, an attach or a server, renews it every
//! [`RENEWAL`](crate::RENEWAL). All
//! times are the database's: no host compares its clock with another one's. A lease permits nothing. It says that the
//! host lives, so that nobody is told otherwise by mistake: what its disks are written by is up to the lock of the
//! storage.
//!
//! A lease has an id, which stays for as long as it is renewed before its end. Whoever takes a disk from a host, or
//! evicts the host, does so after the end of its lease. So a host whose lease still has the id that it had knows that
//! all its attachments are still its own, without a look at each of them.
//!
//! # Attachments
//!
//! A row of a disk says which host has it, or has had it last. It is written when an attach begins and when it has ended;
//! each beginning and each takeover has an epoch that is one more than the one before. The header says the same first
//! where it can: an attach that is detached in order, or a crash on the way, may leave a row behind that says that the disk
//! is attached. A header without a session is right then.

use std::time::Duration;

use time::OffsetDateTime;
use uuid::Uuid;

use super::error::CatalogError;
use super::operations::OperationRecord;
use crate::host::{name_of_host, this_boot, this_host, this_host_id, this_machine};

/// Who renews a lease.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostEntry {
    /// The host's id, as [`this_host_id`](crate::this_host_id).
    pub id: String,
    /// What people call it.
    pub name: String,
    /// Tells machines apart that were given one name.
    pub machine: String,
    /// The boot of its kernel.
    pub boot: String,
}

impl HostEntry {
    /// This host.
    pub fn this() -> Self {
        Self {
            id: this_host_id().into(),
            name: name_of_host(this_host()).into(),
            machine: this_machine(),
            boot: this_boot(),
        }
    }
}

/// A host, as the catalog knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostRecord {
    /// Its id.
    pub id: String,
    /// What people call it.
    pub name: String,
    /// The version of the program that has renewed its lease last.
    pub version: String,
    /// Since when it has had its lease without a break.
    pub since: OffsetDateTime,
    /// When it renewed it last.
    pub seen: OffsetDateTime,
    /// Its lease has not ended.
    pub lives: bool,
    /// Its operator has said that it is gone, and it did not come back.
    pub is_evicted: bool,
    /// How many disks it has, or has not let go of.
    pub disks: u64,
}

/// How far an attachment is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AttachmentState {
    /// The host has the disk.
    Open,
    /// The host is taking the disk over from another one.
    Fencing,
    /// The host had it when its operator said that the host is gone: whoever attaches it takes it over.
    Evicted,
    /// The host has let go of it.
    Closed,
}

impl AttachmentState {
    const ALL: [Self; 4] = [Self::Open, Self::Fencing, Self::Evicted, Self::Closed];

    /// The word for it, which is stored.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::Fencing => "fencing",
            Self::Evicted => "evicted",
            Self::Closed => "closed",
        }
    }

    /// What a stored word means.
    pub(super) fn from_text(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|state| state.as_str() == text)
    }
}

/// Which host has a disk, or had it last.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AttachmentRecord {
    /// The disk's id.
    pub disk: Uuid,
    /// The host's id.
    pub host: String,
    /// What people call it.
    pub host_name: String,
    /// How often the disk was attached or taken over.
    pub epoch: i64,
    /// How far it is.
    pub state: AttachmentState,
    /// What the header has of that attach.
    pub attach: Uuid,
    /// Since when.
    pub since: OffsetDateTime,
    /// What the storage knows the host by, where it cuts off one at a time.
    pub storage_client: Option<String>,
    /// Whether the lease of the host has not ended; nothing of a host that is not known to have had one.
    pub host_lives: Option<bool>,
    /// When the host renewed its lease last.
    pub host_seen: Option<OffsetDateTime>,
}

impl AttachmentRecord {
    /// Whether it is this host's.
    pub fn is_here(&self) -> bool {
        self.host == this_host_id()
    }

    /// Whether the host has the disk, or is taking it.
    pub fn has_disk(&self) -> bool {
        matches!(self.state, AttachmentState::Open | AttachmentState::Fencing)
    }
}

/// An attachment that begins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewAttachment {
    /// The disk's id.
    pub disk: Uuid,
    /// The host's id, and what people call it.
    pub host: (String, String),
    /// How far it is.
    pub state: AttachmentState,
    /// What the header will have of it.
    pub attach: Uuid,
    /// What the storage knows the host by.
    pub storage_client: Option<String>,
}

impl NewAttachment {
    /// One on this host.
    pub fn here(disk: Uuid, attach: Uuid, state: AttachmentState) -> Self {
        Self {
            disk,
            host: (this_host_id().into(), name_of_host(this_host()).into()),
            state,
            attach,
            storage_client: None,
        }
    }
}

/// Which host makes or deletes a resource, or has made it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Maker {
    /// The host's id.
    pub host: String,
    /// What people call it, if it has ever had a lease.
    pub name: Option<String>,
    /// Its lease has not ended.
    pub lives: bool,
    /// Its operator has said that it is gone.
    pub is_evicted: bool,
}

impl Maker {
    /// Whether it is this host.
    pub fn is_here(&self) -> bool {
        self.host == this_host_id()
    }
}

/// The part of the catalog that has hosts, and what is each one's.
pub trait HostCatalog: Send + Sync {
    /// Whether it is on a server, which several hosts may use. In a file it is one host's, and none of this is written.
    fn is_shared(&self) -> bool;

    /// Renews the lease of a host, or gives it one; the lease's id.
    ///
    /// # Errors
    /// [`CatalogError::HostTaken`] when another machine, or this one before its last boot, has the lease of that host.
    fn renew_lease(&self, host: &HostEntry) -> Result<Uuid, CatalogError>;

    /// Ends the lease of a host, which has no process any more that would renew it.
    ///
    /// # Errors
    /// [`CatalogError`].
    fn end_lease(&self, host: &HostEntry) -> Result<(), CatalogError>;

    /// The hosts that are known, by name; not those that were evicted and have left nothing.
    ///
    /// # Errors
    /// [`CatalogError`].
    fn hosts(&self) -> Result<Vec<HostRecord>, CatalogError>;

    /// The hosts with that id or name: several may have one name.
    ///
    /// # Errors
    /// [`CatalogError`].
    fn hosts_called(&self, name: &str) -> Result<Vec<HostRecord>, CatalogError>;

    /// Notes that a host is gone for good: what it has not let go of is taken over by whoever attaches it. How many disks
    /// these are.
    ///
    /// # Errors
    /// [`CatalogError::HostLives`], [`CatalogError::NoHost`].
    fn evict_host(&self, id: &str) -> Result<u64, CatalogError>;

    /// Which host has a disk, or had it last.
    ///
    /// # Errors
    /// [`CatalogError`].
    fn attachment(&self, disk: Uuid) -> Result<Option<AttachmentRecord>, CatalogError>;

    /// What a host has, or all hosts have, and not let go of, by disk.
    ///
    /// # Errors
    /// [`CatalogError`].
    fn attachments(&self, host: Option<&str>) -> Result<Vec<AttachmentRecord>, CatalogError>;

    /// Puts an attachment in the place of the one whose epoch is `after`, 0 where there is none; its epoch.
    ///
    /// # Errors
    /// [`CatalogError::Changed`] when somebody else was faster, [`CatalogError::NotFound`] when there is no such disk.
    fn put_attachment(&self, new: &NewAttachment, after: i64) -> Result<i64, CatalogError>;

    /// Notes that this host has let go of a disk, unless another attach has it by now. Whether that was noted.
    ///
    /// # Errors
    /// [`CatalogError`].
    fn close_attachment(&self, disk: Uuid, attach: Uuid) -> Result<bool, CatalogError>;

    /// The layers that are to be merged and that no disk has which another host has not let go of.
    ///
    /// # Errors
    /// [`CatalogError`].
    fn merges_here(&self) -> Result<Vec<Uuid>, CatalogError>;

    /// Which host makes or deletes a resource, or has made it; nothing of one from before that was noted.
    ///
    /// # Errors
    /// [`CatalogError`].
    fn maker(&self, resource: Uuid) -> Result<Option<Maker>, CatalogError>;

    /// The running operations that are this host's, the oldest first. In a catalog that is not shared all are.
    ///
    /// # Errors
    /// [`CatalogError`].
    fn own_operations(&self) -> Result<Vec<OperationRecord>, CatalogError>;

    /// Makes the running operations this host's whose own host has had no lease for that long; which they are, the oldest
    /// first.
    ///
    /// # Errors
    /// [`CatalogError`].
    fn adopt_operations(
        &self,
        without_lease: Duration,
    ) -> Result<Vec<OperationRecord>, CatalogError>;

    /// Whether another operation than that one goes on about a resource, by its id in any case, on whichever host.
    ///
    /// # Errors
    /// [`CatalogError`].
    fn another_goes_on(&self, target: &str, than: Uuid) -> Result<bool, CatalogError>;
}
