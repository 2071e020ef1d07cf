//! What can be wrong with a descriptor chain.

use thiserror::Error;
use vm_memory::GuestAddress;

/// Why a chain cannot be understood at all. It is returned to the guest with length 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum ChainError {
    /// The chain ends in a descriptor that promises another: it loops, leaves its table or its
    /// indirect table is not one.
    #[error("the descriptor chain is broken: it loops, leaves its table or lies outside memory")]
    Broken,
    /// More descriptors than a request may have.
    #[error("the chain has more than {most} descriptors")]
    TooManyDescriptors {
        /// The most that was offered to the driver.
        most: usize,
    },
    /// A descriptor names memory that the guest does not have.
    #[error("a descriptor names {len} bytes at {:#x}, which is not the guest's memory", .at.0)]
    OutsideMemory {
        /// Where.
        at: GuestAddress,
        /// How much.
        len: u32,
    },
    /// A descriptor for the driver's data follows one for the device's (virtio 1.2 §2.7.4.2).
    #[error("a readable descriptor follows a writable one")]
    Order,
    /// There is no room for the request's header.
    #[error("the chain has only {0} readable bytes, a request header has 16")]
    NoHeader(u64),
    /// There is nowhere to write the status to.
    #[error("the chain has no writable byte for the status")]
    NoStatus,
    /// More data than the device offers to take at once.
    #[error("the request carries {0} bytes, more than was offered")]
    TooLarge(u64),
}
