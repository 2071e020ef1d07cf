//! A frontend that has the memory of its guest for itself alone.

use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

use crate::serve::supervise::Supervision;
use crate::status::{EventKind, Reason};
use protocol::{FrontendMemory, ProtocolError};

/// Why a connection was ended, and what is to be done about it.
const NOT_SHARED: &str = "its guest's memory is not shared, so that no request can be seen; with QEMU, \
    give '-object memory-backend-memfd,id=mem,size=...,share=on' and '-machine memory-backend=mem' (or \
    share=on to the memory of each NUMA node); with libvirt, <memoryBacking> with <source \
    type='memfd'/> and <access mode='shared'/>; with Cloud Hypervisor, '--memory ...,shared=on'";
/// A frontend that connects again and again must not fill the log, nor drive other events away.
const NOT_SHARED_PERIOD: Duration = Duration::from_secs(60);

impl Supervision {
    /// Ends the connection of a frontend that has the guest's memory mapped for itself alone.
    pub(crate) fn look_at_memory(
        &mut self,
        memory: &FrontendMemory,
        frontend: Option<BorrowedFd<'_>>,
    ) -> Result<(), ProtocolError> {
        let Some(frontend) = frontend else {
            return Ok(());
        };
        // It may be another user's, or only have passed the connection on.
        let is_private = match self.attached.data_plane.mappings_at(frontend) {
            Ok(maps) => memory.is_private_in(&maps),
            Err(error) => {
                log::debug!("the frontend's mappings cannot be seen: {error}");
                false
            }
        };
        if !is_private {
            return Ok(());
        }
        match self.attached.commands.disconnect(memory.connection) {
            // The connection ended with it.
            Ok(()) | Err(ProtocolError::Ended(_)) => {}
            // It must not hold the guard up again and again.
            Err(error) => return Err(error),
        }
        self.tell_not_shared();
        Ok(())
    }

    pub(crate) fn tell_not_shared(&mut self) {
        let told = self.told_not_shared;
        if told.is_some_and(|told| told.elapsed() < NOT_SHARED_PERIOD) {
            return;
        }
        self.told_not_shared = Some(Instant::now());
        let reason = Reason {
            code: "MemoryNotShared".into(),
            message: NOT_SHARED.into(),
        };
        self.tell(EventKind::MemoryNotShared, Some(reason));
    }
}
