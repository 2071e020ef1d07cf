//! Opening the disk that came over the command channel.

use std::sync::Arc;

use keys::DekStack;
use keys::units::{SECTOR_SIZE, Sector};
use protocol::{Cargo, Discard, DiskFiles, OnRevoke, Setup};
use volume::{LayerMap, Volume, check_data_file};

use crate::DataplaneError;
use crate::disk::key::SharedKey;
use crate::disk::shared::{Extent, open_lower, split};
use crate::request::Disk;
use crate::vhost_user::config_space::MAX_ZERO_SECTORS;

/// What a command is refused for.
pub(super) const NO_DISK: &str = "another attach has the disk";

/// What queues that have no key get while they have no disk: none asks for anything.
pub(super) const WITHOUT: OnRevoke = OnRevoke::Pause;

/// The disk's files, and its keys unless they are revoked.
pub(super) fn files_and_keys(
    setup: &Setup,
    cargo: Cargo,
) -> Result<(DiskFiles, Option<DekStack>), DataplaneError> {
    Ok(match setup.revoked {
        Some(_) => (cargo.files(setup.stack.layers.len())?, None),
        None => {
            let (files, deks) = cargo.disk()?;
            (files, Some(deks))
        }
    })
}

/// Opens the volume over the files that came.
pub(super) fn open_extent(setup: &Setup, opened: DiskFiles) -> Result<Arc<Extent>, DataplaneError> {
    let DiskFiles {
        mut files,
        runtime,
        lower_maps,
    } = opened;
    let (top, beneath) = split(&setup.stack)?;
    let map = files.map.try_clone()?.into_file();
    let top = LayerMap::new(top.geometry()?, map);
    let lower = open_lower(beneath, &files, lower_maps, &[])?;
    check_data_file(files.data.file(), &top.geometry)?;
    if runtime.finish_writes(&top.geometry, files.data.file())? > 0 {
        log::info!("finished what the last process was writing when it died");
    }
    files.map_memory(top.geometry.data_len())?;
    Ok(Arc::new(Extent {
        volume: Arc::new(Volume::open_runtime(top, lower, &runtime)?),
        files: Arc::new(files),
        runtime,
        disk: disk_of(setup),
    }))
}

/// Opens the disk with its keys, or without them while they are revoked.
pub(super) fn open_disk(
    setup: &Setup,
    files: DiskFiles,
    deks: Option<DekStack>,
) -> Result<(Arc<Extent>, SharedKey), DataplaneError> {
    let key = match (deks, setup.revoked) {
        (Some(deks), _) => SharedKey::new(deks),
        (None, mode) => SharedKey::revoked(mode.unwrap_or(WITHOUT)),
    };
    Ok((open_extent(setup, files)?, key))
}

/// The disk as the requests of a guest see it.
pub(super) fn disk_of(setup: &Setup) -> Disk {
    let mut serial = [0; 20];
    let len = setup.serial.len().min(serial.len());
    serial[..len].copy_from_slice(&setup.serial.as_bytes()[..len]);
    Disk {
        capacity: Sector(setup.size() / SECTOR_SIZE),
        block_sectors: u64::from(setup.logical_sector_size) / SECTOR_SIZE,
        read_only: setup.read_only,
        discard: setup.discard != Discard::Off,
        serial,
        most_zero_sectors: MAX_ZERO_SECTORS,
    }
}
