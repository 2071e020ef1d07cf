//! The lines above the table: all disks together.

use ratatui::Frame;
use ratatui::layout::Rect;
use ratatui::style::Style;
use ratatui::text::{Line, Span};
use unicode_width::UnicodeWidthStr;

use super::text::fit;
use crate::app::App;
use crate::batch::summary;
use crate::history::{History, Moment};
use crate::look::Look;
use crate::numbers::{count, megabytes};
use live::Standing;

/// From this height on the states of disks have a line of their own.
const TALL: u16 = 12;

/// Shows them in the first lines of an area; how many these are.
pub(super) fn draw(frame: &mut Frame<'_>, area: Rect, app: &App, look: Look) -> u16 {
    let width = usize::from(area.width);
    let states = Line::styled(fit(&states(app), width, look), worst(app, look));
    let throughput = || Line::from(throughput(&app.total, width, look));
    let lines = match area.height {
        TALL.. => vec![title(app, width, look), throughput(), states],
        6.. => vec![states, throughput()],
        _ => vec![states],
    };
    for (y, line) in (area.y..area.bottom()).zip(&lines) {
        frame.buffer_mut().set_line(area.x, y, line, area.width);
    }
    u16::try_from(lines.len()).unwrap_or_default()
}

fn title(app: &App, width: usize, look: Look) -> Line<'static> {
    let time = app.time.map(|time| time.time().as_hms());
    let time = time.map_or_else(String::new, |(hour, minute, second)| {
        format!("{hour:02}:{minute:02}:{second:02}Z")
    });
    let interval = app.interval.as_secs_f64();
    let paused = if app.paused { "  PAUSED" } else { "" };
    let host = &app.host;
    let text = format!("sealdisk top  {host}  {time}  every {interval} s{paused}");
    Line::styled(fit(&text, width, look), look.heading())
}

fn states(app: &App) -> String {
    match &app.failure {
        Some(why) => why.clone(),
        None if app.time.is_none() => "asking".into(),
        None => summary(app.rows.iter()),
    }
}

fn worst(app: &App, look: Look) -> Style {
    let worst = app.rows.iter().map(|row| row.standing).min();
    look.standing(worst.unwrap_or(Standing::Served))
}

/// What was read and written: numbers, and beside each a sparkline.
pub(super) fn throughput(history: &History, width: usize, look: Look) -> Vec<Span<'static>> {
    type Of = fn(&Moment) -> f64;
    type Text = fn(f64) -> String;
    let parts: [(&str, Text, Of); 3] = [
        ("IOPS", count, |moment| moment.requests),
        ("read MB/s", megabytes, |moment| moment.read),
        ("write MB/s", megabytes, |moment| moment.written),
    ];
    let now = history.now();
    let texts = parts.map(|(name, text, of)| format!("{name} {:>5} ", text(of(&now))));
    let taken: usize = texts.iter().map(|text| text.width()).sum();
    // Two columns between the parts.
    let graph = width.saturating_sub(taken + 4) / 3;
    let mut spans = Vec::new();
    for (number, (text, (_, _, of))) in texts.into_iter().zip(parts).enumerate() {
        if number > 0 {
            spans.push(Span::raw("  "));
        }
        spans.push(Span::raw(text));
        let line = history.sparkline(of, graph.min(60), look);
        spans.push(Span::styled(line, look.graph()));
    }
    spans
}
