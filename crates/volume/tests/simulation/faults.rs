//! What a device does that is not well: any operation may fail, be done in part, be refused for now, or
//! stay where it is for a while.
//!
//! What the store above makes of it is what `UringStore` does. It tries again what was refused with
//! EAGAIN or EINTR (but not a hole), and goes on after a short read or write, so those are not seen
//! above; a read that gives nothing is [`StoreError::Truncated`], and everything else is passed up.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard};

use volume::store::StoreError;

use super::rng::Rng;

/// What becomes of an operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trouble {
    None,
    /// It is to be asked for again; nothing was done.
    Again,
    /// A part is done, and the rest is to be asked for.
    Short,
    /// It fails. What was done of it nobody knows.
    Fails(i32),
    /// It reads nothing, as behind the end of a file, or writes nothing.
    Nothing,
}

/// The operations, by what can become of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Asked {
    Read,
    Write,
    Sync,
    Punch,
}

/// The device that all layers of a world are on.
pub struct Device {
    rng: Rng,
    /// It is never well for long. Otherwise nothing is asked of `rng`.
    faulty: bool,
    /// Whoever checks something wants it to be well.
    calm: bool,
    /// Steps for which nothing completes.
    hangs: u64,
    /// Failures that were passed up.
    pub errors: u64,
    pub counts: BTreeMap<&'static str, u64>,
}

pub type SharedDevice = Arc<Mutex<Device>>;

/// While it lives the device is well.
pub struct Calm {
    device: SharedDevice,
    before: bool,
}

impl Calm {
    pub fn new(device: &SharedDevice) -> Self {
        let before = std::mem::replace(&mut device.lock().unwrap().calm, true);
        let device = device.clone();
        Self { device, before }
    }
}

impl Drop for Calm {
    fn drop(&mut self) {
        if let Ok(mut device) = self.device.lock() {
            device.calm = self.before;
        }
    }
}

impl Device {
    pub fn new(seed: u64, faulty: bool) -> SharedDevice {
        Arc::new(Mutex::new(Self {
            rng: Rng::new(!seed),
            faulty,
            calm: false,
            hangs: 0,
            errors: 0,
            counts: BTreeMap::new(),
        }))
    }

    fn is_well(&self) -> bool {
        !self.faulty || self.calm
    }

    /// Whether something happens that does so once in `n` times.
    pub fn may(&mut self, n: u64) -> bool {
        !self.is_well() && self.rng.one_in(n)
    }

    fn count(&mut self, what: &'static str) {
        *self.counts.entry(what).or_default() += 1;
    }

    /// Whether nothing completes now.
    pub fn hangs(&mut self) -> bool {
        if self.is_well() {
            return false;
        }
        if self.hangs == 0 && self.rng.one_in(500) {
            self.hangs = 1 + self.rng.below(300);
            self.count("hangs");
        }
        self.hangs = self.hangs.saturating_sub(1);
        self.hangs > 0
    }

    /// What becomes of an operation.
    pub fn draw(&mut self, asked: Asked) -> Trouble {
        if !self.may(match asked {
            Asked::Sync => 16,
            Asked::Punch => 8,
            Asked::Read | Asked::Write => 24,
        }) {
            return Trouble::None;
        }
        match (asked, self.rng.below(8)) {
            (Asked::Punch, 0..4) => self.fails("failed holes", libc::EIO),
            (Asked::Punch, 4) => self.fails("holes for which there is no space", libc::ENOSPC),
            (Asked::Punch, 5) => self.fails("holes that are not known", libc::EOPNOTSUPP),
            (Asked::Punch, _) => self.fails("holes to be tried again", libc::EAGAIN),
            (_, 0 | 1) => {
                self.count("tries again");
                Trouble::Again
            }
            (Asked::Sync, 2..7) => self.fails("failed syncs", libc::EIO),
            (Asked::Sync, _) => self.fails("syncs that find no space", libc::ENOSPC),
            (_, 2 | 3) => {
                self.count("short reads and writes");
                Trouble::Short
            }
            (_, 4) => {
                self.count("reads and writes of nothing");
                self.errors += 1;
                Trouble::Nothing
            }
            (Asked::Write, 5 | 6) => self.fails("writes that find no space", libc::ENOSPC),
            (Asked::Write, _) => self.fails("failed writes", libc::EIO),
            (Asked::Read, _) => self.fails("failed reads", libc::EIO),
        }
    }

    fn fails(&mut self, what: &'static str, errno: i32) -> Trouble {
        self.count(what);
        self.errors += 1;
        Trouble::Fails(errno)
    }
}

pub fn device(shared: &SharedDevice) -> MutexGuard<'_, Device> {
    shared.lock().unwrap()
}

/// As the store tells of a failure.
pub fn error(what: &'static str, errno: i32) -> StoreError {
    let source = io::Error::from_raw_os_error(errno);
    StoreError::Io { what, source }
}
