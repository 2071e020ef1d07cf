//! One started virtqueue: the avail ring, the used ring and the three eventfds.

#![deny(clippy::disallowed_types)]

use std::fmt;
use std::fs::File;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use virtio_bindings::virtio_ring::VRING_AVAIL_F_NO_INTERRUPT;
use virtio_queue::{Error as QueueError, Queue, QueueOwnedT, QueueT};
use vm_memory::{Bytes, GuestAddress};

use volume::must_complete::MustComplete;
use volume::pipeline::{BlockRequest, Token};

use crate::disk::rings::SignalRings;
use crate::inflight::{InflightError, InflightQueue, Resumed};
use crate::request::{Descriptors, Memory};

use super::dirty_log::DirtyLog;
use super::notifier::Notifier;

/// Where a ring's three parts are in guest memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct RingAddresses {
    pub(crate) descriptors: GuestAddress,
    pub(crate) avail: GuestAddress,
    pub(crate) used: GuestAddress,
}

/// Everything that starts a ring.
pub(crate) struct RingSetup {
    pub(crate) size: u16,
    pub(crate) addresses: RingAddresses,
    /// Index of the next entry of the avail ring, unless the in-flight region says that the ring goes on.
    pub(crate) next_avail: u16,
    pub(crate) inflight: InflightQueue,
    pub(crate) event_idx: bool,
    pub(crate) kick: File,
    pub(crate) call: Option<Notifier>,
    pub(crate) err: Option<File>,
    /// Rings that signal descriptors of the frontend.
    pub(crate) signals: Arc<SignalRings>,
    pub(crate) memory: Arc<Memory>,
    pub(crate) log: Option<Arc<DirtyLog>>,
}

/// What is said of a chain that was lost.
#[derive(Debug, Clone, Copy)]
struct ChainName {
    queue: u16,
    head: u16,
    /// A process before this one had taken it.
    again: bool,
    request: Option<BlockRequest>,
}

impl fmt::Display for ChainName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "the descriptor chain of queue {}, head {}",
            self.queue, self.head
        )?;
        match &self.request {
            Some(request) => write!(f, " ({request})"),
            None => Ok(()),
        }
    }
}

/// A chain that was taken from the ring. The guest waits until it is in the used ring, so it has to be given to
/// [`Ring::push_used`] once, to [`Ring::put_back`], or to [`Ring::leave`].
#[must_use = "a chain that is dropped ends the process"]
pub(crate) struct TakenChain(MustComplete<ChainName>);

impl TakenChain {
    /// Notes what the chain asks for.
    pub(crate) fn asks_for(&mut self, request: BlockRequest) {
        self.0.get_mut().request = Some(request);
    }

    /// Whether a process before this one had taken it.
    pub(crate) fn is_taken_again(&self) -> bool {
        self.0.get().again
    }

    /// Its number in the ring.
    pub(crate) fn head(&self) -> u16 {
        self.0.get().head
    }

    /// The name of its request, which is kept at `place`.
    pub(crate) fn token(&self, place: u32) -> Token {
        let ChainName { queue, head, .. } = *self.0.get();
        Token::of_chain(queue, head, place)
    }
}

/// A ring that is being served.
pub(crate) struct Ring {
    /// Which of the device's queues it is.
    index: u16,
    queue: Queue,
    /// Chains that were taken and neither returned nor put back.
    taken: u32,
    /// Knows them when this process is gone.
    inflight: InflightQueue,
    /// Heads of chains that a process before this one had taken, the next one last.
    again: Vec<u16>,
    kick: File,
    call: Option<Notifier>,
    err: Option<File>,
    signals: Arc<SignalRings>,
    pub(crate) memory: Arc<Memory>,
    pub(crate) log: Option<Arc<DirtyLog>>,
    /// The guest broke the ring for good; it is left alone until it is set up again.
    broken: bool,
    /// The guest was asked to kick.
    kicks: bool,
    /// Used entries were added since the guest was last notified.
    unnotified: bool,
    /// A call could not be given for want of memory: a guest that waits for it would wait for ever.
    owes_call: bool,
}

impl Ring {
    /// Sets the ring up. The used ring goes on where it is in guest memory: `SET_VRING_BASE` only
    /// tells the avail index. What the in-flight region has of the ring is done first. A region that does
    /// not belong to the ring breaks it.
    pub(crate) fn new(index: u16, setup: RingSetup) -> Result<Self, QueueError> {
        let RingSetup {
            size,
            addresses,
            next_avail,
            mut inflight,
            event_idx,
            kick,
            call,
            err,
            signals,
            memory,
            log,
        } = setup;
        let mut queue = Queue::new(size)?;
        queue.try_set_size(size)?;
        queue.try_set_desc_table_address(addresses.descriptors)?;
        queue.try_set_avail_ring_address(addresses.avail)?;
        queue.try_set_used_ring_address(addresses.used)?;
        queue.set_event_idx(event_idx);
        let used = queue.used_idx(&*memory, Ordering::Acquire)?.0;
        queue.set_next_used(used);
        let begun = inflight.begin(size, used, next_avail);
        queue.set_ready(true);
        let mut ring = Self {
            index,
            queue,
            taken: 0,
            inflight,
            again: Vec::new(),
            kick,
            call,
            err,
            signals,
            memory,
            log,
            broken: false,
            kicks: true,
            unnotified: false,
            owes_call: false,
        };
        ring.resume(begun);
        Ok(ring)
    }

    fn resume(&mut self, begun: Result<Resumed, InflightError>) {
        let index = self.index;
        let resumed = match begun {
            Ok(resumed) => resumed,
            Err(error) => {
                log::error!("queue {index}: {error}; it is not served");
                return self.set_broken();
            }
        };
        self.queue.set_next_avail(resumed.next_avail);
        self.again = resumed.again;
        self.again.reverse();
        if resumed.goes_on {
            log::info!(
                "queue {index} goes on, with {} requests in flight",
                self.again.len()
            );
            // What was returned last may neither have been told nor noted.
            self.log_used_ring();
            self.signal();
        }
    }

    /// Which of the device's queues it is.
    pub(crate) fn index(&self) -> u16 {
        self.index
    }

    pub(crate) fn kick_fd(&self) -> RawFd {
        self.kick.as_raw_fd()
    }

    pub(crate) fn set_call(&mut self, call: Option<Notifier>) {
        self.call = call;
        // What the old descriptor may have been told is said again: too often is harmless.
        self.signal();
    }

    pub(crate) fn set_err(&mut self, err: Option<File>) {
        self.err = err;
    }

    pub(crate) fn next_avail(&self) -> u16 {
        self.queue.next_avail()
    }

    /// Puts the chain that was taken last back: it is the next one to be taken. Nothing may have
    /// been taken after it.
    pub(crate) fn put_back(&mut self, chain: TakenChain) {
        let ChainName { head, again, .. } = self.settle(chain);
        match again {
            true => self.again.push(head),
            false => {
                self.inflight.put_back(head);
                let before = self.queue.next_avail().wrapping_sub(1);
                self.queue.set_next_avail(before);
            }
        }
    }

    /// Leaves a chain in flight for whoever serves the ring next.
    pub(crate) fn leave(&mut self, chain: TakenChain) {
        self.settle(chain);
    }

    /// How many chains there are that a process before this one had taken, and that were not taken again.
    pub(crate) fn again(&self) -> usize {
        self.again.len()
    }

    pub(crate) fn size(&self) -> usize {
        usize::from(self.queue.size())
    }

    pub(crate) fn is_broken(&self) -> bool {
        self.broken
    }

    /// Gives at most `most` chains to `take`, until it answers that it takes no more for now: first
    /// those that are in flight from a process before this one, then available ones. Whether there may be more
    /// that it takes.
    ///
    /// The guest does not kick for chains that come later, until [`Ring::arm`] asks it to.
    ///
    /// # Errors
    /// The ring is broken for good, in a way that this tells.
    pub(crate) fn pop(
        &mut self,
        most: usize,
        mut take: impl FnMut(&mut Self, TakenChain, Descriptors<'_>) -> Result<bool, QueueError>,
    ) -> Result<bool, QueueError> {
        let memory = self.memory.clone();
        self.set_kicks(&memory, false)?;
        for _ in 0..most {
            let Some(taken) = self.next_chain(&memory)? else {
                return Ok(false);
            };
            let chain = self.descriptors(&memory, &taken);
            if !take(self, taken, chain)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// The next of the chains that are in flight from a process before this one.
    pub(crate) fn next_again(&mut self) -> Option<TakenChain> {
        let head = self.again.pop()?;
        Some(self.taken(head, true))
    }

    fn next_chain(&mut self, memory: &Memory) -> Result<Option<TakenChain>, QueueError> {
        if let Some(taken) = self.next_again() {
            return Ok(Some(taken));
        }
        let Some(chain) = self.queue.iter(memory)?.next() else {
            return Ok(None);
        };
        let head = chain.head_index();
        if usize::from(head) >= self.size() {
            // No entry of the used ring can name it.
            return Err(QueueError::InvalidDescriptorIndex);
        }
        self.inflight.take(head);
        Ok(Some(self.taken(head, false)))
    }

    fn taken(&mut self, head: u16, again: bool) -> TakenChain {
        self.taken += 1;
        TakenChain(MustComplete::new(ChainName {
            queue: self.index,
            head,
            again,
            request: None,
        }))
    }

    /// The descriptors of a chain.
    pub(crate) fn descriptors<'a>(
        &self,
        memory: &'a Memory,
        chain: &TakenChain,
    ) -> Descriptors<'a> {
        let table = GuestAddress(self.queue.desc_table());
        Descriptors::new(memory, table, self.queue.size(), chain.0.get().head)
    }

    /// Asks the guest to kick for new chains. Whether there are some already: those it does not kick
    /// for.
    ///
    /// # Errors
    /// The rings are not in guest memory any more.
    pub(crate) fn arm(&mut self) -> Result<bool, QueueError> {
        let memory = self.memory.clone();
        Ok(self.set_kicks(&memory, true)? || self.again() > 0)
    }

    /// Whether there is a chain to be taken: one look at guest memory.
    pub(crate) fn has_available(&self) -> bool {
        let index = self.queue.avail_idx(&*self.memory, Ordering::Acquire);
        index.is_ok_and(|index| index.0 != self.queue.next_avail())
    }

    /// Without EVENT_IDX kicks are switched by a flag, which is only written when it changes. With
    /// it they are asked for one by one, and off otherwise.
    fn set_kicks(&mut self, memory: &Memory, on: bool) -> Result<bool, QueueError> {
        if on {
            self.kicks = true;
            let more = self.queue.enable_notification(memory)?;
            self.log_avail_event();
            return Ok(more);
        }
        if std::mem::take(&mut self.kicks) {
            self.queue.disable_notification(memory)?;
            self.log_avail_event();
        }
        Ok(false)
    }

    /// Returns a chain to the guest, of which `len` bytes were written.
    ///
    /// # Errors
    /// The used ring is not in guest memory any more.
    pub(crate) fn push_used(&mut self, chain: TakenChain, len: u32) -> Result<(), QueueError> {
        let head = self.settle(chain).head;
        let slot = u64::from(self.queue.next_used() % self.queue.size());
        self.inflight.begin_return(head);
        self.queue.add_used(&*self.memory, head, len)?;
        self.inflight.end_return(head, self.queue.next_used());
        self.unnotified = true;
        if let Some(log) = &self.log {
            let used = self.queue.used_ring();
            log.mark(GuestAddress(used), 4);
            log.mark(GuestAddress(used + 4 + 8 * slot), 8);
        }
        Ok(())
    }

    /// Ends the duty to return a chain.
    fn settle(&mut self, chain: TakenChain) -> ChainName {
        let name = chain.0.complete();
        debug_assert_eq!(name.queue, self.index, "a chain of another queue");
        debug_assert!(self.taken > 0, "more chains returned than taken");
        self.taken = self.taken.saturating_sub(1);
        name
    }

    /// Notifies the guest of new used entries, if it wants that.
    ///
    /// # Errors
    /// The rings are not in guest memory any more.
    pub(crate) fn notify(&mut self) -> Result<(), QueueError> {
        if !std::mem::take(&mut self.unnotified) {
            if self.owes_call {
                self.signal();
            }
            return Ok(());
        }
        let wanted = self.queue.needs_notification(&*self.memory)?
            && (self.queue.event_idx_enabled() || !self.interrupts_suppressed()?);
        if wanted || self.owes_call {
            self.signal();
        }
        Ok(())
    }

    /// Whether a call is to be given again.
    pub(crate) fn owes_call(&self) -> bool {
        self.owes_call
    }

    /// Marks the ring as broken and tells the frontend through the err eventfd.
    pub(crate) fn set_broken(&mut self) {
        self.broken = true;
        let err = self.err.as_ref();
        let notifier = err.map(|err| Notifier::new(&self.signals, err));
        match notifier.transpose() {
            Ok(notifier) => {
                // The log has it where it cannot.
                let _ = notifier.map(|mut err| err.signal());
            }
            Err(error) => log::warn!("the frontend is not told of a broken ring: {error}"),
        }
    }

    /// §2.7.7.1: without EVENT_IDX the driver says by a flag that it does not want interrupts.
    fn interrupts_suppressed(&self) -> Result<bool, QueueError> {
        let flags: u16 = self
            .memory
            .load(GuestAddress(self.queue.avail_ring()), Ordering::Acquire)
            .map_err(QueueError::GuestMemory)?;
        Ok(u32::from(u16::from_le(flags)) & VRING_AVAIL_F_NO_INTERRUPT != 0)
    }

    fn signal(&mut self) {
        self.owes_call = self.call.as_mut().is_some_and(|call| !call.signal());
    }

    /// Notes the whole used ring as written.
    fn log_used_ring(&self) {
        if let Some(log) = &self.log {
            let len = 4 + 8 * u64::from(self.queue.size()) + 2;
            log.mark(GuestAddress(self.queue.used_ring()), len);
        }
    }

    /// Notifications are switched by writing into the used ring: its flags, or `avail_event`
    /// behind its entries.
    fn log_avail_event(&self) {
        if let Some(log) = &self.log {
            let used = self.queue.used_ring();
            log.mark(GuestAddress(used), 2);
            log.mark(GuestAddress(used + 4 + 8 * u64::from(self.queue.size())), 2);
        }
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        debug_assert!(
            self.taken == 0 || std::thread::panicking(),
            "a ring that ends before its chains"
        );
    }
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Output};

    use virtio_queue::desc::RawDescriptor;
    use virtio_queue::desc::split::Descriptor;
    use virtio_queue::mock::MockSplitQueue;

    use super::*;
    use crate::inflight::InflightRegion;
    use keys::units::ByteOffset;
    use volume::must_complete::EXIT_STATUS;
    use volume::pipeline::RequestKind;

    /// Tells a child of this test what to do with a chain.
    const END: &str = "SEALDISK_TEST_CHAIN_END";

    /// A ring in which the guest has made the chains of `heads` available.
    fn ring(heads: &[u16]) -> Ring {
        let memory = Memory::from_ranges(&[(GuestAddress(0), 0x1_0000)]).unwrap();
        let guest = MockSplitQueue::new(&memory, 8);
        for head in heads {
            let descriptor = Descriptor::new(0x8000, 16, 0, 0);
            let descriptor = RawDescriptor::from(descriptor);
            guest.desc_table().store(*head, descriptor).unwrap();
        }
        for (place, head) in heads.iter().enumerate() {
            guest
                .avail()
                .ring()
                .ref_at(place)
                .unwrap()
                .store(head.to_le());
        }
        guest.avail().idx().store((heads.len() as u16).to_le());
        let addresses = RingAddresses {
            descriptors: guest.desc_table_addr(),
            avail: guest.avail_addr(),
            used: guest.used_addr(),
        };
        let setup = RingSetup {
            size: 8,
            addresses,
            next_avail: 0,
            inflight: InflightQueue::of(&Arc::new(InflightRegion::create(4, 8).unwrap()), 3)
                .unwrap(),
            event_idx: false,
            kick: tempfile::tempfile().unwrap(),
            call: None,
            err: None,
            signals: Arc::new(SignalRings::make(1).unwrap()),
            memory: Arc::new(memory),
            log: None,
        };
        Ring::new(3, setup).unwrap()
    }

    fn child(end: &str) -> Output {
        let (_, module) = module_path!().split_once("::").unwrap();
        let test = format!("{module}::a_lost_chain_ends_the_process");
        Command::new(std::env::current_exe().unwrap())
            .args(["--exact", &test, "--nocapture"])
            .env(END, end)
            .output()
            .unwrap()
    }

    #[test]
    fn a_lost_chain_ends_the_process() {
        let Ok(end) = std::env::var(END) else {
            for end in ["return", "put back"] {
                assert!(child(end).status.success(), "{end}");
            }
            let lost = child("lose");
            let said = String::from_utf8_lossy(&lost.stderr);
            assert_eq!(lost.status.code(), Some(EXIT_STATUS), "{said}");
            let expected = "the descriptor chain of queue 3, head 5 (write of 1024 bytes at sector 7) was \
                            dropped";
            assert!(said.contains(expected), "{said}");
            return;
        };
        let mut ring = ring(&[5]);
        let taken = ring.pop(1, |ring, mut chain, _| {
            let kind = RequestKind::Write { durable: false };
            let at = ByteOffset(7 * 512);
            chain.asks_for(BlockRequest {
                kind,
                at,
                len: 1024,
            });
            match end.as_str() {
                "return" => ring.push_used(chain, 1).map(|()| true),
                "put back" => {
                    ring.put_back(chain);
                    Ok(false)
                }
                _ => Ok(true),
            }
        });
        assert_eq!(taken.unwrap(), end != "put back");
        assert_eq!(ring.next_avail(), u16::from(end == "return"));
    }

    /// What a guest does with heads is its own affair: none of it may end the process.
    #[test]
    fn a_head_may_come_twice_and_one_beyond_the_table_breaks_the_ring() {
        let mut twice = ring(&[5, 5]);
        let mut taken = Vec::new();
        let more = twice.pop(8, |_, chain, _| {
            taken.push(chain);
            Ok(true)
        });
        assert!(!more.unwrap());
        assert_eq!(taken.len(), 2);
        for chain in taken {
            twice.push_used(chain, 1).unwrap();
        }
        let mut beyond = ring(&[2]);
        let avail = GuestAddress(beyond.queue.avail_ring() + 4);
        beyond.memory.write_obj(0xffffu16, avail).unwrap();
        let broken = beyond.pop(8, |_, _, _| unreachable!("there is no such chain"));
        assert!(matches!(broken, Err(QueueError::InvalidDescriptorIndex)));
    }
}
