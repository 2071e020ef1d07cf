//! One name for one thing, in the words of the field: what was replaced does not come back.

use std::fs;

use crate::{assert_none, files, line_of, root, word_at};

/// How a banned phrase is looked for.
#[derive(Clone, Copy)]
enum Banned {
    /// A whole identifier.
    Name(&'static str),
    /// The beginning of an identifier.
    Begin(&'static str),
    /// Words of a sentence, in any case, wherever lines break.
    Words(&'static str),
    /// A file of this name.
    File(&'static str),
}

use Banned::{Begin, File, Name, Words};

/// What is banned, and what is said instead.
const BANNED: &[(Banned, &str)] = &[
    (File("elsewhere.rs"), "remote_vaults"),
    (File("context.rs"), "installation"),
    (File("principals.rs"), "identities"),
    (File("board.rs"), "event_hub"),
    (File("serving.rs"), "attached_disk"),
    (File("running.rs"), "quiesce"),
    (File("covered.rs"), "verify_covered"),
    (File("src/changes.rs"), "audit_records"),
    (File("drive.rs"), "scheduler"),
    (Name("Raise"), "CopyUp"),
    (Name("Lack"), "Missing"),
    (Name("wipe_stack"), "wipe_call_stack"),
    (Words("pending map"), "runtime map"),
    (File("standing.rs"), "quiesce"),
    (File("stalled.rs"), "no_space"),
    (Name("stand_still"), "quiesce"),
    (Name("Exchange"), "SwapVolume"),
    (Words("stand still"), "quiesce, or pause a job"),
    (Words("look busily for work"), "busy-poll time"),
    (Words("after a time of rest"), "burst (token bucket)"),
    (
        Words("storage half of the time"),
        "throttles copy-up to a 50 % duty cycle",
    ),
    (Begin("MOST_"), "MAX_…"),
    (Name("Told"), "a word for what it is"),
    (Name("KeyDeed"), "KeyEvent"),
    (Name("freeze_into"), "create_snapshot"),
    (Name("shed"), "drop_layers"),
    (Name("shelf"), "resource_dir"),
    (Name("Hands"), "GuardActions"),
    (Name("News"), "GuardEvent"),
    (Words("default: found out"), "default: probed"),
    (
        Words("keys that a key vault decides about"),
        "customer-managed keys",
    ),
    (Words("is not to be had"), "is unavailable"),
    (
        Words("of which disks are made at once"),
        "images for instant clones",
    ),
];

/// Where the words are used. CHANGELOG.md says what things were called, and this test does.
const FOLDERS: [&str; 12] = [
    "src",
    "crates",
    "tests",
    "benches",
    "fuzz/src",
    "fuzz/fuzz_targets",
    "docs",
    "contrib",
    "scripts",
    "README.md",
    "CONTRIBUTING.md",
    "SECURITY.md",
];

/// The files' extensions; scripts have none.
const EXTENSIONS: [&str; 11] = [
    "rs", "md", "toml", "sh", "sql", "service", "timer", "socket", "target", "json", "",
];

#[test]
fn no_banned_phrase_is_used() {
    assert_none(
        &breaches(BANNED),
        "say it in the words of the glossary (docs/architecture.md)",
    );
}

fn breaches(banned: &[(Banned, &str)]) -> Vec<String> {
    let mut found = Vec::new();
    for folder in FOLDERS {
        for path in files(folder, &EXTENSIONS) {
            if path.starts_with("tests/tidy/") {
                continue;
            }
            let text = String::from_utf8_lossy(&fs::read(root().join(&path)).unwrap()).into_owned();
            let flowing = flowing(&text);
            for (phrase, instead) in banned {
                if let Some(line) = phrase.line_in(&path, &text, &flowing) {
                    found.push(format!(
                        "{path}:{line}: '{}'; say: {instead}",
                        phrase.text()
                    ));
                }
            }
        }
    }
    found
}

impl Banned {
    fn text(self) -> &'static str {
        let (Name(text) | Begin(text) | Words(text) | File(text)) = self;
        text
    }

    /// The first line with the phrase.
    fn line_in(self, path: &str, text: &str, flowing: &Flowing) -> Option<usize> {
        match self {
            Name(name) => word_at(text, name).map(|at| line_of(text, at)),
            Begin(begin) => text
                .match_indices(begin)
                .find(|(at, _)| !text[..*at].ends_with(|c: char| c.is_alphanumeric() || c == '_'))
                .map(|(at, _)| line_of(text, at)),
            Words(words) => flowing.text.find(words).map(|at| flowing.line_at(at)),
            File(name) => path.ends_with(&format!("/{name}")).then_some(1),
        }
    }
}

/// A text in small letters whose line breaks, and the marks of comments after them, are single spaces.
struct Flowing {
    text: String,
    /// Where each line begins.
    lines: Vec<usize>,
}

impl Flowing {
    fn line_at(&self, at: usize) -> usize {
        self.lines.partition_point(|begin| *begin <= at)
    }
}

fn flowing(text: &str) -> Flowing {
    let mut flowing = Flowing {
        text: String::with_capacity(text.len()),
        lines: Vec::new(),
    };
    for line in text.lines() {
        flowing.lines.push(flowing.text.len());
        let words = line
            .trim()
            .trim_start_matches(['/', '!', '#', '*', '-', '>'])
            .trim();
        flowing
            .text
            .push_str(&words.trim_end_matches('\\').to_lowercase());
        flowing.text.push(' ');
    }
    flowing
}
