//! The rule for every test of layers: after an operation and a clean detach `disk check` finds nothing,
//! and nothing but what the header names is in the directory.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::Value;

/// Holds a disk that nobody uses to the rule; `sealdisk` makes the program with arguments.
///
/// # Panics
/// When something is wrong, or left.
pub fn assert_clean_disk(sealdisk: impl Fn(&[&str]) -> Command, name: &str) {
    let (status, report) = json(sealdisk(&["disk", "check", name, "-o", "json"]));
    assert_eq!(status, Some(0), "{name}: {report}");
    assert_eq!(
        report["problems"],
        serde_json::json!([]),
        "{name}: {report}"
    );
    assert_only_what_is_named(sealdisk, "disk", name);
}

/// Holds the directory of a `disk`, a `snapshot` or an `image` to the rule.
///
/// # Panics
/// When there is something else in it.
pub fn assert_only_what_is_named(sealdisk: impl Fn(&[&str]) -> Command, kind: &str, name: &str) {
    let (status, shown) = json(sealdisk(&[kind, "show", name, "-o", "json"]));
    assert_eq!(status, Some(0), "{kind} {name}: {shown}");
    let file_name = |path: &Value| {
        let path = Path::new(path.as_str().unwrap_or_default());
        path.file_name().map(ToOwned::to_owned)
    };
    let layers = shown["layers"].as_array().into_iter().flatten();
    let named: BTreeSet<_> = layers
        .flat_map(|layer| [file_name(&layer["data"]), file_name(&layer["map"])])
        .flatten()
        .chain(["header".into()])
        .collect();
    let directory = shown["directory"].as_str().unwrap_or_default();
    let there: BTreeSet<_> = fs::read_dir(directory)
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.file_name())
        .collect();
    assert_eq!(there, named, "{kind} {name}: what is in {directory}");
}

fn json(mut command: Command) -> (Option<i32>, Value) {
    let output = command.output();
    let output = output.unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let value = serde_json::from_slice(&output.stdout);
    let value = value.unwrap_or_else(|error| panic!("{command:?}: {error}: {output:?}"));
    (output.status.code(), value)
}
