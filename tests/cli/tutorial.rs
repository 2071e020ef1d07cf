//! The tutorial, by the script that runs it, and that script itself.

use std::fs;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use tempfile::TempDir;
use test_support::{program, scratch, text};

/// `scripts/tutorial` with the program under test.
fn script(arguments: &[&str]) -> Output {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/tutorial");
    let mut command = Command::new(script);
    command
        .args(["--program", text(program())])
        .args(arguments)
        .env("TMPDIR", scratch())
        // Its backup works with `fips` too, if told.
        .env("SEALDISK_ALLOW_NON_FIPS", "1")
        .env_remove("RUST_LOG")
        .env_remove("SEALDISK_LOG_FORMAT")
        .stdin(Stdio::null());
    command.output().unwrap()
}

fn said(output: &Output) -> String {
    let (out, err) = (&output.stdout, &output.stderr);
    format!(
        "{}{}",
        String::from_utf8_lossy(out),
        String::from_utf8_lossy(err)
    )
}

/// What it needs and is not of this repository.
fn is_missing(tool: &str) -> bool {
    let found = Command::new(tool).arg("--version").output();
    if found.is_err() {
        eprintln!("{tool} is missing (scripts/setup test)");
    }
    found.is_err()
}

#[test]
fn the_tutorial_prints_what_its_page_shows() {
    if ["qemu-img", "age-keygen", "curl"]
        .into_iter()
        .any(is_missing)
    {
        return;
    }
    let output = script(&[]);
    let said = said(&output);
    assert!(output.status.success(), "{said}");
    assert!(said.contains(" 0 with another output"), "{said}");
}

/// A page of its own, with that in the place of an output.
fn page(dir: &TempDir, shown: &str) -> String {
    let page = dir.path().join("page.md");
    let text_of_page = format!(
        "# A page\n\n```console\n$ echo one \\\n    two\n{shown}\n$ echo $?\n0\n\
         $ echo 3f2504e0-4f89-11d3-9a0c-0305e82c3301  at 2026-01-01T00:00:00Z, 17 MiB in 0.3 s\n\
         00000000-0000-0000-0000-000000000000 at 2025-05-05T05:05:05.5Z, 2 GiB in 12 ms\n\
         $ seq 5\n1\n…\n5\n```\n\n<!-- tutorial: guest -->\n```console\n$ not-run\nnothing\n```\n\n\
         <!-- tutorial: installed -->\n<!-- tutorial: elsewhere: made=here -->\n```console\n$ systemctl x\n```\n\n\
         ```console\n$ echo $made $SEALDISK_STATE_DIR\nhere /var/lib/sealdisk\n```\n"
    );
    fs::write(&page, text_of_page).unwrap();
    text(&page).to_owned()
}

#[test]
fn a_page_that_shows_something_else_is_red_until_it_is_recorded() {
    if is_missing("qemu-img") {
        return;
    }
    let dir = TempDir::new().unwrap();
    let right = page(&dir, "one two");
    let output = script(&[&right]);
    assert!(output.status.success(), "{}", said(&output));
    let of_right = fs::read_to_string(&right).unwrap();

    let wrong = page(&dir, "three");
    let output = script(&[&wrong]);
    let told = said(&output);
    assert!(!output.status.success(), "{told}");
    assert!(told.contains(&format!("{wrong}:4: $ echo one")), "{told}");
    assert!(told.contains("\n-three\n+one two\n"), "{told}");
    assert_ne!(
        fs::read_to_string(&wrong).unwrap(),
        of_right,
        "nothing is written unasked"
    );

    let output = script(&["--record", &wrong]);
    assert!(output.status.success(), "{}", said(&output));
    assert_eq!(
        fs::read_to_string(&wrong).unwrap(),
        of_right,
        "the rest stays as it is"
    );
    assert!(script(&[&wrong]).status.success());
}
