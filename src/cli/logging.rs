//! The log: on stderr for people, for programs that read JSON, and for systemd's journal.

use std::io::{self, Write};

use clap::ValueEnum;
use env_logger::{Builder, Env, Logger};
use log::{Level, LevelFilter, Log, Metadata, Record};
use rustix::fs::fstat;
use serde::Serialize;
use systemd_journal_logger::JournalLog;
use time::OffsetDateTime;

use sandbox::set_log_format;

/// How the log is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum LogFormat {
    /// Lines for people; where stderr is systemd's journal, with the priority that the journal takes
    Text,
    /// An object of JSON in each line
    Json,
    /// With fields into systemd's journal: PRIORITY, TARGET, CODE_FILE, CODE_LINE, SEALDISK_VERSION
    Journal,
}

impl LogFormat {
    /// As it is given.
    fn name(self) -> &'static str {
        match self {
            Self::Text => "text",
            Self::Json => "json",
            Self::Journal => "journal",
        }
    }
}

/// Starts the log of this process, and of those that it starts. One that is confined reaches the journal by its
/// stderr alone.
pub(super) fn start(verbose: u8, format: LogFormat, is_confined: bool) {
    set_log_format(format.name());
    let level = match verbose {
        0 => "warn",
        1 => "info",
        2 => "debug",
        _ => "trace",
    };
    let mut builder = Builder::from_env(Env::default().default_filter_or(level));
    // virtio_queue logs an error of its own for much that a guest can do wrong, as often as it does;
    // the data plane says the same things, but not without end.
    builder.filter_module("virtio_queue", LevelFilter::Off);
    match format {
        LogFormat::Journal => {
            if let Some(journal) = journal(is_confined) {
                return install(Journal {
                    filter: builder.build(),
                    journal,
                });
            }
            builder.format(prioritised)
        }
        LogFormat::Text if is_journal_stream() => builder.format(prioritised),
        LogFormat::Text => &mut builder,
        LogFormat::Json => builder.format(json),
    };
    // Initialising fails only when a logger is set already, which then logs.
    let _ = builder.try_init();
}

/// The journal, for what the filter lets through.
struct Journal {
    filter: Logger,
    journal: JournalLog,
}

/// `None` where it cannot be reached: its readers get what is on stderr then.
fn journal(is_confined: bool) -> Option<JournalLog> {
    let version = [("SEALDISK_VERSION", env!("CARGO_PKG_VERSION"))];
    let journal = (!is_confined).then(JournalLog::new)?.ok()?;
    Some(journal.with_extra_fields(version))
}

fn install(journal: Journal) {
    let level = journal.filter.filter();
    if log::set_boxed_logger(Box::new(journal)).is_ok() {
        log::set_max_level(level);
    }
}

impl Log for Journal {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        self.filter.enabled(metadata)
    }

    fn log(&self, record: &Record<'_>) {
        if self.filter.matches(record) {
            self.journal.log(record);
        }
    }

    fn flush(&self) {}
}

/// Whether stderr is what systemd has connected to its journal (systemd.exec(5), `JOURNAL_STREAM`).
fn is_journal_stream() -> bool {
    let Ok(stream) = std::env::var("JOURNAL_STREAM") else {
        return false;
    };
    fstat(io::stderr()).is_ok_and(|found| stream == format!("{}:{}", found.st_dev, found.st_ino))
}

/// A line with a priority before it, which the journal takes off (sd-daemon(3)); a message of several lines has it
/// before each.
fn prioritised(out: &mut impl Write, record: &Record<'_>) -> io::Result<()> {
    let priority = priority(record.level());
    let message = record.args().to_string();
    for line in message.lines() {
        writeln!(out, "<{priority}>{}: {line}", record.target())?;
    }
    Ok(())
}

/// Of syslog(3), as the journal's own logger has it.
fn priority(level: Level) -> u8 {
    match level {
        Level::Error => 3,
        Level::Warn => 4,
        Level::Info => 5,
        Level::Debug => 6,
        Level::Trace => 7,
    }
}

/// A record of the log.
#[derive(Serialize)]
struct Line<'a> {
    #[serde(with = "time::serde::rfc3339")]
    time: OffsetDateTime,
    level: &'static str,
    target: &'a str,
    message: String,
    process: u32,
}

/// An object in one line, whatever the message has.
fn json(out: &mut impl Write, record: &Record<'_>) -> io::Result<()> {
    let line = Line {
        time: OffsetDateTime::now_utc(),
        level: match record.level() {
            Level::Error => "error",
            Level::Warn => "warn",
            Level::Info => "info",
            Level::Debug => "debug",
            Level::Trace => "trace",
        },
        target: record.target(),
        message: record.args().to_string(),
        process: std::process::id(),
    };
    writeln!(out, "{}", serde_json::to_string(&line)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(
        write: fn(&mut Vec<u8>, &Record<'_>) -> io::Result<()>,
        level: Level,
        message: &str,
    ) -> String {
        let mut out = Vec::new();
        let arguments = format_args!("{message}");
        let record = Record::builder()
            .args(arguments)
            .level(level)
            .target("attach::guard")
            .build();
        write(&mut out, &record).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn a_line_of_json_is_valid_whatever_the_message_has() {
        for message in [
            "plain",
            "two\nlines",
            "\"quotes\" \\ {\u{0}\u{1b}[2J\u{2028}é}",
            "",
        ] {
            let line = written(json, Level::Error, message);
            assert_eq!(line.matches('\n').count(), 1, "{line}");
            let value: serde_json::Value = serde_json::from_str(&line).unwrap();
            assert_eq!(value["message"], message);
            assert_eq!(value["level"], "error");
            assert_eq!(value["target"], "attach::guard");
        }
    }

    #[test]
    fn each_line_for_the_journal_has_its_priority() {
        let said = written(prioritised, Level::Warn, "one\ntwo");
        assert_eq!(said, "<4>attach::guard: one\n<4>attach::guard: two\n");
        let said = written(prioritised, Level::Error, "x");
        assert_eq!(said, "<3>attach::guard: x\n");
    }
}
