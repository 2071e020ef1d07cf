//! The page of error codes has those of the program, and no others.

use std::collections::BTreeSet;

use crate::{assert_none, files, read};

const PAGE: &str = "docs/reference/errors.md";

#[test]
fn the_reference_has_each_error_code() {
    let page = read(PAGE);
    let documented: BTreeSet<_> = page.lines().filter_map(row).collect();
    let codes = codes();
    assert!(codes.len() > 50, "codes are found: {codes:?}");
    let missing = codes
        .iter()
        .filter(|code| !documented.contains(code.as_str()));
    let missing: Vec<_> = missing.cloned().collect();
    assert_none(
        &missing,
        &format!("{PAGE} lacks these codes: add a row for each"),
    );
    let gone = documented.iter().filter(|code| !codes.contains(**code));
    let gone: Vec<_> = gone.map(|code| (*code).to_owned()).collect();
    assert_none(&gone, &format!("{PAGE} has codes that no error has"));
}

/// The code of a row of a table.
fn row(line: &str) -> Option<&str> {
    line.strip_prefix("| `")?.split('`').next()
}

/// The codes of errors that end a command.
fn codes() -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for folder in ["src", "crates"] {
        for path in files(folder, &["rs"]) {
            let text = read(&path);
            let text = text.split("\n#[cfg(test)]").next().unwrap_or_default();
            if path.ends_with("error.rs") {
                for head in ["fn code(&self)", "fn as_str(self)"] {
                    found.extend(literals(body(text, head)));
                }
            }
            for beginning in ["CliError::new(", "Self::new(", "code: "] {
                if path.starts_with("src/cli") {
                    found.extend(text.split(beginning).skip(1).filter_map(literal));
                }
            }
            // Codes that are compared with, too.
            for name in [
                "const ALARMS: &str = ",
                "const INVALID_ARGUMENT: &str = ",
                "const TAMPERED: &str = ",
            ] {
                found.extend(text.split(name).skip(1).filter_map(literal));
            }
        }
    }
    found
}

/// The body of a method.
fn body<'a>(text: &'a str, head: &str) -> &'a str {
    let rest = text.split_once(head).map_or("", |(_, rest)| rest);
    rest.split("\n    }\n").next().unwrap_or_default()
}

/// The literals of a text.
fn literals(text: &str) -> Vec<String> {
    let quoted = text.split('"').skip(1).step_by(2);
    quoted
        .filter(|code| is_code(code))
        .map(str::to_owned)
        .collect()
}

/// The literal with which a text begins.
fn literal(text: &str) -> Option<String> {
    let code = text.trim_start().strip_prefix('"')?.split('"').next()?;
    is_code(code).then(|| code.to_owned())
}

fn is_code(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_uppercase())
        && text.chars().all(|c| c.is_ascii_alphanumeric())
}
