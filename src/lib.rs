//! Sealdisk: server-side encryption for VM disks.
//!
//! A vhost-user daemon serves virtio-blk queues straight from guest memory and encrypts each
//! request with the disk's data encryption key (DEK, AES-256-XTS). DEKs are stored only wrapped
//! (RSA-OAEP-256) by a key in a key vault. `docs/architecture.md` is the living picture.
//!
//! Data flows down: [`dataplane`] → [`volume`] → its stores, with [`xts`] and [`keys`] beside. [`vault`],
//! [`envelope`] and [`catalog`] make the key hierarchy; [`control`] ties both together for [`cli`].

pub mod catalog;
pub mod cli;
pub mod control;
pub mod envelope;
pub mod server;
