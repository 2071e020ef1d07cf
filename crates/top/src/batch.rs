//! The same table as plain text, for scripts and logs.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::thread;
use std::time::{Duration, Instant};

use serde::Serialize;
use time::OffsetDateTime;
use uuid::Uuid;

use crate::column::Column;
use crate::error::TopError;
use crate::history::Moment;
use crate::numbers::{count, megabytes};
use crate::options::Options;
use crate::sampler::{runtime, watcher};
use live::{DiskRow, Standing};

/// How soon it is heard that there is to be an end.
const LOOK: Duration = Duration::from_millis(100);

/// The disks of a host at a moment.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Iteration<'a> {
    /// When.
    #[serde(with = "time::serde::rfc3339")]
    pub time: OffsetDateTime,
    /// The host.
    pub host: &'a str,
    /// The disks that are shown, in their order.
    pub disks: Vec<&'a DiskRow>,
}

/// Gives the disks to `each` every interval, as often as `times` says or without an end, until `is_over` or `each` says
/// that it is over. Before the first time disks are asked twice, since a rate is of two answers.
///
/// # Errors
/// [`TopError`], and what `each` says.
pub fn iterations<E: From<TopError>>(
    options: &Options,
    times: Option<u64>,
    is_over: impl Fn() -> bool,
    mut each: impl FnMut(&Iteration<'_>) -> Result<(), E>,
) -> Result<(), E> {
    let runtime = runtime()?;
    let mut watcher = watcher(options);
    let names: &HashMap<Uuid, String> = &options.names;
    let mut look = || {
        let looked = runtime.block_on(watcher.look(names));
        looked.map_err(|source| TopError::RuntimeDir {
            path: options.runtime_dir.clone(),
            source,
        })
    };
    let mut next = Instant::now();
    look()?;
    let mut done = 0;
    while times.is_none_or(|times| done < times) {
        next += options.interval;
        // One that took longer than the interval is not caught up with.
        next = next.max(Instant::now());
        while Instant::now() < next {
            if is_over() {
                return Ok(());
            }
            thread::sleep(LOOK.min(next.saturating_duration_since(Instant::now())));
        }
        let rows = look()?;
        each(&Iteration {
            time: OffsetDateTime::now_utc(),
            host: &options.host,
            disks: options.view.of(&rows),
        })?;
        done += 1;
    }
    Ok(())
}

/// The disks as a table, with a line about all of them above.
pub fn table_text(iteration: &Iteration<'_>) -> String {
    let disks = &iteration.disks;
    let cells = |row: &DiskRow| Column::ALL.map(|column| column.cell(row, 'u'));
    let lines: Vec<_> = disks.iter().map(|row| cells(row)).collect();
    let width = |column: usize| {
        let cells = lines.iter().map(|line| line[column].chars().count());
        let title = Column::ALL[column].title().len();
        cells.chain([title]).max().unwrap_or_default()
    };
    let widths: Vec<_> = (0..Column::ALL.len()).map(width).collect();
    let time = iteration.time.time();
    let (hour, minute, second) = time.as_hms();
    let mut total = Moment::default();
    disks
        .iter()
        .for_each(|row| total.add(Moment::of(row.rates.as_ref())));
    // A `String` takes all that is written.
    let mut text = format!("{}  ", iteration.host);
    let _ = writeln!(
        text,
        "{hour:02}:{minute:02}:{second:02}Z  {}; {} IOPS, {} MB/s read, {} MB/s written",
        summary(disks.iter().copied()),
        count(total.requests),
        megabytes(total.read),
        megabytes(total.written),
    );
    let titles = Column::ALL.map(|column| column.title().to_owned());
    for line in [titles].iter().chain(&lines) {
        let mut told = String::new();
        for ((column, cell), width) in Column::ALL.iter().zip(line).zip(&widths) {
            let _ = match column.has_numbers() {
                true => write!(told, "{cell:>width$}  "),
                false => write!(told, "{cell:<width$}  "),
            };
        }
        text.push_str(told.trim_end());
        text.push('\n');
    }
    text
}

/// How many disks there are, and of how many there is something to know.
pub(crate) fn summary<'a>(rows: impl Iterator<Item = &'a DiskRow> + Clone) -> String {
    let total = rows.clone().count();
    let mut text = match total {
        1 => "1 disk".to_owned(),
        total => format!("{total} disks"),
    };
    let notable = [
        Standing::Silent,
        Standing::KeyRevoked,
        Standing::SpaceFull,
        Standing::Stalled,
        Standing::KeyUnreachable,
        Standing::JobHeldUp,
        Standing::Awaited,
        Standing::LetGo,
        Standing::Asked,
    ];
    for standing in notable {
        let count = rows.clone().filter(|row| row.standing == standing).count();
        if count > 0 {
            let _ = write!(text, ", {count} {}", standing.words());
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::samples::{host, now};
    use crate::view::View;

    fn iteration(rows: &[DiskRow]) -> Iteration<'_> {
        Iteration {
            time: now(),
            host: "host1",
            disks: View::all().of(rows),
        }
    }

    #[test]
    fn a_table_is_plain_lines_of_the_same_columns() {
        let rows = host();
        let text = table_text(&iteration(&rows));
        let lines: Vec<_> = text.lines().collect();
        assert!(
            lines[0].starts_with("host1  10:30:00Z  9 disks, 1 silent, 1 key revoked"),
            "{text}"
        );
        assert!(lines[1].starts_with("DISK "), "{text}");
        assert_eq!(lines.len(), 2 + rows.len(), "{text}");
        let web1: Vec<_> = lines
            .iter()
            .find(|line| line.starts_with("web1"))
            .unwrap()
            .split_whitespace()
            .collect();
        assert_eq!(web1[..4], ["web1", "1836", "19.7", "4.92"], "{text}");
        assert!(text.is_ascii(), "{text}");
        assert!(table_text(&iteration(&[])).contains("0 disks"));
    }

    #[test]
    fn nothing_that_a_terminal_obeys_is_printed() {
        let mut rows = host();
        rows[0].name = "a\x1b[2Jb".into();
        let text = table_text(&iteration(&rows));
        assert!(!text.contains('\x1b'), "{text:?}");
    }

    #[test]
    fn iterations_end_as_often_as_wanted_and_when_they_are_to() {
        let dir = std::env::temp_dir().join("there is no such directory");
        let options = Options {
            runtime_dir: dir,
            host: "host1".into(),
            names: HashMap::new(),
            interval: Duration::from_millis(20),
            view: View::all(),
        };
        let mut seen = 0;
        iterations::<TopError>(
            &options,
            Some(3),
            || false,
            |iteration| {
                seen += 1;
                assert!(iteration.disks.is_empty());
                Ok(())
            },
        )
        .unwrap();
        assert_eq!(seen, 3);
        iterations::<TopError>(&options, None, || true, |_| panic!("it is over")).unwrap();
        let file = Options {
            runtime_dir: "/proc/self/status".into(),
            ..options
        };
        let failed = iterations::<TopError>(&file, None, || false, |_| Ok(()));
        assert!(
            matches!(failed, Err(TopError::RuntimeDir { .. })),
            "{failed:?}"
        );
    }
}
