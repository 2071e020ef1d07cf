//! A VMM that connects anew when its back-end has gone, while its guest goes on: QEMU with `reconnect`.

use std::io;
use std::path::Path;
use std::sync::atomic::Ordering;

use super::device::{Frontend, Rings, Setup};
use super::dirty_log::DirtyLog;
use super::inflight::InflightRegion;
use super::message::{Connection, protocol};
use super::queue::{Queue, Vring};

/// The side of a frontend that the guest does not see. It needs none of the guest's queues, which go on in
/// threads of their own.
pub struct Vmm {
    pub frontend: Frontend,
    setup: Setup,
    vrings: Vec<Vring>,
}

impl Vmm {
    /// Parts a frontend that was set up as told from the queues of its guest.
    pub fn of(mut frontend: Frontend, setup: &Setup) -> (Self, Vec<Queue>) {
        let queues = std::mem::take(&mut frontend.queues);
        let vmm = Self {
            frontend,
            setup: setup.clone(),
            vrings: queues.iter().map(Queue::vring).collect(),
        };
        (vmm, queues)
    }

    /// Has the back-end log what it writes into the guest's memory.
    ///
    /// # Errors
    /// What the back-end or its connection says.
    pub fn log_writes(&mut self, log: &DirtyLog) -> io::Result<()> {
        let rings: Vec<_> = self.vrings.iter().map(Rings::from).collect();
        self.frontend.start_log(log, &rings)
    }

    /// Waits until the back-end has closed the connection.
    pub fn await_end(&self) {
        assert!(
            self.frontend.conn.closed_by_peer(),
            "the connection outlives its back-end"
        );
    }

    /// Connects to the next back-end, with the same memory, rings and in-flight region. Each ring is said to go on at
    /// its used index, as by QEMU (`virtio_queue_restore_last_avail_idx`).
    pub fn reconnect(&mut self, path: &Path) -> io::Result<()> {
        self.frontend.conn = Connection::open(path)?;
        let (features, protocols) = (self.frontend.features, self.frontend.protocol);
        let frontend = &mut self.frontend;
        frontend.greet(features, self.setup.protocol)?;
        let offers_as_much = (frontend.features, frontend.protocol) == (features, protocols);
        assert!(offers_as_much, "the next back-end offers less");
        self.start(&self.used())
    }

    /// Goes over to another connection, which is that of a migration's destination; the old one is given back.
    pub fn leave(&mut self, to: Connection) -> Connection {
        std::mem::replace(&mut self.frontend.conn, to)
    }

    /// Begins with a migration's destination: with an in-flight region of that one's, and rings that stand at `bases`.
    pub fn arrive(&mut self, bases: &[u16]) -> io::Result<()> {
        let frontend = &mut self.frontend;
        let (features, protocols) = (frontend.features, frontend.protocol);
        frontend.greet(features, self.setup.protocol)?;
        let offers_as_much = (frontend.features, frontend.protocol) == (features, protocols);
        assert!(offers_as_much, "the destination offers less");
        if frontend.protocol & protocol::INFLIGHT_SHMFD != 0 {
            let before = frontend.inflight.take();
            let queues = self.vrings.len() as u16;
            let region = frontend.get_inflight(queues, self.setup.queue_size)?;
            // As QEMU carries it over from version 11.1 on.
            if frontend.protocol & protocol::GET_VRING_BASE_INFLIGHT != 0
                && let Some(before) = before
            {
                region.copy_from(&before);
            }
            frontend.inflight = Some(region);
        }
        self.start(bases)
    }

    /// As both, with a destination that serves.
    pub fn migrate(&mut self, path: &Path, bases: &[u16]) -> io::Result<Connection> {
        let left = self.leave(Connection::open(path)?);
        self.arrive(bases).map(|()| left)
    }

    /// Where each ring's used index is.
    pub fn used(&self) -> Vec<u16> {
        let used = |vring: &Vring| {
            let index = self.frontend.mem.atomic(vring.used + 2);
            index.load(Ordering::Acquire)
        };
        self.vrings.iter().map(used).collect()
    }

    /// Goes back to a connection that is still open, and to the in-flight region that belongs to it.
    pub fn go_back(
        &mut self,
        (conn, inflight): (Connection, Option<InflightRegion>),
        bases: &[u16],
    ) -> io::Result<()> {
        self.frontend.conn = conn;
        self.frontend.inflight = inflight;
        self.start(bases)
    }

    /// Stops all rings, as for a guest that is suspended; where each stands.
    pub fn suspend(&self) -> io::Result<Vec<u16>> {
        self.vrings
            .iter()
            .map(|vring| self.frontend.stop_queue(vring.index))
            .collect()
    }

    /// Starts all rings where they stood.
    pub fn resume(&self, bases: &[u16]) -> io::Result<()> {
        self.start(bases)
    }

    fn start(&self, bases: &[u16]) -> io::Result<()> {
        let frontend = &self.frontend;
        if frontend.protocol & protocol::INFLIGHT_SHMFD != 0
            && let Some(region) = &frontend.inflight
        {
            frontend.set_inflight(region)?;
        }
        frontend.set_mem_table()?;
        for (vring, base) in self.vrings.iter().zip(bases) {
            frontend.start_vring(vring, *base)?;
        }
        frontend.barrier()?;
        self.vrings.iter().for_each(|vring| vring.kick.signal());
        Ok(())
    }
}
