//! The table of all disks.

use ratatui::Frame;
use ratatui::layout::Rect;
use ratatui::style::Style;
use ratatui::text::{Line, Span};

use super::header;
use super::text::{bottom, padded};
use crate::app::{App, Screen};
use crate::column::Column;
use crate::look::Look;
use live::{DiskRow, Standing};

/// Columns of a number, of a queue, and of a key.
const NUMBER: usize = 5;
const KEY: usize = 7;
/// The narrowest and the widest that a name is.
const NAME: (usize, usize) = (8, 40);
/// That a state is.
const STATE: (usize, usize) = (14, 24);
/// That a sparkline is.
const GRAPH: (usize, usize) = (6, 60);

/// How wide each column is, in a terminal that is so wide; those without any room are not there.
struct Widths {
    columns: Vec<(Column, usize)>,
    graph: usize,
}

impl Widths {
    /// Gives up columns from the least needed on, until the rest fits.
    fn of(width: usize, longest_name: usize) -> Self {
        let name = longest_name.clamp(NAME.0, NAME.1);
        let least = |column| match column {
            Column::Name => NAME.0,
            Column::Key => KEY,
            Column::Job => STATE.0,
            _ => NUMBER,
        };
        let mut columns: Vec<_> = Column::ALL.map(|column| (column, least(column))).into();
        let needed = |columns: &[(Column, usize)]| -> usize {
            columns.iter().map(|(_, width)| width + 1).sum()
        };
        for column in [
            Column::P50,
            Column::Read,
            Column::Write,
            Column::Job,
            Column::Queue,
            Column::P99,
            Column::Key,
            Column::Iops,
        ] {
            if needed(&columns) > width {
                columns.retain(|(one, _)| *one != column);
            }
        }
        let mut rest = width.saturating_sub(needed(&columns));
        // A sparkline has a little, then names, states, and sparklines again.
        let mut graph = if rest >= GRAPH.0 { GRAPH.0 } else { 0 };
        rest -= graph;
        for (column, width) in &mut columns {
            let most = match column {
                Column::Name => name,
                Column::Job => STATE.1,
                _ => continue,
            };
            let more = most.saturating_sub(*width).min(rest);
            *width += more;
            rest -= more;
        }
        if graph > 0 {
            graph = (graph + rest).min(GRAPH.1);
        }
        Self { columns, graph }
    }
}

pub(super) fn draw(frame: &mut Frame<'_>, area: Rect, app: &mut App, look: Look) {
    let above = header::draw(frame, area, app, look);
    let rows = std::mem::take(&mut app.rows);
    let shown = app.view.of(&rows);
    let longest = shown.iter().map(|row| row.name.chars().count()).max();
    let widths = Widths::of(usize::from(area.width), longest.unwrap_or_default());
    let titles = area.y + above;
    if titles < area.bottom() {
        let line = title_line(&widths, app, look);
        frame
            .buffer_mut()
            .set_line(area.x, titles, &line, area.width);
        let rest = Rect::new(area.x, titles, area.width, 1);
        frame.buffer_mut().set_style(rest, look.reversed());
    }
    // The titles, and the line about keys.
    let height = area.height.saturating_sub(above + 2);
    app.height = usize::from(height).max(1);
    let selected = app.selected_line(&shown);
    app.first = scroll(app.first, selected, app.height, shown.len());
    let lines = shown.iter().enumerate().skip(app.first);
    for (y, (number, row)) in (titles + 1..).zip(lines.take(usize::from(height))) {
        let line = disk_line(row, &widths, app, look);
        frame.buffer_mut().set_line(area.x, y, &line, area.width);
        if number == selected {
            let whole = Rect::new(area.x, y, area.width, 1);
            frame.buffer_mut().set_style(whole, look.reversed());
        }
    }
    if shown.is_empty() && height > 0 {
        let text = nothing(app, rows.is_empty());
        frame
            .buffer_mut()
            .set_string(area.x, titles + 1, text, Style::new());
    }
    let count = shown.len();
    app.rows = rows;
    bottom(frame, area, &keys(app, count, look), look);
}

/// The first line that is shown, so that the selected one is among them.
fn scroll(first: usize, selected: usize, height: usize, count: usize) -> usize {
    let first = first.min(count.saturating_sub(height));
    match selected {
        above if above < first => above,
        below if below >= first + height => below + 1 - height,
        _ => first,
    }
}

fn title_line(widths: &Widths, app: &App, look: Look) -> Line<'static> {
    let [up, down] = look.arrows();
    // Names are in their order, and all else from the highest on.
    let ascends = (app.view.sort == Column::Name) != app.view.reversed;
    let arrow = if ascends { up } else { down };
    let mut text = String::new();
    for (column, width) in &widths.columns {
        let title = column.title();
        let is_sorted = *column == app.view.sort;
        // The arrow takes the place of the space after the title.
        let (title, after) = match (is_sorted, column.has_numbers()) {
            (true, true) => (title.to_owned(), arrow),
            (true, false) => (format!("{title}{arrow}"), " "),
            (false, _) => (title.to_owned(), " "),
        };
        text += &padded(&title, *width, column.has_numbers(), look);
        text += after;
    }
    if widths.graph > 0 {
        text += &padded("IOPS", widths.graph, false, look);
    }
    Line::styled(text, look.heading())
}

fn disk_line(row: &DiskRow, widths: &Widths, app: &App, look: Look) -> Line<'static> {
    let style = look.standing(row.standing);
    let mut spans = Vec::new();
    for (column, width) in &widths.columns {
        let cell = column.cell(row, look.micro());
        let cell = padded(&cell, *width, column.has_numbers(), look) + " ";
        let style = match column {
            Column::Name | Column::Key | Column::Job => style,
            _ if matches!(row.standing, Standing::Silent | Standing::Asked) => style,
            _ => Style::new(),
        };
        spans.push(Span::styled(cell, style));
    }
    if let Some(history) = app.history(row.id).filter(|_| widths.graph > 0) {
        let line = history.sparkline(|moment| moment.requests, widths.graph, look);
        spans.push(Span::styled(line, look.graph()));
    }
    Line::from(spans)
}

fn nothing(app: &App, is_empty: bool) -> String {
    match &app.failure {
        Some(why) => format!("the disks cannot be found: {why}"),
        None if app.time.is_none() => "asking the attached disks".into(),
        None if is_empty => "no disk is attached with this --runtime-dir".into(),
        None => "no disk is as the filter wants it; Esc removes the filter".into(),
    }
}

/// The last line: the filter while it is written, else the keys.
fn keys(app: &App, shown: usize, look: Look) -> String {
    let filter = &app.view.filter;
    if let Screen::Filter(_) = app.screen {
        return format!("filter: {filter}_   Enter keep  Esc cancel  ({shown} shown)");
    }
    let [up, down] = look.arrows();
    let keys =
        format!("{up}{down} Enter disk  < > sort  r reverse  / filter  p pause  ? help  q quit");
    match filter.is_empty() {
        true => keys,
        false => format!(
            "filter '{filter}': {shown} of {}, Esc removes it  {keys}",
            app.rows.len()
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_fit_at_any_width() {
        for width in 0..250 {
            let widths = Widths::of(width, 30);
            let taken: usize = widths.columns.iter().map(|(_, width)| width + 1).sum();
            assert!(taken + widths.graph <= width.max(NAME.0 + 1), "{width}");
            let has = |column| widths.columns.iter().any(|(one, _)| *one == column);
            assert!(has(Column::Name));
            if width >= 80 {
                assert_eq!(widths.columns.len(), Column::ALL.len(), "{width}");
                assert!(widths.graph >= GRAPH.0);
            }
        }
    }

    #[test]
    fn the_selected_line_is_always_among_those_that_are_shown() {
        for count in 0..30 {
            for height in 1..12 {
                for selected in 0..count {
                    for before in [0, 3, 40] {
                        let first = scroll(before, selected, height, count);
                        assert!((first..first + height).contains(&selected));
                        assert!(first == 0 || first + height <= count);
                    }
                }
            }
        }
    }
}
