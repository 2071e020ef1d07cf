//! What a disk may take of the host: memory, descriptors, threads of the kernel.
//!
//! `attach --memory` says how much memory the data plane may have for requests under way: buffers for
//! ciphertext, and what each queue has besides (its ring and its stack). Each queue gets its part when
//! the disk is attached, and keeps it; what is left is for whichever queues need more for a time. The
//! disk's map, which is 64 MiB for each TiB, and the program itself are apart.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use keys::QUEUE_STACK;
use keys::units::MAX_LAYERS;
use volume::store::{BUFFER_LEN, OWN_BUFFERS, keep_for_rings};

use crate::DataplaneError;

use super::rings::rings_for;

/// Bytes of a ring with 256 entries in the kernel, and of a queue's buffers for the map.
const RING: usize = 128 * 1024;
/// Of the copier and of a flush for the attach process: they have a stack, a ring and buffers too.
const OTHERS: usize = 1 << 20;
/// What is allowed when nothing is said.
const ORDINARY: u64 = 64 << 20;
/// The same for each queue of a disk that has very many.
const ORDINARY_PER_QUEUE: u64 = 512 * 1024;

/// Descriptors of a queue beside its rings: wake-up twice, and kick, call and err of the frontend twice.
const QUEUE_FILES: u64 = 8;
/// Memory regions of a frontend, each of which comes with one.
const REGION_FILES: u64 = 512;
/// Sockets and the like.
const OTHER_FILES: u64 = 64;

/// Threads of the kernel that work for a disk at once, for operations that block.
const MIN_WORKERS: usize = 16;
const MAX_WORKERS: usize = 64;
const WORKERS_PER_CPU: usize = 4;

/// How the memory of a disk is divided.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct MemoryPlan {
    /// Buffers that each queue has for good.
    pub(crate) own_buffers: usize,
    /// Bytes of buffers for the queues that need more.
    pub(crate) shared: usize,
}

impl MemoryPlan {
    /// Divides `memory` bytes for so many queues, which [`least_memory`] is for too.
    pub(crate) fn new(memory: u64, queues: u16) -> Self {
        let queues = usize::from(queues).max(1);
        let memory = usize::try_from(memory).unwrap_or(usize::MAX);
        let rest = memory.saturating_sub(OTHERS + queues * (QUEUE_STACK + RING));
        let own_buffers = (rest / queues / BUFFER_LEN).clamp(1, OWN_BUFFERS);
        Self {
            own_buffers,
            shared: rest.saturating_sub(queues * own_buffers * BUFFER_LEN),
        }
    }
}

/// Bytes without which so many queues cannot be served.
pub fn least_memory(queues: u16) -> u64 {
    let each = QUEUE_STACK + RING + BUFFER_LEN;
    (OTHERS + usize::from(queues) * each) as u64
}

/// Bytes that a disk of so many queues may have when nothing is said.
pub fn ordinary_memory(queues: u16) -> u64 {
    ORDINARY.max(u64::from(queues) * ORDINARY_PER_QUEUE)
}

/// Threads of the kernel for all rings of a disk, which those divide that are in use.
pub(crate) fn most_workers() -> u32 {
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    (cpus * WORKERS_PER_CPU).clamp(MIN_WORKERS, MAX_WORKERS) as u32
}

/// Descriptors that a data plane with so many queues may need.
pub(crate) fn needed_files(queues: u16) -> u64 {
    let layers = 2 * MAX_LAYERS as u64;
    let of_queues = u64::from(queues) * QUEUE_FILES + rings_for(queues) as u64;
    of_queues + REGION_FILES + layers + OTHER_FILES
}

/// Makes the soft limits of descriptors and of locked memory what the hard ones are, and sees whether
/// there are enough descriptors for `queues` queues and whatever a frontend sends. Buffers leave the rings
/// of these the locked memory that they need.
///
/// # Errors
/// [`DataplaneError::Needs`].
pub(crate) fn raise_limits(queues: u16) -> Result<(), DataplaneError> {
    for resource in [Resource::Nofile, Resource::Memlock] {
        let Rlimit { maximum, .. } = getrlimit(resource);
        // Where that fails it stays what it is.
        let _ = setrlimit(
            resource,
            Rlimit {
                current: maximum,
                maximum,
            },
        );
    }
    keep_for_rings(rings_for(queues) as u64);
    let needed = needed_files(queues);
    match getrlimit(Resource::Nofile).maximum {
        Some(most) if most < needed => Err(DataplaneError::Needs(format!(
            "{queues} queues need {needed} file descriptors, and this process may have {most}: raise \
             RLIMIT_NOFILE (`ulimit -n`, LimitNOFILE= of a systemd unit), or offer fewer queues \
             (--num-queues)"
        ))),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_parts_together_are_what_was_allowed() {
        for queues in [1, 4, 16, 64, 128, 256] {
            for memory in [least_memory(queues), ordinary_memory(queues), 16 << 30] {
                let plan = MemoryPlan::new(memory, queues);
                assert!((1..=OWN_BUFFERS).contains(&plan.own_buffers));
                let fixed = QUEUE_STACK + RING + plan.own_buffers * BUFFER_LEN;
                let all = OTHERS + usize::from(queues) * fixed + plan.shared;
                assert!(all as u64 <= memory, "{queues} queues, {memory}");
                assert!(all as u64 + u64::from(queues) * BUFFER_LEN as u64 > memory);
            }
        }
        let plan = MemoryPlan::new(ordinary_memory(16), 16);
        assert_eq!(plan.own_buffers, OWN_BUFFERS);
        assert!(plan.shared > 50 << 20);
    }
}
