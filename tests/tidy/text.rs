//! Rules for files as text.

use crate::{assert_none, files, line_of, read, root, word_at};

/// A file that is longer does two things.
const MAX_LINES: usize = 600;

#[test]
fn no_file_is_longer_than_600_lines() {
    let mut breaches = Vec::new();
    for folder in ["src", "crates", "tests", "benches", "fuzz"] {
        for path in files(folder, &["rs"]) {
            let lines = read(&path).lines().count();
            if lines > MAX_LINES {
                breaches.push(format!("{path}: {lines} lines"));
            }
        }
    }
    assert_none(
        &breaches,
        "split what has more than 600 lines by what it does",
    );
}

/// The limit of layers is in the format, and in a header's bounds: one constant for all.
#[test]
fn the_limit_of_layers_is_written_once() {
    let mut places = Vec::new();
    for folder in ["src", "crates"] {
        for path in files(folder, &["rs"]) {
            let text = read(&path);
            for (at, _) in text.match_indices("const ") {
                let declaration = text[at..].split(';').next().unwrap_or_default();
                if declaration.contains("LAYERS") && word_at(declaration, "32").is_some() {
                    places.push(format!("{path}:{}: {declaration}", line_of(&text, at)));
                }
            }
        }
    }
    assert_eq!(
        places.len(),
        1,
        "one constant says how many layers a disk may have:\n{places:#?}"
    );
}

/// A shell runs what stands between backticks in double quotes: JMESPath's numbers do.
#[test]
fn examples_with_a_query_are_typed_as_they_stand() {
    let sources = files("src", &["rs"]).into_iter();
    let mut breaches = Vec::new();
    for path in sources.chain(documents()) {
        // Quotes of an example in the source are in a literal.
        let text = match path.ends_with(".rs") {
            true => read(&path).replace("\\\"", "\""),
            false => read(&path),
        };
        for (at, option) in text.match_indices("--query \"") {
            let expression = &text[at + option.len()..];
            let expression = expression.split(['"', '\n']).next().unwrap_or_default();
            if expression.replace("\\`", "").contains('`') {
                breaches.push(format!("{path}:{}: {expression}", line_of(&text, at)));
            }
        }
    }
    assert_none(&breaches, "put these expressions into single quotes");
}

/// Documents that name files of the source and test programs, which move.
fn documents() -> Vec<String> {
    let mut documents = files("docs", &["md"]);
    documents.extend(["CONTRIBUTING.md", "README.md", "SECURITY.md"].map(str::to_owned));
    documents
}

/// What is made when it is needed.
const NOT_KEPT: [&str; 1] = ["fuzz/corpus"];

#[test]
fn documents_name_files_that_exist() {
    const FOLDERS: [&str; 9] = [
        "src/", "crates/", "tests/", "benches/", "fuzz/", "docs/", "scripts/", "contrib/",
        ".config/",
    ];
    let mut breaches = Vec::new();
    for document in documents() {
        let text = read(&document);
        for quoted in text.split('`').skip(1).step_by(2) {
            let is_path = FOLDERS.iter().any(|folder| quoted.starts_with(folder));
            // A pattern, a command, or a name in capitals that stands for others.
            let stands_for_others =
                |c: char| c.is_whitespace() || c == '*' || c.is_ascii_uppercase();
            let is_kept = !quoted.contains(stands_for_others) && !NOT_KEPT.contains(&quoted);
            if is_path && is_kept && !root().join(quoted).exists() {
                breaches.push(format!("{document}: {quoted}"));
            }
        }
    }
    assert_none(
        &breaches,
        "these files are not there: follow what was moved",
    );
}

/// Each file and each folder of `tests` is a test program of its package, unless it has no `main.rs`.
#[test]
fn documents_name_test_programs_that_exist() {
    let is_program = |name: &str| {
        let folders = ["tests/".to_owned()].into_iter();
        let of_crates = files("crates", &["toml"]).into_iter();
        let of_crates = of_crates.map(|manifest| manifest.replace("Cargo.toml", "tests/"));
        folders.chain(of_crates).any(|folder| {
            let at = root().join(folder).join(name);
            at.with_extension("rs").exists() || at.join("main.rs").exists()
        })
    };
    let mut breaches = Vec::new();
    for document in documents() {
        let text = read(&document);
        for (at, option) in text.match_indices("--test ") {
            let name = text[at + option.len()..].split([' ', '`', '\n']).next();
            if let Some(name) = name.filter(|name| !is_program(name)) {
                let line = line_of(&text, at);
                breaches.push(format!("{document}:{line}: --test {name}"));
            }
        }
    }
    assert_none(
        &breaches,
        "there are no such test programs: name the folder that the test is in now",
    );
}

/// A test is named by the folder or file that it is in and its function, `hostile::chains::…`.
#[test]
fn the_tests_of_the_threat_model_exist() {
    let model = read("docs/threat-model.md");
    let sources: Vec<_> = ["src", "crates", "tests"]
        .iter()
        .flat_map(|folder| files(folder, &["rs"]))
        .map(|path| (read(&path), path))
        .collect();
    let named: Vec<_> = model
        .split('`')
        .skip(1)
        .step_by(2)
        .filter(|name| is_test(name))
        .collect();
    assert!(named.len() > 50, "the threat model names tests: {named:?}");
    let missing: Vec<_> = named
        .iter()
        .filter(|name| {
            !sources
                .iter()
                .any(|(text, path)| has_test(text, path, name))
        })
        .map(|name| (*name).to_owned())
        .collect();
    assert_none(
        &missing,
        "docs/threat-model.md names tests that are not there: follow what was renamed",
    );
}

/// Whether what stands in back-quotes is the name of a test.
fn is_test(name: &str) -> bool {
    name.contains("::")
        && name
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || "_:".contains(c))
}

/// Whether a file has the test, and lies where its name says.
fn has_test(text: &str, path: &str, name: &str) -> bool {
    let mut places: Vec<_> = name.split("::").collect();
    let function = places.pop().unwrap_or_default();
    let mut folders = path.trim_end_matches(".rs").split('/');
    let lies_there = places
        .iter()
        .all(|place| folders.any(|folder| folder == *place));
    lies_there && word_at(text, &format!("fn {function}")).is_some() && text.contains("#[test]")
}
