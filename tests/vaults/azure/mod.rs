//! `sealdisk keyvault serve`, as its clients see it: Azure's own SDKs, and clients that mean harm.

pub mod client;
mod crash;
mod hostile;
mod many_servers;
mod recorded;
mod rules;
pub mod sdk;
pub mod served;
mod tokens;
