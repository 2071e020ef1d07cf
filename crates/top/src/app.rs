//! What is shown, and what each key does.

use std::collections::HashMap;
use std::time::Duration;

use crossterm::event::{KeyCode, KeyEvent, KeyEventKind, KeyModifiers};
use time::OffsetDateTime;
use uuid::Uuid;

use crate::column::Column;
use crate::history::{History, Moment};
use crate::options::Options;
use crate::sampler::{Command, Sampled, Snapshot};
use crate::view::View;
use attach::ToldEvent;
use live::{DiskRow, Histogram};

/// The shortest and the longest time between two looks.
pub(crate) const INTERVALS: (Duration, Duration) =
    (Duration::from_millis(500), Duration::from_secs(60));

/// What is to be done about a key.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Action {
    /// End.
    Quit,
    /// Stop this process until its shell lets it go on.
    Suspend,
    /// Draw everything anew.
    Redraw,
    /// Tell the sampler.
    Tell(Command),
}

/// What is shown.
#[derive(Debug)]
pub(crate) struct App {
    pub(crate) host: String,
    pub(crate) interval: Duration,
    pub(crate) view: View,
    /// When the disks were last seen; nothing before the first time.
    pub(crate) time: Option<OffsetDateTime>,
    pub(crate) rows: Vec<DiskRow>,
    /// Why the disks cannot be found, if they cannot.
    pub(crate) failure: Option<String>,
    pub(crate) total: History,
    histories: HashMap<Uuid, History>,
    pub(crate) selected: Option<Uuid>,
    /// The first line that is shown of the table, or of what else is shown.
    pub(crate) first: usize,
    /// How many lines there were last.
    pub(crate) height: usize,
    pub(crate) screen: Screen,
    /// Nothing that is seen is shown.
    pub(crate) paused: bool,
}

/// What the terminal is for.
#[derive(Debug)]
pub(crate) enum Screen {
    /// All disks.
    Table,
    /// The same, while a filter is written; with the filter that there was before.
    Filter(String),
    /// A disk.
    Disk(Box<Page>),
    /// The keys.
    Help,
}

/// What is known of the disk that is shown, beside its row.
#[derive(Debug)]
pub(crate) struct Page {
    pub(crate) disk: Uuid,
    /// Its latencies since it is shown.
    pub(crate) reads: Histogram,
    pub(crate) writes: Histogram,
    /// Seconds of these.
    pub(crate) seconds: f64,
    /// Its events, or why they are not known.
    pub(crate) events: Result<Vec<ToldEvent>, String>,
}

impl Page {
    fn of(disk: Uuid) -> Self {
        Self {
            disk,
            reads: Histogram::default(),
            writes: Histogram::default(),
            seconds: 0.0,
            events: Ok(Vec::new()),
        }
    }

    fn add(&mut self, row: &DiskRow) {
        if let Some(rates) = &row.rates {
            self.reads = Histogram::sum([&self.reads, &rates.read.histogram]);
            self.writes = Histogram::sum([&self.writes, &rates.write.histogram]);
            self.seconds += rates.seconds;
        }
    }
}

impl App {
    pub(crate) fn new(options: &Options) -> Self {
        Self {
            host: options.host.clone(),
            interval: options.interval,
            view: options.view.clone(),
            time: None,
            rows: Vec::new(),
            failure: None,
            total: History::default(),
            histories: HashMap::new(),
            selected: None,
            first: 0,
            height: 1,
            screen: Screen::Table,
            paused: false,
        }
    }

    /// Takes what was seen.
    pub(crate) fn take(&mut self, sampled: Sampled) {
        match sampled {
            Sampled::Host(_) if self.paused => {}
            Sampled::Host(snapshot) => self.take_snapshot(snapshot),
            Sampled::Events(disk, events) => {
                if let Screen::Disk(page) = &mut self.screen
                    && page.disk == disk
                {
                    page.events = events;
                }
            }
        }
    }

    fn take_snapshot(&mut self, snapshot: Snapshot) {
        self.time = Some(snapshot.time);
        match snapshot.rows {
            Ok(rows) => (self.rows, self.failure) = (rows, None),
            Err(why) => (self.rows, self.failure) = (Vec::new(), Some(why)),
        }
        let mut total = Moment::default();
        let mut before = std::mem::take(&mut self.histories);
        for row in &self.rows {
            let moment = Moment::of(row.rates.as_ref());
            total.add(moment);
            let mut history = before.remove(&row.id).unwrap_or_default();
            history.push(moment);
            self.histories.insert(row.id, history);
        }
        self.total.push(total);
        if let Screen::Disk(page) = &mut self.screen
            && let Some(row) = self.rows.iter().find(|row| row.id == page.disk)
        {
            page.add(row);
        }
    }

    /// What a disk did before.
    pub(crate) fn history(&self, disk: Uuid) -> Option<&History> {
        self.histories.get(&disk)
    }

    /// Where the selected disk is among those that are shown. Of none, the first one is selected.
    pub(crate) fn selected_line(&self, shown: &[&DiskRow]) -> usize {
        let at = |id| shown.iter().position(|row| row.id == id);
        self.selected.and_then(at).unwrap_or_default()
    }

    /// Does what a key is for.
    pub(crate) fn key(&mut self, key: KeyEvent) -> Option<Action> {
        if key.kind == KeyEventKind::Release {
            return None;
        }
        if key.modifiers.contains(KeyModifiers::CONTROL) {
            return match key.code {
                KeyCode::Char('c') => Some(Action::Quit),
                KeyCode::Char('z') => Some(Action::Suspend),
                KeyCode::Char('l') => Some(Action::Redraw),
                _ => None,
            };
        }
        match self.screen {
            Screen::Filter(_) => {
                self.filter_key(key.code);
                None
            }
            Screen::Table => self.table_key(key.code),
            Screen::Disk(_) | Screen::Help => self.text_key(key.code),
        }
    }

    fn filter_key(&mut self, key: KeyCode) {
        let Screen::Filter(before) = &mut self.screen else {
            return;
        };
        match key {
            KeyCode::Char(c) if !c.is_control() => self.view.filter.push(c),
            KeyCode::Backspace => {
                self.view.filter.pop();
            }
            KeyCode::Esc => {
                self.view.filter = std::mem::take(before);
                self.screen = Screen::Table;
            }
            KeyCode::Enter => self.screen = Screen::Table,
            _ => {}
        }
        self.first = 0;
    }

    fn table_key(&mut self, key: KeyCode) -> Option<Action> {
        match key {
            KeyCode::Char('q') => return Some(Action::Quit),
            // A filter goes first, as an editor's selection does.
            KeyCode::Esc => self.view.filter.clear(),
            KeyCode::Char('?' | 'h') | KeyCode::F(1) => self.show(Screen::Help),
            KeyCode::Char('/') => {
                self.screen = Screen::Filter(self.view.filter.clone());
            }
            KeyCode::Char('<' | ',') | KeyCode::Left => self.view.next_column(false),
            KeyCode::Char('>' | '.') | KeyCode::Right => self.view.next_column(true),
            KeyCode::Char('r' | 'R') => self.view.reversed = !self.view.reversed,
            KeyCode::Char(c) if sort_key(c).is_some() => {
                if let Some(column) = sort_key(c) {
                    self.view.sort = column;
                    self.view.reversed = false;
                }
            }
            KeyCode::Char('p' | ' ') => self.paused = !self.paused,
            KeyCode::Char('+') => return Some(self.change_interval(2, 1)),
            KeyCode::Char('-') => return Some(self.change_interval(1, 2)),
            KeyCode::Enter => {
                let shown = self.view.of(&self.rows);
                let disk = shown.get(self.selected_line(&shown))?.id;
                self.selected = Some(disk);
                let mut page = Page::of(disk);
                if let Some(row) = self.rows.iter().find(|row| row.id == disk) {
                    page.add(row);
                }
                self.show(Screen::Disk(Box::new(page)));
                return Some(Action::Tell(Command::Follow(Some(disk))));
            }
            key => self.select(key),
        }
        None
    }

    /// Moves the selection.
    fn select(&mut self, key: KeyCode) {
        let shown = self.view.of(&self.rows);
        let Some(last) = shown.len().checked_sub(1) else {
            return;
        };
        let at = self.selected_line(&shown);
        let to = moved(key, at, last, self.height);
        if let Some(to) = to {
            self.selected = shown.get(to).map(|row| row.id);
        }
    }

    /// A key while text is shown that can be longer than the terminal.
    fn text_key(&mut self, key: KeyCode) -> Option<Action> {
        match key {
            KeyCode::Char('?' | 'h') | KeyCode::F(1) if !matches!(self.screen, Screen::Help) => {
                self.show(Screen::Help);
                return Some(Action::Tell(Command::Follow(None)));
            }
            KeyCode::Char('q')
            | KeyCode::Esc
            | KeyCode::Enter
            | KeyCode::Backspace
            | KeyCode::Left => {
                self.show(Screen::Table);
                return Some(Action::Tell(Command::Follow(None)));
            }
            KeyCode::Char('p' | ' ') => self.paused = !self.paused,
            key => {
                // Who draws knows where the end is.
                if let Some(to) = moved(key, self.first, usize::MAX / 2, self.height) {
                    self.first = to;
                }
            }
        }
        None
    }

    fn show(&mut self, screen: Screen) {
        self.screen = screen;
        self.first = 0;
    }

    fn change_interval(&mut self, times: u32, parts: u32) -> Action {
        let (shortest, longest) = INTERVALS;
        self.interval = (self.interval * times / parts).clamp(shortest, longest);
        Action::Tell(Command::Interval(self.interval))
    }
}

/// The column by which a letter sorts, as the capitals of top(1) do.
fn sort_key(key: char) -> Option<Column> {
    Some(match key {
        'N' => Column::Name,
        'I' => Column::Iops,
        'D' => Column::Read,
        'W' => Column::Write,
        'M' => Column::P50,
        'L' => Column::P99,
        'Q' => Column::Queue,
        'K' => Column::Key,
        'J' => Column::Job,
        _ => return None,
    })
}

/// Where a key moves from a line, of those up to the last one.
fn moved(key: KeyCode, at: usize, last: usize, height: usize) -> Option<usize> {
    let page = height.saturating_sub(1).max(1);
    let to = match key {
        KeyCode::Up | KeyCode::Char('k') => at.saturating_sub(1),
        KeyCode::Down | KeyCode::Char('j') => at + 1,
        KeyCode::PageUp => at.saturating_sub(page),
        KeyCode::PageDown => at + page,
        KeyCode::Home | KeyCode::Char('g') => 0,
        KeyCode::End | KeyCode::Char('G') => last,
        _ => return None,
    };
    Some(to.min(last))
}
