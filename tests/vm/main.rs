//! Real guests under QEMU, without KVM, on disks that `sealdisk attach` serves.
//!
//! Each test is a journey of a user: an installation in temporary folders, disks made on the
//! command line, a guest that boots, a script that runs in it and prints what the test waits for.
//! Guests and their images are described in `images/`.

// All of this is test code, the helpers outside of `#[test]` functions too.
#![allow(clippy::expect_used, clippy::unwrap_used, clippy::panic)]

mod azure;
mod backend;
mod boot;
mod filesystems;
mod foreign;
mod images;
mod layers;
mod libvirt;
mod lifecycle;
mod migration;
mod other_user;
mod package;
mod qemu;
mod revocation;
mod secrecy;
mod survive;
mod tutorial;
mod upgrade;
