//! What attached disks do, for as long as somebody looks at the page.

use std::collections::HashMap;
use std::io;
use std::iter;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use serde_json::Value;
use time::OffsetDateTime;
use uuid::Uuid;

use super::shared::Shared;
use super::views::item;
use live::{DiskRow, Histogram, Watcher, ask_events};

/// How often disks are asked.
const PERIOD: Duration = Duration::from_secs(2);
/// How long one may take to answer.
const PATIENCE: Duration = Duration::from_secs(5);
/// Sums that are kept: five minutes.
const MAX_TOTALS: usize = 150;
/// Disks that are asked for their events at a look.
const MAX_ASKED: usize = 16;

/// An attached disk now, in numbers that stay the same while nothing happens.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct RowView<'a> {
    name: &'a str,
    standing: live::Standing,
    words: &'static str,
    silent: Option<&'a str>,
    reason: Option<String>,
    key: Option<&'a str>,
    since: Option<i64>,
    until: Option<i64>,
    #[serde(flatten)]
    rates: RatesView,
    in_flight: Option<u64>,
    errors: Option<u64>,
    job: Option<&'a attach::JobStatus>,
    restarts: u64,
    version: Option<&'a str>,
}

/// Requests and bytes a second, latencies in microseconds.
#[derive(Debug, Clone, Copy, Default, Serialize)]
#[serde(rename_all = "camelCase")]
struct RatesView {
    reads: f64,
    writes: f64,
    read_bytes: f64,
    write_bytes: f64,
    p50: Option<f64>,
    p99: Option<f64>,
}

impl RatesView {
    fn of(rates: &live::Rates) -> Self {
        Self {
            reads: rounded(rates.read.requests),
            writes: rounded(rates.write.requests),
            read_bytes: rounded(rates.read.bytes),
            write_bytes: rounded(rates.write.bytes),
            p50: rates.io.p50.map(micros),
            p99: rates.io.p99.map(micros),
        }
    }

    /// Of all disks together.
    fn sum(rows: &[DiskRow]) -> Self {
        let rates = || rows.iter().filter_map(|row| row.rates.as_ref());
        let sum = |of: fn(&live::Rates) -> f64| rounded(rates().map(of).sum());
        let all = Histogram::sum(rates().map(|rates| &rates.io.histogram));
        Self {
            reads: sum(|rates| rates.read.requests),
            writes: sum(|rates| rates.write.requests),
            read_bytes: sum(|rates| rates.read.bytes),
            write_bytes: sum(|rates| rates.write.bytes),
            p50: all.quantile(0.5).map(micros),
            p99: all.quantile(0.99).map(micros),
        }
    }
}

/// Asks all attached disks again and again.
pub(crate) async fn watch_disks(shared: Arc<Shared>, runtime_dir: PathBuf) {
    let mut watcher = Watcher::new(runtime_dir, PATIENCE);
    let mut number = 0;
    // How many events of each disk were seen.
    let mut events = HashMap::new();
    loop {
        let names = names(&shared);
        match watcher.look(&names).await {
            Ok(rows) => {
                number += 1;
                put(&shared, number, &rows);
                ask_for_events(&shared, &rows, &mut events).await;
            }
            Err(error) => put_unknown(&shared, error),
        }
        shared.wait_beside(PERIOD).await;
    }
}

/// The names of disks by their ids, of those that do not tell theirs.
fn names(shared: &Shared) -> HashMap<Uuid, String> {
    let dependencies = shared.content().dependencies.clone();
    let resources = dependencies.iter().flat_map(|seen| &seen.resources);
    resources
        .map(|disk| (disk.unique_id, disk.name.clone()))
        .collect()
}

fn put(shared: &Shared, number: u64, rows: &[DiskRow]) {
    let items: Vec<_> = rows
        .iter()
        .map(|row| item(&row.id.to_string(), &view(row)))
        .collect();
    let time = OffsetDateTime::now_utc().unix_timestamp();
    let mut sum = serde_json::to_value(RatesView::sum(rows)).unwrap_or_default();
    sum["time"] = Value::from(time);
    let rows = Arc::new(rows.to_vec());
    let mut content = shared.content();
    content.live.put("rows", items);
    content.rows = Some(Ok(rows));
    content.totals.push((number, sum));
    if content.totals.len() > MAX_TOTALS {
        content.totals.remove(0);
    }
}

/// Shows no disk for one that is served when nobody knows whether it still is.
fn put_unknown(shared: &Shared, error: io::Error) {
    log::debug!("the attached disks cannot be found: {error}");
    let mut content = shared.content();
    content.live.put("rows", iter::empty::<(String, Value)>());
    content.rows = Some(Err(Arc::new(error)));
}

fn view(row: &DiskRow) -> RowView<'_> {
    let key = row.key.as_ref();
    let serving = row.serving.as_ref();
    RowView {
        name: &row.name,
        standing: row.standing,
        words: row.standing.words(),
        silent: row.silent.as_deref(),
        reason: key.and_then(|key| Some(key.reason.as_ref()?.to_string())),
        key: key.map(|key| key.url.as_str()),
        since: key.map(|key| key.since.unix_timestamp()),
        until: key.and_then(|key| Some(key.until?.unix_timestamp())),
        rates: row.rates.as_ref().map(RatesView::of).unwrap_or_default(),
        in_flight: row.in_flight,
        errors: row.errors,
        job: row.job.as_ref(),
        restarts: serving.map_or(0, |serving| serving.restarts),
        version: serving.map(|serving| serving.version.as_str()),
    }
}

/// Asks those disks for their events that have new ones, a few at each look.
async fn ask_for_events(shared: &Shared, rows: &[DiskRow], seen: &mut HashMap<Uuid, u64>) {
    seen.retain(|id, _| rows.iter().any(|row| row.id == *id));
    let has_new = |row: &&DiskRow| row.events != seen.get(&row.id).copied().unwrap_or_default();
    let with_new: Vec<_> = rows.iter().filter(has_new).take(MAX_ASKED).collect();
    for row in with_new {
        match ask_events(&row.socket, PATIENCE).await {
            Ok(events) => {
                seen.insert(row.id, row.events);
                let mut content = shared.content();
                content.timeline.add_events(row.id, &row.name, events);
            }
            Err(why) => log::debug!("the disk {} does not tell its events: {why}", row.name),
        }
    }
}

/// Three digits: more would differ at each look, and say nothing.
fn rounded(number: f64) -> f64 {
    if !number.is_finite() || number <= 0.0 {
        return 0.0;
    }
    let scale = 10f64.powi(2 - number.log10().floor() as i32);
    (number * scale).round() / scale
}

fn micros(seconds: f64) -> f64 {
    rounded(seconds * 1e6)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_row_is_left_when_the_attached_disks_cannot_be_found() {
        let shared = Shared::new();
        assert!(shared.content().rows.is_none(), "nobody was asked yet");
        put(&shared, 1, &[]);
        assert!(matches!(&shared.content().rows, Some(Ok(rows)) if rows.is_empty()));
        let row = [("d".to_owned(), Value::from("served"))];
        shared.content().live.put("rows", row);
        let shown = || {
            let all = serde_json::to_value(shared.content().live.since("")).unwrap();
            all["sections"]["rows"]["put"]["d"].clone()
        };
        assert_eq!(shown(), "served");
        put_unknown(&shared, io::ErrorKind::PermissionDenied.into());
        assert!(matches!(&shared.content().rows, Some(Err(_))));
        assert_eq!(shown(), Value::Null);
    }

    #[test]
    fn numbers_have_three_digits() {
        for (number, expected) in [
            (0.0, 0.0),
            (123_456.0, 123_000.0),
            (0.012_345, 0.0123),
            (999.9, 1000.0),
            (f64::NAN, 0.0),
            (f64::INFINITY, 0.0),
            (-3.0, 0.0),
        ] {
            assert_eq!(rounded(number), expected, "{number}");
        }
    }
}
