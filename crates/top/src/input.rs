//! What comes from outside: keys, the size of the terminal, and signals. Each has a thread that waits for it.

use std::io;
use std::thread;

use crossterm::event::{self, Event, KeyEvent};
use signal_hook::consts::{SIGCONT, SIGHUP, SIGINT, SIGTERM, SIGTSTP};
use signal_hook::iterator::Signals;

use crate::error::TopError;

/// Something that came.
#[derive(Debug)]
pub(crate) enum Input {
    /// A key.
    Key(KeyEvent),
    /// The terminal has another size.
    Resized,
    /// There are no keys any more.
    NoKeys(io::Error),
    /// This process is to end.
    End,
    /// It is to stop, until its shell lets it go on.
    Stop,
    /// It goes on.
    Continued,
}

/// Hears signals from now on; `tell` says whether anybody listens.
///
/// # Errors
/// [`TopError::System`].
pub(crate) fn hear_signals(tell: impl Fn(Input) -> bool + Send + 'static) -> Result<(), TopError> {
    let all = [SIGTERM, SIGINT, SIGHUP, SIGTSTP, SIGCONT];
    let mut signals = Signals::new(all).map_err(TopError::system("hear signals"))?;
    let hear = move || {
        for signal in signals.forever() {
            let input = match signal {
                SIGTSTP => Input::Stop,
                SIGCONT => Input::Continued,
                _ => Input::End,
            };
            if !tell(input) {
                return;
            }
        }
    };
    start("signals", hear)
}

/// Hears keys from now on. The terminal is in raw mode.
///
/// # Errors
/// [`TopError::System`].
pub(crate) fn hear_keys(tell: impl Fn(Input) -> bool + Send + 'static) -> Result<(), TopError> {
    let hear = move || {
        loop {
            let goes_on = match event::read() {
                Ok(Event::Key(key)) => tell(Input::Key(key)),
                Ok(Event::Resize(..)) => tell(Input::Resized),
                Ok(_) => true,
                Err(error) => {
                    tell(Input::NoKeys(error));
                    false
                }
            };
            if !goes_on {
                return;
            }
        }
    };
    start("keys", hear)
}

fn start(name: &str, hear: impl FnOnce() + Send + 'static) -> Result<(), TopError> {
    let thread = thread::Builder::new().name(name.into());
    let spawned = thread.spawn(hear);
    spawned.map(drop).map_err(TopError::system(
        "start a thread that waits for keys and signals",
    ))
}
