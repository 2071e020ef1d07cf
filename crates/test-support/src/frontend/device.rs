//! A whole device: connection, negotiation, memory table and queues, as QEMU sets them up.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;
use std::sync::Arc;

use super::dirty_log::DirtyLog;
use super::inflight::InflightRegion;
use super::memory::{GuestMemory, Region, USER_BASE};
use super::message::{Connection, NEED_REPLY, protocol, request, vring_state, words};
use super::queue::{Queue, Vring};

/// Feature bits (virtio 1.2 §5.2.3, §6; vhost-user).
pub mod feature {
    pub const SIZE_MAX: u64 = 1 << 1;
    pub const SEG_MAX: u64 = 1 << 2;
    pub const RO: u64 = 1 << 5;
    pub const BLK_SIZE: u64 = 1 << 6;
    pub const FLUSH: u64 = 1 << 9;
    pub const TOPOLOGY: u64 = 1 << 10;
    pub const CONFIG_WCE: u64 = 1 << 11;
    pub const MQ: u64 = 1 << 12;
    pub const DISCARD: u64 = 1 << 13;
    pub const WRITE_ZEROES: u64 = 1 << 14;
    pub const LIFETIME: u64 = 1 << 15;
    pub const SECURE_ERASE: u64 = 1 << 16;
    pub const LOG_ALL: u64 = 1 << 26;
    pub const INDIRECT_DESC: u64 = 1 << 28;
    pub const EVENT_IDX: u64 = 1 << 29;
    pub const PROTOCOL_FEATURES: u64 = 1 << 30;
    pub const VERSION_1: u64 = 1 << 32;
    pub const ACCESS_PLATFORM: u64 = 1 << 33;
    pub const RING_PACKED: u64 = 1 << 34;
}

/// How a frontend sets a device up.
#[derive(Clone, Debug)]
pub struct Setup {
    /// Feature bits to accept of those offered.
    pub features: u64,
    /// Protocol feature bits to accept of those offered.
    pub protocol: u64,
    /// Queues to set up and enable.
    pub queues: u32,
    /// Entries of each.
    pub queue_size: u16,
    /// The available index at which each starts.
    pub start: u16,
    /// Requests go through indirect tables, where INDIRECT_DESC is accepted.
    pub indirect: bool,
}

impl Default for Setup {
    fn default() -> Self {
        use feature::*;
        Self {
            features: SIZE_MAX
                | SEG_MAX
                | RO
                | BLK_SIZE
                | FLUSH
                | TOPOLOGY
                | CONFIG_WCE
                | MQ
                | DISCARD
                | WRITE_ZEROES
                | INDIRECT_DESC
                | PROTOCOL_FEATURES
                | VERSION_1,
            // The in-flight region is of use to a frontend that connects anew, and the back-end's own
            // channel to one that serves it.
            protocol: protocol::MQ
                | protocol::REPLY_ACK
                | protocol::CONFIG
                | protocol::LOG_SHMFD
                | protocol::RESET_DEVICE
                | protocol::CONFIGURE_MEM_SLOTS,
            queues: 2,
            queue_size: 128,
            start: 0,
            indirect: false,
        }
    }
}

impl Setup {
    /// With these features too.
    pub fn with(mut self, features: u64) -> Self {
        self.features |= features;
        self
    }

    /// Without these features.
    pub fn without(mut self, features: u64) -> Self {
        self.features &= !features;
        self
    }

    /// With an in-flight region, which the next back-end gets.
    pub fn with_inflight(mut self) -> Self {
        self.protocol |= protocol::INFLIGHT_SHMFD;
        self
    }
}

/// A device that is set up.
pub struct Frontend {
    pub conn: Connection,
    pub mem: Arc<GuestMemory>,
    pub queues: Vec<Queue>,
    /// Feature bits that the back-end offered.
    pub offered: u64,
    /// Feature bits in use.
    pub features: u64,
    /// Protocol feature bits that the back-end offered.
    pub protocol_offered: u64,
    /// Protocol feature bits in use.
    pub protocol: u64,
    /// Where the back-end notes which requests are in flight, if that was negotiated.
    pub inflight: Option<InflightRegion>,
}

/// The body of SET_VRING_ADDR, with the three user addresses as they are.
pub fn vring_addr(index: u32, flags: u32, desc: u64, used: u64, avail: u64, log: u64) -> Vec<u8> {
    words(&[
        u64::from(index) | u64::from(flags) << 32,
        desc,
        used,
        avail,
        log,
    ])
}

/// The body of ADD_MEM_REG and REM_MEM_REG.
pub fn mem_region(gpa: u64, size: u64, user: u64, offset: u64) -> Vec<u8> {
    words(&[0, gpa, size, user, offset])
}

/// Where the rings of a queue are.
#[derive(Clone, Copy)]
pub struct Rings {
    index: u32,
    desc: u64,
    avail: u64,
    used: u64,
}

impl From<&Queue> for Rings {
    fn from(queue: &Queue) -> Self {
        let (index, desc) = (queue.index, queue.desc);
        let (avail, used) = (queue.avail, queue.used);
        Self {
            index,
            desc,
            avail,
            used,
        }
    }
}

impl From<&Vring> for Rings {
    fn from(vring: &Vring) -> Self {
        let (index, desc) = (vring.index, vring.desc);
        let (avail, used) = (vring.avail, vring.used);
        Self {
            index,
            desc,
            avail,
            used,
        }
    }
}

impl Frontend {
    /// Connects, negotiates and starts the queues, in fresh memory.
    pub fn open(path: &Path, setup: &Setup) -> Self {
        Self::try_open(path, setup).expect("a frontend of the ordinary kind is served")
    }

    /// As `open`, for a back-end that may be gone.
    pub fn try_open(path: &Path, setup: &Setup) -> io::Result<Self> {
        Self::start(Connection::open(path)?, setup)
    }

    /// Negotiates and starts the queues on a connection.
    pub fn start(conn: Connection, setup: &Setup) -> io::Result<Self> {
        let mut frontend = Self::negotiate(conn, setup)?;
        if frontend.protocol & protocol::INFLIGHT_SHMFD != 0 {
            let region = frontend.get_inflight(setup.queues as u16, setup.queue_size)?;
            frontend.set_inflight(&region)?;
            frontend.inflight = Some(region);
        }
        frontend.set_mem_table()?;
        for index in 0..setup.queues {
            let mut queue = Queue::new(&frontend.mem, index, setup.queue_size);
            queue.event_idx = frontend.features & feature::EVENT_IDX != 0;
            queue.indirect = setup.indirect && frontend.features & feature::INDIRECT_DESC != 0;
            queue.reset(setup.start);
            frontend.queues.push(queue);
        }
        for index in 0..setup.queues {
            frontend.start_queue(index)?;
        }
        frontend.barrier()?;
        // As QEMU does, for a driver that resumes and believes a stale avail_event.
        frontend.queues.iter().for_each(|queue| queue.kick.signal());
        Ok(frontend)
    }

    /// Negotiates features only.
    pub fn negotiate(conn: Connection, setup: &Setup) -> io::Result<Self> {
        let mut frontend = Self {
            conn,
            mem: Arc::new(GuestMemory::new()),
            queues: Vec::new(),
            offered: 0,
            features: 0,
            protocol_offered: 0,
            protocol: 0,
            inflight: None,
        };
        frontend.greet(setup.features, setup.protocol)?;
        Ok(frontend)
    }

    /// Negotiates what of these features and protocol features the back-end of the connection offers.
    pub(super) fn greet(&mut self, features: u64, protocol: u64) -> io::Result<()> {
        let conn = &self.conn;
        let offered = conn.call(request::GET_FEATURES, &[], &[])?.value();
        let features = offered & features;
        let (mut protocol_offered, mut accepted) = (0, 0);
        if features & feature::PROTOCOL_FEATURES != 0 {
            protocol_offered = conn.call(request::GET_PROTOCOL_FEATURES, &[], &[])?.value();
            accepted = protocol_offered & protocol;
            conn.send(request::SET_PROTOCOL_FEATURES, 0, &words(&[accepted]), &[])?;
        }
        // Who dies on the way changes nothing of what was agreed with the one before, who may be gone back to.
        (self.offered, self.protocol_offered, self.protocol) =
            (offered, protocol_offered, accepted);
        conn.send(request::SET_OWNER, 0, &[], &[])?;
        self.set_features(features)
    }

    /// Sends a message, with an acknowledgement where that was negotiated.
    pub fn set(&self, request: u32, body: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
        if self.protocol & protocol::REPLY_ACK == 0 {
            return self.conn.send(request, 0, body, fds);
        }
        match self.conn.acknowledged(request, body, fds)? {
            0 => Ok(()),
            error => Err(io::Error::other(format!(
                "request {request} failed: {error}"
            ))),
        }
    }

    /// A log for all memory, in which the back-end logs what it writes from now on.
    pub fn log_all(&mut self) -> Arc<DirtyLog> {
        let log = DirtyLog::new(self.mem.end());
        let rings: Vec<_> = self.queues.iter().map(Rings::from).collect();
        self.start_log(&log, &rings).expect("the back-end can log");
        log
    }

    /// Has the back-end log what it writes from now on.
    pub fn start_log(&mut self, log: &DirtyLog, rings: &[Rings]) -> io::Result<()> {
        let body = words(&[log.bytes(), 0]);
        // The reply is the acknowledgement, whatever was asked (vhost-user, SET_LOG_BASE).
        self.conn.call(request::SET_LOG_BASE, &body, &[log.fd()])?;
        self.set_features(self.features | feature::LOG_ALL)?;
        for rings in rings {
            let user = |gpa| gpa + USER_BASE;
            let (desc, used, avail) = (user(rings.desc), user(rings.used), user(rings.avail));
            let body = vring_addr(rings.index, 1, desc, used, avail, rings.used);
            self.set(request::SET_VRING_ADDR, &body, &[])?;
        }
        Ok(())
    }

    /// Ends that.
    pub fn stop_log(&mut self) -> io::Result<()> {
        self.set_features(self.features & !feature::LOG_ALL)
    }

    /// Waits until the back-end has handled what was sent (GET_FEATURES has a reply always).
    pub fn barrier(&self) -> io::Result<()> {
        self.conn.call(request::GET_FEATURES, &[], &[]).map(drop)
    }

    /// Waits until what was sent has been handled, well or by closing the connection.
    pub fn barrier_or_end(&self) {
        let _ = self.conn.send(request::GET_FEATURES, 0, &[], &[]);
        while let Ok(reply) = self.conn.receive() {
            if reply.request == request::GET_FEATURES {
                break;
            }
        }
    }

    /// Sets the feature bits in use.
    pub fn set_features(&mut self, features: u64) -> io::Result<()> {
        self.features = features;
        self.set(request::SET_FEATURES, &words(&[features]), &[])
    }

    /// Announces all of the memory.
    pub fn set_mem_table(&self) -> io::Result<()> {
        let regions = self.mem.regions();
        let mut body = words(&[regions.len() as u64]);
        for region in regions {
            body.extend(words(&[region.gpa, region.size, region.user(), 0]));
        }
        let fds: Vec<_> = regions.iter().map(Region::fd).collect();
        self.set(request::SET_MEM_TABLE, &body, &fds)
    }

    /// Adds a region that isn't in the table.
    pub fn add_region(&self, region: &Region) -> io::Result<()> {
        let body = mem_region(region.gpa, region.size, region.user(), 0);
        self.set(request::ADD_MEM_REG, &body, &[region.fd()])
    }

    /// Removes a region from the table.
    pub fn remove_region(&self, region: &Region) -> io::Result<()> {
        // Without a file descriptor, as the protocol has it since QEMU 5.1.
        let body = mem_region(region.gpa, region.size, region.user(), 0);
        self.set(request::REM_MEM_REG, &body, &[])
    }

    /// An in-flight region of the back-end's, for so many queues of so many entries.
    pub fn get_inflight(&self, queues: u16, entries: u16) -> io::Result<InflightRegion> {
        let body = InflightRegion::body_of(0, 0, queues, entries);
        let reply = self.conn.call(request::GET_INFLIGHT_FD, &body, &[])?;
        Ok(InflightRegion::from_reply(reply))
    }

    /// Has the back-end use an in-flight region.
    pub fn set_inflight(&self, region: &InflightRegion) -> io::Result<()> {
        self.set(request::SET_INFLIGHT_FD, &region.body(), &[region.fd()])
    }

    /// Tells where a queue is, and enables it.
    pub fn start_queue(&self, index: u32) -> io::Result<()> {
        let queue = &self.queues[index as usize];
        self.start_vring(&queue.vring(), queue.base)
    }

    /// Tells where a ring is, and that it goes on at `base`, and enables it.
    pub fn start_vring(&self, vring: &Vring, base: u16) -> io::Result<()> {
        self.describe(vring, base, 0)?;
        self.set_vring_fds(vring)?;
        self.enable(vring.index, true)
    }

    /// Size, start index and addresses of a queue. `flags` 1 logs its used ring.
    pub fn describe_queue(&self, index: u32, flags: u32) -> io::Result<()> {
        let queue = &self.queues[index as usize];
        self.describe(&queue.vring(), queue.base, flags)
    }

    fn describe(&self, vring: &Vring, base: u16, flags: u32) -> io::Result<()> {
        let state = |num: u16| vring_state(vring.index, u32::from(num));
        self.set(request::SET_VRING_NUM, &state(vring.size), &[])?;
        self.set(request::SET_VRING_BASE, &state(base), &[])?;
        let user = |gpa| gpa + USER_BASE;
        let (desc, used, avail) = (user(vring.desc), user(vring.used), user(vring.avail));
        let body = vring_addr(vring.index, flags, desc, used, avail, vring.used);
        self.set(request::SET_VRING_ADDR, &body, &[])
    }

    /// Passes the kick, call and error fds of a queue.
    pub fn set_queue_fds(&self, index: u32) -> io::Result<()> {
        self.set_vring_fds(&self.queues[index as usize].vring())
    }

    fn set_vring_fds(&self, vring: &Vring) -> io::Result<()> {
        let body = words(&[u64::from(vring.index)]);
        self.set(request::SET_VRING_ERR, &body, &[vring.err.as_fd()])?;
        self.set(request::SET_VRING_CALL, &body, &[vring.call.as_fd()])?;
        self.set(request::SET_VRING_KICK, &body, &[vring.kick.as_fd()])
    }

    /// Enables or disables a queue. Without PROTOCOL_FEATURES they are always enabled.
    pub fn enable(&self, index: u32, on: bool) -> io::Result<()> {
        if self.features & feature::PROTOCOL_FEATURES == 0 {
            return Ok(());
        }
        self.set(
            request::SET_VRING_ENABLE,
            &vring_state(index, u32::from(on)),
            &[],
        )
    }

    /// Stops a queue: the available index at which it stood, everything before being used.
    pub fn stop_queue(&self, index: u32) -> io::Result<u16> {
        let body = vring_state(index, 0);
        let reply = self.conn.call(request::GET_VRING_BASE, &body, &[])?.value();
        assert_eq!(
            reply as u32, index,
            "GET_VRING_BASE answers for another queue"
        );
        Ok(u16::try_from(reply >> 32).expect("a 16-bit index"))
    }

    /// `size` bytes of the config space from `offset` on. An empty answer means a refusal.
    pub fn get_config(&self, offset: u32, size: u32) -> io::Result<Vec<u8>> {
        let mut body = Vec::new();
        for word in [offset, size, 0] {
            body.extend(word.to_le_bytes());
        }
        body.resize(body.len() + size as usize, 0);
        let reply = self.conn.call(request::GET_CONFIG, &body, &[])?;
        Ok(reply.body.get(12..).unwrap_or_default().to_vec())
    }

    /// Writes bytes of the config space (`flags` 0: the driver's own write).
    pub fn set_config(&self, offset: u32, bytes: &[u8]) -> io::Result<()> {
        let mut body = Vec::new();
        for word in [offset, bytes.len() as u32, 0] {
            body.extend(word.to_le_bytes());
        }
        body.extend_from_slice(bytes);
        self.set(request::SET_CONFIG, &body, &[])
    }

    /// Sends a message that wants an acknowledgement and doesn't wait for it.
    pub fn send_only(&self, request: u32, body: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
        self.conn.send(request, NEED_REPLY, body, fds)
    }

    /// The config space as the driver reads it.
    pub fn config(&self) -> Config {
        let bytes = self.get_config(0, Config::BYTES).unwrap();
        assert_eq!(
            bytes.len() as u32,
            Config::BYTES,
            "GET_CONFIG answers in full"
        );
        Config(bytes)
    }
}

/// `struct virtio_blk_config` (virtio 1.2 §5.2.4), up to write zeroes.
pub struct Config(pub Vec<u8>);

impl Config {
    /// Bytes of the part that QEMU 7.2 asks for.
    pub const BYTES: u32 = 60;

    fn u32(&self, at: usize) -> u32 {
        u32::from_le_bytes(self.0[at..at + 4].try_into().unwrap())
    }

    fn u16(&self, at: usize) -> u16 {
        u16::from_le_bytes(self.0[at..at + 2].try_into().unwrap())
    }

    /// Sectors of 512 bytes.
    pub fn capacity(&self) -> u64 {
        u64::from_le_bytes(self.0[..8].try_into().unwrap())
    }

    pub fn size_max(&self) -> u32 {
        self.u32(8)
    }

    pub fn seg_max(&self) -> u32 {
        self.u32(12)
    }

    pub fn blk_size(&self) -> u32 {
        self.u32(20)
    }

    pub fn physical_block_exp(&self) -> u8 {
        self.0[24]
    }

    pub fn min_io_size(&self) -> u16 {
        self.u16(26)
    }

    pub fn opt_io_size(&self) -> u32 {
        self.u32(28)
    }

    pub fn writeback(&self) -> u8 {
        self.0[Self::WRITEBACK as usize]
    }

    /// Offset of `writeback`.
    pub const WRITEBACK: u32 = 32;

    pub fn num_queues(&self) -> u16 {
        self.u16(34)
    }

    pub fn max_discard_sectors(&self) -> u32 {
        self.u32(36)
    }

    pub fn max_discard_seg(&self) -> u32 {
        self.u32(40)
    }

    pub fn discard_sector_alignment(&self) -> u32 {
        self.u32(44)
    }

    pub fn max_write_zeroes_sectors(&self) -> u32 {
        self.u32(48)
    }

    pub fn max_write_zeroes_seg(&self) -> u32 {
        self.u32(52)
    }

    pub fn write_zeroes_may_unmap(&self) -> u8 {
        self.0[56]
    }
}
