//! Finding out the facts of an installation. What cannot be found out is a fact too, and keeps nothing else from
//! being found.

mod certificates;
mod collector;
mod keys;
mod one_disk;
mod remote_keys;
mod resources;
mod space;
mod times;

pub use certificates::certificate_end;
pub use collector::{Collector, Scope};
pub use one_disk::OneDisk;
