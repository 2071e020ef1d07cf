//! The plain way to write such a daemon: the crate `vhost-user-backend`, one file that is not encrypted,
//! io_uring. A peer in the tables, which says what the crate's handler and event loop cost, and the other
//! back-end of some tests of the protocol.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::{Arc, Mutex};

use io_uring::{IoUring, opcode, squeue, types};
use slab::Slab;
use test_support::frontend::client::kind;
use test_support::frontend::device::feature;
use vhost::vhost_user::{Listener, message::VhostUserProtocolFeatures};
use vhost_user_backend::{VhostUserBackendMut, VhostUserDaemon, VringMutex, VringT};
use virtio_queue::{DescriptorChain, QueueT};
use vm_memory::{
    Bytes, GuestAddress, GuestAddressSpace, GuestMemoryAtomic, GuestMemoryBackend,
    GuestMemoryLoadGuard, GuestMemoryMmap,
};
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::event::{
    EventConsumer, EventFlag, EventNotifier, new_event_consumer_and_notifier,
};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

const QUEUES: usize = 8;
const QUEUE_SIZE: usize = 256;
/// Operations in flight at most: every entry of every queue.
const RING: u32 = (QUEUES * QUEUE_SIZE) as u32;
/// The event that says that the file has done something; the crate has those up to [`QUEUES`].
const COMPLETED: u16 = QUEUES as u16 + 1;
const OK: u8 = 0;
const IOERR: u8 = 1;
const UNSUPP: u8 = 2;

type Memory = GuestMemoryLoadGuard<GuestMemoryMmap>;
type Ring = VringMutex;

/// A request that the kernel works on.
struct Pending {
    queue: usize,
    head: u16,
    status: GuestAddress,
    /// Bytes that the file has to move.
    bytes: u32,
    /// Bytes of those that the guest gets.
    written: u32,
    iovecs: Vec<libc::iovec>,
    memory: Memory,
}

// SAFETY: the pointers are into guest memory, which `memory` keeps mapped and any thread may use.
unsafe impl Send for Pending {}
// SAFETY: nothing of it is changed by a shared reference.
unsafe impl Sync for Pending {}

struct Reference {
    file: File,
    sectors: u64,
    ring: IoUring,
    pending: Slab<Box<Pending>>,
    memory: GuestMemoryAtomic<GuestMemoryMmap>,
}

/// Serves one frontend on `socket` until it goes. Returns when all has ended.
pub fn serve(file: File, socket: &Path) {
    let memory = GuestMemoryAtomic::new(GuestMemoryMmap::new());
    let ring = IoUring::new(RING).unwrap();
    let completed = EventFd::new(EFD_NONBLOCK).unwrap();
    ring.submitter()
        .register_eventfd(completed.as_raw_fd())
        .unwrap();
    let backend = Reference {
        sectors: file.metadata().unwrap().size() / 512,
        file,
        ring,
        pending: Slab::new(),
        memory: memory.clone(),
    };
    let backend = Arc::new(Mutex::new(Served { backend, completed }));
    let mut daemon = VhostUserDaemon::new("reference".to_owned(), backend.clone(), memory).unwrap();
    for handler in daemon.get_epoll_handlers() {
        let completed = backend.lock().unwrap().completed.as_raw_fd();
        handler
            .register_listener(completed, EventSet::IN, u64::from(COMPLETED))
            .unwrap();
    }
    let mut listener = Listener::new(socket, true).unwrap();
    daemon.start(&mut listener).unwrap();
    // A frontend that goes away is an error to the crate.
    let _ = daemon.wait();
    for handler in daemon.get_epoll_handlers() {
        handler.send_exit_event();
    }
}

/// The back-end, and the file descriptor by which its ring tells of completions.
struct Served {
    backend: Reference,
    completed: EventFd,
}

impl VhostUserBackendMut for Served {
    type Bitmap = ();
    type Vring = Ring;

    fn num_queues(&self) -> usize {
        QUEUES
    }

    fn max_queue_size(&self) -> usize {
        QUEUE_SIZE
    }

    fn features(&self) -> u64 {
        feature::VERSION_1
            | feature::FLUSH
            | feature::MQ
            | feature::INDIRECT_DESC
            | feature::EVENT_IDX
            | feature::PROTOCOL_FEATURES
    }

    fn protocol_features(&self) -> VhostUserProtocolFeatures {
        VhostUserProtocolFeatures::MQ
            | VhostUserProtocolFeatures::CONFIG
            | VhostUserProtocolFeatures::REPLY_ACK
    }

    /// The crate's rings are told by the crate.
    fn set_event_idx(&mut self, _: bool) {}

    fn update_memory(&mut self, memory: GuestMemoryAtomic<GuestMemoryMmap>) -> io::Result<()> {
        self.backend.memory = memory;
        Ok(())
    }

    /// `struct virtio_blk_config`: the capacity, and how many queues there are (virtio 1.2 §5.2.4).
    fn get_config(&self, offset: u32, size: u32) -> Vec<u8> {
        let end = (offset + size) as usize;
        let mut config = vec![0; end.max(36)];
        config[..8].copy_from_slice(&self.backend.sectors.to_le_bytes());
        config[34..36].copy_from_slice(&(QUEUES as u16).to_le_bytes());
        config.truncate(end);
        config.split_off(offset as usize)
    }

    fn exit_event(&self, _: usize) -> Option<(EventConsumer, EventNotifier)> {
        new_event_consumer_and_notifier(EventFlag::NONBLOCK).ok()
    }

    fn handle_event(
        &mut self,
        event: u16,
        _: EventSet,
        rings: &[Ring],
        _: usize,
    ) -> io::Result<()> {
        if event == COMPLETED {
            let _ = self.completed.read();
            return self.backend.complete(rings);
        }
        let queue = usize::from(event);
        self.backend.take(queue, &rings[queue])
    }
}

impl Reference {
    /// Submits what is available in a queue.
    fn take(&mut self, queue: usize, ring: &Ring) -> io::Result<()> {
        loop {
            ring.disable_notification().map_err(io::Error::other)?;
            loop {
                let memory = self.memory.memory();
                let mut state = ring.get_mut();
                let chain = state.get_queue_mut().pop_descriptor_chain(memory.clone());
                drop(state);
                let Some(chain) = chain else { break };
                self.begin(queue, ring, chain, memory)?;
            }
            if !self.ring.submission().is_empty() {
                self.ring.submit()?;
            }
            // What came before kicks were on again had none.
            if !ring.enable_notification().map_err(io::Error::other)? {
                return Ok(());
            }
        }
    }

    fn begin(
        &mut self,
        queue: usize,
        ring: &Ring,
        chain: DescriptorChain<Memory>,
        memory: Memory,
    ) -> io::Result<()> {
        let head = chain.head_index();
        let mut descriptors: Vec<_> = chain.collect();
        let (Some(status), false) = (descriptors.pop(), descriptors.is_empty()) else {
            return Err(io::Error::other("a chain without a header and a status"));
        };
        let header = descriptors.remove(0);
        let kind: u32 = memory.read_obj(header.addr()).map_err(io::Error::other)?;
        let sector: u64 = memory
            .read_obj(GuestAddress(header.addr().0 + 8))
            .map_err(io::Error::other)?;
        let mut iovecs = Vec::with_capacity(descriptors.len());
        for data in &descriptors {
            let slices = memory.get_slices(data.addr(), data.len() as usize);
            for slice in slices {
                let slice = slice.map_err(io::Error::other)?;
                iovecs.push(libc::iovec {
                    iov_base: slice.ptr_guard_mut().as_ptr().cast(),
                    iov_len: slice.len(),
                });
            }
        }
        let bytes: u32 = descriptors.iter().map(|data| data.len()).sum();
        let mut pending = Box::new(Pending {
            queue,
            head,
            status: status.addr(),
            bytes,
            written: 0,
            iovecs,
            memory,
        });
        let end = u64::from(bytes).div_ceil(512).saturating_add(sector);
        if matches!(kind, kind::IN | kind::OUT) && end > self.sectors {
            give_back(ring, &pending, IOERR)?;
            return call(ring);
        }
        let Some(entry) = self.entry(kind, sector, &mut pending) else {
            give_back(ring, &pending, UNSUPP)?;
            return call(ring);
        };
        let key = self.pending.insert(pending);
        let entry = entry.user_data(key as u64);
        // SAFETY: the file is open as long as the ring, and the list of buffers, and the memory that they
        // are in, are kept until the completion.
        while unsafe { self.ring.submission().push(&entry) }.is_err() {
            self.ring.submit()?;
        }
        Ok(())
    }

    fn entry(&self, kind: u32, sector: u64, pending: &mut Pending) -> Option<squeue::Entry> {
        let file = types::Fd(self.file.as_raw_fd());
        let (iovecs, count) = (pending.iovecs.as_ptr(), pending.iovecs.len() as u32);
        match kind {
            kind::IN => {
                pending.written = pending.bytes;
                let read = opcode::Readv::new(file, iovecs, count);
                Some(read.offset(sector * 512).build())
            }
            kind::OUT => {
                let write = opcode::Writev::new(file, iovecs, count);
                Some(write.offset(sector * 512).build())
            }
            kind::FLUSH => {
                pending.bytes = 0;
                let sync = opcode::Fsync::new(file);
                Some(sync.flags(types::FsyncFlags::DATASYNC).build())
            }
            _ => None,
        }
    }

    /// Tells the guest of what the file has done.
    fn complete(&mut self, rings: &[Ring]) -> io::Result<()> {
        let done: Vec<_> = self
            .ring
            .completion()
            .map(|entry| (entry.user_data() as usize, entry.result()))
            .collect();
        let mut used = [false; QUEUES];
        for (key, result) in done {
            let pending = self.pending.remove(key);
            let status = if result == pending.bytes as i32 {
                OK
            } else {
                IOERR
            };
            give_back(&rings[pending.queue], &pending, status)?;
            used[pending.queue] = true;
        }
        let of_used = rings.iter().zip(used).filter(|(_, used)| *used);
        of_used.map(|(ring, _)| ring).try_for_each(call)
    }
}

/// Writes the status, and puts the chain in the used ring.
fn give_back(ring: &Ring, pending: &Pending, status: u8) -> io::Result<()> {
    let memory = &pending.memory;
    memory
        .write_obj(status, pending.status)
        .map_err(io::Error::other)?;
    let written = pending.written + 1;
    ring.add_used(pending.head, written)
        .map_err(io::Error::other)
}

/// Tells the guest, if it wants to know.
fn call(ring: &Ring) -> io::Result<()> {
    if ring.needs_notification().map_err(io::Error::other)? {
        ring.signal_used_queue()?;
    }
    Ok(())
}
