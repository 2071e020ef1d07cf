//! The embedded vault: a database, and a master key in a directory of its own.

mod allowed;
mod backup;
mod cache;
mod commit;
mod deleted;
mod doubt;
mod due;
mod following;
mod held;
mod incomplete;
mod keys;
mod operations;
mod policies;
mod queue;
mod quota;
mod recording;
mod reseal;
mod rotation;
mod subject;
mod transaction;
mod uses;
mod vault;
mod vault_deleted;

pub(crate) use doubt::{WHOLE_VAULT, puts_off};
pub use due::Due;
pub use quota::Throttle;
pub(crate) use quota::busiest;
pub use reseal::Resealed;
pub use vault::EmbeddedVault;
