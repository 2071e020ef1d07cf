//! `sealdisk keyvault serve`, as its clients see it: Azure's own SDKs, and clients that mean harm.

mod client;
mod crash;
mod hostile;
mod recorded;
mod rules;
mod sdk;
mod served;
mod tokens;
