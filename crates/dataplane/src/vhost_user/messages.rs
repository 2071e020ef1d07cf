//! The messages of a frontend, each of which changes what its connection has set up.

use std::fs::File;
use std::sync::Arc;

use vhost::VhostUserMemoryRegionBase;
use vhost::vhost_user::message::{
    VhostTransferStateDirection, VhostTransferStatePhase, VhostUserConfigFlags, VhostUserInflight,
    VhostUserLog, VhostUserMemoryRegion, VhostUserShMemConfig, VhostUserSharedMsg,
    VhostUserSingleMemoryRegion, VhostUserVringAddrFlags, VhostUserVringState,
};
use vhost::vhost_user::{
    Backend, Error, GpuBackend, Result, VhostUserBackendReqHandlerMut, VhostUserProtocolFeatures,
    VhostUserVirtioFeatures,
};

use crate::inflight::{InflightError, InflightRegion, MAX_QUEUE_SIZE};
use crate::queue::command::Command;
use crate::queue::dirty_log::DirtyLog;
use crate::queue::notifier::Notifier;
use crate::queue::ring::RingAddresses;

use super::backend_channel::BackendChannel;
use super::config_space::ConfigSpace;
use super::handler::{BlockHandler, duplicate, internal, notifier, refused};

/// Memory regions that a frontend may have: as many as the kernel's vhost takes.
const MAX_MEMORY_SLOTS: u64 = 509;

impl VhostUserBackendReqHandlerMut for BlockHandler {
    fn set_owner(&mut self) -> Result<()> {
        Ok(())
    }

    fn reset_owner(&mut self) -> Result<()> {
        self.disconnect();
        Ok(())
    }

    fn reset_device(&mut self) -> Result<()> {
        self.reset_rings();
        self.forget_in_flight();
        self.forget_features();
        Ok(())
    }

    fn get_features(&mut self) -> Result<u64> {
        Ok(self.config.features())
    }

    fn set_features(&mut self, features: u64) -> Result<()> {
        if features & !self.config.features() != 0 {
            return Err(refused("features that were not offered"));
        }
        self.features = features;
        self.publish_write_through();
        self.publish_log()?;
        if features & VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits() == 0 {
            // Without the protocol features there is no message to enable rings: they all are.
            for index in 0..self.rings.len() {
                self.rings[index].enabled = true;
                self.start(index)?;
            }
        }
        Ok(())
    }

    fn set_mem_table(
        &mut self,
        regions: &[VhostUserMemoryRegion],
        files: Vec<File>,
        _postcopy: Option<bool>,
    ) -> Result<Option<Vec<VhostUserMemoryRegionBase>>> {
        self.memory
            .replace(regions, files)
            .map_err(Error::ReqHandlerError)?;
        self.shared.memory_news.announced(self.memory.files());
        self.publish_memory()?;
        Ok(None)
    }

    fn set_vring_num(&mut self, index: u32, num: u32) -> Result<()> {
        let size = u16::try_from(num).map_err(|_| refused("the queue is too large"))?;
        if !size.is_power_of_two() || size > MAX_QUEUE_SIZE {
            return Err(refused(
                "a queue's size must be a power of two, and 1024 at most",
            ));
        }
        self.change(index as usize, |ring| ring.size = size)
    }

    fn set_vring_addr(
        &mut self,
        index: u32,
        _flags: VhostUserVringAddrFlags,
        descriptor: u64,
        used: u64,
        available: u64,
        _log: u64,
    ) -> Result<()> {
        // The frontend translates addresses of its guest's memory, so a ring that is in none is in
        // memory that it could not announce: without a file there is nothing to share. QEMU goes on
        // as if nothing were wrong, with a guest that waits for ever.
        let at = |user| {
            self.memory.guest_address(user).ok_or_else(|| {
                self.shared.memory_news.not_shared();
                Error::InvalidMessage
            })
        };
        let (descriptors, avail, used) = (at(descriptor)?, at(available)?, at(used)?);
        // virtio 1.2 §2.7: the alignment of the three parts.
        if descriptors.0 % 16 != 0 || avail.0 % 2 != 0 || used.0 % 4 != 0 {
            return Err(refused("a ring that is not aligned"));
        }
        let addresses = RingAddresses {
            descriptors,
            avail,
            used,
        };
        let ring = self.ring(index as usize)?;
        if ring.addresses == Some(addresses) {
            return Ok(());
        }
        let size = ring.size;
        if !self.ring_is_there(addresses, size) {
            return Err(refused("a ring that leaves guest memory"));
        }
        self.change(index as usize, |ring| ring.addresses = Some(addresses))
    }

    fn set_vring_base(&mut self, index: u32, base: u32) -> Result<()> {
        let next_avail = u16::try_from(base).map_err(|_| refused("an index beyond 16 bits"))?;
        self.change(index as usize, |ring| ring.next_avail = next_avail)
    }

    fn get_vring_base(&mut self, index: u32) -> Result<VhostUserVringState> {
        // There is no reply that says no, so a wrong index ends the connection.
        self.stop(index as usize)
            .map_err(|_| Error::InvalidMessage)?;
        let ring = self
            .ring(index as usize)
            .map_err(|_| Error::InvalidMessage)?;
        ring.kick = None;
        ring.call = None;
        Ok(VhostUserVringState::new(index, u32::from(ring.next_avail)))
    }

    fn set_vring_kick(&mut self, index: u8, file: Option<File>) -> Result<()> {
        // A ring without a kick descriptor would have to be polled for ever.
        let file = file.ok_or_else(|| refused("a queue without a kick descriptor"))?;
        notifier(self.shared.io_rings.signals(), Some(&file))?;
        self.change(usize::from(index), |ring| ring.kick = Some(file))
    }

    fn set_vring_call(&mut self, index: u8, file: Option<File>) -> Result<()> {
        let signals = self.shared.io_rings.signals().clone();
        let ring = self.ring(usize::from(index))?;
        let mut call = notifier(&signals, file.as_ref())?;
        ring.call = file;
        match (ring.running, &ring.worker) {
            (true, Some(worker)) => {
                let call = call.map(Box::new);
                worker.tell(Command::Call(call)).map_err(internal)?;
            }
            // As libvhost-user does: who waits for what another descriptor was told looks again.
            _ => call.iter_mut().for_each(Notifier::signal),
        }
        Ok(())
    }

    fn set_vring_err(&mut self, index: u8, file: Option<File>) -> Result<()> {
        let signals = self.shared.io_rings.signals().clone();
        let ring = self.ring(usize::from(index))?;
        notifier(&signals, file.as_ref())?;
        ring.err = file;
        if let (true, Some(worker)) = (ring.running, &ring.worker) {
            let err = duplicate(ring.err.as_ref())?;
            worker.tell(Command::Err(err)).map_err(internal)?;
        }
        Ok(())
    }

    fn get_protocol_features(&mut self) -> Result<VhostUserProtocolFeatures> {
        Ok(ConfigSpace::protocol_features())
    }

    fn set_protocol_features(&mut self, features: u64) -> Result<()> {
        if features & !ConfigSpace::protocol_features().bits() != 0 {
            return Err(refused("protocol features that were not offered"));
        }
        self.acknowledges = features & VhostUserProtocolFeatures::REPLY_ACK.bits() != 0;
        Ok(())
    }

    fn set_backend_req_fd(&mut self, _: Backend) {
        self.channel = self.offered_channel.take().map(BackendChannel::new);
        if self.channel.is_none() {
            log::warn!("the frontend's channel was not understood; it is told nothing");
        }
    }

    fn get_queue_num(&mut self) -> Result<u64> {
        Ok(self.rings.len() as u64)
    }

    fn set_vring_enable(&mut self, index: u32, enable: bool) -> Result<()> {
        if self.features & VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits() == 0 {
            return Err(refused(
                "queues are enabled by themselves without protocol features",
            ));
        }
        let index = index as usize;
        self.ring(index)?.enabled = enable;
        if enable {
            self.start(index)
        } else {
            self.stop(index)
        }
    }

    fn get_config(&mut self, offset: u32, size: u32, _: VhostUserConfigFlags) -> Result<Vec<u8>> {
        self.config
            .read(offset, size)
            .ok_or_else(|| refused("outside the configuration space"))
    }

    fn set_config(&mut self, offset: u32, bytes: &[u8], _: VhostUserConfigFlags) -> Result<()> {
        let Some(cache) = ConfigSpace::asks_for(offset, bytes) else {
            return Err(refused("a field that cannot be written"));
        };
        // First where it outlives this process: the guest relies on it once this returns.
        let kept = self.shared.extent().runtime.set_cache(cache);
        kept.map_err(internal)?;
        self.config.set_cache(cache);
        self.publish_write_through();
        Ok(())
    }

    fn set_gpu_socket(&mut self, _: GpuBackend) -> Result<()> {
        unsupported()
    }

    fn get_shared_object(&mut self, _: VhostUserSharedMsg) -> Result<File> {
        unsupported()
    }

    fn get_inflight_fd(&mut self, of: &VhostUserInflight) -> Result<(VhostUserInflight, File)> {
        // There is no reply that says no, so a wrong size ends the connection.
        let made = self.has_shape(of).and_then(|()| {
            let region = InflightRegion::create(of.num_queues, of.queue_size)?;
            let file = region.file().map_err(|source| InflightError::Io {
                what: "duplicate an in-flight region",
                source,
            })?;
            Ok((InflightRegion::len_of(of.num_queues, of.queue_size), file))
        });
        let (len, file) = made.map_err(|error| {
            log::warn!("the frontend gets no in-flight region: {error}");
            Error::InvalidMessage
        })?;
        Ok((
            VhostUserInflight {
                mmap_size: len,
                mmap_offset: 0,
                ..*of
            },
            file,
        ))
    }

    fn set_inflight_fd(&mut self, of: &VhostUserInflight, file: File) -> Result<()> {
        if self.is_running() {
            return Err(refused("an in-flight region for a queue that runs"));
        }
        // QEMU does not ask whether it was taken, and would rely on it: the connection ends.
        let region = self.region_of(of, file).map_err(|error| {
            log::warn!("{error}: it is refused");
            Error::InvalidMessage
        })?;
        self.inflight = Some(Arc::new(region));
        Ok(())
    }

    fn get_max_mem_slots(&mut self) -> Result<u64> {
        Ok(MAX_MEMORY_SLOTS)
    }

    fn add_mem_region(
        &mut self,
        region: &VhostUserSingleMemoryRegion,
        file: File,
        _postcopy: Option<bool>,
    ) -> Result<Option<VhostUserMemoryRegionBase>> {
        self.memory
            .add(region, file)
            .map_err(Error::ReqHandlerError)?;
        self.shared.memory_news.announced(self.memory.files());
        self.publish_memory()?;
        Ok(None)
    }

    fn remove_mem_region(&mut self, region: &VhostUserSingleMemoryRegion) -> Result<()> {
        self.memory.remove(region).map_err(Error::ReqHandlerError)?;
        self.publish_memory()
    }

    fn set_device_state_fd(
        &mut self,
        _: VhostTransferStateDirection,
        _: VhostTransferStatePhase,
        _: File,
    ) -> Result<Option<File>> {
        unsupported()
    }

    fn check_device_state(&mut self) -> Result<()> {
        unsupported()
    }

    fn get_shmem_config(&mut self) -> Result<VhostUserShMemConfig> {
        unsupported()
    }

    fn set_log_base(&mut self, log: &VhostUserLog, file: File) -> Result<()> {
        let log = DirtyLog::new(file, log.mmap_offset, log.mmap_size);
        self.log = Some(Arc::new(log.map_err(|_| Error::InvalidMessage)?));
        self.publish_log()
    }
}

impl BlockHandler {
    /// The in-flight region that a frontend passes.
    fn region_of(
        &self,
        of: &VhostUserInflight,
        file: File,
    ) -> std::result::Result<InflightRegion, InflightError> {
        self.has_shape(of)?;
        let needs = InflightRegion::len_of(of.num_queues, of.queue_size);
        if of.mmap_size != needs {
            let said = of.mmap_size;
            return Err(InflightError::Length { said, needs });
        }
        InflightRegion::map(file, of.mmap_offset, of.num_queues, of.queue_size)
    }

    /// Whether an in-flight region is for a device like this.
    fn has_shape(&self, of: &VhostUserInflight) -> std::result::Result<(), InflightError> {
        let (queues, entries) = (of.num_queues, of.queue_size);
        let most = self.rings.len() as u16;
        match (1..=most).contains(&queues) && (1..=MAX_QUEUE_SIZE).contains(&entries) {
            true => Ok(()),
            false => Err(InflightError::Shape {
                queues,
                entries,
                most,
            }),
        }
    }
}

/// A message whose only reply is a success. A frontend that waits for it must not wait for ever, so
/// the connection ends.
fn unsupported<T>() -> Result<T> {
    Err(Error::InvalidMessage)
}
