//! Key vaults over HTTPS: what their faults and refusals become.

mod faults;
mod gateway;
mod identity;
mod safety;
mod served;
mod server;
