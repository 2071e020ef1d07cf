//! `sealdisk serve`: the management API over HTTPS, as Azure's command line sends its requests, and `az` itself.

mod access;
mod access_refused;
mod az;
mod blob;
mod client;
mod disks;
mod download;
mod login;
mod upload;
mod vaults;
