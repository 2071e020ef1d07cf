//! Walking a descriptor chain from its head.

use virtio_bindings::virtio_ring::VRING_DESC_ALIGN_SIZE;
use virtio_queue::desc::split::Descriptor;
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, VolatileSlice};

use super::Memory;

/// The descriptors of a chain, in their order. It ends where the chain ends and where it is broken alike; the NEXT
/// flag of the last one tells which it was.
///
/// `virtio_queue::DescriptorChain` walks the same way, but begins only at heads that are in the avail ring. A
/// chain that a process before this one had taken is there no more.
pub struct Descriptors<'a> {
    memory: &'a Memory,
    table: GuestAddress,
    /// The table, where it is known to lie in one region: found once and not for each descriptor.
    found: Option<VolatileSlice<'a>>,
    entries: u16,
    /// The next one, unless the chain has ended.
    next: Option<u16>,
    /// Descriptors that may still follow: as many as the table has, or the chain goes round.
    left: u16,
    /// Bytes so far. A chain of more than 2^32 is none (virtio 1.2 §2.7.5.2).
    bytes: u32,
    indirect: bool,
}

impl<'a> Descriptors<'a> {
    /// The chain that begins at `head` of a table of `entries` descriptors.
    pub fn new(memory: &'a Memory, table: GuestAddress, entries: u16, head: u16) -> Self {
        Self {
            memory,
            table,
            found: None,
            entries,
            next: Some(head),
            left: entries,
            bytes: 0,
            indirect: false,
        }
    }

    fn read(&self, index: u16) -> Option<Descriptor> {
        if self.left == 0 || index >= self.entries {
            return None;
        }
        let offset = u64::from(index) * size_of::<Descriptor>() as u64;
        if let Some(found) = &self.found {
            return found.read_obj(offset as usize).ok();
        }
        let at = self.table.0.checked_add(offset).map(GuestAddress)?;
        self.memory.read_obj(at).ok()
    }

    /// Goes on in the table that `descriptor` refers to: there is one level of these, and nothing follows
    /// it (§2.7.5.3.1). A table has a whole number of descriptors.
    fn enter_table(&mut self, descriptor: Descriptor) -> Option<()> {
        let whole = descriptor.len().is_multiple_of(VRING_DESC_ALIGN_SIZE);
        if self.indirect || !whole {
            return None;
        }
        self.entries = u16::try_from(descriptor.len() / VRING_DESC_ALIGN_SIZE).ok()?;
        self.table = descriptor.addr();
        let found = self.memory.get_slice(self.table, descriptor.len() as usize);
        self.found = found.ok();
        self.left = self.entries;
        self.indirect = true;
        Some(())
    }
}

impl Iterator for Descriptors<'_> {
    type Item = Descriptor;

    fn next(&mut self) -> Option<Descriptor> {
        let index = self.next.take()?;
        let mut descriptor = self.read(index)?;
        if descriptor.refers_to_indirect_table() {
            self.enter_table(descriptor)?;
            descriptor = self.read(0)?;
            if descriptor.refers_to_indirect_table() {
                return None;
            }
        }
        self.bytes = self.bytes.checked_add(descriptor.len())?;
        self.left -= 1;
        self.next = descriptor.has_next().then(|| descriptor.next());
        Some(descriptor)
    }
}
