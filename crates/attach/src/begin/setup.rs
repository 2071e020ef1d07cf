//! What the data plane is told of a disk.

use uuid::Uuid;

use crate::begin::request::AttachRequest;
use crate::error::AttachError;
use disks::{self, DiskError};
use installation::envelope::HeaderPayload;
use protocol::{Setup, Stack, StackLayer};

pub(crate) fn setup(
    request: &AttachRequest,
    header: &HeaderPayload,
    listening: bool,
) -> Result<Setup, AttachError> {
    let serial = request.serial.clone().unwrap_or_else(|| {
        let id = header.disk.simple().to_string();
        id[..20].to_owned()
    });
    Ok(Setup {
        stack: stack_of(header)?,
        read_only: request.read_only,
        discard: request.discard,
        on_full: request.on_full,
        logical_sector_size: header.logical_sector_size,
        num_queues: request.num_queues,
        queue_size: request.queue_size,
        memory: request.memory,
        huge_pages: request.huge_pages,
        poll_us: request.poll_us,
        crypto_threads: request.crypto_threads,
        cpus: {
            let used = request.cpus.iter().take(request.num_queues.into());
            used.copied().collect()
        },
        limits: request.limits,
        write_through: header.write_through,
        serial,
        listening,
        revoked: None,
        restart: None,
    })
}

/// The disk's layers as the data plane knows them.
pub(crate) fn stack_of(header: &HeaderPayload) -> Result<Stack, DiskError> {
    let layer = |layer| {
        let geometry = disks::geometry(header, layer)?;
        Ok(StackLayer {
            id: geometry.layer,
            origin: geometry.disk,
            size: geometry.size,
            data_unit: geometry.data_unit.bytes(),
        })
    };
    Ok(Stack {
        disk: header.disk,
        layers: header
            .layers
            .iter()
            .rev()
            .map(layer)
            .collect::<Result<_, DiskError>>()?,
    })
}

/// The layer that is written to.
pub(crate) fn top_of(setup: &Setup) -> Result<Uuid, AttachError> {
    let top = setup.stack.layers.first().ok_or(AttachError::NoLayer)?;
    Ok(top.id)
}
