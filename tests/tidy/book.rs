//! The documents are one book (docs/SUMMARY.md) whose links hold.

use std::collections::BTreeSet;
use std::path::{Component, Path, PathBuf};

use crate::{assert_none, files, line_of, read, root};

const SUMMARY: &str = "docs/SUMMARY.md";

/// A link of a document to a file of the repository.
struct Link {
    line: usize,
    /// As it is written.
    written: String,
    /// The file, from the root of the repository.
    file: String,
    /// The heading in it.
    anchor: Option<String>,
}

#[test]
fn the_book_has_every_page() {
    let linked: BTreeSet<_> = links(SUMMARY).into_iter().map(|link| link.file).collect();
    let pages = files("docs", &["md"]).into_iter();
    let orphans: Vec<_> = pages
        .filter(|page| page != SUMMARY && !linked.contains(page))
        .collect();
    assert_none(
        &orphans,
        "these pages are not in the book: add a line for each to docs/SUMMARY.md, under Tutorial (for who has never \
         used it), How-to (a task), Reference (looked up) or Explanation (why)",
    );
}

#[test]
fn links_of_documents_lead_somewhere() {
    let mut breaches = Vec::new();
    for document in documents() {
        for link in links(&document) {
            let Link { line, written, .. } = &link;
            if !root().join(&link.file).exists() {
                breaches.push(format!(
                    "{document}:{line}: {written}: there is no such file"
                ));
            } else if let Some(anchor) = &link.anchor
                && !anchors(&read(&link.file)).contains(anchor)
            {
                breaches.push(format!(
                    "{document}:{line}: {written}: there is no such heading"
                ));
            }
        }
    }
    assert_none(&breaches, "follow what was moved or renamed");
}

#[test]
fn pages_of_the_book_link_to_nothing_outside_of_it() {
    let mut breaches = Vec::new();
    for document in files("docs", &["md"]) {
        for link in links(&document) {
            if !link.file.starts_with("docs/") {
                breaches.push(format!("{document}:{}: {}", link.line, link.written));
            }
        }
    }
    assert_none(
        &breaches,
        "a reader of the book has no repository: link to a page of it, or name the file as `code`",
    );
}

/// What people read.
fn documents() -> Vec<String> {
    let mut documents = files("docs", &["md"]);
    documents.extend(
        [
            "README.md",
            "CONTRIBUTING.md",
            "SECURITY.md",
            "CHANGELOG.md",
        ]
        .map(str::to_owned),
    );
    documents
}

/// The links of a document to files, in its order; without those to elsewhere.
fn links(document: &str) -> Vec<Link> {
    let text = without_code(&read(document));
    let folder = Path::new(document).parent().unwrap();
    let mut found = Vec::new();
    for (at, _) in text.match_indices("](") {
        let written = text[at + 2..].split(')').next().unwrap_or_default();
        if written.contains(':') {
            continue;
        }
        let (path, anchor) = match written.split_once('#') {
            Some((path, anchor)) => (path, Some(anchor.to_owned())),
            None => (written, None),
        };
        let file = match path {
            "" => document.to_owned(),
            path => plain(&folder.join(path)),
        };
        found.push(Link {
            line: line_of(&text, at),
            written: written.to_owned(),
            file,
            anchor,
        });
    }
    found
}

/// A path without `..`.
fn plain(path: &Path) -> String {
    let mut plain = PathBuf::new();
    for part in path.components() {
        match part {
            Component::ParentDir => _ = plain.pop(),
            part => plain.push(part),
        }
    }
    plain.to_str().unwrap().to_owned()
}

/// The text with empty lines for those of blocks of code, and nothing for code within lines.
fn without_code(text: &str) -> String {
    let mut in_block = false;
    let mut kept = String::new();
    for line in text.lines() {
        let is_fence = line.trim_start().starts_with("```");
        in_block ^= is_fence;
        if !in_block && !is_fence {
            kept.extend(line.split('`').step_by(2));
        }
        kept.push('\n');
    }
    kept
}

/// What headings are called in links, by GitHub and mdBook.
fn anchors(text: &str) -> BTreeSet<String> {
    let mut in_block = false;
    let mut found = BTreeSet::new();
    for line in text.lines() {
        in_block ^= line.trim_start().starts_with("```");
        let heading = line.trim_start_matches('#');
        if !in_block && line.starts_with('#') && heading.starts_with(' ') {
            let letters = heading.trim().to_lowercase();
            let kept = letters
                .chars()
                .filter(|c| c.is_alphanumeric() || " -_".contains(*c));
            found.insert(kept.map(|c| if c == ' ' { '-' } else { c }).collect());
        }
    }
    found
}
