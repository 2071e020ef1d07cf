//! Help, what is hidden, and what somebody may have meant.

use test_support::Host;

const HIDDEN: [&str; 9] = [
    "data-plane",
    "data-plane-launcher",
    "attach-versions",
    "continue-attach",
    "check-confinement",
    "event-notifier",
    "store-process",
    "store-process-launcher",
    "trace-exporter",
];

#[test]
fn the_program_alone_shows_its_help() {
    let host = Host::new();
    let output = host.run("");
    assert!(output.status.success(), "{output:?}");
    let help = String::from_utf8(output.stdout).unwrap();
    assert!(
        help.contains("Usage: sealdisk [OPTIONS] <COMMAND>"),
        "{help}"
    );
    assert!(output.stderr.is_empty());
    assert!(!host.state().exists(), "it made an installation");
    // A noun alone lacks its command.
    let output = host.run("disk");
    assert_eq!(output.status.code(), Some(2));
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains("Usage: sealdisk disk"), "{said}");
    assert!(output.stdout.is_empty());
}

#[test]
fn hidden_commands_stay_hidden() {
    let host = Host::new();
    let mut said = vec![host.text("--help"), host.text("help"), host.text("-h")];
    for shell in ["bash", "zsh", "fish"] {
        said.push(host.text(&format!("completions {shell}")));
    }
    // A slip that is near to one of them, and a line without a command, list or suggest commands.
    for line in [
        "data-plan",
        "continue-att",
        "attach-version",
        "check-confine",
        "-o table",
    ] {
        let output = host.run(line);
        assert_eq!(output.status.code(), Some(2), "{line}");
        said.push(String::from_utf8(output.stderr).unwrap());
    }
    for text in said {
        for hidden in HIDDEN {
            // A slip is repeated, which is no hint.
            let found = text.match_indices(hidden).any(|(at, _)| {
                let before = text[..at].chars().next_back();
                before.is_none_or(|c| !c.is_alphanumeric())
            });
            assert!(!found, "{hidden} is in: {text}");
        }
    }
}

#[test]
fn a_command_that_is_nearly_right_is_suggested() {
    let host = Host::new();
    for (line, meant) in [
        ("disks list", "disk"),
        ("disk lists", "list"),
        ("keyvault key creates", "create"),
        ("disk list --queries x", "--query"),
    ] {
        let said = host.refused(line);
        assert!(said.contains(&format!("'{meant}'")), "{line}: {said}");
        assert!(said.contains("tip: "), "{line}: {said}");
    }
    // The nearest comes first.
    let said = host.refused("disk creat");
    let (_, tip) = said.split_once("tip: ").unwrap();
    assert_eq!(tip.split('\'').nth(1), Some("create"), "{said}");
}

#[test]
fn a_name_that_is_nearly_right_is_suggested() {
    let host = Host::new();
    host.encryption_set("customers", &["get", "wrapKey", "unwrapKey"]);
    host.ok("disk create boot1 --size 1MiB");
    host.ok("disk create data-web --size 1MiB");
    host.ok("snapshot create snap-1 --source boot1");
    host.ok("keyvault key create mykey --vault-name vault1");
    for (line, code, meant) in [
        (
            "keyvault key show myky --vault-name vault1",
            "KeyNotFound",
            "did you mean 'mykey'?",
        ),
        (
            "keyvault key delete mykye --vault-name vault1 --yes",
            "KeyNotFound",
            "did you mean 'mykey'?",
        ),
        (
            "disk show bot1",
            "ResourceNotFound",
            "did you mean 'boot1'?",
        ),
        (
            "disk show BOOT1",
            "ResourceNotFound",
            "did you mean 'boot1'?",
        ),
        (
            "disk delete data_web --yes",
            "ResourceNotFound",
            "did you mean 'data-web'?",
        ),
        (
            "disk flatten boot11",
            "ResourceNotFound",
            "did you mean 'boot1'?",
        ),
        (
            "snapshot show snap-2",
            "ResourceNotFound",
            "did you mean 'snap-1'?",
        ),
        (
            "keyvault show vault12",
            "VaultNotFound",
            "did you mean 'vault1'?",
        ),
        (
            "keyvault key list --vault-name vaults1",
            "VaultNotFound",
            "did you mean 'vault1'?",
        ),
        (
            "disk-encryption-set show customer",
            "ResourceNotFound",
            "did you mean 'customers'?",
        ),
        (
            "disk create x --size 1MiB --disk-encryption-set customer5",
            "ResourceNotFound",
            "did you mean 'customers'?",
        ),
        (
            "disk show snap-1",
            "ResourceNotFound",
            "there is a snapshot of that name",
        ),
    ] {
        let said = host.refused_with(code, line);
        assert!(said.ends_with(meant), "{line}: {said}");
    }
    // What is like nothing gets no suggestion.
    let said = host.refused("disk show something-else");
    assert!(!said.contains("did you mean"), "{said}");
}

#[test]
fn the_version_says_what_it_is_and_what_it_runs_on() {
    let host = Host::new();
    let version = env!("CARGO_PKG_VERSION");
    assert_eq!(host.text("-V"), format!("sealdisk {version}\n"));
    let said = host.text("--version");
    assert!(said.starts_with(&format!("sealdisk {version} (")), "{said}");
    for name in [
        "features: ",
        "engine: AES-256-XTS by ",
        "needs: Linux 6.1 ",
        "host: Linux ",
        "guests: ",
    ] {
        assert!(said.contains(name), "{said}");
    }
    let view = host.json("version");
    assert_eq!(view["version"], version);
    assert!(
        view["host"]
            .as_str()
            .unwrap()
            .ends_with(std::env::consts::ARCH),
        "{view}"
    );
    assert!(
        view["features"].is_array() && view["engine"].is_string(),
        "{view}"
    );
    assert!(!host.state().exists(), "it made an installation");
}

/// The events of disks are in the help, and in the documents.
#[test]
fn every_kind_of_event_is_told_of() {
    let read = |path: &str| {
        let path = format!("{}/{path}", env!("CARGO_MANIFEST_DIR"));
        std::fs::read_to_string(path).unwrap()
    };
    let source = read("crates/attach/src/status.rs");
    let (_, kinds) = source.split_once("pub enum EventKind {\n").unwrap();
    let (kinds, _) = kinds.split_once("\n}").unwrap();
    let kinds = kinds
        .lines()
        .filter_map(|line| line.trim().strip_suffix(','));
    let kinds: Vec<_> = kinds.filter(|kind| !kind.starts_with('/')).collect();
    assert!(
        kinds.contains(&"DataPlaneRestarted") && kinds.len() > 20,
        "{kinds:?}"
    );
    let help = Host::new().text("disk events --help");
    let documents = read("docs/key-vault.md");
    for kind in kinds {
        let is_in = |text: &str| {
            let words = text.split(|c: char| !c.is_alphanumeric());
            words.into_iter().any(|word| word == kind)
        };
        assert!(is_in(&help), "{kind}: {help}");
        assert!(is_in(&documents), "{kind} in docs/key-vault.md");
    }
}
