//! The messages of a frontend, each of which changes what its connection has set up.

use std::fs::File;
use std::os::fd::AsFd;
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

use protocol::{Change, InflightPlace, Kept, KeptKey, MAX_MEMORY_REGIONS, MAX_QUEUE_SIZE};

use crate::inflight::{InflightError, InflightRegion};
use crate::queue::command::Command;
use crate::queue::dirty_log::DirtyLog;
use crate::queue::notifier::Notifier;
use crate::queue::ring::RingAddresses;

use super::backend_channel::BackendChannel;
use super::config_space::ConfigSpace;
use super::handler::{BlockHandler, duplicate, internal, notifier, refused};

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
        (self.features, self.acknowledged) = (features, features);
        self.keep_features(true);
        self.publish_write_through();
        self.publish_log()?;
        if features & VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits() == 0 {
            // Without the protocol features there is no message to enable rings: they all are.
            for index in 0..self.rings.len() {
                self.rings[index].enabled = true;
                self.keep_ring(index);
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
        self.keeper.forget(Change::ForgetMemory);
        self.keep_memory(None);
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
        let addresses = RingAddresses {
            descriptors,
            avail,
            used,
        };
        self.set_ring_addresses(index as usize, addresses)
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
        let state = VhostUserVringState::new(index, u32::from(ring.next_avail));
        self.keep_ring(index as usize);
        for key in [
            KeptKey::Kick { ring: index as u16 },
            KeptKey::Call { ring: index as u16 },
        ] {
            self.keeper.forget(Change::Forget(key));
        }
        Ok(state)
    }

    fn set_vring_kick(&mut self, index: u8, file: Option<File>) -> Result<()> {
        // A ring without a kick descriptor would have to be polled for ever.
        let file = file.ok_or_else(|| refused("a queue without a kick descriptor"))?;
        notifier(self.shared.io_rings.signals(), Some(&file))?;
        self.ring(usize::from(index))?;
        let kick = Kept::Kick { ring: index.into() };
        self.keeper.put(kick, Some(file.as_fd()));
        self.change(usize::from(index), |ring| ring.kick = Some(file))
    }

    fn set_vring_call(&mut self, index: u8, file: Option<File>) -> Result<()> {
        let signals = self.shared.io_rings.signals().clone();
        let mut call = notifier(&signals, file.as_ref())?;
        let keeper = self.keeper.clone();
        let ring = self.ring(usize::from(index))?;
        keeper.put_file(Kept::Call { ring: index.into() }, file.as_ref());
        ring.call = file;
        match (ring.running, &ring.worker) {
            (true, Some(worker)) => {
                let call = call.map(Box::new);
                worker.tell(Command::Call(call)).map_err(internal)?;
            }
            // As libvhost-user does: who waits for what another descriptor was told looks again. The log has it where
            // it cannot be told.
            _ => {
                let _ = call.as_mut().map(Notifier::signal);
            }
        }
        Ok(())
    }

    fn set_vring_err(&mut self, index: u8, file: Option<File>) -> Result<()> {
        let signals = self.shared.io_rings.signals().clone();
        notifier(&signals, file.as_ref())?;
        let keeper = self.keeper.clone();
        let ring = self.ring(usize::from(index))?;
        keeper.put_file(Kept::Err { ring: index.into() }, file.as_ref());
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
        let moves = VhostUserProtocolFeatures::GET_VRING_BASE_INFLIGHT.bits();
        let tracks = VhostUserProtocolFeatures::INFLIGHT_SHMFD.bits();
        if features & moves != 0 && features & tracks == 0 {
            return Err(refused(
                "rings that stop with requests in flight, without a region for these",
            ));
        }
        self.moves_in_flight = features & moves != 0;
        self.acknowledges = features & VhostUserProtocolFeatures::REPLY_ACK.bits() != 0;
        self.keeper.put(Kept::ProtocolFeatures(features), None);
        Ok(())
    }

    fn set_backend_req_fd(&mut self, _: Backend) {
        let offered = self.offered_channel.take();
        match &offered {
            Some(socket) => self.keeper.put(Kept::Channel, Some(socket.as_fd())),
            None => {
                self.keeper.forget(Change::Forget(KeptKey::Channel));
                log::warn!("the frontend's channel was not understood; it is told nothing");
            }
        }
        self.channel = offered.map(BackendChannel::new);
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
        let done = match enable {
            true => self.start(index),
            false => self.stop(index),
        };
        self.keep_ring(index);
        done
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
        // There is no reply that says no, so a wrong size ends the connection. QEMU asks for as many entries as the
        // device's queue-size has, 128, also where its machine has virtio over MMIO and the driver makes rings of
        // 1024. So there is room for any ring; QEMU passes the length back as it was told.
        let made = self.has_shape(of).and_then(|()| {
            let region = InflightRegion::create(of.num_queues, MAX_QUEUE_SIZE)?;
            let file = region.file().map_err(|source| InflightError::Io {
                what: "duplicate an in-flight region",
                source,
            })?;
            Ok((InflightRegion::len_of(of.num_queues, MAX_QUEUE_SIZE), file))
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
        let place = InflightPlace {
            offset: of.mmap_offset,
            queues: of.num_queues,
            entries: region.entries(),
        };
        let kept = region.file().map_err(Error::ReqHandlerError)?;
        self.keeper.put(Kept::Inflight(place), Some(kept.as_fd()));
        self.inflight = Some(Arc::new(region));
        Ok(())
    }

    fn get_max_mem_slots(&mut self) -> Result<u64> {
        Ok(MAX_MEMORY_REGIONS as u64)
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
        self.keep_memory(Some(region.guest_phys_addr));
        self.shared.memory_news.announced(self.memory.files());
        self.publish_memory()?;
        Ok(None)
    }

    fn remove_mem_region(&mut self, region: &VhostUserSingleMemoryRegion) -> Result<()> {
        self.memory.remove(region).map_err(Error::ReqHandlerError)?;
        let guest = region.guest_phys_addr;
        self.keeper
            .forget(Change::Forget(KeptKey::Memory { guest }));
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
        let kept = duplicate(Some(&file))?;
        let (offset, len) = (log.mmap_offset, log.mmap_size);
        let log = DirtyLog::new(file, offset, len);
        self.log = Some(Arc::new(log.map_err(|_| Error::InvalidMessage)?));
        self.keeper
            .put_file(Kept::Log { offset, len }, kept.as_ref());
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
        // As large as this program makes them, or as another back-end did for what the frontend asked.
        let needs = |entries| InflightRegion::len_of(of.num_queues, entries);
        let sizes = [of.queue_size, MAX_QUEUE_SIZE];
        let fits = sizes
            .into_iter()
            .find(|entries| of.mmap_size == needs(*entries));
        let entries = fits.ok_or(InflightError::Length {
            said: of.mmap_size,
            needs: needs(of.queue_size),
        })?;
        InflightRegion::map(file, of.mmap_offset, of.num_queues, entries)
    }

    /// Has the guest's memory kept, or the part of it at that address.
    fn keep_memory(&self, only: Option<u64>) {
        for (region, file) in self.memory.regions() {
            if only.is_none_or(|guest| guest == region.guest) {
                self.keeper.put(Kept::Memory(region), Some(file.as_fd()));
            }
        }
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
