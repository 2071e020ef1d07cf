//! A VMM that connects anew when its back-end has gone, while its guest goes on: QEMU with `reconnect`.

use std::io;
use std::path::Path;
use std::sync::atomic::Ordering;

use super::device::{Frontend, Setup};
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
        let used = |vring: &Vring| {
            let index = self.frontend.mem.atomic(vring.used + 2);
            index.load(Ordering::Acquire)
        };
        let bases: Vec<u16> = self.vrings.iter().map(used).collect();
        self.start(&bases)
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
