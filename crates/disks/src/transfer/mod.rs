//! Copies of a disk: its plaintext, an image of another format, or its directory as it is.

mod copy;
mod decrypt;
mod export;
mod partial;
mod patient;
mod qcow2;
mod stream;
mod write_back;

pub use copy::copy;
pub use decrypt::{Plaintext, decrypt};
pub(crate) use export::layers_above;
pub use export::{ExportRequest, Since, export};
pub(crate) use stream::{CHUNK, Pieces};
