//! The pages of the book about commands are what the program says of itself.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use test_support::{Host, text};

/// Written by hand; `tests/tidy/errors.rs` compares it with the source.
const BY_HAND: &str = "errors.md";

#[test]
fn the_reference_is_what_the_program_says() {
    let host = Host::new();
    let made = host.path("reference");
    host.ok(&["reference", text(&made)]);
    let kept = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/reference");
    let names = |dir: &Path| -> BTreeSet<String> {
        let names = fs::read_dir(dir).unwrap();
        names
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect()
    };
    const REMEDY: &str = "write it anew: cargo run -q -- reference docs/reference; a new page needs a line in docs/SUMMARY.md";
    let mut wanted = names(&made);
    wanted.insert(BY_HAND.to_owned());
    assert_eq!(
        names(&kept),
        wanted,
        "docs/reference has other pages; {REMEDY}"
    );
    for name in names(&made) {
        let page = fs::read_to_string(kept.join(&name)).unwrap();
        let said = fs::read_to_string(made.join(&name)).unwrap();
        let differs = page
            .lines()
            .zip(said.lines())
            .find(|(page, said)| page != said);
        assert!(
            page == said,
            "docs/reference/{name} differs at {differs:?}; {REMEDY}"
        );
    }
}

#[test]
fn the_reference_has_every_command_and_option_and_no_hidden_one() {
    let host = Host::new();
    let dir = host.path("reference");
    host.ok(&["reference", text(&dir)]);
    let page = |name: &str| fs::read_to_string(dir.join(name)).unwrap();
    let index = page("commands.md");
    for there in [
        "[sealdisk disk](disk.md)",
        "[sealdisk attach](#sealdisk-attach)",
        "## sealdisk attach",
        "| `-o, --output OUTPUT` |",
        "`--socket-group GROUP`",
    ] {
        assert!(index.contains(there), "{there}\n{index}");
    }
    let disk = page("disk.md");
    for there in [
        "## sealdisk disk create",
        "`--size SIZE`",
        "sealdisk disk create [OPTIONS]",
    ] {
        assert!(disk.contains(there), "{there}\n{disk}");
    }
    assert!(page("keyvault.md").contains("## sealdisk keyvault key rotation-policy show"));
    for hidden in ["data-plane-launcher", "manpages"] {
        assert!(!index.contains(hidden), "{hidden}");
    }
}
