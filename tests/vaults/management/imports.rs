//! Imports of images: by a URL of access, and from a directory of the host.

use std::fs;
use std::os::unix::fs::symlink;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Signal, kill_process};
use serde_json::{Value, json};
use test_support::{PATIENCE, Server, holds, noise, qemu_img, text};

use super::access::{CONTRIBUTOR, assignment, line};
use super::blob::{DISKS, SNAPSHOTS, revoke};
use super::client::{Client, Managed};
use super::vaults::group;

const COMPUTE: &str = "~/resourceGroups/rg/providers/Microsoft.Compute";
const MIB: usize = 1 << 20;

fn import(uri: &str) -> Value {
    json!({"location": "local", "properties": {"creationData": {
        "createOption": "Import",
        "sourceUri": uri,
        "storageAccountId": "/subscriptions/s/resourceGroups/rg/providers/Microsoft.Storage/storageAccounts/a",
    }}})
}

/// Serves with a directory of images; its path.
fn with_images(managed: &mut Managed) -> String {
    let images = managed.host.path("images");
    let _ = fs::create_dir(&images);
    let images = text(&images).to_owned();
    let command = format!("serve --listen 127.0.0.1:0 --import-dir {images} -o json");
    managed.served = Server::start(managed.host.command(&command));
    images
}

/// A URL of access, and what of it is secret.
fn url(client: &Client<'_>, id: &str) -> (String, String) {
    let body = json!({"access": "Read", "durationInSeconds": 600});
    let granted = client.ok(&format!("POST {id}/beginGetAccess"), Some(&body));
    let url = granted["accessSAS"].as_str().unwrap().to_owned();
    let (_, secret) = url.split_once("sig=").unwrap();
    let secret = secret.split('&').next().unwrap().to_owned();
    (url, secret)
}

/// Asks for an import, and for its operation until that has ended.
fn made(client: &Client<'_>, name: &str, body: &Value) -> Value {
    let line = format!("PUT {COMPUTE}/disks/{name}");
    let answer = client.ask(&line, Some(body));
    assert!([200, 202].contains(&answer.status), "{answer:?}");
    if answer.status == 202 {
        assert_eq!(answer.body["properties"]["provisioningState"], "Creating");
        let url = answer.header("azure-asyncoperation").unwrap();
        let below = url.strip_prefix(&client.managed.base()).unwrap();
        let below = below.split('?').next().unwrap();
        let told = ended(client, &format!("GET {below}"));
        assert_eq!(told["status"], "Succeeded", "{told}");
    }
    client.ok(&format!("GET {COMPUTE}/disks/{name}"), None)
}

fn ended(client: &Client<'_>, line: &str) -> Value {
    let begun = Instant::now();
    loop {
        let told = client.ok(line, None);
        if told["status"] != "InProgress" {
            return told;
        }
        assert!(begun.elapsed() < PATIENCE, "{told}");
        thread::sleep(Duration::from_millis(50));
    }
}

/// Nothing is left of an import: no disk, no placement that is shown, no directory.
fn assert_nothing(managed: &Managed, disks: usize) {
    let client = managed.client(&managed.admin);
    assert_eq!(
        client.refused(&format!("GET {COMPUTE}/disks/i"), None).0,
        404
    );
    let listed = managed.host.json("disk list");
    assert_eq!(listed.as_array().unwrap().len(), disks, "{listed}");
    let there = fs::read_dir(managed.host.disks()).map_or(0, Iterator::count);
    assert_eq!(there, disks);
}

#[test]
fn a_disk_is_imported_by_a_url_of_access() {
    let managed = Managed::new();
    let client = managed.client(&managed.admin);
    group(&client);
    let host = &managed.host;
    let raw = host.raw_image("disk.raw");
    let content = fs::read(&raw).unwrap();
    host.ok(&["disk", "create", "d", "--source", text(&raw)]);
    host.ok("snapshot create s --source d");
    host.write("d", 0, &[7; 4096]);
    let mut changed = content.clone();
    changed[..4096].fill(7);
    for (name, id, content) in [
        ("of-d", format!("{DISKS}/d"), &changed),
        ("of-s", format!("{SNAPSHOTS}/s"), &content),
    ] {
        let (url, secret) = url(&client, &id);
        let shown = made(&client, name, &import(&url));
        let properties = &shown["properties"];
        assert_eq!(properties["provisioningState"], "Succeeded");
        assert_eq!(properties["diskSizeBytes"], content.len());
        let uri = properties["creationData"]["sourceUri"].as_str().unwrap();
        assert!(
            uri.contains("sig=REDACTED") && !uri.contains(&secret),
            "{uri}"
        );
        // The same again, as it was sent and as it is shown.
        for body in [&import(&url), &shown] {
            let again = client.ok(&format!("PUT {COMPUTE}/disks/{name}"), Some(body));
            assert_eq!(again["properties"]["uniqueId"], properties["uniqueId"]);
        }
        assert!(host.ok(&["disk", "decrypt", name]) == *content, "{name}");
        host.is_clean(name);
        assert!(
            !holds(&host.state(), secret.as_bytes()),
            "the secret is kept"
        );
        let log = host.text("audit list -o json");
        assert!(log.contains("DiskImport") && !log.contains(&secret));
        revoke(&client, &id);
        let (status, code) =
            client.refused(&format!("PUT {COMPUTE}/disks/later"), Some(&import(&url)));
        assert_eq!((status, code.as_str()), (403, "AuthenticationFailed"));
    }
}

#[test]
fn a_disk_is_imported_from_the_directory() {
    let mut managed = Managed::new();
    let images = with_images(&mut managed);
    let client = managed.client(&managed.admin);
    group(&client);
    let raw = managed.host.raw_image("disk.raw");
    let content = fs::read(&raw).unwrap();
    fs::create_dir(format!("{images}/sub")).unwrap();
    for (name, format, options) in [
        ("a.vhd", "vpc", "subformat=fixed,force_size=on"),
        ("b.qcow2", "qcow2", "compat=1.1"),
        ("sub/c d", "raw", "preallocation=off"),
        // By the content alone.
        ("vhd", "vpc", "subformat=fixed,force_size=on"),
        ("qcow", "qcow2", "compat=1.1"),
        ("e?f#g", "raw", "preallocation=off"),
    ] {
        let path = format!("{images}/{name}");
        let convert = ["convert", "-f", "raw", "-O", format, "-o", options];
        qemu_img(&[&convert[..], &[text(&raw), &path]].concat());
        let disk = &name.replace(['/', ' ', '.', '?', '#'], "-");
        let escaped = name.replace(' ', "%20").replace('?', "%3F");
        let uri = format!("file://{images}/{}", escaped.replace('#', "%23"));
        let shown = made(&client, disk, &import(&uri));
        assert_eq!(shown["properties"]["creationData"]["sourceUri"], uri);
        assert_eq!(
            shown["properties"]["diskSizeBytes"],
            content.len(),
            "{name}"
        );
        assert!(
            managed.host.ok(&["disk", "decrypt", disk]) == content,
            "{name}"
        );
    }
    // A link that stays inside, and a larger disk.
    symlink("../a.vhd", format!("{images}/sub/link.vhd")).unwrap();
    let mut body = import(&format!("file://{images}/sub/link.vhd"));
    body["properties"]["diskSizeGB"] = json!(1);
    let shown = made(&client, "linked", &body);
    assert_eq!(shown["properties"]["diskSizeBytes"], 1u64 << 30);
}

#[test]
fn nothing_else_is_imported() {
    let mut managed = Managed::new();
    let raw = managed.host.raw_image("disk.raw");
    let put = |managed: &Managed, uri: &str| {
        let client = managed.client(&managed.admin);
        group(&client);
        let refused = client.refused(&format!("PUT {COMPUTE}/disks/i"), Some(&import(uri)));
        assert_nothing(managed, 0);
        refused
    };
    // Without a directory no file is.
    let of_raw = format!("file://{}", text(&raw));
    assert_eq!(put(&managed, &of_raw), (400, "FeatureNotOffered".into()));
    let images = with_images(&mut managed);
    fs::copy(&raw, format!("{images}/a.raw")).unwrap();
    for (link, to) in [
        ("out.raw", text(&raw)),
        ("up.raw", "../disk.raw"),
        ("dir", ".."),
        ("etc", "/etc"),
        ("proc.raw", "/proc/self/root/etc/passwd"),
    ] {
        symlink(to, format!("{images}/{link}")).unwrap();
    }
    fs::create_dir(format!("{images}/sub")).unwrap();
    let fifo = format!("{images}/fifo");
    assert!(
        std::process::Command::new("mkfifo")
            .arg(&fifo)
            .status()
            .unwrap()
            .success()
    );
    let base = managed.base();
    let unknown = "00000000-0000-0000-0000-000000000001";
    for (uri, code) in [
        (of_raw.clone(), "InvalidParameter"),
        (format!("file://{images}/../disk.raw"), "InvalidParameter"),
        (
            format!("file://{images}/%2e%2e/disk.raw"),
            "InvalidParameter",
        ),
        (
            format!("file://{images}/sub/..%2f..%2fdisk.raw"),
            "UnusableImage",
        ),
        (format!("file://{images}x/a.raw"), "InvalidParameter"),
        (format!("file://{images}"), "UnusableImage"),
        (format!("file://{images}/"), "UnusableImage"),
        (format!("file://{images}/sub"), "UnusableImage"),
        (format!("file://{images}/fifo"), "UnusableImage"),
        (format!("file://{images}/none.raw"), "UnusableImage"),
        (format!("file://{images}/out.raw"), "UnusableImage"),
        (format!("file://{images}/up.raw"), "UnusableImage"),
        (format!("file://{images}/dir/disk.raw"), "UnusableImage"),
        (format!("file://{images}/etc/passwd"), "UnusableImage"),
        (format!("file://{images}/proc.raw"), "UnusableImage"),
        (format!("file://other{images}/a.raw"), "InvalidParameter"),
        (format!("file://{images}/a.raw?b"), "InvalidParameter"),
        (format!("file://{images}/a.raw?"), "InvalidParameter"),
        (format!("file://{images}/a.raw#b"), "InvalidParameter"),
        ("http://169.254.169.254/latest".into(), "FeatureNotOffered"),
        ("https://example.invalid/a.vhd".into(), "FeatureNotOffered"),
        (format!("{base}/subscriptions"), "FeatureNotOffered"),
        (
            format!("http://localhost/sas/{unknown}.vhd?si={unknown}&sig=x"),
            "FeatureNotOffered",
        ),
        (
            format!("{base}/sas/{unknown}.vhd?si={unknown}&sig=x"),
            "AuthenticationFailed",
        ),
        ("a.vhd".into(), "InvalidParameter"),
    ] {
        let refused = put(&managed, &uri);
        assert_eq!(refused.1, code, "{uri}: {refused:?}");
    }
    // What is no image ends as such.
    fs::write(format!("{images}/b.qcow2"), b"no image").unwrap();
    assert_eq!(put(&managed, &format!("file://{images}/b.qcow2")).0, 400);
    // Files of the host are for those who may make disks everywhere.
    let owner = managed.client(&managed.admin);
    let bob = managed.user("bob");
    let scope = "~/resourceGroups/rg";
    owner.ask(
        &line("PUT", scope, 1),
        Some(&assignment(CONTRIBUTOR, &bob.object_id)),
    );
    let of_group = managed.client(&bob);
    for name in ["a.raw", "none.raw"] {
        let refused = of_group.refused(
            &format!("PUT {COMPUTE}/disks/i"),
            Some(&import(&format!("file://{images}/{name}"))),
        );
        assert_eq!(refused, (403, "AuthorizationFailed".into()), "{name}");
    }
    assert_nothing(&managed, 0);
}

/// An image that takes a while.
fn with_large_image(images: &str) -> (String, Vec<u8>) {
    let mut content = vec![0; 256 * MIB];
    noise(&mut content);
    let path = format!("{images}/large.raw");
    fs::write(&path, &content).unwrap();
    (format!("file://{path}"), content)
}

/// Has somebody import the disk `i`, and stops the server while it does.
fn stopped_during(managed: &Managed, body: &Value, then: impl FnOnce()) {
    let client = managed.client(&managed.admin);
    let line = &format!("PUT {COMPUTE}/disks/i");
    thread::scope(|scope| {
        let client = &client;
        let asked = scope.spawn(move || {
            let _cut_off = catch_unwind(AssertUnwindSafe(|| client.ask(line, Some(body))));
        });
        let begun = Instant::now();
        let staging = |entry: fs::DirEntry| {
            let name = entry.file_name();
            name.to_string_lossy().starts_with(".i.creating-")
                && fs::read_dir(entry.path()).is_ok_and(|files| files.count() > 1)
        };
        while !fs::read_dir(managed.host.disks()).is_ok_and(|found| found.flatten().any(staging)) {
            assert!(begun.elapsed() < PATIENCE, "it does not begin");
            assert!(!asked.is_finished(), "it is too fast");
            thread::sleep(Duration::from_millis(1));
        }
        kill_process(managed.served.pid(), Signal::STOP).unwrap();
        then();
        let _gone = kill_process(managed.served.pid(), Signal::CONT);
        asked.join().unwrap();
    });
}

#[test]
fn an_import_ends_with_the_access() {
    let managed = Managed::new();
    let client = managed.client(&managed.admin);
    group(&client);
    let (uri, _) = with_large_image(text(&managed.host.path("")));
    let path = uri.strip_prefix("file://").unwrap();
    managed.host.ok(&["disk", "create", "d", "--source", path]);
    let (url, _) = url(&client, &format!("{DISKS}/d"));
    stopped_during(&managed, &import(&url), || {
        managed.host.ok("disk revoke-access d");
    });
    let begun = Instant::now();
    while client.ask(&format!("GET {COMPUTE}/disks/i"), None).status == 200 {
        assert!(begun.elapsed() < PATIENCE);
        thread::sleep(Duration::from_millis(20));
    }
    assert_nothing(&managed, 1);
    let log = managed.host.text("audit list -o json");
    let told = log.lines().filter(|line| line.contains("DiskImport"));
    assert!(
        told.clone()
            .any(|line| line.contains("AuthenticationFailed"))
            || log.contains("AuthenticationFailed"),
        "{log}"
    );
}

#[test]
fn an_import_outlives_the_server() {
    let mut managed = Managed::new();
    let images = with_images(&mut managed);
    group(&managed.client(&managed.admin));
    let (uri, content) = with_large_image(&images);
    for _ in 0..2 {
        stopped_during(&managed, &import(&uri), || {
            kill_process(managed.served.pid(), Signal::KILL).unwrap();
        });
        with_images(&mut managed);
    }
    let client = managed.client(&managed.admin);
    let begun = Instant::now();
    loop {
        let listed = client.ok(&format!("GET {COMPUTE}/disks"), None);
        let shown = client.ok(&format!("GET {COMPUTE}/disks/i"), None);
        let [one] = listed["value"].as_array().unwrap().as_slice() else {
            panic!("{listed}");
        };
        assert_eq!(one["id"], shown["id"]);
        if shown["properties"]["provisioningState"] == "Succeeded" {
            break;
        }
        assert_eq!(shown["properties"]["provisioningState"], "Creating");
        assert_eq!(one["properties"]["provisioningState"], "Creating");
        assert!(begun.elapsed() < PATIENCE, "{shown}");
        thread::sleep(Duration::from_millis(50));
    }
    assert!(managed.host.ok("disk decrypt i") == content);
    managed.host.is_clean("i");
    assert_eq!(fs::read_dir(managed.host.disks()).unwrap().count(), 1);
}

#[test]
fn one_name_has_one_import() {
    let mut managed = Managed::new();
    let images = with_images(&mut managed);
    let client = managed.client(&managed.admin);
    group(&client);
    let (uri, _) = with_large_image(&images);
    let line = &format!("PUT {COMPUTE}/disks/i");
    let (same, mut other) = (import(&uri), import(&uri));
    other["properties"]["diskSizeGB"] = json!(3);
    let statuses: Vec<u16> = thread::scope(|scope| {
        let asked: Vec<_> = [&same, &same, &other]
            .into_iter()
            .map(|body| {
                let client = &client;
                scope.spawn(move || client.ask(line, Some(body)).status)
            })
            .collect();
        asked
            .into_iter()
            .map(|asked| asked.join().unwrap())
            .collect()
    });
    // Whichever came first goes on; what is not the same is refused.
    assert!(
        statuses.iter().any(|status| [200, 202].contains(status)),
        "{statuses:?}"
    );
    let disk = |client: &Client<'_>| client.ask(&format!("DELETE {COMPUTE}/disks/i"), None);
    let deleted = disk(&client);
    assert_eq!(deleted.status, 200, "{deleted:?}");
    assert_nothing(&managed, 0);
    assert_eq!(disk(&client).status, 204);
    // A group takes its imports along.
    client.ask(line, Some(&same));
    let begun = Instant::now();
    client.ask("DELETE ~/resourceGroups/rg", None);
    while client.ask("HEAD ~/resourceGroups/rg", None).status != 404 {
        assert!(begun.elapsed() < PATIENCE);
        thread::sleep(Duration::from_millis(50));
    }
    assert_nothing(&managed, 0);
}
