//! Access over the network to the data of disks and snapshots: Azure's `beginGetAccess` and `endGetAccess`, and the URLs
//! that they give, at which a disk is a page blob of Azure storage: a fixed VHD.
//!
//! ```text
//! POST …/beginGetAccess ──► requests ──► disks::grant_access: a row of the catalog
//! GET /sas/disks/DISK.vhd?si=GRANT&sig=TOKEN ──► request ──► blob ──► sessions ──► disks::Reader, disks::Uploader
//! ```
//!
//! Each request looks for its grant in the catalog. What is sent already ends with the grant: `sessions` looks again and
//! again, whoever has revoked it.

mod blob;
mod conditions;
mod digests;
mod error;
mod headers;
mod image;
mod list_xml;
mod operator;
mod policy;
mod request;
mod requests;
mod sessions;

pub use blob::{admit, granted, transfer};
pub use digests::Digests;
pub use error::BlobError;
pub use image::image;
pub use operator::{AccessUrl, grant, revoke};
pub use policy::{end_forbidden, forbids};
pub use request::{Asked, BlobRequest, ByteRange, MAX_WRITTEN, Since, Ticket, is_transfer};
pub use requests::below;
pub use sessions::Sessions;
