//! The drill of docs/disaster-recovery.md, by the very commands that stand there.

use std::fs;
use std::process::Command;

use test_support::{Host, program};

/// The document's commands in their order: its blocks of `sh`, and what its comments `<!-- drill: … -->`
/// do in between, which is to lose things and to look. The block of places is the reader's to change.
fn script(document: &str) -> String {
    let mut script = String::new();
    let mut inside = false;
    for line in document.lines() {
        match line {
            "```sh" => inside = true,
            "```" => inside = false,
            _ if inside => {
                script.push_str(line);
                script.push('\n');
            }
            _ => {
                let drill = line.strip_prefix("<!-- drill: ");
                if let Some(command) = drill.and_then(|rest| rest.strip_suffix(" -->")) {
                    script.push_str(command);
                    script.push('\n');
                }
            }
        }
    }
    script
}

#[test]
fn the_drill_of_the_document_works_as_it_stands_there() {
    let document = fs::read_to_string("docs/disaster-recovery.md").unwrap();
    let script = script(&document);
    assert!(script.matches("sealdisk backup").count() == 3, "{script}");
    let host = Host::new();
    let commands = host.path("drill.sh");
    fs::write(&commands, &script).unwrap();
    let binary = program();
    let path = format!(
        "{}:{}",
        binary.parent().unwrap().display(),
        std::env::var("PATH").unwrap()
    );
    for directory in ["media", "run"] {
        fs::create_dir(host.path(directory)).unwrap();
    }
    let output = Command::new("bash")
        .args(["-euxo", "pipefail"])
        .arg(&commands)
        .env("PATH", path)
        .env("STATE", host.state())
        .env("SEALDISK_STATE_DIR", host.state())
        .env("SEALDISK_RUNTIME_DIR", host.path("run"))
        .env("MEDIA", host.path("media"))
        .env("SEALDISK_ALLOW_NON_FIPS", "1")
        .env_remove("CREDENTIALS_DIRECTORY")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
}
