//! The forms of output: what people see, and what scripts read.

use std::process::{Command, Stdio};

use serde_json::Value;
use test_support::{Host, program, text};

const ALL: &[&str] = &["get", "wrapKey", "unwrapKey"];

/// A key vault with a key, a set, and two disks.
fn host() -> Host {
    let host = Host::new();
    host.encryption_set("set1", ALL);
    host.ok("disk create web1 --size 10GiB --disk-encryption-set set1");
    host.ok("disk create web2 --size 1536KiB");
    host
}

/// What a command prints on a terminal with so many columns.
fn on_terminal(host: &Host, columns: u16, words: &str) -> String {
    let line = format!(
        "stty cols {columns} rows 24; exec {} {words}",
        text(program())
    );
    let mut command = Command::new("script");
    host.prepare(&mut command);
    let command = command.args(["-qec", &line, "/dev/null"]);
    let output = command
        .env("TERM", "xterm")
        .env_remove("NO_COLOR")
        .stdin(Stdio::null())
        .output()
        .unwrap();
    String::from_utf8(output.stdout).unwrap().replace('\r', "")
}

#[test]
fn sizes_are_for_people_in_tables_and_bytes_in_json() {
    let host = host();
    let table = host.text("disk list");
    let mut lines = table.lines();
    let heading: Vec<&str> = lines.next().unwrap().split_whitespace().collect();
    assert_eq!(
        heading,
        ["NAME", "STATE", "SIZE", "USED", "DATA", "SET", "KEY"]
    );
    let web1 = lines.next().unwrap();
    assert!(web1.starts_with("web1  Unattached  10 GiB"), "{table}");
    assert!(web1.contains("  set1  "), "{table}");
    assert!(lines.next().unwrap().contains("  1.5 MiB"), "{table}");
    assert!(!table.contains("https://"), "{table}");
    let shown = host.text("disk show web1");
    let size = shown.lines().find(|line| line.starts_with("diskSizeBytes"));
    assert!(size.unwrap().ends_with(" 10 GiB"), "{shown}");

    let json = host.json("disk list");
    assert_eq!(json[0]["diskSizeBytes"], 10_u64 << 30);
    assert!(
        json[0]["encryption"]["keyUrl"]
            .as_str()
            .unwrap()
            .starts_with("https://")
    );
}

#[test]
fn a_key_is_shown_without_its_modulus_and_json_has_it() {
    let host = Host::new();
    host.ok("keyvault create myvault");
    let create = "keyvault key create k --vault-name myvault --size 2048";
    let table = host.text(create);
    assert!(table.contains("key.kid "), "{table}");
    assert!(table.lines().all(|line| line.len() < 200), "{table}");
    let shown = host.json("keyvault key show k --vault-name myvault");
    assert!(shown["key"]["n"].as_str().unwrap().len() > 300);
    let modulus = host.text("keyvault key show k --vault-name myvault --query key.n -o tsv");
    assert_eq!(modulus.trim_end(), shown["key"]["n"]);
}

#[test]
fn a_table_fits_the_terminal() {
    let host = host();
    for (columns, line) in [(40, "list"), (80, "list"), (60, "show web2")] {
        let table = on_terminal(&host, columns, &format!("disk {line}"));
        assert!(table.contains("web2"), "{table}");
        for line in table.lines() {
            assert!(
                line.chars().count() <= columns.into(),
                "{columns}: {line:?}"
            );
        }
    }
    let wide = on_terminal(&host, 200, "disk list");
    assert_eq!(wide.lines().count(), 3, "{wide}");
}

#[test]
fn each_format_has_the_same_result() {
    let host = host();
    let query = "--query [].{name:name,size:diskSizeBytes,set:encryption.diskEncryptionSetId}";
    let list = |format: &str| host.text(&format!("disk list {query} -o {format}"));
    let json: Value = serde_json::from_str(&list("json")).unwrap();
    let expected = serde_json::json!([
        {"name": "web1", "size": 10_737_418_240_u64, "set": "set1"},
        {"name": "web2", "size": 1_572_864, "set": null},
    ]);
    assert_eq!(json, expected);
    // Fields come in the order in which they were asked for.
    assert_eq!(list("json"), format!("{expected:#}\n"));
    assert_eq!(list("jsonc"), list("json"), "no colours in a pipe");
    assert_eq!(list("tsv"), "web1\t10737418240\tset1\nweb2\t1572864\t\n");
    assert_eq!(
        list("yaml"),
        "- name: web1\n  size: 10737418240\n  set: set1\n- name: web2\n  size: 1572864\n  set: null\n"
    );
    assert_eq!(
        list("table"),
        "NAME  SIZE         SET\nweb1  10737418240  set1\nweb2  1572864      -\n"
    );
    assert_eq!(list("none"), "");

    let coloured = on_terminal(&host, 200, "disk list --query [].name -o jsonc");
    assert!(
        coloured.contains("\u{1b}[32m\"web1\"\u{1b}[0m"),
        "{coloured:?}"
    );
}

/// Without a query too each field has its place, whatever there is to say of a disk.
#[test]
fn columns_between_tabs_are_those_of_every_row() {
    let host = host();
    let columns = |rows: &str| -> Vec<Vec<String>> {
        let fields = |row: &str| row.split('\t').map(str::to_owned).collect();
        rows.lines().map(fields).collect()
    };
    let before = columns(&host.text("disk list -o tsv"));
    std::fs::write(host.files("web2").header, "no header").unwrap();
    let rows = columns(&host.text("disk list -o tsv"));
    let states: Vec<_> = rows.iter().map(|row| row[3].as_str()).collect();
    assert_eq!(states, ["Unattached", "Damaged"]);
    let directory = |row: &Vec<String>| row.iter().position(|field| field.starts_with('/'));
    for row in before.iter().chain(&rows) {
        assert_eq!(row.len(), before[0].len(), "{row:?}");
        assert_eq!(directory(row), directory(&before[0]), "{row:?}");
    }
    let chosen = columns(&host.text("disk list --query [?name=='web1'] -o tsv"));
    assert_eq!(chosen, [rows[0].clone()]);
}

#[test]
fn a_query_is_made_before_the_result_is_printed_by_every_command() {
    let host = host();
    for (line, expected) in [
        ("disk show web1 --query diskState -o tsv", "Unattached\n"),
        ("disk show web1 --query diskState", "Unattached\n"),
        (
            "disk show web1 --query diskState -o json",
            "\"Unattached\"\n",
        ),
        (
            "disk list --query [?diskSizeBytes>`2000000`].name -o tsv",
            "web1\n",
        ),
        ("disk list --query length(@) -o json", "2\n"),
        ("disk list --query [].name -o table", "RESULT\nweb1\nweb2\n"),
        ("disk list --query [].nothing -o json", "[]\n"),
        // Nothing is printed of nothing, as by the Azure CLI.
        ("disk show web1 --query nothing -o json", ""),
        ("disk list --query [?name=='x'].name -o tsv", ""),
        (
            "disk-encryption-set show set1 --query name -o tsv",
            "set1\n",
        ),
        ("keyvault list --query [].name -o tsv", "platform\nvault1\n"),
        ("snapshot list --query length(@) -o tsv", "0\n"),
        (
            "version --query version -o tsv",
            concat!(env!("CARGO_PKG_VERSION"), "\n"),
        ),
        ("audit list --vault vault1 --query [0].seq -o json", "1\n"),
        (
            "audit status --vault vault1 --query [].log -o json",
            "\"vault/vault1\"\n",
        ),
        ("disk create web3 --size 1MiB --query name -o tsv", "web3\n"),
    ] {
        assert_eq!(host.text(line), expected, "{line}");
    }
}

#[test]
fn a_bad_expression_is_one_line_and_nothing_is_done() {
    let host = host();
    for expression in ["[].{", "[?name=", "a\u{a0}b"] {
        let create = format!("disk create x --size 1MiB --query {expression}");
        let output = host.run(&create);
        assert_eq!(output.status.code(), Some(2));
        let line = host.refused_with("InvalidArgument", &create);
        assert!(
            line.contains("--query") && line.contains("at character"),
            "{line}"
        );
    }
    assert_eq!(host.text("disk list x -o tsv"), "");
    // What only shows when there is a result is no usage error, and the result is printed: it may be the only time.
    let output = host.run("disk create made --size 1MiB --query abs(name) -o json");
    assert_eq!(output.status.code(), Some(1));
    let whole: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(whole["name"], "made");
    // The same where a result is in lines.
    let output = host.run("audit list --vault vault1 --query abs(@) -o json");
    assert_eq!(output.status.code(), Some(1));
    let line = String::from_utf8(output.stdout).unwrap();
    let first: Value = serde_json::from_str(line.lines().next().unwrap()).unwrap();
    assert_eq!(first["seq"], 1);
    let line = host.refused_with("OutputError", "disk list --query abs(@)");
    assert!(line.contains("cannot be queried"), "{line}");
}

#[test]
fn a_secret_that_would_not_be_printed_is_not_made() {
    let host = host();
    let kept = host.path("made.secret");
    host.ok(&["identity", "create", "made", "--secret-file", text(&kept)]);
    for output in [
        "--query nosuch",
        "--query name",
        "--query abs(secret)",
        "-o none",
        "--query secret -o none",
    ] {
        for command in [
            "create other",
            "reset-secret made",
            "secret --disk-encryption-set set1",
        ] {
            let line = format!("identity {command} {output}");
            let run = host.run(&line);
            assert_eq!(run.status.code(), Some(2), "{line}");
            let said = String::from_utf8_lossy(&run.stderr);
            assert!(said.contains("--secret-file"), "{said}");
        }
    }
    assert_eq!(host.text("identity list --query [].name -o tsv"), "made\n");
    // Nor is one that nobody would ever read.
    let mut thrown_away = host.command(&["identity", "create", "other"]);
    let run = thrown_away.stdout(Stdio::null()).output().unwrap();
    assert_eq!(run.status.code(), Some(2), "{run:?}");
    // What is lost all the same is told with what to do, a reader that goes away too.
    let closed = || {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        Stdio::from(writer)
    };
    let full = || Stdio::from(std::fs::File::create("/dev/full").unwrap());
    for (name, stdout) in [("lost1", full()), ("lost2", closed())] {
        let create = ["identity", "create", name, "-o", "json"];
        let run = host.command(&create).stdout(stdout).output().unwrap();
        assert_eq!(run.status.code(), Some(1), "{run:?}");
        let said = String::from_utf8_lossy(&run.stderr);
        let remedy = format!("identity reset-secret {name}");
        assert!(said.contains(&remedy), "{said}");
        host.ok(&["identity", "reset-secret", name]);
    }
    let secret = host.text("identity create one --query secret -o tsv");
    assert!(secret.trim().len() > 20, "{secret}");
    let both = host.text("identity create two --query [principalId,secret] -o tsv");
    assert_eq!(both.lines().count(), 2, "{both}");
    let kept = host.path("three.secret");
    let quiet = ["identity", "create", "three", "-o", "none", "--secret-file"];
    host.ok(&[&quiet[..], &[text(&kept)]].concat());
    assert!(kept.is_file());
}

#[test]
fn errors_are_json_where_results_are() {
    let host = Host::new();
    for (format, is_json) in [
        ("json", true),
        ("jsonc", true),
        ("tsv", false),
        ("none", false),
    ] {
        for line in ["disk show nothing", "disk nonsense"] {
            let said = host.refused(&format!("{line} -o {format}"));
            let parsed: Result<Value, _> = serde_json::from_str(&said);
            assert_eq!(parsed.is_ok(), is_json, "{said}");
        }
    }
}
