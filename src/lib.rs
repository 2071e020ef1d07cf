//! Sealdisk: server-side encryption for VM disks.
//!
//! A vhost-user daemon serves virtio-blk queues straight from guest memory and encrypts each
//! request with the disk's data encryption key (DEK, AES-256-XTS). DEKs are stored only wrapped
//! (RSA-OAEP-256) by a key in a key vault. `docs/architecture.md` is the living picture.
//!
//! Data flows down: [`frontend`] → [`request`] → [`pipeline`] → [`volume`] → [`store`], with
//! [`cipher`] and [`keys`] beside. [`vault`], [`envelope`] and [`catalog`] make the key hierarchy,
//! and [`audit`] keeps its logs;
//! [`control`] ties both together for [`cli`].

pub mod audit;
pub mod catalog;
pub mod cipher;
pub mod cli;
pub mod control;
pub mod envelope;
pub mod frontend;
pub mod keys;
pub mod pipeline;
mod read_only;
pub mod request;
pub mod server;
pub mod sqlite;
pub mod store;
pub mod units;
pub mod vault;
pub mod volume;
