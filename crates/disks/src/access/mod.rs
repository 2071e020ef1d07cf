//! Access over the network to the data of a disk or a snapshot: granting and revoking it, and what whoever has it
//! reads and writes.
//!
//! The data are those of a fixed VHD: the disk's bytes, then a footer of 512 bytes.
//!
//! # Who else may use the disk
//!
//! A grant to read a disk is written while whoever grants it holds the disk, so nobody has it attached; whoever attaches
//! it, changes its layers or deletes it looks for grants once they hold it ([`Disk::refuse_granted`]). Readers share the
//! lock of the top layer's data, and each opens the disk anew with the keys that were unwrapped for the first.
//!
//! A disk in upload says so in its header, which outlives the catalog, so that nobody uses it before it is whole. Its
//! writer holds it alone. Each write is durable before it is answered.
//!
//! [`Disk::refuse_granted`]: crate::Disk::refuse_granted

mod download;
mod footer;
mod grant;
mod page_list;
mod reader;
mod upload;

pub use download::{Download, Piece};
pub use footer::FOOTER_LEN;
pub use grant::{AccessRequest, GrantedAccess, grant_access, revoke_access};
pub use page_list::{Page, PageList};
pub use reader::Reader;
pub use upload::{Part, Uploader};
