//! Signs of life of the first thread while it waits for storage.

use std::sync::mpsc::{RecvTimeoutError, channel};
use std::thread::{Builder, scope};

use crate::counters::Counters;
use crate::queue::pulse::PERIOD;

/// Does what may take as long as storage likes, while a thread gives the signs of life that the first one has no time for.
pub(super) fn alive_while<T>(counters: &Counters, work: impl FnOnce() -> T) -> T {
    scope(|scope| {
        let (done, ended) = channel::<()>();
        let signs = move || {
            while ended.recv_timeout(PERIOD) == Err(RecvTimeoutError::Timeout) {
                counters.sign_of_life();
            }
        };
        let thread = Builder::new()
            .name("signs".into())
            .spawn_scoped(scope, signs);
        if let Err(error) = thread {
            log::warn!("no sign of life is given while storage is waited for: {error}");
        }
        let result = work();
        drop(done);
        result
    })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use protocol::KeptRegion;

    use super::*;

    #[test]
    fn what_takes_long_gives_signs_of_life() {
        let region = KeptRegion::create(1).unwrap();
        let file = std::os::fd::AsFd::as_fd(&region).try_clone_to_owned();
        let counters = Counters::kept(&file.unwrap().into(), 1).unwrap();
        let signs = || region.counters().unwrap().unwrap().signs_of_life;
        assert_eq!(alive_while(&counters, || 7), 7);
        assert_eq!(signs(), 0);
        alive_while(&counters, || {
            std::thread::sleep(PERIOD + Duration::from_secs(1))
        });
        assert!(signs() > 0);
    }
}
