//! The live table: what comes is taken, and what is to be shown is drawn, until there is to be an end.

use std::sync::mpsc::{Sender, channel};

use crate::app::{Action, App};
use crate::error::TopError;
use crate::input::{Input, hear_keys, hear_signals};
use crate::look::Look;
use crate::options::Options;
use crate::sampler::{Sampled, Sampler};
use crate::terminal::LiveTerminal;

/// What is waited for.
enum Happened {
    Sampled(Sampled),
    Input(Input),
}

/// What is done next.
enum Next {
    GoOn,
    End,
}

/// Shows the live table until somebody has seen enough. The terminal is as it was before, however it ends.
///
/// # Errors
/// [`TopError`].
pub fn run(options: &Options) -> Result<(), TopError> {
    let mut terminal = LiveTerminal::enter()?;
    let (sender, happened) = channel();
    hear_signals(told(&sender, Happened::Input))?;
    hear_keys(told(&sender, Happened::Input))?;
    let sampler = Sampler::start(options, told(&sender, Happened::Sampled))?;
    let look = Look::of_terminal();
    let mut app = App::new(options);
    terminal.draw(&mut app, look)?;
    // This end has a sender, so that there is always something to wait for.
    while let Ok(first) = happened.recv() {
        // What came together is shown together.
        for what in std::iter::once(first).chain(happened.try_iter()) {
            if let Next::End = take(what, &mut app, &mut terminal, &sampler)? {
                return Ok(());
            }
        }
        terminal.draw(&mut app, look)?;
    }
    Ok(())
}

fn told<T: 'static>(
    sender: &Sender<Happened>,
    of: fn(T) -> Happened,
) -> impl Fn(T) -> bool + Send + 'static {
    let sender = sender.clone();
    move |what| sender.send(of(what)).is_ok()
}

fn take(
    what: Happened,
    app: &mut App,
    terminal: &mut LiveTerminal,
    sampler: &Sampler,
) -> Result<Next, TopError> {
    let action = match what {
        Happened::Sampled(sampled) => {
            app.take(sampled);
            None
        }
        Happened::Input(Input::Key(key)) => app.key(key),
        Happened::Input(Input::Resized) => None,
        Happened::Input(Input::NoKeys(error)) => return Err(TopError::Terminal(error)),
        Happened::Input(Input::End) => Some(Action::Quit),
        Happened::Input(Input::Stop) => Some(Action::Suspend),
        Happened::Input(Input::Continued) => {
            terminal.take()?;
            None
        }
    };
    match action {
        Some(Action::Quit) => return Ok(Next::End),
        Some(Action::Suspend) => terminal.suspend()?,
        Some(Action::Redraw) => terminal.redraw()?,
        Some(Action::Tell(command)) => sampler.tell(command),
        None => {}
    }
    Ok(Next::GoOn)
}
