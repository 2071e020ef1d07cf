//! The management API of an installation: Azure Resource Manager (ARM) over HTTPS, as Azure's unmodified
//! clients speak it. It is a front of the same control code as the command line: what one makes the other
//! sees.
//!
//! ```text
//! server (TLS, limits, tokens) ──► api: who asks ──► route: what for ──► resources ──► types::*
//!                                     │                    ├──► groups, subscriptions, deleted_vaults
//!                                     │                    ├──► deployments ──► operations ──► route
//!                                     ├──► login, graph    └──► roles
//!                                     └──► access: the bytes of disks
//! ```
//!
//! | Where | What is in it |
//! |---|---|
//! | `id`, `filter`, `query` | What clients write: paths, `$filter`, versions and pages |
//! | `types` | The types of resources, one file each, behind `ResourceType` of `call` |
//! | `resources`, `places`, `placed`, `lists` | What is the same for all types |
//! | `changing` | Locks of names, changes of layers |
//! | `move_disk`, `moving` | Moves of disks between one and two DEKs: the request, and the operation |
//! | `copy_start`, `deep_copy` | Deep copies of disks and snapshots: the requests, and the operation |
//! | `copying` | Copying data under a new DEK to its end, for operations |
//! | `deployments` | Templates, each resource of which is a request of its own |
//! | `operations` | What outlives its request, and the server |
//! | `roles` | Who may do what |
//! | `applications` | Graph's applications and their passwords |
//! | `locks`, `locked` | What nobody may do |
//! | `access` | Access over the network to the data of disks |
//!
//! Everything blocks: the server calls it on threads for that.

mod access;
mod api;
mod applications;
mod audit;
mod call;
mod changing;
mod copy_start;
mod copying;
mod deep_copy;
mod deleted_vaults;
mod deployments;
mod error;
mod etag;
pub mod filter;
mod graph;
mod graph_views;
mod groups;
pub mod id;
mod identities;
mod imported;
mod lists;
mod locked;
pub mod locks;
mod login;
mod move_disk;
mod moving;
mod names;
mod operations;
mod placed;
mod places;
pub mod query;
mod reply;
mod resources;
mod role_requests;
pub mod roles;
mod route;
mod subscriptions;
mod types;
mod works;

pub use access::{
    AccessUrl, Asked, BlobError, BlobRequest, ByteRange, Digests, MAX_WRITTEN, Since, Ticket,
    grant, revoke,
};
pub use api::Api;
pub use audit::recorded_as;
pub use error::ArmError;
pub use identities::{PrincipalView, find, named};
pub use names::subscription;
pub use types::type_of;
