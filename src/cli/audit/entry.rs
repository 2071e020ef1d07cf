//! Records as they are listed.

use serde::Serialize;

use crate::cli::Tabular;
use crate::cli::output::{NOTHING, text_cell, version_cell};
use vault::audit::{Counter, Entry, Event};

/// A record in a list.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub struct EntryView {
    #[serde(skip_serializing_if = "Option::is_none")]
    log: Option<String>,
    /// It is a counter that becomes a record later.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    counting: bool,
    #[serde(flatten)]
    entry: EntryFields,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct EntryFields {
    /// `None` for a counter.
    seq: Option<u64>,
    time: String,
    #[serde(flatten)]
    event: Event,
    outcome: &'static str,
}

impl EntryView {
    pub(in crate::cli) fn new(log: Option<String>, entry: Entry) -> Self {
        Self {
            log,
            counting: false,
            entry: EntryFields {
                seq: Some(entry.seq),
                time: entry.time,
                outcome: match entry.event.code {
                    None => "allowed",
                    Some(_) => "refused",
                },
                event: entry.event,
            },
        }
    }

    pub(super) fn counted(log: Option<String>, counter: Counter) -> Self {
        let entry = Entry {
            seq: 0,
            time: counter.last.clone().unwrap_or_default(),
            event: Event {
                detail: Some(counter.detail()),
                ..counter.event
            },
        };
        let mut view = Self::new(log, entry);
        (view.counting, view.entry.seq) = (true, None);
        view
    }
}

impl Tabular for EntryView {
    const COLUMNS: &'static [&'static str] = &[
        "log",
        "seq",
        "time",
        "caller",
        "origin",
        "operation",
        "key",
        "version",
        "disk",
        "outcome",
        "code",
        "detail",
    ];

    const FIELDS: &'static [&'static str] = &[
        "log",
        "counting",
        "seq",
        "time",
        "caller",
        "origin",
        "operation",
        "key",
        "version",
        "disk",
        "detail",
        "code",
        "outcome",
    ];

    fn cells(&self) -> Vec<String> {
        let optional = |text: &Option<String>| text.clone().unwrap_or_else(|| NOTHING.into());
        let (entry, event) = (&self.entry, &self.entry.event);
        vec![
            optional(&self.log),
            entry
                .seq
                .map_or_else(|| NOTHING.into(), |seq| seq.to_string()),
            text_cell(&entry.time),
            event.caller.clone(),
            event.origin.clone(),
            event.operation.clone(),
            optional(&event.key),
            optional(&event.version.as_deref().map(version_cell)),
            optional(&event.disk),
            entry.outcome.into(),
            optional(&event.code),
            optional(&event.detail),
        ]
    }
}
