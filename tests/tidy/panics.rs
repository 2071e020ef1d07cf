//! Nothing that a guest does may reach a panic.

use crate::code::Code;
use crate::{assert_none, circles, line_of};

/// The crates through which a request of a guest goes.
const PATH_OF_A_GUEST: [&str; 4] = ["dataplane", "store-ring", "volume", "xts"];

/// What ends a thread, and with it the process.
const PANICS: [&str; 9] = [
    ".unwrap()",
    ".expect(",
    "panic!(",
    "unreachable!(",
    "todo!(",
    "unimplemented!(",
    " assert!(",
    " assert_eq!(",
    " assert_ne!(",
];

/// What stands before the reason why a panic is right: on the line, or on one of the few above it.
const REASON: &str = "// Panics:";

/// How far above a reason may begin.
const ABOVE: usize = 4;

#[test]
fn nothing_on_the_path_of_a_guest_panics() {
    let mut breaches = Vec::new();
    for name in PATH_OF_A_GUEST {
        for file in circles::shipped_files(&format!("crates/{name}/src/lib.rs")) {
            breaches.extend(panics_without_reason(&file));
        }
    }
    let remedy = format!(
        "return an error, or say in a comment '{REASON} …' above the line why no guest gets there"
    );
    assert_none(&breaches, &remedy);
}

fn panics_without_reason(file: &Code) -> Vec<String> {
    let lines: Vec<_> = file.text.lines().collect();
    let mut found = Vec::new();
    for panic in PANICS {
        for (at, _) in file.shipped.match_indices(panic) {
            let line = line_of(&file.shipped, at);
            let about = &lines[line.saturating_sub(ABOVE + 1)..line];
            if !about.iter().any(|line| line.contains(REASON)) {
                found.push(format!("{}:{line}: {}", file.path, lines[line - 1].trim()));
            }
        }
    }
    found
}
