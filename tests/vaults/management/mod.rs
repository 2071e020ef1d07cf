//! `sealdisk serve`: the management API over HTTPS, as Azure's command line sends its requests, and `az` itself.

mod access;
mod access_refused;
mod attach;
mod az;
mod blob;
mod client;
mod deployment_ends;
mod deployments;
mod disks;
mod double;
mod download;
mod faults;
mod grants;
mod identities;
mod login;
mod network;
mod operations;
mod scale;
mod sdk;
mod upload;
mod users;
mod vaults;
mod views;
