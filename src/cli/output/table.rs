//! Tables for people, which fit their terminal.

use std::io;

use comfy_table::{ContentArrangement, Table, presets};
use rustix::termios::tcgetwinsize;
use serde_json::Value;

use super::cells::{NOTHING, size_cell, text_cell};
use super::printable::printable;
use keys::units::MAX_LAYERS;

/// Fields that say nothing to people: the public numbers of a key. JSON has them.
const LEFT_OUT: [&str; 2] = ["key.n", "key.e"];

/// Parts of one thing that are shown. A disk has no more layers; thousands of ranges of bytes hide what matters.
const SHOWN: usize = MAX_LAYERS;

/// Spaces between two columns.
const GAP: u16 = 2;

/// Characters of a line of a cell, with less than which it is hard to read.
const READABLE: usize = 16;

/// Columns of the terminal that stdout is; `None` when it is none: there is no reason to break lines then.
pub(super) fn terminal_width() -> Option<u16> {
    let size = tcgetwinsize(io::stdout()).ok()?;
    Some(size.ws_col).filter(|columns| *columns > 0)
}

/// One thing: a line for each of its fields, with the fields of what is in it as `a.b`.
pub(super) fn fields(value: &Value, width: Option<u16>) -> String {
    let mut lines = Vec::new();
    flatten("", value, &mut lines);
    let mut table = plain_table(width);
    for (name, value) in lines {
        table.add_row([name, value]);
    }
    text(table)
}

/// Many things: a line for each, beneath the names of their columns. Where a terminal is too narrow, columns in
/// which there is nothing are left out, and then cells are broken into several lines. Where that would leave a
/// column too little to be read, each thing has a line for each of its cells instead.
pub(super) fn rows(names: &[&str], rows: Vec<Vec<String>>, width: Option<u16>) -> String {
    let rows: Vec<Vec<String>> = rows
        .into_iter()
        .map(|cells| cells.iter().map(|cell| printable(cell)).collect())
        .collect();
    let is_empty =
        |column: usize| !rows.is_empty() && rows.iter().all(|row| row[column] == NOTHING);
    let narrow = width.is_some_and(|width| natural_width(names, &rows) > usize::from(width));
    let shown: Vec<usize> = (0..names.len())
        .filter(|column| !(narrow && is_empty(*column)))
        .collect();
    if narrow
        && width.is_some_and(|width| readable_width(names, &rows, &shown) > usize::from(width))
    {
        let apart = rows.iter().map(|row| cells_of(names, row, width));
        return apart.collect::<Vec<_>>().join("\n\n");
    }
    let mut table = plain_table(width);
    table.set_header(shown.iter().map(|column| names[*column].to_uppercase()));
    for row in &rows {
        table.add_row(shown.iter().map(|column| row[*column].as_str()));
    }
    text(table)
}

/// Whatever a query has found.
pub(super) fn any(value: &Value, width: Option<u16>) -> String {
    let Value::Array(items) = value else {
        return match value {
            Value::Object(_) => fields(value, width),
            one => scalar(one),
        };
    };
    if items.iter().all(Value::is_object) {
        return objects(items, width);
    }
    let cells = |item: &Value| match item {
        Value::Array(cells) => cells.iter().map(scalar).collect(),
        one => vec![scalar(one)],
    };
    let mut cells: Vec<Vec<String>> = items.iter().map(cells).collect();
    let columns = cells.iter().map(Vec::len).max().unwrap_or(1);
    for row in &mut cells {
        row.resize(columns, NOTHING.into());
    }
    let names: Vec<String> = match columns {
        1 => vec!["result".into()],
        more => (1..=more).map(|n| format!("column{n}")).collect(),
    };
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    rows(&names, cells, width)
}

/// Objects with a column for each field that is not itself made of others, as the Azure CLI has it.
fn objects(items: &[Value], width: Option<u16>) -> String {
    let mut names: Vec<&str> = Vec::new();
    for (name, value) in items.iter().filter_map(Value::as_object).flatten() {
        let made_of_others = value.is_object() || value.is_array();
        if !made_of_others && !names.contains(&name.as_str()) {
            names.push(name);
        }
    }
    let cell = |item: &Value, name: &str| {
        item.get(name)
            .map_or(NOTHING.into(), |value| field(name, value))
    };
    let cells = items
        .iter()
        .map(|item| names.iter().map(|name| cell(item, name)).collect())
        .collect();
    rows(&names, cells, width)
}

fn plain_table(width: Option<u16>) -> Table {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING);
    match width {
        Some(width) => table
            .set_content_arrangement(ContentArrangement::Dynamic)
            .set_width(width),
        None => table.set_content_arrangement(ContentArrangement::Disabled),
    };
    table
}

fn text(mut table: Table) -> String {
    let between = table.column_count().saturating_sub(1);
    for (n, column) in table.column_iter_mut().enumerate() {
        column.set_padding((0, if n < between { GAP } else { 0 }));
    }
    table.trim_fmt()
}

/// The cells of one row, line by line; those with nothing in them are left out.
fn cells_of(names: &[&str], row: &[String], width: Option<u16>) -> String {
    let mut table = plain_table(width);
    for (name, cell) in names.iter().zip(row).filter(|(_, cell)| *cell != NOTHING) {
        table.add_row([name.to_uppercase().as_str(), cell]);
    }
    text(table)
}

fn widest(names: &[&str], rows: &[Vec<String>], column: usize) -> usize {
    let cells = rows.iter().map(|row| row[column].chars().count());
    cells.chain([names[column].len()]).max().unwrap_or(0)
}

/// What a table takes whose cells are not broken.
fn natural_width(names: &[&str], rows: &[Vec<String>]) -> usize {
    let columns = 0..names.len();
    let widths = columns.map(|column| widest(names, rows, column) + usize::from(GAP));
    widths.sum::<usize>().saturating_sub(usize::from(GAP))
}

/// What a table takes at least whose cells are broken.
fn readable_width(names: &[&str], rows: &[Vec<String>], shown: &[usize]) -> usize {
    let least = |column: &usize| widest(names, rows, *column).min(READABLE) + usize::from(GAP);
    let widths = shown.iter().map(least);
    widths.sum::<usize>().saturating_sub(usize::from(GAP))
}

/// `{"a": {"b": 1}}` as the line `a.b 1`.
fn flatten(path: &str, value: &Value, lines: &mut Vec<(String, String)>) {
    match value {
        Value::Object(fields) => {
            for (name, value) in fields {
                let dot = if path.is_empty() { "" } else { "." };
                let path = format!("{path}{dot}{name}");
                if !LEFT_OUT.contains(&path.as_str()) {
                    flatten(&path, value, lines);
                }
            }
        }
        Value::Array(items) if items.iter().all(|i| !i.is_object() && !i.is_array()) => {
            let items: Vec<String> = items.iter().map(scalar).collect();
            // Words need no more than a space; sentences do.
            let spaced = items.iter().any(|item| item.contains(char::is_whitespace));
            lines.push((path.into(), items.join(if spaced { "; " } else { " " })));
        }
        Value::Array(items) => {
            for (n, item) in items.iter().take(SHOWN).enumerate() {
                flatten(&format!("{path}[{n}]"), item, lines);
            }
            let more = items.len().saturating_sub(SHOWN);
            if more > 0 {
                lines.push((format!("{path}[]"), format!("{more} more, see -o json")));
            }
        }
        one => {
            let name = path.rsplit('.').next().unwrap_or(path);
            lines.push((path.into(), field(name, one)));
        }
    }
}

/// A value by the name of its field, which says whether it is a number of bytes.
fn field(name: &str, value: &Value) -> String {
    let is_size = name == "bytes" || name.ends_with("Bytes") || is_of_bytes(name);
    match value.as_u64() {
        Some(bytes) if is_size => size_cell(bytes),
        Some(bytes) if name == "rate" => format!("{}/s", size_cell(bytes)),
        _ => scalar(value),
    }
}

/// `bytesDone`, `bytesTotal`.
fn is_of_bytes(name: &str) -> bool {
    let rest = name.strip_prefix("bytes");
    rest.is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_uppercase()))
}

fn scalar(value: &Value) -> String {
    match value {
        Value::String(text) => text_cell(text),
        Value::Null => NOTHING.into(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn nothing_that_a_terminal_obeys_is_printed() {
        let mut lines = Vec::new();
        let name = "a\u{1b}[2Jb\r\nc\u{9b}d";
        flatten("", &json!({"name": name, "all": [name]}), &mut lines);
        let expected = "a [2Jb  c d".to_owned();
        assert_eq!(
            lines.iter().map(|(_, text)| text).collect::<Vec<_>>(),
            [&expected; 2]
        );
        assert_eq!(
            rows(&["n"], vec![vec![name.into()]], None),
            format!("N\n{expected}")
        );
        assert_eq!(any(&json!([{"n": name}]), None), format!("N\n{expected}"));
    }

    #[test]
    fn nested_fields_become_lines_and_bytes_become_sizes() {
        let mut lines = Vec::new();
        let value = json!({
            "key": {"kid": "u", "n": "0123456789", "e": "AQAB", "key_ops": ["wrapKey", "unwrapKey"]},
            "policies": [{"id": 1}],
            "none": null,
            "said": ["one thing", "another"],
            "diskSizeBytes": 10_737_418_240_u64,
            "job": {"bytesDone": 1536, "rate": 104_857_600},
        });
        flatten("", &value, &mut lines);
        let lines: Vec<String> = lines.iter().map(|(n, v)| format!("{n}={v}")).collect();
        assert_eq!(
            lines,
            [
                "key.kid=u",
                "key.key_ops=wrapKey unwrapKey",
                "policies[0].id=1",
                "none=-",
                "said=one thing; another",
                "diskSizeBytes=10 GiB",
                "job.bytesDone=1.5 KiB",
                "job.rate=100 MiB/s",
            ]
        );
    }

    #[test]
    fn of_thousands_of_parts_the_first_are_shown() {
        let mut lines = Vec::new();
        let ranges: Vec<Value> = (0..5000).map(|n| json!({"offset": n})).collect();
        flatten("", &json!({"ranges": ranges, "name": "d"}), &mut lines);
        assert_eq!(lines.len(), SHOWN + 2);
        let [.., (path, text), name] = lines.as_slice() else {
            panic!("two lines are left")
        };
        let expected = ("ranges[]", "4968 more, see -o json");
        assert_eq!((path.as_str(), text.as_str()), expected);
        assert_eq!(name, &("name".into(), "d".into()));
    }

    #[test]
    fn a_table_fits_its_terminal_and_loses_nothing() {
        let url = "https://myvault.vault.localhost/keys/mykey/0123456789abcdef";
        let row = || vec!["boot1".to_owned(), "-".into(), url.into()];
        let names = ["name", "finding", "url"];
        let wide = rows(&names, vec![row(), row()], None);
        assert_eq!(wide.lines().count(), 3);
        assert!(wide.starts_with("NAME   FINDING  URL\n"), "{wide}");
        let narrow = rows(&names, vec![row(), row()], Some(40));
        for line in narrow.lines() {
            assert!(line.chars().count() <= 40, "{line}");
        }
        assert!(!narrow.contains("FINDING"), "{narrow}");
        let written: String = narrow.split_whitespace().collect();
        assert_eq!(written.matches("boot1").count(), 2);
        let columns: String = narrow
            .lines()
            .map(|line| line.get(7..).unwrap_or(""))
            .collect();
        assert!(columns.contains(url), "{narrow}");
        // Nothing is left out where there is room.
        assert!(rows(&names, vec![row()], Some(200)).contains("FINDING"));
        // What would be a column of letters is a line for each cell.
        let apart = rows(&names, vec![row(), row()], Some(20));
        assert!(
            apart.starts_with("NAME  boot1\nURL   https://myvaul\n"),
            "{apart}"
        );
        assert_eq!(apart.matches("\n\nNAME ").count(), 1, "{apart}");
    }

    #[test]
    fn what_a_query_finds_is_a_table_too() {
        for (value, expected) in [
            (json!(["a", "b"]), "RESULT\na\nb"),
            (
                json!([["a", 1], ["b"]]),
                "COLUMN1  COLUMN2\na        1\nb        -",
            ),
            (
                json!([{"name": "a", "sizeBytes": 1024, "in": {}}, {"more": true}]),
                "NAME  SIZEBYTES  MORE\na     1 KiB      -\n-     -          true",
            ),
            (json!("x"), "x"),
            (json!({"a": 1}), "a  1"),
        ] {
            assert_eq!(any(&value, None), expected);
        }
    }
}
