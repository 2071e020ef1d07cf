//! The features and the configuration space of the device: what is offered is what works.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use vhost::vhost_user::{VhostUserProtocolFeatures, VhostUserVirtioFeatures};
use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_F_BLK_SIZE, VIRTIO_BLK_F_CONFIG_WCE, VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_FLUSH,
    VIRTIO_BLK_F_MQ, VIRTIO_BLK_F_RO, VIRTIO_BLK_F_SEG_MAX, VIRTIO_BLK_F_TOPOLOGY,
    VIRTIO_BLK_F_WRITE_ZEROES,
};
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};

use keys::units::{BLOCK_SIZE, SECTOR_SIZE};
use protocol::{Discard, Setup};
use volume::CacheMode;

use crate::request::ChainLimits;

/// `struct virtio_blk_config` up to the fields of features that are not offered (§5.2.4).
const CONFIG_LEN: usize = 60;
/// The largest configuration space that vhost-user can carry.
const MAX_CONFIG_LEN: usize = 256;
/// Where frontends may start to count: the offset of the device's configuration in a PCI BAR of
/// old, which Cloud Hypervisor still adds.
const PCI_CONFIG_OFFSET: u32 = 0x100;
/// The `writeback` field.
const WRITEBACK_AT: u32 = 32;

/// Bytes of data in one request. No limit of a segment is offered (`VIRTIO_BLK_F_SIZE_MAX`): FreeBSD
/// does not attach to a disk whose segments are shorter than its `kern.maxphys`, and viostor of
/// Windows multiplies `size_max` by `seg_max`. So this is more than any driver makes by itself (Linux
/// has 1 to 4 MiB), and less than what the length of a used entry can count.
const MAX_REQUEST_BYTES: u64 = 1 << 30;
/// Sectors of one discard or write-zeroes request: 1 GiB, which only changes the map.
pub(crate) const MAX_ZERO_SECTORS: u32 = (1 << 30) / SECTOR_SIZE as u32;

/// The device as the driver sees it.
pub(crate) struct ConfigSpace {
    size: AtomicU64,
    /// Bytes of a logical block.
    logical: u64,
    read_only: bool,
    discard: bool,
    num_queues: u16,
    queue_size: u16,
    /// What the driver wrote into `writeback` last, on whatever connection and in whatever process: a
    /// frontend reads it once and never says it again (§5.2.5: the mode after a reset may be either).
    writeback: AtomicBool,
}

impl ConfigSpace {
    pub(crate) fn new(setup: &Setup) -> Self {
        let (num_queues, queue_size) = (setup.num_queues, setup.queue_size);
        Self {
            size: setup.size().into(),
            logical: setup.logical_sector_size.into(),
            read_only: setup.read_only,
            discard: setup.discard != Discard::Off,
            num_queues,
            queue_size,
            writeback: AtomicBool::new(!setup.write_through),
        }
    }

    /// The feature bits of the device and of vhost-user.
    pub(crate) fn features(&self) -> u64 {
        let mut bits = vec![
            VIRTIO_F_VERSION_1,
            VIRTIO_RING_F_EVENT_IDX,
            VIRTIO_RING_F_INDIRECT_DESC,
            VIRTIO_BLK_F_SEG_MAX,
            VIRTIO_BLK_F_BLK_SIZE,
            VIRTIO_BLK_F_FLUSH,
            VIRTIO_BLK_F_TOPOLOGY,
            VIRTIO_BLK_F_CONFIG_WCE,
            VIRTIO_BLK_F_MQ,
        ];
        if self.read_only {
            bits.push(VIRTIO_BLK_F_RO);
        } else {
            bits.push(VIRTIO_BLK_F_WRITE_ZEROES);
            if self.discard {
                bits.push(VIRTIO_BLK_F_DISCARD);
            }
        }
        bits.iter().fold(0, |all, bit| all | 1 << bit)
            | VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits()
            | VhostUserVirtioFeatures::LOG_ALL.bits()
    }

    /// The extensions of the vhost-user protocol.
    pub(crate) fn protocol_features() -> VhostUserProtocolFeatures {
        VhostUserProtocolFeatures::CONFIG
            | VhostUserProtocolFeatures::MQ
            | VhostUserProtocolFeatures::REPLY_ACK
            | VhostUserProtocolFeatures::BACKEND_REQ
            | VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS
            | VhostUserProtocolFeatures::LOG_SHMFD
            | VhostUserProtocolFeatures::INFLIGHT_SHMFD
            | VhostUserProtocolFeatures::RESET_DEVICE
            | VhostUserProtocolFeatures::GET_VRING_BASE_INFLIGHT
    }

    /// Data segments of a request: what a queue of the size that was named has room for, beside header
    /// and status. A driver must not make a chain that is longer than its queue (§2.7.5.3.1).
    fn seg_max(&self) -> u16 {
        self.queue_size.saturating_sub(2)
    }

    /// What a chain may be at most, in bytes and segments.
    pub(crate) fn limits(&self) -> ChainLimits {
        ChainLimits {
            segments: usize::from(self.seg_max()),
            bytes: MAX_REQUEST_BYTES,
        }
    }

    /// `size` bytes from `offset` on, zeros behind the end of the structure; `None` when that is
    /// not in the configuration space.
    pub(crate) fn read(&self, offset: u32, size: u32) -> Option<Vec<u8>> {
        let offset = offset.checked_sub(PCI_CONFIG_OFFSET).unwrap_or(offset) as usize;
        let end = offset.checked_add(size as usize)?;
        let mut all = [0; MAX_CONFIG_LEN];
        all[..CONFIG_LEN].copy_from_slice(&self.encode());
        all.get(offset..end).map(<[u8]>::to_vec)
    }

    /// What a write of the driver asks for: only `writeback` can be written (§5.2.5.2).
    pub(crate) fn asks_for(offset: u32, bytes: &[u8]) -> Option<CacheMode> {
        let offset = offset.checked_sub(PCI_CONFIG_OFFSET).unwrap_or(offset);
        match (offset, bytes) {
            (WRITEBACK_AT, [0]) => Some(CacheMode::WriteThrough),
            (WRITEBACK_AT, [1]) => Some(CacheMode::WriteBack),
            _ => None,
        }
    }

    /// Has `writeback` say what the driver asked for.
    pub(crate) fn set_cache(&self, cache: CacheMode) {
        let writeback = cache == CacheMode::WriteBack;
        self.writeback.store(writeback, Ordering::Release);
    }

    /// Shows another size of the disk, in bytes.
    pub(crate) fn set_size(&self, size: u64) {
        self.size.store(size, Ordering::Release);
    }

    /// Bytes.
    pub(crate) fn size(&self) -> u64 {
        self.size.load(Ordering::Acquire)
    }

    /// Whether writes must be durable before they complete, for a driver that acknowledged
    /// `features`: one that knows no flush, or for which `writeback` is 0, as the driver (§5.2.5.2), one before it or
    /// the operator has it. A driver that flushes and cannot set it, such as viostor, gets what the operator asked for.
    pub(crate) fn is_write_through(&self, features: u64) -> bool {
        let flushes = features & (1 << VIRTIO_BLK_F_FLUSH) != 0;
        !flushes || !self.writeback.load(Ordering::Acquire)
    }

    fn encode(&self) -> [u8; CONFIG_LEN] {
        let mut config = [0; CONFIG_LEN];
        let mut put = |at: usize, bytes: &[u8]| config[at..at + bytes.len()].copy_from_slice(bytes);
        let size = self.size.load(Ordering::Acquire);
        put(0, &(size / SECTOR_SIZE).to_le_bytes());
        put(12, &u32::from(self.seg_max()).to_le_bytes());
        // Logical blocks of 512 bytes, unless the disk was made with others: SeaBIOS and old guests need
        // that. Physical ones have 4096. What is here is in logical blocks, all else in sectors.
        put(20, &(self.logical as u32).to_le_bytes());
        put(24, &[(BLOCK_SIZE / self.logical).ilog2() as u8]);
        put(26, &((BLOCK_SIZE / self.logical) as u16).to_le_bytes());
        put(28, &((64 * 1024 / self.logical) as u32).to_le_bytes());
        put(
            WRITEBACK_AT as usize,
            &[u8::from(self.writeback.load(Ordering::Acquire))],
        );
        put(34, &self.num_queues.to_le_bytes());
        if !self.read_only {
            // Those of discards too where they are not offered: a driver (viostor) may divide by them.
            put(36, &MAX_ZERO_SECTORS.to_le_bytes());
            put(40, &1u32.to_le_bytes());
            put(44, &((BLOCK_SIZE / SECTOR_SIZE) as u32).to_le_bytes());
            put(48, &MAX_ZERO_SECTORS.to_le_bytes());
            put(52, &1u32.to_le_bytes());
            put(56, &[u8::from(self.discard)]);
        }
        config
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use protocol::{Limits, OnFull, Stack, StackLayer};
    use uuid::Uuid;

    fn config() -> ConfigSpace {
        ConfigSpace::new(&Setup {
            stack: Stack {
                disk: Uuid::nil(),
                layers: vec![StackLayer {
                    id: Uuid::nil(),
                    origin: Uuid::nil(),
                    size: 1 << 30,
                    data_unit: 4096,
                }],
            },
            read_only: false,
            discard: Discard::Punch,
            on_full: OnFull::Pause,
            logical_sector_size: 512,
            num_queues: 4,
            queue_size: 256,
            memory: 64 << 20,
            huge_pages: false,
            poll_us: 0,
            crypto_threads: 0,
            cpus: Vec::new(),
            serial: String::new(),
            limits: Limits::default(),
            write_through: false,
            listening: true,
            revoked: None,
            restart: None,
        })
    }

    #[test]
    fn reads_anywhere_inside_and_nowhere_else() {
        let config = config();
        let whole = config.read(0, 60).unwrap();
        assert_eq!(whole[..8], (1u64 << 21).to_le_bytes());
        assert_eq!(
            config.read(0x100, 60).unwrap(),
            whole,
            "as Cloud Hypervisor asks"
        );
        assert_eq!(config.read(20, 4).unwrap(), 512u32.to_le_bytes());
        assert_eq!(config.read(0, 256).unwrap().len(), 256);
        assert!(config.read(1, 256).is_none());
        assert!(config.read(u32::MAX, 1).is_none());
        assert!(config.read(8, u32::MAX).is_none());
    }

    #[test]
    fn write_through_without_flush_or_by_choice() {
        let config = config();
        let (flush, wce) = (1 << VIRTIO_BLK_F_FLUSH, 1 << VIRTIO_BLK_F_CONFIG_WCE);
        assert!(config.is_write_through(wce));
        assert!(!config.is_write_through(flush | wce));
        let asked = ConfigSpace::asks_for;
        assert_eq!(asked(0x120, &[0]), Some(CacheMode::WriteThrough));
        config.set_cache(asked(32, &[0]).unwrap());
        assert!(config.is_write_through(flush | wce));
        assert!(
            config.is_write_through(flush),
            "it stays so for one that cannot tell"
        );
        assert_eq!(config.read(32, 1), Some(vec![0]));
        config.set_cache(asked(32, &[1]).unwrap());
        assert!(!config.is_write_through(flush | wce));
        assert!([asked(32, &[2]), asked(31, &[0, 0]), asked(0, &[1])] == [None; 3]);
    }
}
