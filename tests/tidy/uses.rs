//! The `use` declarations of a file.

use crate::line_of;

/// One name that a `use` declaration brings.
pub struct Use {
    /// What it names, without `self` at the end; of a glob, the module.
    pub path: Vec<String>,
    /// What it is called here; nothing for a glob.
    pub name: Option<String>,
    /// Whether it is passed on to others: `pub use`, `pub(crate) use`.
    pub public: bool,
    pub line: usize,
}

/// All names that `use` declarations bring, and the code without the declarations.
pub fn uses_of(shipped: &str) -> (Vec<Use>, String) {
    let mut uses = Vec::new();
    let mut body = shipped.to_owned();
    for (at, _) in shipped.match_indices("use ") {
        let line_begin = shipped[..at].rfind('\n').map_or(0, |end| end + 1);
        let before = shipped[line_begin..at].trim();
        if !(before.is_empty() || before.starts_with("pub")) {
            continue;
        }
        let Some(len) = shipped[at..].find(';') else {
            continue;
        };
        let declaration = &shipped[at + "use ".len()..at + len];
        let mut names = Vec::new();
        expand(&[], declaration, &mut names);
        for (path, name) in names {
            uses.push(Use {
                path,
                name,
                public: before.starts_with("pub"),
                line: line_of(shipped, at),
            });
        }
        let blanks: String = shipped[at..at + len]
            .chars()
            .map(|c| if c == '\n' { '\n' } else { ' ' })
            .collect();
        body.replace_range(at..at + len, &blanks);
    }
    (uses, body)
}

/// The paths of a tree like `a::{b, c as d, e::*}`, with what they are called.
fn expand(prefix: &[String], tree: &str, names: &mut Vec<(Vec<String>, Option<String>)>) {
    let tree = tree.trim();
    if let Some((path, group)) = tree.split_once('{') {
        let prefix = joined(prefix, path);
        let group = group.trim_end().strip_suffix('}').unwrap_or(group);
        for branch in branches(group) {
            expand(&prefix, branch, names);
        }
    } else if let Some(path) = tree.strip_suffix('*') {
        names.push((joined(prefix, path), None));
    } else if !tree.is_empty() {
        let (path, alias) = tree.split_once(" as ").unwrap_or((tree, ""));
        let mut path = joined(prefix, path);
        if path.len() > 1 && path.last().is_some_and(|name| name == "self") {
            path.pop();
        }
        let alias = Some(alias.trim()).filter(|alias| !alias.is_empty());
        let name = alias.map(str::to_owned).or_else(|| path.last().cloned());
        names.push((path, name));
    }
}

fn joined(prefix: &[String], path: &str) -> Vec<String> {
    let more = path
        .split("::")
        .map(str::trim)
        .filter(|name| !name.is_empty());
    prefix
        .iter()
        .cloned()
        .chain(more.map(str::to_owned))
        .collect()
}

/// The parts of a group between commas that are in no group inside it.
fn branches(group: &str) -> Vec<&str> {
    let (mut depth, mut begin) = (0, 0);
    let mut found = Vec::new();
    for (at, c) in group.char_indices() {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 0 => {
                found.push(&group[begin..at]);
                begin = at + 1;
            }
            _ => {}
        }
    }
    found.push(&group[begin..]);
    found
}
