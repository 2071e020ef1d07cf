//! How things are shown.

mod header;
mod help;
mod page;
mod table;
mod text;

use ratatui::Frame;

use crate::app::{App, Screen};
use crate::look::Look;

/// Shows what is to be shown.
pub(crate) fn draw(frame: &mut Frame<'_>, app: &mut App, look: Look) {
    let area = frame.area();
    match app.screen {
        Screen::Table | Screen::Filter(_) => table::draw(frame, area, app, look),
        Screen::Disk(_) => page::draw(frame, area, app, look),
        Screen::Help => help::draw(frame, area, app, look),
    }
}

#[cfg(test)]
mod tests;
