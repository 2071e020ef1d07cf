//! The rings of a disk. All of them are made, and restricted to what they are for, before the process is confined
//! and can make none any more.

use std::io;
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use io_uring::{IoUring, opcode, squeue};

use volume::store::{BareRing, RingRule, StoreError, restrict};

/// Rings for what works on the disk beside the queues, for a while: the copier, and a flush for the attach
/// process.
const LENT: usize = 2;

/// Rings for signals beyond one for each queue: what is set anew has its own before the old one is given back.
const SPARE_SIGNALS: usize = 4;

/// What a ring for signals does.
pub(crate) const SIGNAL_OPERATIONS: &[RingRule] = &[RingRule {
    code: opcode::Nop::CODE,
    name: "IORING_OP_NOP",
    why: "its completion signals the frontend's eventfd",
}];

/// What may be changed of one.
pub(crate) const SIGNAL_REGISTRATIONS: &[RingRule] = &[
    RingRule {
        code: 4,
        name: "IORING_REGISTER_EVENTFD",
        why: "the eventfd that a frontend has set",
    },
    RingRule {
        code: 5,
        name: "IORING_UNREGISTER_EVENTFD",
        why: "the same when it sets another",
    },
];

/// How many rings there are for so many queues.
pub(crate) fn rings_for(queues: u16) -> usize {
    let queues = usize::from(queues);
    queues + LENT + queues + SPARE_SIGNALS
}

/// All rings of a disk.
pub(crate) struct Rings {
    queues: Mutex<Vec<BareRing>>,
    lent: Mutex<Receiver<BareRing>>,
    signals: Arc<SignalRings>,
}

impl Rings {
    /// Makes those of a disk with so many queues.
    ///
    /// # Errors
    /// [`StoreError::Setup`].
    pub(crate) fn make(queues: u16) -> Result<Self, StoreError> {
        let of_queues = (0..queues).map(|_| BareRing::for_one_thread());
        let of_queues = of_queues.collect::<Result<_, _>>()?;
        let (home, lent) = channel();
        for _ in 0..LENT {
            drop(BareRing::lent_by(home.clone())?);
        }
        let signals = SignalRings::make(usize::from(queues) + SPARE_SIGNALS)?;
        Ok(Self {
            queues: Mutex::new(of_queues),
            lent: Mutex::new(lent),
            signals: Arc::new(signals),
        })
    }

    /// The ring of a queue, for good.
    ///
    /// # Errors
    /// [`StoreError::Setup`] when there are more queues than rings were made for.
    pub(crate) fn for_queue(&self) -> Result<BareRing, StoreError> {
        lock(&self.queues).pop().ok_or_else(none_is_free)
    }

    /// A ring for a while.
    ///
    /// # Errors
    /// [`StoreError::Setup`] when all are lent.
    pub(crate) fn lend(&self) -> Result<BareRing, StoreError> {
        lock(&self.lent).try_recv().map_err(|_| none_is_free())
    }

    pub(crate) fn signals(&self) -> &Arc<SignalRings> {
        &self.signals
    }
}

/// Rings that signal an eventfd.
pub(crate) struct SignalRings(Mutex<Vec<IoUring>>);

impl SignalRings {
    /// # Errors
    /// [`StoreError::Setup`].
    pub(crate) fn make(count: usize) -> Result<Self, StoreError> {
        let fail = |source| StoreError::Setup {
            what: "set up io_uring for signals",
            source,
        };
        let rings = (0..count).map(|_| signal_ring()).collect::<Result<_, _>>();
        Ok(Self(Mutex::new(rings.map_err(fail)?)))
    }

    /// # Errors
    /// [`io::ErrorKind::QuotaExceeded`] when all are in use.
    pub(crate) fn take(&self) -> io::Result<IoUring> {
        let free = lock(&self.0).pop();
        free.ok_or_else(|| io::ErrorKind::QuotaExceeded.into())
    }

    /// Takes one back, which has no eventfd any more.
    pub(crate) fn put(&self, ring: IoUring) {
        lock(&self.0).push(ring);
    }
}

fn signal_ring() -> io::Result<IoUring> {
    let ring = IoUring::builder().setup_r_disabled().build(1)?;
    let flags = squeue::Flags::empty();
    restrict(&ring, SIGNAL_OPERATIONS, SIGNAL_REGISTRATIONS, flags)?;
    ring.submitter().register_enable_rings()?;
    Ok(ring)
}

fn none_is_free() -> StoreError {
    StoreError::Setup {
        what: "take a ring of io_uring: all are in use",
        source: io::ErrorKind::QuotaExceeded.into(),
    }
}

fn lock<T>(of: &Mutex<T>) -> MutexGuard<'_, T> {
    // A panic of any thread ends the process.
    of.lock().unwrap_or_else(PoisonError::into_inner)
}
