//! Rings that were made, and can do only what they will be used for.
//!
//! seccomp does not see what a ring does, so a ring is restricted before anything can be done with it, and the
//! kernel forgets no restriction. What a process serves guests with it makes while it may still call
//! `io_uring_setup`; later it takes one that it has ([`BareRing`]), and gives it back.

use std::io;
use std::mem::ManuallyDrop;
use std::ops::{Deref, DerefMut};
use std::sync::mpsc::{SendError, Sender};

use io_uring::register::Restriction;
use io_uring::{Builder, IoUring, opcode, squeue};

use crate::store::{MAX_CHUNKS, StoreError};

use super::retry::patiently;

/// Operations in flight at once; further ones wait above.
pub(super) const DEPTH: usize = 256;

/// Something that a ring may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RingRule {
    /// The kernel's number of it.
    pub code: u8,
    /// The kernel's name.
    pub name: &'static str,
    /// What needs it.
    pub why: &'static str,
}

const fn rule(code: u8, name: &'static str, why: &'static str) -> RingRule {
    RingRule { code, name, why }
}

/// The operations of a store. Each is on a registered file.
pub const RING_OPERATIONS: &[RingRule] = &[
    rule(
        opcode::Nop::CODE,
        "IORING_OP_NOP",
        "a ring is tried before it is used",
    ),
    rule(
        opcode::Read::CODE,
        "IORING_OP_READ",
        "ciphertext and maps, into buffers that could not be registered",
    ),
    rule(
        opcode::ReadFixed::CODE,
        "IORING_OP_READ_FIXED",
        "ciphertext and maps",
    ),
    rule(
        opcode::Write::CODE,
        "IORING_OP_WRITE",
        "ciphertext and maps, from buffers that could not be registered",
    ),
    rule(
        opcode::WriteFixed::CODE,
        "IORING_OP_WRITE_FIXED",
        "ciphertext and maps",
    ),
    rule(opcode::Fsync::CODE, "IORING_OP_FSYNC", "flushes"),
    rule(
        opcode::Fallocate::CODE,
        "IORING_OP_FALLOCATE",
        "space of discarded blocks is given back",
    ),
    rule(
        opcode::PollAdd::CODE,
        "IORING_OP_POLL_ADD",
        "a queue waits for kicks and for I/O in one call",
    ),
    rule(
        opcode::PollRemove::CODE,
        "IORING_OP_POLL_REMOVE",
        "a kick that was set anew",
    ),
];

/// What may be changed of a ring of a store once it is in use.
pub const RING_REGISTRATIONS: &[RingRule] = &[
    rule(
        UNREGISTER_FILES,
        "IORING_UNREGISTER_FILES",
        "the claim of a file ends with its use",
    ),
    rule(
        FILES_UPDATE,
        "IORING_REGISTER_FILES_UPDATE",
        "layers that change, and kicks",
    ),
    rule(
        FILES2,
        "IORING_REGISTER_FILES2",
        "a ring that is used again",
    ),
    rule(
        BUFFERS_UPDATE,
        "IORING_REGISTER_BUFFERS_UPDATE",
        "buffers come and go with the load",
    ),
    rule(
        IOWQ_MAX_WORKERS,
        "IORING_REGISTER_IOWQ_MAX_WORKERS",
        "threads of the kernel have a limit",
    ),
];

/// `IORING_REGISTER_ENABLE_RINGS`: a ring that was made before is put to use, once.
pub const ENABLE_RINGS: RingRule = rule(
    12,
    "IORING_REGISTER_ENABLE_RINGS",
    "a ring that was made before is put to use",
);

// Numbers of linux/io_uring.h.
const UNREGISTER_FILES: u8 = 3;
const FILES_UPDATE: u8 = 6;
const FILES2: u8 = 13;
const BUFFERS_UPDATE: u8 = 16;
const IOWQ_MAX_WORKERS: u8 = 19;

/// A ring for a store. Dropped, it goes back to who lent it.
pub struct BareRing {
    ring: ManuallyDrop<IoUring>,
    enabled: bool,
    home: Option<Sender<BareRing>>,
}

impl BareRing {
    /// A ring for one thread: the one that uses it first.
    ///
    /// # Errors
    /// [`StoreError::Setup`].
    pub fn for_one_thread() -> Result<Self, StoreError> {
        let mut builder = IoUring::builder();
        Self::made(builder.setup_single_issuer().setup_defer_taskrun())
    }

    /// A ring for one thread after another, which each of them gives back to `home`.
    ///
    /// # Errors
    /// [`StoreError::Setup`].
    pub fn lent_by(home: Sender<Self>) -> Result<Self, StoreError> {
        let mut ring = Self::made(&mut IoUring::builder())?;
        ring.home = Some(home);
        Ok(ring)
    }

    fn made(builder: &mut Builder) -> Result<Self, StoreError> {
        let fail = |what| move |source| StoreError::Setup { what, source };
        builder
            .setup_coop_taskrun()
            .setup_taskrun_flag()
            .setup_r_disabled();
        let ring =
            patiently(|| builder.build(DEPTH as u32)).map_err(fail(StoreError::MAKE_RING))?;
        let flags = squeue::Flags::FIXED_FILE;
        restrict(&ring, RING_OPERATIONS, RING_REGISTRATIONS, flags)
            .map_err(fail("restrict io_uring"))?;
        patiently(|| ring.submitter().register_buffers_sparse(MAX_CHUNKS as u32))
            .map_err(fail("register with io_uring"))?;
        Ok(Self {
            ring: ManuallyDrop::new(ring),
            enabled: false,
            home: None,
        })
    }

    /// Puts it to use, if it is not: from now on its restrictions hold.
    pub(super) fn enable(&mut self) -> io::Result<()> {
        if !self.enabled {
            patiently(|| self.submitter().register_enable_rings())?;
            self.enabled = true;
        }
        Ok(())
    }

    /// Whether it is used again.
    pub(super) fn is_lent(&self) -> bool {
        self.home.is_some()
    }

    /// Has nobody use it again: the kernel may still be working for it.
    pub(in crate::store) fn give_up(&mut self) {
        self.home = None;
    }
}

impl Deref for BareRing {
    type Target = IoUring;

    fn deref(&self) -> &IoUring {
        &self.ring
    }
}

impl DerefMut for BareRing {
    fn deref_mut(&mut self) -> &mut IoUring {
        &mut self.ring
    }
}

impl Drop for BareRing {
    fn drop(&mut self) {
        // SAFETY: nothing uses the field after this.
        let ring = unsafe { ManuallyDrop::take(&mut self.ring) };
        let Some(home) = self.home.take() else {
            return;
        };
        let lent = Self {
            ring: ManuallyDrop::new(ring),
            enabled: self.enabled,
            home: Some(home.clone()),
        };
        if let Err(SendError(mut unwanted)) = home.send(lent) {
            unwanted.home = None;
        }
    }
}

/// Has a ring that is not in use yet do nothing but this, and nothing without these flags, from when it is.
///
/// # Errors
/// What the kernel says.
pub fn restrict(
    ring: &IoUring,
    operations: &[RingRule],
    registrations: &[RingRule],
    flags: squeue::Flags,
) -> io::Result<()> {
    let mut rules: Vec<Restriction> = operations
        .iter()
        .map(|rule| Restriction::sqe_op(rule.code))
        .collect();
    let registrations = registrations.iter();
    rules.extend(registrations.map(|rule| Restriction::register_op(rule.code)));
    rules.push(Restriction::sqe_flags_required(flags.bits()));
    ring.submitter().register_restrictions(&mut rules)
}
