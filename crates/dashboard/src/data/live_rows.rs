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

use super::shared::{Part, Shared};
use super::views::item;
use live::{DiskRow, Histogram, Watcher, ask_events};

/// How often disks are asked.
const PERIOD: Duration = Duration::from_secs(2);
/// How long one may take to answer.
const PATIENCE: Duration = Duration::from_secs(5);
/// Seconds for which sums are kept.
const KEPT: i64 = 300;
/// Sums that are kept, whatever the clock says.
const MAX_TOTALS: usize = 200;
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
    let mut watcher = Watcher::new(runtime_dir.clone(), PATIENCE);
    let mut number = 0;
    // How many events of each disk were seen.
    let mut events = HashMap::new();
    let mut known = HashMap::new();
    let mut returns = shared.returns();
    loop {
        if let Some(names) = names(&shared) {
            known = names;
        }
        match watcher.look(&known).await {
            Ok(rows) => {
                number += 1;
                let own = own(&shared, &rows);
                put(&shared, (number, returns), rows, &own);
                ask_for_events(&shared, &own, &mut events).await;
            }
            Err(error) => put_unknown(&shared, returns, error),
        }
        shared.wait_beside(PERIOD, returns).await;
        let now = shared.returns();
        if now != returns {
            returns = now;
            // What disks did while nobody looked is no rate of now.
            watcher = Watcher::new(runtime_dir.clone(), PATIENCE);
        }
    }
}

/// The names of disks by their ids, of those that do not tell theirs, where they are known.
fn names(shared: &Shared) -> Option<HashMap<Uuid, String>> {
    let dependencies = shared.content().dependencies.clone()?;
    let resources = dependencies.resources.iter();
    let names = resources.map(|disk| (disk.unique_id, disk.name.clone()));
    Some(names.collect())
}

/// Those that are not known to be of another installation, which has the same runtime directory.
fn own(shared: &Shared, rows: &[DiskRow]) -> Vec<DiskRow> {
    let content = shared.content();
    let is_own = |row: &&DiskRow| !content.elsewhere.contains(&row.id);
    rows.iter().filter(is_own).cloned().collect()
}

/// Shows own disks, and keeps the answers of all.
fn put(shared: &Shared, (number, returns): (u64, u64), all: Vec<DiskRow>, rows: &[DiskRow]) {
    let items: Vec<_> = rows
        .iter()
        .map(|row| item(&row.id.to_string(), &view(row)))
        .collect();
    let time = OffsetDateTime::now_utc().unix_timestamp();
    let mut sum = serde_json::to_value(RatesView::sum(rows)).unwrap_or_default();
    sum["time"] = Value::from(time);
    // Of one answer there is no rate: a sum of none would be drawn as nothing that is done.
    let has_rates = rows.is_empty() || rows.iter().any(|row| row.rates.is_some());
    shared.put(Part::Rows, returns, |content| {
        content.live.put("rows", items);
        content.rows = Some(Ok(Arc::new(all)));
        if has_rates {
            content.totals.push((number, sum));
        }
        content.totals.retain(|(_, sum)| is_within(sum, time));
        let more = content.totals.len().saturating_sub(MAX_TOTALS);
        content.totals.drain(..more);
    });
}

/// Whether sums are of the last minutes, by the clock as it is now.
fn is_within(sum: &Value, now: i64) -> bool {
    let time = sum["time"].as_i64();
    time.is_some_and(|time| (now - KEPT..=now).contains(&time))
}

/// Shows no disk for one that is served when nobody knows whether it still is.
fn put_unknown(shared: &Shared, returns: u64, error: io::Error) {
    log::debug!("the attached disks cannot be found: {error}");
    shared.put(Part::Rows, returns, |content| {
        content.live.put("rows", iter::empty::<(String, Value)>());
        content.rows = Some(Err(Arc::new(error)));
    });
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
    use std::slice;

    use serde_json::json;

    use super::*;

    #[test]
    fn no_row_is_left_when_the_attached_disks_cannot_be_found() {
        let shared = Shared::new();
        assert!(shared.content().rows.is_none(), "nobody was asked yet");
        put(&shared, (1, 0), Vec::new(), &[]);
        assert!(matches!(&shared.content().rows, Some(Ok(rows)) if rows.is_empty()));
        let row = [("d".to_owned(), Value::from("served"))];
        shared.content().live.put("rows", row);
        let shown = || {
            let all = serde_json::to_value(shared.content().live.since("")).unwrap();
            all["sections"]["rows"]["put"]["d"].clone()
        };
        assert_eq!(shown(), "served");
        put_unknown(&shared, 0, io::ErrorKind::PermissionDenied.into());
        assert!(matches!(&shared.content().rows, Some(Err(_))));
        assert_eq!(shown(), Value::Null);
    }

    #[test]
    fn sums_are_of_the_last_minutes_and_of_rates() {
        let shared = Shared::new();
        let now = OffsetDateTime::now_utc().unix_timestamp();
        let of = |time: i64| (1, json!({ "time": time }));
        let (old, new, wrong) = (of(now - 2 * KEPT), of(now - 5), of(now + 2 * KEPT));
        shared.content().totals.extend([old, new, wrong]);
        // It has answered once: that is no rate.
        let row = DiskRow::unknown(Uuid::nil(), "/nowhere".into());
        put(&shared, (2, 0), vec![row.clone()], slice::from_ref(&row));
        assert_eq!(own(&shared, slice::from_ref(&row)).len(), 1);
        shared.content().elsewhere.insert(row.id);
        assert!(own(&shared, &[row]).is_empty(), "it is another one's");
        let totals = shared.content().totals.clone();
        assert_eq!(totals, [of(now - 5)], "not old, and the clock was wrong");
        put(&shared, (3, 0), Vec::new(), &[]);
        assert_eq!(shared.content().totals.len(), 2);
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
