//! One disk by itself.

use ratatui::Frame;
use ratatui::layout::Rect;
use ratatui::text::{Line, Span};
use time::OffsetDateTime;

use super::header::throughput;
use super::text::{fit, scrolled};
use crate::app::{App, Page, Screen};
use crate::column::progress;
use crate::look::Look;
use crate::numbers::{NOTHING, count, duration, latency, megabytes};
use attach::{DekState, KeyState, Offered};
use live::{DiskRow, Histogram, KeyRow, OpRates, size_text};
use protocol::io_counters::{BUCKETS, bucket_end};
use protocol::{Limits, Line as OneLine};

/// From this width on there are two blocks beside each other.
const WIDE: u16 = 140;
/// Buckets of a line of the histogram: a power of two.
const BUCKETS_OF_LINE: usize = 4;

pub(super) fn draw(frame: &mut Frame<'_>, area: Rect, app: &mut App, look: Look) {
    let wide = area.width >= WIDE;
    let width = usize::from(if wide { area.width / 2 } else { area.width });
    let width = width.saturating_sub(1);
    let mut blocks = blocks(app, width, look);
    if !wide {
        blocks = vec![blocks.concat()];
    }
    let keys = ("q back  p pause  ? help", look);
    scrolled(
        frame,
        area,
        (&mut app.first, &mut app.height),
        &blocks,
        keys,
    );
}

/// What the disk does and is; and its latencies, layers and events.
fn blocks(app: &App, width: usize, look: Look) -> Vec<Vec<Line<'static>>> {
    let Screen::Disk(page) = &app.screen else {
        return Vec::new();
    };
    let text = Text { width, look };
    let Some(row) = app.rows.iter().find(|row| row.id == page.disk) else {
        let gone = format!("the disk {} is not attached here any more", page.disk);
        return vec![vec![text.heading(&gone)]];
    };
    let now = app.time.unwrap_or(OffsetDateTime::UNIX_EPOCH);
    let mut facts = vec![text.title(row, app.paused)];
    if let Some(history) = app.history(row.id) {
        facts.push(Line::from(throughput(history, width, look)));
    }
    facts.extend(text.operations(row));
    facts.extend(text.queue(row));
    facts.extend(text.key(row.key.as_ref(), now));
    facts.extend(text.job(row));
    facts.extend(text.serving(row.serving.as_ref(), now));
    let mut rest = text.histogram(page);
    rest.extend(text.layers(row));
    rest.extend(text.events(page));
    vec![facts, rest]
}

/// How lines are made.
struct Text {
    width: usize,
    look: Look,
}

impl Text {
    /// A name, and what there is to say; without what a terminal obeys, since other processes say it.
    fn line(&self, name: &str, what: &str) -> Line<'static> {
        let what = OneLine::of(&what);
        let text = format!("{name:<9}{}", what.as_str());
        Line::raw(fit(text.trim_end(), self.width, self.look))
    }

    fn heading(&self, text: &str) -> Line<'static> {
        Line::styled(fit(text, self.width, self.look), self.look.heading())
    }

    fn title(&self, row: &DiskRow, paused: bool) -> Line<'static> {
        let name = OneLine::of(&row.name);
        let size = row.size_bytes.map_or_else(String::new, size_text);
        let paused = if paused { "  PAUSED" } else { "" };
        let left = format!("{}  {size}  ", name.as_str());
        let standing = row.standing.words();
        let why = row.silent.as_ref().map(|why| format!(": {why}"));
        let right = OneLine::of(&format!("{standing}{}{paused}", why.unwrap_or_default()));
        let room = self.width.saturating_sub(left.chars().count());
        Line::from(vec![
            Span::styled(left, self.look.heading()),
            Span::styled(
                fit(right.as_str(), room, self.look),
                self.look.standing(row.standing),
            ),
        ])
    }

    fn operations(&self, row: &DiskRow) -> Vec<Line<'static>> {
        let title = format!(
            "{:<9}{:>8}{:>8}{:>10}{:>8}{:>8}",
            "", "req/s", "MB/s", "failed/s", "P50", "P99"
        );
        let mut lines = vec![self.heading(&title)];
        let Some(rates) = &row.rates else {
            lines.push(self.line("", "no rates: two answers in a row are needed"));
            return lines;
        };
        let operations = [
            ("read", &rates.read),
            ("write", &rates.write),
            ("flush", &rates.flush),
            ("other", &rates.other),
        ];
        let line = |(name, of): (&str, &OpRates)| {
            let bytes = match name {
                "flush" => NOTHING.into(),
                _ => megabytes(of.bytes),
            };
            let text = format!(
                "{name:<9}{:>8}{bytes:>8}{:>10}{:>8}{:>8}",
                count(of.requests),
                count(of.errors),
                latency(of.p50, self.look.micro()),
                latency(of.p99, self.look.micro()),
            );
            Line::raw(fit(&text, self.width, self.look))
        };
        lines.extend(operations.map(line));
        lines
    }

    fn queue(&self, row: &DiskRow) -> Vec<Line<'static>> {
        let mut lines = Vec::new();
        if let Some(in_flight) = row.in_flight {
            let waiting = row.wait_for_space.unwrap_or_default();
            let errors = row.errors.unwrap_or_default();
            let text = format!(
                "{in_flight} in flight, {waiting} of them wait for space; {errors} failed since the attach"
            );
            lines.push(self.line("queue", &text));
        }
        if let Some(limits) = &row.limits {
            let mut text = limits_text(limits);
            if let Some(rates) = row.rates.as_ref().filter(|rates| rates.limit_waits > 0.0) {
                let share = rates.limit_wait_seconds * 100.0;
                text += &format!(
                    "; {} waits/s for them, {share:.0} % of the time",
                    count(rates.limit_waits)
                );
            }
            lines.push(self.line("limits", &text));
        }
        lines
    }

    fn key(&self, key: Option<&KeyRow>, now: OffsetDateTime) -> Vec<Line<'static>> {
        let Some(key) = key else {
            return Vec::new();
        };
        let ago = |time: OffsetDateTime| duration((now - time).whole_seconds());
        let state = match key.state {
            KeyState::Active => "active",
            KeyState::KeyUnreachable => "unreachable",
            KeyState::KeyRevoked => "revoked",
        };
        let mut text = format!(
            "{state} for {}, last granted {} ago",
            ago(key.since),
            ago(key.last_granted)
        );
        if let Some(until) = key.until {
            let left = duration((until - now).whole_seconds());
            text += &format!(", {left} of grace left");
        }
        text += match key.dek {
            DekState::Held => "",
            DekState::BeingDestroyed => ", the DEK is being destroyed",
            DekState::Destroyed => ", the DEK is destroyed",
            DekState::BeingRestored => ", the DEK is being restored",
            DekState::Absent => ", the DEK is not unwrapped yet",
        };
        let mut lines = vec![self.line("key", &text), self.line("", &key.url)];
        if let Some(reason) = &key.reason {
            lines.push(self.line("", &reason.to_string()));
        }
        lines
    }

    fn job(&self, row: &DiskRow) -> Option<Line<'static>> {
        let job = row.job.as_ref()?;
        let (done, total) = (size_text(job.bytes_done), size_text(job.bytes_total));
        let mut text = format!("{}: {done} of {total}", progress(job));
        if let Some(error) = &job.error {
            text += &format!("; it is tried again: {error}");
        }
        Some(self.line("job", &text))
    }

    fn serving(&self, serving: Option<&Offered>, now: OffsetDateTime) -> Vec<Line<'static>> {
        let Some(serving) = serving else {
            return Vec::new();
        };
        let memory = size_text(serving.memory_bytes);
        let (version, queues) = (&serving.version, serving.queues);
        let text = format!("version {version}, {queues} queues, up to {memory} for requests");
        let mut lines = vec![self.line("served", &text)];
        if let Some(last) = &serving.last_restart {
            let ago = duration((now - last.time).whole_seconds());
            let text = format!(
                "{} restarts, the last one {ago} ago: {}",
                serving.restarts, last.reason
            );
            lines.push(self.line("", &text));
        }
        lines
    }

    /// The latencies of reads and writes, each with a bar.
    fn histogram(&self, page: &Page) -> Vec<Line<'static>> {
        let seconds = duration(page.seconds as i64);
        let mut lines = vec![self.heading(&format!("latency within {seconds}"))];
        let (reads, writes) = (powers(&page.reads), powers(&page.writes));
        let both = || reads.iter().zip(&writes).enumerate();
        let used = || both().filter(|(_, (reads, writes))| **reads > 0 || **writes > 0);
        let (Some((first, _)), Some((last, _))) = (used().next(), used().next_back()) else {
            lines.push(self.line("", "no reads and no writes"));
            return lines;
        };
        // A border, and twice a count and a bar.
        let bar = (self.width.saturating_sub(9 + 2 * 8) / 2).min(40);
        let title = format!("{:<9}{:>7} {:<bar$}{:>7}", "up to", "reads", "", "writes");
        lines.push(Line::raw(fit(&title, self.width, self.look)));
        let highest = |counts: &[u64]| counts.iter().copied().max().unwrap_or_default();
        let highest = (highest(&reads), highest(&writes));
        for (power, (reads, writes)) in both().skip(first).take(last + 1 - first) {
            let end = bucket_end((power * BUCKETS_OF_LINE).min(BUCKETS - 1));
            let border = match end.is_finite() {
                true => latency(Some(end), self.look.micro()),
                false => "more".into(),
            };
            let style = self.look.graph();
            let bar = |count: u64, highest: u64| {
                let cells = match highest {
                    0 => 0.0,
                    highest => (count as f64 / highest as f64 * bar as f64).ceil(),
                };
                let full: String = std::iter::repeat_n(self.look.full(), cells as usize).collect();
                Span::styled(format!("{full:<bar$}"), style)
            };
            lines.push(Line::from(vec![
                Span::raw(format!("{border:<9}{:>7} ", count(*reads as f64))),
                bar(*reads, highest.0),
                Span::raw(format!("{:>7} ", count(*writes as f64))),
                bar(*writes, highest.1),
            ]));
        }
        lines
    }

    fn layers(&self, row: &DiskRow) -> Vec<Line<'static>> {
        let title = match row.layers.len() {
            0 => return Vec::new(),
            1 => "1 layer".to_owned(),
            count => format!("{count} layers, the top one first"),
        };
        let mut lines = vec![self.heading(&title)];
        for layer in row.layers.iter().rev() {
            let size = size_text(layer.size_bytes);
            let set = match &layer.disk_encryption_set {
                Some(set) => format!("set {set}"),
                None => "platform-managed key".into(),
            };
            let (id, ..) = layer.id.as_fields();
            let name = format!("{id:08x}");
            lines.push(self.line(&name, &format!("{size:<9} {set}  {}", layer.key_url)));
        }
        lines
    }

    /// The events, the newest first.
    fn events(&self, page: &Page) -> Vec<Line<'static>> {
        let mut lines = vec![self.heading("events, the newest first")];
        match &page.events {
            Err(why) => lines.push(self.line("", &format!("not known: {why}"))),
            Ok(events) => {
                for event in events.iter().rev() {
                    let (hour, minute, second) = event.time.time().as_hms();
                    let time = format!("{hour:02}:{minute:02}:{second:02}");
                    let text = match event.message.is_empty() {
                        true => event.event.clone(),
                        false => format!("{}: {}", event.event, event.message),
                    };
                    lines.push(self.line(&time, &text));
                }
            }
        }
        lines
    }
}

/// How many latencies there are up to each power of two.
fn powers(histogram: &Histogram) -> Vec<u64> {
    let mut counts = vec![0u64; BUCKETS.div_ceil(BUCKETS_OF_LINE) + 1];
    for (bucket, count) in &histogram.buckets {
        let power = usize::from(*bucket).div_ceil(BUCKETS_OF_LINE);
        if let Some(sum) = counts.get_mut(power) {
            *sum = sum.saturating_add(*count);
        }
    }
    counts
}

fn limits_text(limits: &Limits) -> String {
    let iops = limits.iops.map(|limit| format!("{limit} IOPS"));
    let bandwidth = limits.bandwidth;
    let bandwidth = bandwidth.map(|limit| format!("{}/s", size_text(limit)));
    let parts: Vec<_> = iops.into_iter().chain(bandwidth).collect();
    match parts.is_empty() {
        true => "none".into(),
        false => parts.join(", "),
    }
}
