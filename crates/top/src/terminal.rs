//! The terminal: taken for the live table, and given back on every way out.

use std::io::{self, BufWriter, IsTerminal, Stdout, Write, stdout};
use std::panic;
use std::sync::Once;
use std::thread;

use crossterm::cursor::Show;
use crossterm::execute;
use crossterm::terminal::{
    EnterAlternateScreen, LeaveAlternateScreen, disable_raw_mode, enable_raw_mode,
};
use ratatui::Terminal;
use ratatui::backend::CrosstermBackend;
use ratatui::layout::Rect;

use crate::app::App;
use crate::draw::draw;
use crate::error::TopError;
use crate::look::Look;

/// Bytes that are written at once: most screens as a whole.
const BUFFER: usize = 16 * 1024;

/// The terminal while it shows the table.
pub(crate) struct LiveTerminal {
    terminal: Terminal<CrosstermBackend<BufWriter<Stdout>>>,
}

impl LiveTerminal {
    /// Takes the terminal.
    ///
    /// # Errors
    /// [`TopError::NoTerminal`], [`TopError::PlainTerminal`], or [`TopError::Terminal`].
    pub(crate) fn enter() -> Result<Self, TopError> {
        if !stdout().is_terminal() {
            return Err(TopError::NoTerminal);
        }
        let term = std::env::var_os("TERM").unwrap_or_default();
        if term.is_empty() || term == "dumb" {
            let term = term.to_string_lossy().into_owned();
            return Err(TopError::PlainTerminal(term));
        }
        leave_on_panic();
        let backend = CrosstermBackend::new(BufWriter::with_capacity(BUFFER, stdout()));
        let mut taken = Self {
            terminal: Terminal::new(backend).map_err(TopError::Terminal)?,
        };
        taken.take()?;
        Ok(taken)
    }

    /// Takes the terminal again, after a shell had it, and draws everything anew.
    ///
    /// # Errors
    /// [`TopError::Terminal`].
    pub(crate) fn take(&mut self) -> Result<(), TopError> {
        let taken = || {
            enable_raw_mode()?;
            execute!(stdout(), EnterAlternateScreen)
        };
        taken().map_err(TopError::Terminal)?;
        self.redraw()
    }

    /// Gives the terminal to the shell for as long as this process is stopped.
    ///
    /// # Errors
    /// [`TopError::Terminal`].
    pub(crate) fn suspend(&mut self) -> Result<(), TopError> {
        leave();
        signal_hook::low_level::emulate_default_handler(signal_hook::consts::SIGTSTP)
            .map_err(TopError::Terminal)?;
        self.take()
    }

    /// Draws everything anew, also what something else has written there.
    ///
    /// # Errors
    /// [`TopError::Terminal`].
    pub(crate) fn redraw(&mut self) -> Result<(), TopError> {
        // `Terminal::clear` would ask the terminal where its cursor is, and the thread that reads keys has the answer.
        let size = self.terminal.size().map_err(TopError::Terminal)?;
        let area = Rect::new(0, 0, size.width, size.height);
        self.terminal.resize(area).map_err(TopError::Terminal)
    }

    /// Shows what is to be shown, as far as it differs from what is there.
    ///
    /// # Errors
    /// [`TopError::Terminal`].
    pub(crate) fn draw(&mut self, app: &mut App, look: Look) -> Result<(), TopError> {
        let drawn = self.terminal.draw(|frame| draw(frame, app, look));
        drawn.map(drop).map_err(TopError::Terminal)
    }
}

impl Drop for LiveTerminal {
    fn drop(&mut self) {
        leave();
    }
}

/// Gives the terminal back as it was. What cannot be said to it any more has nobody to read it.
fn leave() {
    let mut stdout = stdout();
    let _ = execute!(stdout, LeaveAlternateScreen, Show);
    let _ = stdout.flush();
    let _: io::Result<()> = disable_raw_mode();
}

/// Has a panic leave the terminal first, so that what it says can be read; one of another thread ends the process, which
/// would show nothing new any more.
fn leave_on_panic() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let main = thread::current().id();
        let before = panic::take_hook();
        panic::set_hook(Box::new(move |why| {
            leave();
            before(why);
            if thread::current().id() != main {
                std::process::exit(101);
            }
        }));
    });
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    /// Says that this is the process that is to panic.
    const PANICS: &str = "SEALDISK_TOP_PANICS";

    #[test]
    fn a_panic_is_told_after_the_terminal_is_given_back() {
        if std::env::var_os(PANICS).is_some() {
            let _terminal = LiveTerminal::enter().unwrap();
            panic!("as it is wanted");
        }
        // The same test once more, in a terminal.
        let test = "terminal::tests::a_panic_is_told_after_the_terminal_is_given_back";
        let program = std::env::current_exe().unwrap();
        let line = format!("exec '{}' --exact {test} --nocapture", program.display());
        let mut script = Command::new("script");
        script.args(["-qec", &line, "/dev/null"]).env(PANICS, "1");
        let output = script.env("TERM", "xterm").stdin(Stdio::null()).output();
        let said = String::from_utf8_lossy(&output.unwrap().stdout).into_owned();
        let at = |what: &str| said.find(what).unwrap_or_else(|| panic!("{said:?}"));
        let (taken, left) = (at("\x1b[?1049h"), at("\x1b[?1049l"));
        assert!(taken < left && left < at("as it is wanted"), "{said:?}");
        assert!(at("\x1b[?25h") < at("as it is wanted"), "{said:?}");
    }
}
