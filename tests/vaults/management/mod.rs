//! `sealdisk serve`: the management API over HTTPS, as Azure's command line sends its requests, and `az` itself.

mod access;
mod attach;
mod az;
mod client;
mod disks;
mod double;
mod identities;
mod login;
mod network;
mod users;
mod vaults;
