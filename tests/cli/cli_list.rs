//! Filters of lists, and waiting for jobs.

use test_support::{Host, KEY, VAULT};

use super::attached::{Attached, runtime_dir};

const ALL: &[&str] = &["get", "wrapKey", "unwrapKey"];

#[test]
fn disks_are_listed_by_name_key_set_and_state() {
    let host = Host::new();
    let runtime = runtime_dir();
    host.encryption_set("set1", ALL);
    host.ok("disk create web-1 --size 1MiB --disk-encryption-set set1");
    host.ok("disk create web-2 --size 1MiB");
    host.ok("disk create db-1 --size 1MiB");
    // Its lower layer stays under the set's key.
    host.ok("snapshot create s --source web-1");
    host.ok("disk create clone --source s --platform-managed");
    let _attached = Attached::start(&host, &runtime, "db-1");

    let url = format!("https://{VAULT}.vault.localhost/keys/{KEY}");
    let version = host.text("disk show web-1 --query encryption.keyUrl -o tsv");
    for (filter, expected) in [
        ("", "clone db-1 web-1 web-2"),
        ("web-*", "web-1 web-2"),
        ("web-? clone", "clone web-1 web-2"),
        ("*-1", "db-1 web-1"),
        ("[a-d]*", "clone db-1"),
        ("nothing*", ""),
        ("--disk-encryption-set set1", "clone web-1"),
        ("--set set1 web-*", "web-1"),
        ("--platform-managed", "clone db-1 web-2"),
        (&format!("--key {KEY}"), "clone web-1"),
        (&format!("--key {VAULT}/{KEY}"), "clone web-1"),
        (&format!("--key {url}"), "clone web-1"),
        (&format!("--key {}", version.trim_end()), "clone web-1"),
        ("--key other", ""),
        ("--attached", "db-1"),
        ("--state attached", "db-1"),
        ("--state Unattached", "clone web-1 web-2"),
        ("--state Dirty,Attached", "db-1"),
        ("--state Dirty", ""),
        ("--attached web-*", ""),
    ] {
        let found = host.text(&format!("disk list {filter} --query [].name -o tsv"));
        let found: Vec<&str> = found.lines().collect();
        assert_eq!(found.join(" "), expected, "{filter}");
    }
    let snapshots =
        |filter: &str| host.text(&format!("snapshot list {filter} --query [].name -o tsv"));
    assert_eq!(snapshots(&format!("--key {KEY} s*")), "s\n");
    assert_eq!(snapshots("--platform-managed"), "");

    let said = host.refused_with("ResourceNotFound", "disk list --set set2");
    assert!(said.ends_with("did you mean 'set1'?"), "{said}");
    host.refused_with("InvalidArgument", "disk list --state broken");
    host.refused_with("InvalidArgument", "disk list [a");
}

#[test]
fn the_job_of_an_attached_disk_is_waited_for() {
    let host = Host::new();
    let runtime = runtime_dir();
    let raw = host.raw_image("disk.raw");
    host.ok(&["disk", "create", "d", "--source", raw.to_str().unwrap()]);
    let attached = Attached::start(&host, &runtime, "d");
    let at = runtime.path().to_str().unwrap();
    let run = |line: &str| format!("disk {line} --runtime-dir {at}");

    for generation in [2, 3] {
        let shown = host.json(&run("rotate-dek d --wait"));
        assert!(shown["job"].is_null(), "{shown}");
        assert_eq!(shown["generation"], generation);
        assert_eq!(shown["diskState"], "Attached");
        assert_eq!(shown["layers"].as_array().unwrap().len(), 1);
    }
    // Nothing is under way.
    assert!(host.json(&run("wait d"))["job"].is_null());

    // So slow that it is under way until it is told otherwise.
    host.ok(&run("rotate-dek d --rate 4KiB"));
    host.ok(&run("rotate-dek d --pause"));
    let said = host.refused_with("JobNotRunning", &run("wait d"));
    assert!(
        said.contains("is paused") && said.contains("--resume"),
        "{said}"
    );
    let shown = host.json(&run("rotate-dek d --resume --rate 1GiB --wait"));
    assert!(shown["job"].is_null(), "{shown}");

    // The layer of a deleted snapshot is merged into the one above it, in the attach process.
    let snapshots = |line: &str| format!("snapshot {line} --runtime-dir {at}");
    for name in ["s1", "s2"] {
        host.ok(&snapshots(&format!("create {name} --source d")));
    }
    assert_eq!(
        host.json(&run("show d"))["layers"]
            .as_array()
            .unwrap()
            .len(),
        2,
        "nothing was written between the two"
    );
    for (name, left) in [("s1", 2), ("s2", 1)] {
        host.ok(&snapshots(&format!("delete {name} --yes --wait")));
        let shown = host.json(&run("show d"));
        assert!(shown["job"].is_null(), "{shown}");
        assert_eq!(shown["layers"].as_array().unwrap().len(), left, "{shown}");
    }
    let both = snapshots("delete s1 --yes --wait --no-wait");
    host.refused_with("InvalidArgument", &both);

    host.ok(&run("rotate-dek d --rate 4KiB"));
    attached.detach();
    let said = host.refused_with("JobNotRunning", &run("wait d"));
    assert!(said.contains("nothing has the disk attached"), "{said}");
    host.ok(&run("rotate-dek d --resume --rate 1GiB"));
    assert!(host.json(&run("wait d"))["job"].is_null());
    host.refused_with("InvalidArgument", &run("flatten d --wait --no-wait"));
}
