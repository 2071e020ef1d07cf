//! Merging a frozen layer into the frozen layer above it; see `merge.rs`.
//!
//! # A sync that fails
//!
//! It ends the merge, and no header says so: a merge only adds blocks to a frozen layer, so of what was
//! completed, or made durable, before it nothing is at stake, and those who have the layer attached go on. It can
//! be repeated: what the kernel may have dropped is written again. Of the data those are blocks of which the
//! map file says nothing yet, since it is written after a sync of the data that succeeded; of the map those are
//! sectors of which the page cache may show more than the disk has, so all of it is written anew. The lower
//! layer goes only when all of that was synced.

use std::sync::Arc;

use uuid::Uuid;

use crate::import::Cancel;
use crate::layers::drop_layers::without;
use crate::layers::hold::hold_found;
use crate::layers::op::{ChangeLayers, LayerOp};
use crate::layers::verify_covered::verify_covered;
use crate::resource::disk::{Disk, claim_data};
use crate::resource::error::DiskError;
use crate::resource::key_watch::KeyWatch;
use crate::resource::layer_files;
use crate::resource::open::{geometry, layer_map};
use installation::Installation;
use installation::envelope::{Header, LayerRecord, ResourceKind};
use keys::{DekStack, with_wiped_call_stack};
use volume::pipeline::{DiskIo, PipelineError};
use volume::store::{LayerFile, StackFiles};
use volume::{LowerLayer, Volume, check_data_file};

/// Bytes that are gone through at a time.
const STEP: u64 = 4 << 20;
/// Bytes that are copied until they are made durable, so that a kill costs no more.
const FLUSH_EVERY: u64 = 256 << 20;

/// Copies what `above` inherits from `layer` into it, then drops `layer` from all `holders`.
pub(super) fn merge_frozen(
    installation: &Installation,
    holders: &[(ResourceKind, String)],
    (layer, above): (Uuid, Uuid),
    change: &mut ChangeLayers<'_>,
    cancel: &Cancel,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<(), DiskError> {
    let holders = holders
        .iter()
        .map(|(kind, name)| Disk::of_kind(installation, *kind, name))
        .collect::<Result<Vec<_>, _>>()?;
    let first = holders
        .first()
        .ok_or_else(|| DiskError::Argument("nobody has the layer".into()))?;
    let (header, deks) = first.unlock_all(installation, first.header_file()?.read()?)?;
    let upper = Upper::of(first, &header, above)?;
    let keys = KeyWatch::of(installation, first)?;
    let cancel = keys.stopping(cancel);
    // The ciphers leave parts of keys there.
    keys.judged(with_wiped_call_stack(|| {
        copy_all(upper.open(deks)?, &cancel, progress)
    }))?;
    for holder in &holders {
        match holder.kind() {
            ResourceKind::Disk => {
                let layers = vec![layer];
                change(holder, &LayerOp::DropLayers { layers })?;
            }
            ResourceKind::Snapshot | ResourceKind::Image => forget(installation, holder, layer)?,
        }
    }
    Ok(())
}

/// Copies what the top layer is missing of the one beneath it. The keys are gone when it returns.
fn copy_all(
    mut io: DiskIo,
    cancel: &Cancel,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<(), DiskError> {
    let size = io.volume().geometry().size;
    let (mut at, mut since) = (0, 0);
    while at < size {
        cancel.check()?;
        let len = STEP.min(size - at);
        since += io.copy_up_behind(at, len, 1)?;
        at += len;
        progress(at, size);
        if since > FLUSH_EVERY {
            io.flush()?;
            since = 0;
        }
    }
    Ok(io.flush()?)
}

/// A frozen layer as the top of what is beneath it.
struct Upper<'a> {
    disk: &'a Disk,
    header: &'a Header,
    /// Its place among the header's layers.
    at: usize,
}

impl<'a> Upper<'a> {
    fn of(disk: &'a Disk, header: &'a Header, layer: Uuid) -> Result<Self, DiskError> {
        let at = header.layers.iter().position(|l| l.id == layer);
        // A disk's top layer is not frozen; a snapshot's is.
        let end = match disk.kind() {
            ResourceKind::Disk => header.layers.len() - 1,
            ResourceKind::Snapshot | ResourceKind::Image => header.layers.len(),
        };
        match at.filter(|at| (1..end).contains(at)) {
            Some(at) => Ok(Self { disk, header, at }),
            None => Err(DiskError::Argument(format!(
                "the layers of {} have changed meanwhile; try again",
                disk.name()
            ))),
        }
    }

    fn layers(&self) -> impl Iterator<Item = &'a LayerRecord> {
        self.header.layers[..=self.at].iter().rev()
    }

    /// Opens it to be written to, which nobody else may do at the same time.
    fn open(&self, mut deks: DekStack) -> Result<DiskIo, DiskError> {
        let top = &self.header.layers[self.at];
        let paths = self.disk.layer_paths(top);
        let data = claim_data(self.disk.name(), &paths.data)?;
        check_data_file(data.file(), &geometry(self.header, top)?)?;
        let map = std::fs::OpenOptions::new()
            .read(true)
            .write(true)
            .open(&paths.map)
            .map_err(DiskError::file("open", &paths.map))?;
        let map = LayerFile::from_file(map).map_err(PipelineError::from)?;
        let (mut files, mut lower) = (Vec::new(), Vec::new());
        for layer in self.layers().skip(1) {
            let paths = self.disk.layer_paths(layer);
            let file = LayerFile::open_to_read(&paths.data).map_err(PipelineError::from)?;
            check_data_file(file.file(), &geometry(self.header, layer)?)?;
            files.push(file);
            lower.push(LowerLayer::open(layer_map(self.header, layer, &paths)?)?);
        }
        let volume = Volume::open_private(layer_map(self.header, top, &paths)?, lower)?;
        // A merge before this one may have failed, which no header tells; see the module.
        volume.write_map_anew()?;
        let above = self.header.layers.len() - 1 - self.at;
        deks.drop_upper(above);
        let files = StackFiles::new(data, map, files);
        Ok(DiskIo::open(Arc::new(volume), files, &deks)?)
    }
}

/// Drops a layer from a snapshot or an image, which nobody reads meanwhile: a reader may have the map
/// of before, and find nothing in the files of the layer. Nor does anybody make a disk of it: that shares the layers of
/// the header that it has read, of which one would be empty.
fn forget(installation: &Installation, holder: &Disk, layer: Uuid) -> Result<(), DiskError> {
    let _held = hold_found(holder)?;
    let file = holder.header_file()?;
    let mut lock = file.lock()?;
    let _claim = holder.claim_under(&lock)?;
    let (old, dek) = holder.unlock(installation, lock.read()?)?;
    let mut new = without(&old, |id| *id == layer);
    layer_files::note_gone(holder.directory(), &old, &mut new);
    if new.layers != old.layers {
        verify_covered(holder, &old, |at| old.layers[at].id == layer)?;
        lock.write_both(&new, &dek)?;
    } else {
        // A power cut must not bring back a header that names it.
        lock.settle()?;
    }
    drop(lock);
    layer_files::remove(holder.directory(), layer)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layers::hold::hold;
    use crate::layers::{SnapshotRequest, Unattached};
    use crate::resource::directory::header_claims;
    use crate::resource::offline::open_existing;
    use crate::resource::session::tests::attached;
    use std::path::Path;

    fn snapshot(installation: &Installation, disk: &Disk, name: &str, runtime: &Path) {
        let claim = disk.claim().unwrap();
        let mut user = Unattached::settled(installation, disk, claim, runtime).unwrap();
        let op = LayerOp::CreateSnapshot(SnapshotRequest {
            kind: ResourceKind::Snapshot,
            name: name.into(),
            incremental: false,
            data_dir: None,
        });
        op.apply(installation, disk, &mut user).unwrap();
    }

    /// A disk that is made of a snapshot has all layers that the snapshot's header named.
    #[test]
    fn no_layer_goes_from_a_snapshot_of_which_a_disk_is_made() {
        let dir = tempfile::tempdir().unwrap();
        let runtime = tempfile::tempdir_in("/dev/shm").unwrap();
        let installation = Installation::open(dir.path().join("state")).unwrap();
        let disk = attached(&installation, runtime.path());
        snapshot(&installation, &disk, "s1", runtime.path());
        // The next snapshot needs a layer of its own.
        let claim = disk.claim().unwrap();
        let found = disk.header_file().unwrap().read().unwrap();
        let (header, deks) = disk.unlock_all(&installation, found).unwrap();
        let mut io = open_existing(&disk, claim, &header, &deks, runtime.path()).unwrap();
        io.write_at(0, &[1; 4096]).unwrap();
        io.flush().unwrap();
        drop(io);
        snapshot(&installation, &disk, "s2", runtime.path());

        let kind = ResourceKind::Snapshot;
        let second = Disk::of_kind(&installation, kind, "s2").unwrap();
        let layers = || header_claims(second.directory()).unwrap().layers;
        let lower = layers()[0].clone();
        assert_eq!(layers().len(), 2);
        let (_, held) = hold(&installation, kind, "s2").unwrap();
        let refused = forget(&installation, &second, lower.id);
        assert!(matches!(refused, Err(DiskError::InUse { .. })));
        assert_eq!(layers().len(), 2);
        assert!(second.layer_paths(&lower).data.exists());

        drop(held);
        forget(&installation, &second, lower.id).unwrap();
        assert_eq!(layers().len(), 1);
        assert!(!second.layer_paths(&lower).data.exists());
    }
}
