//! The memory of a guest.

/// Guest memory as the frontend gave it to us.
pub type Memory = vm_memory::GuestMemoryMmap<()>;
