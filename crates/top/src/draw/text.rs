//! Text of a certain width, and text that can be longer than the terminal.

use ratatui::Frame;
use ratatui::layout::Rect;
use ratatui::text::Line;
use unicode_width::UnicodeWidthStr;

use crate::look::Look;

/// Text that can be longer than the terminal, and under it a line about keys.
pub(super) fn scrolled(
    frame: &mut Frame<'_>,
    area: Rect,
    (first, height): (&mut usize, &mut usize),
    blocks: &[Vec<Line<'_>>],
    (keys, look): (&str, Look),
) {
    let Some(above) = area.height.checked_sub(1) else {
        return;
    };
    *height = usize::from(above).max(1);
    let longest = blocks.iter().map(Vec::len).max().unwrap_or_default();
    *first = (*first).min(longest.saturating_sub(*height));
    let count = u16::try_from(blocks.len()).unwrap_or(1).max(1);
    let width = area.width / count;
    for (number, block) in (0..).zip(blocks) {
        let x = area.x + width * number;
        let shown = block.iter().skip(*first).take(*height);
        for (y, line) in (area.y..).zip(shown) {
            // A column between two blocks.
            frame
                .buffer_mut()
                .set_line(x, y, line, width.saturating_sub(1));
        }
    }
    let more = longest > *first + *height;
    let more = if more { "more below  " } else { "" };
    bottom(frame, area, &format!("{more}{keys}"), look);
}

/// The last line.
pub(super) fn bottom(frame: &mut Frame<'_>, area: Rect, text: &str, look: Look) {
    if let Some(y) = area.bottom().checked_sub(1).filter(|y| *y >= area.y) {
        let text = fit(text, usize::from(area.width), look);
        let style = look.reversed();
        let text = format!("{text:<width$}", width = usize::from(area.width));
        frame.buffer_mut().set_string(area.x, y, text, style);
    }
}

/// A text that is at most so wide.
pub(super) fn fit(text: &str, width: usize, look: Look) -> String {
    if text.width() <= width {
        return text.to_owned();
    }
    let Some(room) = width.checked_sub(1) else {
        return String::new();
    };
    let mut fitting = String::new();
    for c in text.chars() {
        let mut longer = fitting.clone();
        longer.push(c);
        if longer.width() > room {
            break;
        }
        fitting = longer;
    }
    fitting + look.ellipsis()
}

/// A text that is just so wide; numbers at the right.
pub(super) fn padded(text: &str, width: usize, at_right: bool, look: Look) -> String {
    let text = fit(text, width, look);
    let room = " ".repeat(width.saturating_sub(text.width()));
    match at_right {
        true => room + &text,
        false => text + &room,
    }
}
