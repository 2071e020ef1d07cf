//! Rules about the source itself, which no compiler holds: what may depend on what, how large a file may be,
//! what may panic, and which words are used. Each failure says what to do.

// Clippy exempts only functions with #[test], and helpers of tests panic as tests do.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod book;
mod circles;
mod code;
mod errors;
mod packages;
mod panics;
mod text;
mod uses;
mod words;

use std::fs;
use std::path::Path;

/// The root of the repository.
fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// A file of the repository as text.
fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|e| panic!("{path}: {e}"))
}

/// The files with one of these extensions under a folder (or the file itself), by their paths from the root,
/// in order.
fn files(under: &str, extensions: &[&str]) -> Vec<String> {
    let mut found = Vec::new();
    collect(&root().join(under), extensions, &mut found);
    found.sort();
    found
}

fn collect(at: &Path, extensions: &[&str], found: &mut Vec<String>) {
    if at.is_dir() {
        for entry in fs::read_dir(at).unwrap() {
            collect(&entry.unwrap().path(), extensions, found);
        }
    } else if extension_is_one_of(at, extensions) {
        found.push(
            at.strip_prefix(root())
                .unwrap()
                .to_str()
                .unwrap()
                .to_owned(),
        );
    }
}

fn extension_is_one_of(path: &Path, extensions: &[&str]) -> bool {
    let extension = path.extension().and_then(|name| name.to_str());
    path.is_file() && extensions.contains(&extension.unwrap_or_default())
}

/// Fails with one line for each breach of a rule, and what to do about them.
fn assert_none(breaches: &[String], remedy: &str) {
    assert!(
        breaches.is_empty(),
        "{remedy}:\n  {}",
        breaches.join("\n  ")
    );
}

/// Where a word stands by itself in a text: no letter, digit or underscore beside it.
fn word_at(text: &str, word: &str) -> Option<usize> {
    let of_a_word = |c: char| c.is_alphanumeric() || c == '_';
    text.match_indices(word).map(|(at, _)| at).find(|&at| {
        !text[..at].ends_with(of_a_word) && !text[at + word.len()..].starts_with(of_a_word)
    })
}

/// The number of the line in which an offset lies, from 1.
fn line_of(text: &str, offset: usize) -> usize {
    text[..offset].matches('\n').count() + 1
}
