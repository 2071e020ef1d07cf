//! Printing, all of it: for people a table, for programs the form that they choose, of one value.

mod cells;
mod format;
mod json;
mod printable;
mod query;
mod table;
mod tsv;
mod yaml;

use std::io::{self, IsTerminal, Write};

use rustix::fs::{FileType, major, minor};
use serde::Serialize;
use serde_json::Value;

use super::CliError;

pub(super) use cells::{
    NOTHING, key_cell, optional_size_cell, size_cell, text_cell, time_cell, vault_of, version_cell,
};
pub use format::OutputFormat;
pub(super) use printable::printable;
pub(super) use query::Query;

/// A view that has its own columns when many of it are listed as a table.
pub trait Tabular: Serialize {
    /// Column headings.
    const COLUMNS: &'static [&'static str];
    /// All fields that its JSON may have, in their order, where some are left out of it that have nothing to say: with
    /// `-o tsv` each is a column.
    const FIELDS: &'static [&'static str] = &[];
    /// One cell for each heading.
    fn cells(&self) -> Vec<String>;
}

/// Prints in the wanted form. What is printed must be a view made for it, never a secret.
pub struct Output {
    format: OutputFormat,
    query: Option<Query>,
    /// What to do when a result could not be written that nobody keeps.
    remedy: Option<String>,
}

impl Output {
    pub(super) fn new(format: OutputFormat, query: Option<Query>) -> Self {
        Self {
            format,
            query,
            remedy: None,
        }
    }

    /// Whether a result is read by people as it is: a command may say it in its own words then.
    pub fn is_for_people(&self) -> bool {
        self.format == OutputFormat::Table && self.query.is_none()
    }

    /// Prints one thing: its fields line by line, or as an object.
    ///
    /// # Errors
    /// When stdout cannot be written; a reader that went away is no error. When the query does not fit the result.
    pub fn show<T: Serialize>(&self, view: &T) -> Result<(), CliError> {
        self.result(&value(view)?)
    }

    /// The same for what is printed once and kept by nobody: that its reader went away is an error too, and `remedy` says
    /// what to do when it could not be printed.
    ///
    /// # Errors
    /// As [`Output::show`].
    pub fn show_once<T: Serialize>(&self, view: &T, remedy: String) -> Result<(), CliError> {
        let once = Self {
            remedy: Some(remedy),
            ..Self::new(self.format, self.query.clone())
        };
        once.show(view)
    }

    /// Whether what will be printed of a result like this one has `part` in it, whole: not with `-o none`, nor where a query
    /// chooses something else, nor where nothing that is printed is ever read. For what is printed once and kept by nobody.
    ///
    /// # Errors
    /// When the view is nothing that can be printed.
    pub fn has<T: Serialize>(&self, view: &T, part: &str) -> Result<bool, CliError> {
        if is_thrown_away() {
            return Ok(false);
        }
        let Some(query) = &self.query else {
            return Ok(self.format != OutputFormat::None);
        };
        // A query that fails has all of the result printed.
        let found = query.find(&value(view)?);
        Ok(self.format != OutputFormat::None && found.is_ok_and(|found| has_text(&found, part)))
    }

    /// Prints many things: a table with one line for each, or an array.
    ///
    /// # Errors
    /// As [`Output::show`].
    pub fn list<T: Tabular>(&self, views: &[T]) -> Result<(), CliError> {
        if !self.is_for_people() {
            let mut whole = value(&views)?;
            if self.format == OutputFormat::Tsv {
                tsv::complete(&mut whole, T::FIELDS);
            }
            return self.result(&whole);
        }
        let rows = views.iter().map(Tabular::cells).collect();
        self.text(&table::rows(T::COLUMNS, rows, table::terminal_width()))
    }

    /// Prints many things, one line for each: in a table, or each a JSON object (JSON Lines), for
    /// lists that are long. A query sees all of them as one array.
    ///
    /// # Errors
    /// As [`Output::show`].
    pub fn lines<T: Tabular>(&self, views: &[T]) -> Result<(), CliError> {
        if !self.format.is_json() {
            return self.list(views);
        }
        self.queried(value(&views)?, |found| match found {
            Value::Array(items) => {
                let lines: Vec<String> = items.iter().map(Value::to_string).collect();
                self.print(&lines.join("\n"))
            }
            Value::Null => Ok(()),
            one => self.print(&one.to_string()),
        })
    }

    /// Prints a line of JSON at once, for a reader that waits for it; as it is, unless something else is asked for.
    ///
    /// # Errors
    /// When stdout cannot be written, also because its reader went away: there may be no end of
    /// lines to come. When the query does not fit.
    pub fn event(&self, line: &str) -> io::Result<()> {
        self.event_with(line, &[])
    }

    /// The same for one that may have these fields ([`Tabular::FIELDS`]).
    ///
    /// # Errors
    /// As [`Output::event`].
    pub fn event_with(&self, line: &str, fields: &[&str]) -> io::Result<()> {
        let mut stdout = io::stdout().lock();
        if self.query.is_none() && (self.format.is_json() || self.is_for_people()) {
            return writeln!(stdout, "{line}").and_then(|()| stdout.flush());
        }
        let mut whole: Value = serde_json::from_str(line)?;
        if self.format == OutputFormat::Tsv {
            tsv::complete(&mut whole, fields);
        }
        let refused = |error: CliError| io::Error::other(error.message);
        let found = match &self.query {
            Some(query) => query.find(&whole),
            None => Ok(whole.clone()),
        };
        // All of it, where the query fails: whoever waits for a line learns what has happened.
        let (found, failed) = match found {
            Ok(found) => (found, None),
            Err(error) => (whole, Some(refused(error))),
        };
        match self.format {
            _ if found.is_null() => {}
            OutputFormat::None => {}
            // A table of one line, of which more come.
            OutputFormat::Table | OutputFormat::Tsv => {
                writeln!(stdout, "{}", tsv::line(&found))?;
            }
            OutputFormat::Yaml => {
                let document = yaml::text(&found).map_err(refused)?;
                writeln!(stdout, "---\n{}", document.trim_end())?;
            }
            OutputFormat::Json | OutputFormat::Jsonc => writeln!(stdout, "{found}")?,
        }
        stdout.flush()?;
        failed.map_or(Ok(()), Err)
    }

    /// Refuses a query that is meant for a list where each thing is printed by itself: it would find nothing in any.
    ///
    /// # Errors
    /// That.
    pub fn check_query_of_each(&self, like: &str) -> Result<(), CliError> {
        let Some(query) = &self.query else {
            return Ok(());
        };
        let one: Value = serde_json::from_str(like).unwrap_or_default();
        let finds = |found: Result<Value, CliError>| found.is_ok_and(|found| !found.is_null());
        if !finds(query.find(&one)) && finds(query.find(&Value::Array(vec![one]))) {
            return Err(CliError::usage(format!(
                "the query is for a list, and is made of each line by itself here: 'event' finds what '[].event' would. This \
                 is an example of a line: {like}"
            )));
        }
        Ok(())
    }

    /// Refuses a query that finds nothing in a line like those that come: nothing would ever be printed.
    ///
    /// # Errors
    /// That, or the query does not fit.
    pub fn check_query(&self, like: &str) -> Result<(), CliError> {
        let Some(query) = &self.query else {
            return Ok(());
        };
        let whole: Value = serde_json::from_str(like).unwrap_or_default();
        match query.find(&whole)? {
            Value::Null => Err(CliError::usage(format!(
                "the query finds nothing in what is printed, of which this is an example: {like}"
            ))),
            _ => Ok(()),
        }
    }

    /// As [`Output::event`], but for people it is a sentence.
    ///
    /// # Errors
    /// As [`Output::event`].
    pub fn event_in_words(&self, sentence: &str, line: &str) -> io::Result<()> {
        if !self.is_for_people() {
            return self.event(line);
        }
        let mut stdout = io::stdout().lock();
        writeln!(stdout, "{}", printable(sentence)).and_then(|()| stdout.flush())
    }

    /// As [`Output::event`] for programs, and for people text of several lines, as it is.
    ///
    /// # Errors
    /// As [`Output::event`].
    pub fn report<T: Serialize>(&self, text: &str, view: &T) -> io::Result<()> {
        if !self.is_for_people() {
            return self.event(&serde_json::to_string(view)?);
        }
        let mut stdout = io::stdout().lock();
        writeln!(stdout, "{text}").and_then(|()| stdout.flush())
    }

    /// Prints a sentence for people, or a thing as an object in one line, for a program that waits for it.
    ///
    /// # Errors
    /// As [`Output::show`].
    pub fn announce<T: Serialize>(&self, sentence: &str, view: &T) -> Result<(), CliError> {
        match self.format {
            _ if self.is_for_people() => self.text(sentence),
            format if format.is_json() => self.queried(value(view)?, |found| match found {
                Value::Null => Ok(()),
                found => self.print(&found.to_string()),
            }),
            _ => self.show(view),
        }
    }

    /// Prints text as it is, with a newline at the end.
    ///
    /// # Errors
    /// As [`Output::show`].
    pub fn text(&self, text: &str) -> Result<(), CliError> {
        self.print(text.trim_end())
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
        let line = match self.format.is_json() {
            true => serde_json::to_string(&view).unwrap_or_default(),
            false => format!("error: {}", printable(&error.message)),
        };
        self.note(&line);
    }

    /// Prints a result in the wanted form. Nothing is printed of nothing, as by the Azure CLI.
    fn result(&self, whole: &Value) -> Result<(), CliError> {
        self.queried(whole.clone(), |found| self.formed(found))
    }

    /// Has `print` print what the query finds in a result, or all of it; all of it, too, when the query fails: it may be
    /// all that is ever said of something that was done.
    fn queried(
        &self,
        whole: Value,
        print: impl Fn(&Value) -> Result<(), CliError>,
    ) -> Result<(), CliError> {
        let Some(query) = &self.query else {
            return print(&whole);
        };
        match query.find(&whole) {
            Ok(found) => print(&found),
            Err(error) => {
                print(&whole)?;
                Err(error)
            }
        }
    }

    fn formed(&self, found: &Value) -> Result<(), CliError> {
        if found.is_null() {
            return Ok(());
        }
        match self.format {
            OutputFormat::Table => self.text(&table::any(found, table::terminal_width())),
            OutputFormat::Json => self.print(&json::pretty(found).map_err(unserialisable)?),
            OutputFormat::Jsonc if has_colours() => {
                self.print(&json::coloured(found).map_err(unserialisable)?)
            }
            OutputFormat::Jsonc => self.print(&json::pretty(found).map_err(unserialisable)?),
            OutputFormat::Tsv => self.print(&tsv::text(found)),
            OutputFormat::Yaml => self.text(&yaml::text(found)?),
            OutputFormat::None => Ok(()),
        }
    }

    /// Lines, of which there may be none.
    fn print(&self, text: &str) -> Result<(), CliError> {
        if text.is_empty() {
            return Ok(());
        }
        let mut stdout = io::stdout().lock();
        let written = writeln!(stdout, "{text}").and_then(|()| stdout.flush());
        let fail = |why: String| Err(CliError::new("OutputError", why));
        match (written, &self.remedy) {
            (Ok(()), _) => Ok(()),
            (Err(e), Some(remedy)) => fail(format!(
                "the command is done, but its result cannot be written to stdout ({e}), and is kept nowhere; {remedy}"
            )),
            // The command has done its work; that nobody reads on is no failure of it.
            (Err(e), None) if e.kind() == io::ErrorKind::BrokenPipe => Ok(()),
            (Err(e), None) => fail(format!("cannot write the result to stdout: {e}")),
        }
    }
}

/// Whether a text is one of the values.
fn has_text(value: &Value, text: &str) -> bool {
    match value {
        Value::String(found) => found == text,
        Value::Array(items) => items.iter().any(|item| has_text(item, text)),
        Value::Object(fields) => fields.values().any(|item| has_text(item, text)),
        Value::Null | Value::Bool(_) | Value::Number(_) => false,
    }
}

fn value<T: Serialize>(view: &T) -> Result<Value, CliError> {
    serde_json::to_value(view).map_err(unserialisable)
}

fn unserialisable(error: serde_json::Error) -> CliError {
    CliError::new("OutputError", format!("cannot form the result: {error}"))
}

/// Whether stdout is `/dev/null`, as one that was closed is too.
fn is_thrown_away() -> bool {
    let stat = rustix::fs::fstat(io::stdout());
    stat.is_ok_and(|stat| {
        let is_device = FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice;
        is_device && (major(stat.st_rdev), minor(stat.st_rdev)) == (1, 3)
    })
}

/// Whether stdout shows colours, and nobody has said that they want none (no-color.org).
fn has_colours() -> bool {
    let variable = |name| std::env::var_os(name).unwrap_or_default();
    io::stdout().is_terminal() && variable("NO_COLOR").is_empty() && variable("TERM") != "dumb"
}
