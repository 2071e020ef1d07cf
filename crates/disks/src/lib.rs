//! Disks, snapshots and images, and the disk encryption sets that wrap their keys.
//!
//! A disk is a directory with a `header` and, for each layer, `LAYER.data` and `LAYER.map`; the
//! catalog's row is an index of it. Where both say different things the header is right, because
//! it is written first: [`reconcile`] brings the catalog up to date.
//!
//! | Room | What is in it |
//! |---|---|
//! | `resource` | A disk, a snapshot or an image: its files, its header, its row, who uses it, what a dead daemon left |
//! | `lifecycle` | Making, listing, registering, re-wrapping, deleting, and a new catalog |
//! | `layers` | Every change of layers: [`LayerOp`] |
//! | `check` | Looking for damage, and repairing it |
//! | `transfer` | Copies of a disk, in the clear or as it is |
//! | `access` | Access over the network to the data of a disk |
//! | [`import`] | Reading images of other formats |
//! | [`des`] | Disk encryption sets |
//!
//! # Locks
//!
//! * Whoever uses a disk's data, attached or offline, holds an exclusive `flock` of the top layer's
//!   data file ([`Disk::claim`]), which the header still names as the top one when it is locked: an attach
//!   that pushes a layer lets go of the one beneath. Whoever reads a snapshot or an image holds a shared one of its top
//!   layer's; whoever deletes it, or takes a layer from it, holds it exclusively.
//! * Updates of the header serialise by `flock` on the header file; they need no claim, so a disk
//!   is re-wrapped while attached.
//! * Whoever makes or deletes a disk has the lock of its directory (`resource/directory_lock.rs`); so does whoever makes
//!   something of a snapshot or an image, or takes a layer from it.
//! * An attach that waits for the disk holds a `flock` of the file `awaited` ([`Disk::await_it`]); nobody but an attach
//!   claims the disk meanwhile.

mod access;
mod check;
pub mod des;
pub mod import;
mod layers;
mod lifecycle;
mod resource;
mod transfer;

pub use access::{
    AccessRequest, Download, FOOTER_LEN, GrantedAccess, Page, PageList, Part, Piece, Reader,
    Uploader, grant_access, revoke_access,
};
pub use check::{ByteRange, CheckReport, Problem, ProblemKind, check};
pub use layers::{
    Applied, ChangeLayers, ClaimedElsewhere, CloneRequest, DeepCopyRequest, ImageRequest,
    JobChange, JobProgress, LayerOp, NewLayers, SnapshotRequest, SwapVolume, Unattached, clone,
    deep_copy, delete_source, image_of_file, image_of_snapshot, layers_to_drop, merge_all,
    run_unattached,
};
pub use lifecycle::{
    CreateRequest, Created, DEFAULT_SECTOR_SIZE, DiskView, EncryptionView, JobView, LayerView,
    NewKey, Outline, Rebuilt, RebuiltSet, RegisterRequest, SessionView, create, create_for_upload,
    create_from, delete, forget_departed, is_used, list, look, needs_other_dek, outline, outlines,
    rebuild, register, rewrap, show, unregister, update,
};
pub use resource::{
    Awaiting, Disk, DiskError, KeyWatch, Left, Unflushed, Waiter, as_in_runtime_map, begun, ended,
    geometry, layer_map, log_other_boot, lower_layers, lower_maps, may_be_shared, open_files,
    parse_size, reconcile, resources_named, sweep_one, synced_file,
};
pub use transfer::{ExportRequest, Plaintext, Since, copy, decrypt, export};
