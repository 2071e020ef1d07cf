//! A device whose disk another attach has: what is set up is kept, and rings that are to run wait.

use protocol::RingsDo;
use volume::CacheMode;

use super::handler::BlockHandler;

impl BlockHandler {
    /// Has rings that are to run wait, or no more. None may run.
    pub(crate) fn set_vacant(&mut self, vacant: bool) {
        self.vacant = vacant;
    }

    /// What the rings do.
    pub(crate) fn rings_do(&self) -> RingsDo {
        let waits = || self.rings.iter().any(|ring| ring.is_to_run().is_some());
        match (self.is_running(), self.vacant && waits()) {
            (true, _) => RingsDo::Run,
            (false, true) => RingsDo::Wait,
            (false, false) => RingsDo::Rest,
        }
    }

    /// Has the attach process told what they do, if that is new.
    pub(crate) fn tell_rings(&self) {
        self.shared.ring_news.saw(self.rings_do());
    }

    /// Starts every ring that is to run.
    pub(crate) fn start_what_waits(&mut self) {
        for index in 0..self.rings.len() {
            if self.rings[index].is_to_run().is_some()
                && let Err(error) = self.start(index)
            {
                log::warn!("queue {index} is not served until it is set up again: {error}");
            }
        }
    }

    /// Has the device be in this cache mode, which is kept already.
    pub(crate) fn set_cache(&self, cache: CacheMode) {
        self.config.set_cache(cache);
        self.publish_write_through();
    }

    /// Has the device be of this size, in bytes. Whether it was of another.
    pub(crate) fn set_size(&self, size: u64) -> bool {
        let is_other = self.config.size() != size;
        self.config.set_size(size);
        is_other
    }
}
