//! Key vaults over HTTPS: what their faults and refusals become.

mod faults;
mod gateway;
mod identity;
mod safety;
pub(crate) mod served;
mod server;
