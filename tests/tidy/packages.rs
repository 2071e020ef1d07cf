//! Rules for packages and what they depend on, from `cargo metadata`.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

use serde_json::Value;

use crate::code::Code;
use crate::{assert_none, files, read, root, word_at};

/// What has no place in a process that a guest talks to, nor in what it is made of: networks, databases, TLS,
/// asynchronous runtimes.
const KEPT_OUT: [&str; 21] = [
    "async-std",
    "async-trait",
    "axum",
    "azure_core",
    "futures-executor",
    "h2",
    "http",
    "hyper",
    "hyper-util",
    "libsqlite3-sys",
    "native-tls",
    "openssl",
    "postgres",
    "reqwest",
    "rusqlite",
    "rustls",
    "rustls-webpki",
    "smol",
    "tokio",
    "tokio-util",
    "ureq",
];

/// The crates of the data plane.
const OF_THE_DATA_PLANE: [&str; 7] = [
    "keys",
    "sandbox",
    "xts",
    "store-ring",
    "volume",
    "protocol",
    "dataplane",
];

/// Helpers of tests, on which every crate's tests may depend.
const HELPERS_OF_TESTS: &str = "test-support";

fn metadata() -> Value {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version", "1", "--offline", "--locked"])
        .args(["--filter-platform", "x86_64-unknown-linux-gnu"])
        .current_dir(root())
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    serde_json::from_slice(&output.stdout).unwrap()
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

/// The packages of the workspace.
fn members(metadata: &Value) -> Vec<&Value> {
    let ids = list(&metadata["workspace_members"]);
    let packages = list(&metadata["packages"]).iter();
    packages
        .filter(|package| ids.contains(&package["id"]))
        .collect()
}

/// The dependencies of a package of one kind; ordinary ones have the kind "".
fn dependencies<'a>(package: &'a Value, kind: &str) -> Vec<&'a Value> {
    let all = list(&package["dependencies"]).iter();
    all.filter(|dependency| text(&dependency["kind"]) == kind)
        .collect()
}

/// The table of docs/architecture.md with the columns Crate and Uses: which crates a crate depends on.
fn picture() -> BTreeMap<String, BTreeSet<String>> {
    let document = read("docs/architecture.md");
    let mut lines = document
        .lines()
        .skip_while(|line| !is_head_of_picture(line));
    lines
        .next()
        .expect("docs/architecture.md has the table | Crate | … | Uses |");
    let rows = lines.skip(1).take_while(|line| line.starts_with('|'));
    rows.map(|row| {
        let cells: Vec<_> = row.trim_matches('|').split('|').map(str::trim).collect();
        let names = |cell: &str| {
            cell.split('`')
                .skip(1)
                .step_by(2)
                .map(str::to_owned)
                .collect()
        };
        let name: Vec<String> = names(cells[0]);
        (
            name[0].clone(),
            names(cells[cells.len() - 1]).into_iter().collect(),
        )
    })
    .collect()
}

fn is_head_of_picture(line: &str) -> bool {
    let cells: Vec<_> = line.trim_matches('|').split('|').map(str::trim).collect();
    cells.first() == Some(&"Crate") && cells.last() == Some(&"Uses")
}

/// What a crate reaches in the picture.
fn beneath(name: &str, picture: &BTreeMap<String, BTreeSet<String>>) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let mut next: Vec<_> = picture.get(name).into_iter().flatten().collect();
    while let Some(name) = next.pop() {
        if found.insert(name.clone()) {
            next.extend(picture.get(name).into_iter().flatten());
        }
    }
    found
}

#[test]
fn the_arrows_between_crates_are_those_of_the_picture() {
    let metadata = metadata();
    let picture = picture();
    let members = members(&metadata);
    let names: BTreeSet<_> = members
        .iter()
        .map(|package| text(&package["name"]))
        .collect();
    let mut breaches = Vec::new();
    for name in picture.keys().filter(|name| !names.contains(name.as_str())) {
        breaches.push(format!("the picture has {name}, which is no crate"));
    }
    for package in &members {
        let name = text(&package["name"]);
        let Some(drawn) = picture.get(name) else {
            breaches.push(format!("the picture has no row for {name}"));
            continue;
        };
        let inside = |kind: &str| -> BTreeSet<String> {
            let all = dependencies(package, kind).into_iter();
            let ours = all.filter(|dependency| names.contains(text(&dependency["name"])));
            ours.map(|dependency| text(&dependency["name"]).to_owned())
                .collect()
        };
        let used = inside("");
        breaches.extend(used.difference(drawn).map(|to| format!("{name} uses {to}")));
        breaches.extend(
            drawn
                .difference(&used)
                .map(|to| format!("{name} does not use {to}")),
        );
        let below = beneath(name, &picture);
        for to in inside("dev")
            .iter()
            .filter(|to| *to != HELPERS_OF_TESTS && !below.contains(*to))
        {
            breaches.push(format!("tests of {name} use {to}, which is not below it"));
        }
    }
    assert_none(
        &breaches,
        "the table of crates in docs/architecture.md is the picture: keep to it, or redraw it",
    );
}

#[test]
fn no_circle_is_in_the_picture() {
    let picture = picture();
    let names = picture
        .keys()
        .filter(|name| beneath(name, &picture).contains(*name));
    let circle: Vec<_> = names.cloned().collect();
    assert_none(
        &circle,
        "the table of crates in docs/architecture.md has a circle",
    );
}

#[test]
fn the_data_plane_has_no_tls_sql_http_or_runtime() {
    let metadata = metadata();
    let mut breaches = Vec::new();
    for package in members(&metadata) {
        if OF_THE_DATA_PLANE.contains(&text(&package["name"])) {
            let ways = ways_to_all(&metadata, text(&package["id"]));
            let kept_out = ways
                .iter()
                .filter(|way| KEPT_OUT.contains(&way[way.len() - 1].as_str()));
            breaches.extend(kept_out.map(|way| way.join(" ─► ")));
        }
    }
    assert_none(
        &breaches,
        "the data plane and what it is made of have none of these in their trees",
    );
}

/// The names on a way from a package to each package that it needs when it runs.
fn ways_to_all(metadata: &Value, from: &str) -> Vec<Vec<String>> {
    let nodes: BTreeMap<_, _> = list(&metadata["resolve"]["nodes"])
        .iter()
        .map(|node| (text(&node["id"]), node))
        .collect();
    let names: BTreeMap<_, _> = list(&metadata["packages"])
        .iter()
        .map(|package| (text(&package["id"]), text(&package["name"])))
        .collect();
    let mut ways: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    let mut next = vec![(from, vec![names[from].to_owned()])];
    while let Some((id, way)) = next.pop() {
        if ways.contains_key(id) {
            continue;
        }
        for dependency in list(&nodes[id]["deps"]) {
            let kinds = list(&dependency["dep_kinds"]);
            if kinds.iter().any(|kind| kind["kind"].is_null()) {
                let to = text(&dependency["pkg"]);
                let longer = way.iter().cloned().chain([names[to].to_owned()]);
                next.push((to, longer.collect()));
            }
        }
        ways.insert(id, way);
    }
    ways.into_values().collect()
}

/// The Rust files of a package's folder, without those of packages inside it.
fn sources_of(package: &Value) -> Vec<Code> {
    let manifest = text(&package["manifest_path"]).trim_end_matches("Cargo.toml");
    let folder = manifest
        .trim_start_matches(root().to_str().unwrap())
        .trim_matches('/');
    let within = |name: &str| {
        if folder.is_empty() {
            name.to_owned()
        } else {
            format!("{folder}/{name}")
        }
    };
    [
        "src",
        "tests",
        "benches",
        "examples",
        "fuzz_targets",
        "build.rs",
    ]
    .iter()
    .flat_map(|name| files(&within(name), &["rs"]))
    .map(|path| Code::load(&path))
    .collect()
}

#[test]
fn every_dependency_is_imported() {
    let metadata = metadata();
    let mut breaches = Vec::new();
    for package in members(&metadata) {
        let name = text(&package["name"]);
        let sources = sources_of(package);
        for dependency in list(&package["dependencies"]) {
            let renamed = dependency["rename"].as_str();
            let import = renamed
                .unwrap_or(text(&dependency["name"]))
                .replace('-', "_");
            let kind = text(&dependency["kind"]);
            // There are no optional dev-dependencies: what tests of a feature need is an ordinary one.
            let for_tests = kind == "dev" || dependency["optional"] == true;
            if !sources.iter().any(|code| imports(code, &import, for_tests)) {
                let kind = if kind.is_empty() { "ordinary" } else { kind };
                breaches.push(format!("{name}: the {kind} dependency {import}"));
            }
        }
    }
    assert_none(
        &breaches,
        "nobody imports these, or tests alone import an ordinary dependency: take them out",
    );
}

/// Whether a file names a crate. For an ordinary dependency only what is not for tests counts.
fn imports(code: &Code, import: &str, for_tests: bool) -> bool {
    let is_test = code.path.starts_with("tests/") || code.path.contains("/tests");
    let text = if for_tests { &code.text } else { &code.shipped };
    (for_tests || !is_test) && word_at(text, import).is_some()
}

#[test]
fn every_dependency_of_the_workspace_has_a_user() {
    let manifest = read("Cargo.toml");
    let section = manifest.split("[workspace.dependencies]").nth(1).unwrap();
    let names = section.lines().take_while(|line| !line.starts_with('['));
    let names: Vec<_> = names
        .filter_map(|line| line.split_once(" = "))
        .map(|(name, _)| name)
        .collect();
    assert!(names.len() > 10, "{names:?}");
    let mut manifests = files("crates", &["toml"]);
    manifests.extend(["Cargo.toml".to_owned(), "fuzz/Cargo.toml".to_owned()]);
    let manifests: Vec<_> = manifests.iter().map(|path| read(path)).collect();
    let is_used = |name: &str| {
        manifests.iter().flat_map(|text| text.lines()).any(|line| {
            line.starts_with(&format!("{name}.workspace"))
                || line.starts_with(&format!("{name} = {{ workspace"))
        })
    };
    let unused: Vec<_> = names
        .iter()
        .filter(|name| !is_used(name))
        .map(|name| (*name).to_owned())
        .collect();
    assert_none(&unused, "[workspace.dependencies] names what no crate uses");
}
