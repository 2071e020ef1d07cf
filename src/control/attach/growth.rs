//! An attached disk that grows: what is left to do here once its header says the new size.

use std::sync::{Arc, Mutex, PoisonError};

use uuid::Uuid;

use crate::control::disks::{self, Disk, DiskError};
use crate::volume::RuntimeMap;

use super::commands::Commands;

/// Brings the runtime map and the data plane to the size that the header says.
pub(super) struct Growth {
    disk: Arc<Disk>,
    /// One at a time. The top layer, and its runtime map.
    top: Mutex<(Uuid, RuntimeMap)>,
    commands: Arc<Commands>,
}

impl Growth {
    pub(super) fn new(
        disk: Arc<Disk>,
        layer: Uuid,
        runtime: RuntimeMap,
        commands: Arc<Commands>,
    ) -> Self {
        Self {
            disk,
            top: Mutex::new((layer, runtime)),
            commands,
        }
    }

    /// Another layer is the top one from now on.
    pub(super) fn exchange(&self, layer: Uuid, runtime: RuntimeMap) {
        *self.top.lock().unwrap_or_else(PoisonError::into_inner) = (layer, runtime);
    }

    /// Has the disk served with the size that its header says; which that is.
    ///
    /// # Errors
    /// Why it is served with the old size, as a line.
    pub(super) fn follow_header(&self) -> Result<u64, String> {
        // A holder that panicked has left a map that counts, as a crash there does.
        let top = self.top.lock().unwrap_or_else(PoisonError::into_inner);
        let (attached, runtime) = &*top;
        let line = |error: DiskError| error.to_string().replace('\n', " ");
        let header = self.disk.header_file().map_err(line)?.read();
        let header = header.map_err(|e| line(e.into()))?;
        let claims = header.claims();
        let Some(top) = claims.top().filter(|top| top.id == *attached) else {
            return Err("the disk's header does not name the layer that is attached".into());
        };
        let geometry = disks::geometry(claims, top).map_err(line)?;
        runtime.grow(&geometry).map_err(|e| line(e.into()))?;
        self.commands.resize(claims.size)?;
        Ok(claims.size)
    }
}
