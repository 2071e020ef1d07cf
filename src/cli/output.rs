//! Printing: a table for people, JSON with Azure's field names for programs, from one value.

use std::io::{self, IsTerminal, Write};

use clap::ValueEnum;
use comfy_table::{ContentArrangement, Table, presets};
use serde::Serialize;
use serde_json::Value;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::CliError;

/// How results and errors are printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum OutputFormat {
    /// A table for people
    Table,
    /// JSON with the field names of the Azure API
    Json,
}

/// A view that has its own columns when many of it are listed as a table.
pub trait Tabular: Serialize {
    /// Column headings.
    const COLUMNS: &'static [&'static str];
    /// One cell for each heading.
    fn cells(&self) -> Vec<String>;
}

/// Prints in the wanted form. What is printed must be a view made for it, never a secret.
pub struct Output {
    format: OutputFormat,
}

impl Output {
    pub(super) fn new(format: OutputFormat) -> Self {
        Self { format }
    }

    /// The wanted form.
    pub fn format(&self) -> OutputFormat {
        self.format
    }

    /// Prints one thing: its fields line by line, or as a JSON object.
    ///
    /// # Errors
    /// When stdout cannot be written; a reader that went away is no error.
    pub fn show<T: Serialize>(&self, view: &T) -> Result<(), CliError> {
        match self.format {
            OutputFormat::Json => self.json(view),
            OutputFormat::Table => {
                let mut lines = Vec::new();
                let value = serde_json::to_value(view).map_err(unserialisable)?;
                flatten("", &value, &mut lines);
                let mut table = plain_table();
                for (name, value) in lines {
                    table.add_row([name, value]);
                }
                self.text(&table.trim_fmt())
            }
        }
    }

    /// Prints many things: a table with one line for each, or a JSON array.
    ///
    /// # Errors
    /// As [`Output::show`].
    pub fn list<T: Tabular>(&self, views: &[T]) -> Result<(), CliError> {
        match self.format {
            OutputFormat::Json => self.json(&views),
            OutputFormat::Table => {
                let mut table = plain_table();
                table.set_header(T::COLUMNS.iter().map(|name| name.to_uppercase()));
                for view in views {
                    table.add_row(view.cells().iter().map(|cell| printable(cell)));
                }
                self.text(&table.trim_fmt())
            }
        }
    }

    /// Prints many things, one line for each: in a table, or each a JSON object (JSON Lines), for
    /// lists that are long.
    ///
    /// # Errors
    /// As [`Output::show`].
    pub fn lines<T: Tabular>(&self, views: &[T]) -> Result<(), CliError> {
        if self.format == OutputFormat::Table {
            return self.list(views);
        }
        let lines: Result<Vec<_>, _> = views.iter().map(serde_json::to_string).collect();
        match lines.map_err(unserialisable)?.join("\n") {
            empty if empty.is_empty() => Ok(()),
            text => self.text(&text),
        }
    }

    /// Prints text as it is, with a newline at the end.
    ///
    /// # Errors
    /// As [`Output::show`].
    pub fn text(&self, text: &str) -> Result<(), CliError> {
        let mut stdout = io::stdout().lock();
        let written = writeln!(stdout, "{}", text.trim_end()).and_then(|()| stdout.flush());
        match written {
            // The command has done its work; that nobody reads on is no failure of it.
            Err(e) if e.kind() != io::ErrorKind::BrokenPipe => Err(CliError::new(
                "OutputError",
                format!("cannot write the result to stdout: {e}"),
            )),
            _ => Ok(()),
        }
    }

    /// Prints a line at once, for a reader that waits for it.
    ///
    /// # Errors
    /// When stdout cannot be written, also because its reader went away: there may be no end of
    /// lines to come.
    pub fn line(&self, line: &str) -> io::Result<()> {
        let mut stdout = io::stdout().lock();
        writeln!(stdout, "{line}").and_then(|()| stdout.flush())
    }

    /// A remark for people, on stderr.
    pub fn note(&self, text: &str) {
        // When stderr is gone there is nobody to tell.
        let _ = writeln!(io::stderr(), "{text}");
    }

    /// Asks for confirmation on the terminal before something that cannot be undone, unless `yes`.
    ///
    /// # Errors
    /// When the answer is not yes, and when there is no terminal to ask on.
    pub fn confirm(&self, question: &str, yes: bool) -> Result<(), CliError> {
        if yes {
            return Ok(());
        }
        if !io::stdin().is_terminal() {
            return Err(CliError::new(
                "ConfirmationRequired",
                format!("cannot ask without a terminal: '{question}'; give --yes to confirm"),
            ));
        }
        let mut answer = String::new();
        let asked = write!(io::stderr(), "{question} (y/n): ")
            .and_then(|()| io::stdin().read_line(&mut answer));
        match (asked, answer.trim().to_lowercase().as_str()) {
            (Ok(_), "y" | "yes") => Ok(()),
            _ => Err(CliError::new(
                "Cancelled",
                "not confirmed, nothing was changed",
            )),
        }
    }

    pub(super) fn error(&self, error: &CliError) {
        #[derive(Serialize)]
        struct View<'a> {
            code: &'a str,
            message: &'a str,
        }
        let view = View {
            code: &error.code,
            message: &error.message,
        };
        let line = match self.format {
            OutputFormat::Json => serde_json::to_string(&view).unwrap_or_default(),
            OutputFormat::Table => format!("error: {}", printable(&error.message)),
        };
        self.note(&line);
    }

    fn json<T: Serialize>(&self, view: &T) -> Result<(), CliError> {
        self.text(&serde_json::to_string_pretty(view).map_err(unserialisable)?)
    }
}

fn unserialisable(error: serde_json::Error) -> CliError {
    CliError::new("OutputError", format!("cannot form the result: {error}"))
}

fn plain_table() -> Table {
    let mut table = Table::new();
    table
        .load_preset(presets::NOTHING)
        .set_content_arrangement(ContentArrangement::Disabled);
    table
}

/// A text on one line, without what a terminal obeys: a path, a name in somebody's file or a message from
/// beneath may have any characters. JSON has them escaped.
pub(super) fn printable(text: &str) -> String {
    let plain = |c: char| if c.is_control() { ' ' } else { c };
    text.chars().map(plain).collect()
}

/// A moment as a table shows it: RFC 3339 in whole seconds, or `-`.
pub(super) fn time_cell(time: Option<OffsetDateTime>) -> String {
    let text = time.map(|time| time.truncate_to_second().format(&Rfc3339));
    text.and_then(Result::ok).unwrap_or_else(|| "-".into())
}

/// `{"a": {"b": 1}}` as the line `a.b 1`.
fn flatten(prefix: &str, value: &Value, lines: &mut Vec<(String, String)>) {
    match value {
        Value::Object(fields) => {
            for (name, value) in fields {
                let dot = if prefix.is_empty() { "" } else { "." };
                flatten(&format!("{prefix}{dot}{name}"), value, lines);
            }
        }
        Value::Array(items) if items.iter().all(|i| !i.is_object() && !i.is_array()) => {
            let items: Vec<String> = items.iter().map(scalar).collect();
            // Words need no more than a space; sentences do.
            let spaced = items.iter().any(|item| item.contains(char::is_whitespace));
            lines.push((prefix.into(), items.join(if spaced { "; " } else { " " })));
        }
        Value::Array(items) => {
            for (n, item) in items.iter().enumerate() {
                flatten(&format!("{prefix}[{n}]"), item, lines);
            }
        }
        scalar_value => lines.push((prefix.into(), scalar(scalar_value))),
    }
}

fn scalar(value: &Value) -> String {
    match value {
        Value::String(text) => printable(text),
        Value::Null => "-".into(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_that_a_terminal_obeys_is_printed() {
        let mut lines = Vec::new();
        let name = "a\u{1b}[2Jb\r\nc\u{9b}d";
        flatten(
            "",
            &serde_json::json!({"name": name, "all": [name]}),
            &mut lines,
        );
        let expected = "a [2Jb  c d".to_owned();
        assert_eq!(
            lines.iter().map(|(_, text)| text).collect::<Vec<_>>(),
            [&expected; 2]
        );
        assert_eq!(printable(name), expected);
    }

    #[test]
    fn nested_fields_become_lines() {
        let mut lines = Vec::new();
        let value = serde_json::json!({
            "key": {"kid": "u", "key_ops": ["wrapKey", "unwrapKey"]},
            "policies": [{"id": 1}],
            "none": null,
            "said": ["one thing", "another"],
        });
        flatten("", &value, &mut lines);
        let lines: Vec<String> = lines.iter().map(|(n, v)| format!("{n}={v}")).collect();
        for expected in [
            "key.kid=u",
            "key.key_ops=wrapKey unwrapKey",
            "policies[0].id=1",
            "none=-",
            "said=one thing; another",
        ] {
            assert!(
                lines.iter().any(|l| l == expected),
                "{expected} in {lines:?}"
            );
        }
    }
}
