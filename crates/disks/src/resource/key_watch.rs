//! Asking again and again whether the vaults still grant the keys of what is read or written without a guest.
//!
//! Whoever takes a key away takes it from those too who have unwrapped it before: a thread asks every few seconds,
//! whatever they wait for. They look before each piece, and while they wait, and let go of the keys when it is over.
//! What the answers mean is what it is for an attached disk: a refusal ends it at once, anything else after the
//! time for which an attached disk is served, by default, while its vault cannot be asked.

use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crate::import::{Cancel, Deadline, ImportError};
use crate::resource::disk::Disk;
use crate::resource::error::DiskError;
use crate::resource::unlock::Unwrapper;
use installation::envelope::LayerRecord;
use installation::{Installation, Place};
use keys::{ROOMY_STACK, spawn_with_keys, with_wiped_call_stack};
use vault::{VaultError, VaultErrorCode, Verdict, boot_instant};

/// Time from one question to the next, and the least between an answer and the next question.
const INTERVAL: Duration = Duration::from_secs(5);
const PAUSE: Duration = Duration::from_secs(1);
/// How long work goes on while no vault decides: the default of `--key-grace` of an attach.
const GRACE: Duration = Duration::from_secs(3600);

/// Watches over the keys of something, until it is dropped.
pub struct KeyWatch {
    known: Arc<Known>,
    /// Nothing is sent: the thread ends when it goes.
    _end: Sender<()>,
}

/// What is known of the keys.
#[derive(Default)]
struct Known {
    /// Until when they may be used, while the last question is not answered by a grant.
    until: Deadline,
    /// What the last answer was, if that was none.
    failure: Mutex<Option<DiskError>>,
}

impl KeyWatch {
    /// Over the keys of all layers of a disk, as its header says then. They were unwrapped just now.
    pub(crate) fn of(installation: &Installation, disk: &Disk) -> Result<Self, DiskError> {
        let disk = Disk {
            record: disk.record.clone(),
        };
        Self::start(installation, Deadline::default(), move |installation| {
            let header = disk.header_file()?.read()?;
            disk.check_keys(installation, header).map(drop)
        })
    }

    /// Over the key of the layer of a disk that has no header yet. When it is over, it is the deadline of `cancel`,
    /// by which others may have begun to wait before there was a key.
    pub(crate) fn of_new(
        installation: &Installation,
        disk: &str,
        layer: &LayerRecord,
        cancel: &Cancel,
    ) -> Result<Self, DiskError> {
        let (disk, layer) = (disk.to_owned(), layer.clone());
        Self::start(
            installation,
            cancel.deadline().clone(),
            move |installation| {
                let mut keys = Unwrapper::checking(installation);
                keys.check_layer(&disk, &layer)
            },
        )
    }

    fn start(
        installation: &Installation,
        until: Deadline,
        check: impl FnMut(&Installation) -> Result<(), DiskError> + Send + 'static,
    ) -> Result<Self, DiskError> {
        let known = Arc::new(Known {
            until,
            ..Known::default()
        });
        let (end, ended) = channel();
        let asking = Asking {
            place: installation.place().clone(),
            installation: None,
            check,
        };
        let told = Arc::clone(&known);
        // It is never joined: a vault that does not answer must not delay the end of the work.
        let ask = move || asking.go_on(&told, &ended);
        spawn_with_keys("key-watch".into(), ROOMY_STACK, ask)?;
        Ok(Self { known, _end: end })
    }

    /// Whether the keys may not be used any more, and what was unwrapped is to be dropped.
    pub fn is_over(&self) -> bool {
        self.known.until.is_over()
    }

    /// Why it is over. The error itself is given out once.
    pub fn why(&self) -> DiskError {
        let failure = &self.known.failure;
        let known = failure
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        known.unwrap_or_else(|| {
            let message = "the key vault does not grant the key any more, or has not answered";
            VaultError::new(VaultErrorCode::Unreachable, message).into()
        })
    }

    /// A wish to stop that comes also when it is over.
    pub(crate) fn stopping(&self, cancel: &Cancel) -> Cancel {
        cancel.or_at(&self.known.until)
    }

    /// How work ended that was given [`KeyWatch::stopping`]: the reason, where that has stopped it.
    pub(crate) fn judged<T>(&self, result: Result<T, DiskError>) -> Result<T, DiskError> {
        match result {
            Err(DiskError::Import(ImportError::Interrupted)) if self.is_over() => Err(self.why()),
            result => result,
        }
    }
}

/// What the thread has.
struct Asking<F> {
    place: Place,
    /// Opened for the first question: most work ends before.
    installation: Option<Installation>,
    check: F,
}

impl<F: FnMut(&Installation) -> Result<(), DiskError>> Asking<F> {
    /// Asks until nobody needs to know any more, or it is over.
    fn go_on(mut self, known: &Known, ended: &Receiver<()>) {
        let mut pause = INTERVAL;
        while ended.recv_timeout(pause) == Err(RecvTimeoutError::Timeout) {
            let asked = boot_instant();
            // An answer that does not come is none, too.
            known.until.begin(asked + GRACE);
            if !known.take(with_wiped_call_stack(|| self.ask())) {
                return;
            }
            pause = INTERVAL.saturating_sub(boot_instant() - asked).max(PAUSE);
        }
    }

    fn ask(&mut self) -> Result<(), DiskError> {
        let installation = match self.installation.take() {
            Some(installation) => {
                installation.renew()?;
                installation
            }
            None => open(&self.place)?,
        };
        (self.check)(self.installation.insert(installation))
    }
}

fn open(place: &Place) -> Result<Installation, DiskError> {
    Ok(Installation::open_existing(place)?)
}

impl Known {
    /// Takes an answer; whether the keys may still be used.
    fn take(&self, answer: Result<(), DiskError>) -> bool {
        let Err(error) = answer else {
            return self.until.put_off();
        };
        let is_refused = error.key_verdict() == Verdict::Refused;
        *self.failure.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
        if is_refused {
            self.until.end();
        }
        !self.until.is_over()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failed(code: VaultErrorCode) -> Result<(), DiskError> {
        Err(VaultError::new(code, "why").into())
    }

    #[test]
    fn only_a_refusal_ends_at_once_and_a_grant_ends_nothing_that_is_over() {
        let known = Known::default();
        let then = boot_instant() + GRACE;
        known.until.begin(then);
        assert!(known.take(failed(VaultErrorCode::Unreachable)));
        assert!(known.take(Ok(())));
        known.until.begin(then);
        assert!(!known.take(failed(VaultErrorCode::KeyDisabled)));
        assert!(!known.take(Ok(())));
        assert!(known.until.is_over());
    }

    #[test]
    fn the_time_without_a_decision_counts_from_the_first_question() {
        let known = Known::default();
        known.until.begin(boot_instant());
        known.until.begin(boot_instant() + GRACE);
        assert!(!known.take(failed(VaultErrorCode::Unreachable)));
        let end = channel().0;
        let watch = KeyWatch {
            known: Arc::new(known),
            _end: end,
        };
        let stopped = watch.stopping(&Cancel::default()).check();
        let judged = watch.judged(stopped.map_err(DiskError::from));
        assert_eq!(judged.unwrap_err().code(), "VaultUnreachable");
    }
}
