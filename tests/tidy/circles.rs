//! No circle of files: of two files of a crate, one can be read without the other.
//!
//! A file has an arrow to another whose items it names, in a `use` or in a path. What a parent does as the face of
//! its children is none: to declare them, and to pass their items on (`pub use child::Item`) without using
//! them. A path through such a face leads to the file that has the item. Methods are not followed: whose they
//! are, only the compiler knows.

use std::collections::{BTreeMap, BTreeSet};

use crate::code::Code;
use crate::uses::{Use, uses_of};
use crate::{assert_none, files, line_of, root, word_at};

/// A module of a crate.
struct Module {
    /// Its index, by the name.
    children: BTreeMap<String, usize>,
    parent: Option<usize>,
    code: Code,
    uses: Vec<Use>,
    /// The code without its `use` declarations.
    body: String,
    /// The names of the items that the file defines.
    defined: BTreeSet<String>,
}

/// The modules of a crate that are compiled without tests; the first is its root.
struct Modules(Vec<Module>);

/// Where a path leads.
#[derive(Clone, Copy, PartialEq)]
enum Target {
    /// To a module itself.
    Module(usize),
    /// To an item that this module defines.
    Item(usize),
}

/// How many names may lead on to others.
const MAX_DEPTH: usize = 16;

impl Modules {
    fn load(root: &str) -> Self {
        let folder = root.rsplit_once('/').map_or("", |(folder, _)| folder);
        let mut modules = Self(Vec::new());
        modules.add(root, folder, None);
        modules
    }

    /// Adds the module of a file, whose children are in a folder, and these.
    fn add(&mut self, path: &str, folder: &str, parent: Option<usize>) -> usize {
        let code = Code::load(path);
        let (uses, body) = uses_of(&code.shipped);
        let names = declared_modules(&code.shipped);
        let index = self.0.len();
        self.0.push(Module {
            children: BTreeMap::new(),
            parent,
            defined: defined_names(&body),
            code,
            uses,
            body,
        });
        for name in names {
            let inside = format!("{folder}/{name}");
            let candidates = [format!("{inside}.rs"), format!("{inside}/mod.rs")];
            let file = candidates.iter().find(|path| root().join(path).is_file());
            let file = file.unwrap_or_else(|| panic!("{path}: no file for mod {name}"));
            let child = self.add(file, &inside, Some(index));
            self.0[index].children.insert(name, child);
        }
        index
    }

    /// Where a path leads that stands in a module; nowhere, when it is of another crate.
    fn resolve(&self, from: usize, path: &[String], depth: usize) -> Option<Target> {
        let (first, rest) = path.split_first()?;
        let start = match first.as_str() {
            "crate" => Target::Module(0),
            "self" => Target::Module(from),
            "super" => Target::Module(self.0[from].parent?),
            name => self.name_in(from, name, depth)?,
        };
        // Nothing is inside a function or a constant: this is a crate of the same name.
        let is_function = !first.starts_with(|c: char| c.is_ascii_uppercase());
        if is_function && !rest.is_empty() && matches!(start, Target::Item(_)) {
            return None;
        }
        self.walk(start, rest, depth)
    }

    fn walk(&self, start: Target, rest: &[String], depth: usize) -> Option<Target> {
        let mut at = start;
        for name in rest {
            let Target::Module(module) = at else {
                // Behind an item are its variants and functions.
                return Some(at);
            };
            at = match name.as_str() {
                "super" => Target::Module(self.0[module].parent?),
                "self" => at,
                name => self
                    .name_in(module, name, depth)
                    .or_else(|| self.defines(module, name).then_some(Target::Item(module)))?,
            };
        }
        Some(at)
    }

    /// What a name means in a module that does not define it: a child, or what a `use` brings.
    fn name_in(&self, module: usize, name: &str, depth: usize) -> Option<Target> {
        if let Some(child) = self.0[module].children.get(name) {
            return Some(Target::Module(*child));
        }
        if depth == MAX_DEPTH || self.defines(module, name) {
            return None;
        }
        let uses = &self.0[module].uses;
        let named = uses
            .iter()
            .find(|import| import.name.as_deref() == Some(name));
        if let Some(import) = named {
            return self.resolve(module, &import.path, depth + 1);
        }
        uses.iter()
            .filter(|import| import.name.is_none())
            .find_map(|glob| {
                let Target::Module(source) = self.resolve(module, &glob.path, depth + 1)? else {
                    return None;
                };
                let defined = self.defines(source, name).then_some(Target::Item(source));
                defined.or_else(|| self.name_in(source, name, depth + 1))
            })
    }

    /// Whether an item of this name is defined in the module's own file.
    fn defines(&self, module: usize, name: &str) -> bool {
        self.0[module].defined.contains(name)
    }

    /// The files whose items a module names, each with the first path that does.
    fn arrows(&self, from: usize) -> BTreeMap<usize, String> {
        let module = &self.0[from];
        let mut arrows = BTreeMap::new();
        let mut note = |path: &[String], line: usize| {
            let target = self.resolve(from, path, 0);
            if let Some(Target::Item(to)) = target.filter(|target| *target != Target::Item(from)) {
                arrows
                    .entry(to)
                    .or_insert_with(|| format!("{}:{line}: {}", module.code.path, path.join("::")));
            }
        };
        for import in &module.uses {
            let passed_on = import.public
                && import
                    .name
                    .as_ref()
                    .is_none_or(|name| word_at(&module.body, name).is_none());
            if !passed_on {
                note(&import.path, import.line);
            }
        }
        for (path, at) in paths_in(&module.body) {
            note(&path, line_of(&module.body, at));
        }
        arrows
    }
}

/// The names that follow `fn`, `struct` and the like.
fn defined_names(body: &str) -> BTreeSet<String> {
    const ITEMS: [&str; 9] = [
        "fn",
        "struct",
        "enum",
        "trait",
        "const",
        "static",
        "type",
        "union",
        "macro_rules!",
    ];
    let mut words = body.split_whitespace();
    let mut names = BTreeSet::new();
    while let Some(word) = words.next() {
        // `const fn` and `unsafe fn` too: the next word is looked at again.
        if ITEMS.iter().any(|item| word.ends_with(item)) {
            let rest = words.clone().next().unwrap_or_default();
            let end = rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '_');
            names.insert(rest[..end.unwrap_or(rest.len())].to_owned());
        }
    }
    names
}

/// The names in `mod name;`, but those with the path of a file elsewhere.
fn declared_modules(shipped: &str) -> Vec<String> {
    let is_name = |name: &str| name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
    let names = shipped.match_indices("mod ").filter_map(|(at, word)| {
        let before = shipped[..at].trim_end();
        // It is looked at where it is.
        let is_of_another_crate = before.ends_with(']')
            && before
                .rfind("#[")
                .is_some_and(|start| before[start..].starts_with("#[path"));
        let (name, _) = shipped[at + word.len()..].split_once(';')?;
        let name = name.trim();
        (is_name(name) && !is_of_another_crate).then(|| name.to_owned())
    });
    names.collect()
}

/// The paths with `::` in code, and where they stand.
fn paths_in(body: &str) -> Vec<(Vec<String>, usize)> {
    let of_a_path = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == ':';
    let mut found = Vec::new();
    let mut at = 0;
    for piece in body.split_inclusive(|c: char| !of_a_path(c)) {
        let path = piece
            .trim_end_matches(|c: char| !of_a_path(c))
            .trim_end_matches(':');
        if path.contains("::") && !path.starts_with(':') {
            found.push((path.split("::").map(str::to_owned).collect(), at));
        }
        at += piece.len();
    }
    found
}

/// The files of a crate that are compiled without tests, from its root.
pub fn shipped_files(root: &str) -> Vec<Code> {
    Modules::load(root)
        .0
        .into_iter()
        .map(|module| module.code)
        .collect()
}

/// The roots of all crates.
fn crate_roots() -> Vec<String> {
    let mut roots = vec!["src/lib.rs".to_owned(), "src/main.rs".to_owned()];
    let libraries = files("crates", &["rs"]).into_iter();
    roots.extend(libraries.filter(|path| path.ends_with("/src/lib.rs")));
    roots.retain(|path| root().join(path).is_file());
    roots
}

#[test]
fn no_files_name_each_other_in_a_circle() {
    let mut breaches = Vec::new();
    for root in crate_roots() {
        let modules = Modules::load(&root);
        let arrows: Vec<_> = (0..modules.0.len())
            .map(|from| modules.arrows(from))
            .collect();
        for circle in circles(&arrows) {
            breaches.push(describe(&circle, &arrows, &modules));
        }
    }
    assert_none(
        &breaches,
        "have one of the files below the others: move what both need into a third",
    );
}

fn describe(circle: &[usize], arrows: &[BTreeMap<usize, String>], modules: &Modules) -> String {
    let mut lines = vec![format!("a circle of {} files", circle.len())];
    for from in circle {
        for (to, place) in arrows[*from].iter().filter(|(to, _)| circle.contains(to)) {
            lines.push(format!("    {place} ─► {}", modules.0[*to].code.path));
        }
    }
    lines.join("\n")
}

/// Groups of files in which each can be reached from each other one.
fn circles(arrows: &[BTreeMap<usize, String>]) -> Vec<Vec<usize>> {
    let reached: Vec<Vec<bool>> = (0..arrows.len()).map(|from| reach(from, arrows)).collect();
    let mut seen = vec![false; arrows.len()];
    let mut found = Vec::new();
    for file in 0..arrows.len() {
        if !seen[file] && reached[file][file] {
            let circle: Vec<_> = (0..arrows.len())
                .filter(|other| reached[file][*other] && reached[*other][file])
                .collect();
            circle.iter().for_each(|file| seen[*file] = true);
            found.push(circle);
        }
    }
    found
}

/// Which files can be reached from one by its arrows.
fn reach(from: usize, arrows: &[BTreeMap<usize, String>]) -> Vec<bool> {
    let mut reached = vec![false; arrows.len()];
    let mut next = vec![from];
    while let Some(file) = next.pop() {
        for to in arrows[file].keys() {
            if !reached[*to] {
                reached[*to] = true;
                next.push(*to);
            }
        }
    }
    reached
}
