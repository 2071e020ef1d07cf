//! What the disks, keys and vaults of a host do, in a browser: one page, and the data for it. Nothing can be changed
//! through it.
//!
//! ```text
//! browser ──► web ──► http ──► access: a token, sessions, which names this server has
//!                      ├─────► page: one file with all of it, and the policy that lets nothing else run
//!                      └─────► data: what threads of their own saw last, as differences
//!                                ├── look: catalog, headers, databases of vaults, alarms
//!                                ├── verify: the chains of audit logs
//!                                ├── timeline: audit records and events
//!                                └── live: rates of attached disks
//! ```
//!
//! No vault is opened and no key used: vaults' databases are read without their master keys. While no page is open,
//! nothing is looked at.

mod access;
mod data;
mod error;
mod http;
mod options;
mod page;
mod serve;

pub use error::DashboardError;
pub use options::{DashboardOptions, PublicUrl};
pub use serve::{Serving, serve};
