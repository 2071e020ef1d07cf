//! Copies of disks without a snapshot, also of attached ones.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use std::{fs, thread};

use installation::envelope::ResourceKind;
use rustix::process::{Signal, kill_process};
use serde_json::{Value, json};
use test_support::{Host, PATIENCE, deaths};

use super::client::{Managed, serve};
use super::vaults::group;

const COMPUTE: &str = "~/resourceGroups/rg/providers/Microsoft.Compute";
const DEFAULT: &str = "~/resourceGroups/default/providers/Microsoft.Compute";

/// The body of a copy of the disk `d`, which the command line has made.
fn copy(managed: &Managed) -> Value {
    let id = DEFAULT.replacen('~', &managed.subscription(), 1) + "/disks/D";
    json!({"location": "local", "properties": {"creationData": {
        "createOption": "Copy", "sourceResourceId": id,
    }}})
}

/// A disk `d` with data.
fn with_disk(managed: &Managed) -> Vec<u8> {
    group(&managed.client(&managed.admin));
    let raw = managed.host.raw_image("disk.raw");
    managed
        .host
        .ok(&["disk", "create", "d", "--source", raw.to_str().unwrap()]);
    fs::read(&raw).unwrap()
}

fn layers(host: &Host, disk: &str) -> usize {
    host.layers(ResourceKind::Disk, disk).len()
}

fn eventually(what: &str, mut is_so: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !is_so() {
        assert!(begun.elapsed() < PATIENCE, "{what}");
        thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn a_copy_is_a_disk_of_its_own() {
    let managed = Managed::new();
    let client = managed.client(&managed.admin);
    let host = &managed.host;
    let content = with_disk(&managed);
    let body = copy(&managed);
    let line = &format!("PUT {COMPUTE}/disks/c1");
    let made = client.ok(line, Some(&body));
    let properties = &made["properties"];
    assert_eq!(
        properties["creationData"],
        body["properties"]["creationData"]
    );
    assert_eq!(properties["diskState"], "Unattached");
    let again = client.ok(line, Some(&body));
    assert_eq!(again["properties"]["uniqueId"], properties["uniqueId"]);
    assert_eq!(host.json("snapshot list"), json!([]), "no snapshot is left");
    let mut larger = body.clone();
    larger["properties"]["diskSizeGB"] = json!(2);
    let larger = client.ok(&format!("PUT {COMPUTE}/disks/c2"), Some(&larger));
    assert_eq!(larger["properties"]["diskSizeBytes"], 2u64 << 30);

    // What is written to one is in no other.
    host.write("d", 0, &[1; 4096]);
    host.write("c1", 4096, &[2; 4096]);
    let (mut of_d, mut of_c1) = (content.clone(), content.clone());
    of_d[..4096].fill(1);
    of_c1[4096..8192].fill(2);
    assert!(host.ok("disk decrypt d") == of_d);
    assert!(host.ok("disk decrypt c1") == of_c1);
    assert!(host.read("c2", 0, content.len()) == content);
    assert_eq!(host.read("c2", (2 << 30) - 4096, 4096), [0; 4096]);

    // The source goes, and the copies stay; what two had alone is merged once one is left.
    client.ok(&format!("DELETE {DEFAULT}/disks/d"), None);
    client.ok(&format!("DELETE {COMPUTE}/disks/c2"), None);
    eventually("the layers are merged", || layers(host, "c1") == 1);
    assert!(host.ok("disk decrypt c1") == of_c1);
    host.is_clean("c1");
    let shown = client.ok(&format!("GET {COMPUTE}/disks/c1"), None);
    assert_eq!(
        shown["properties"]["creationData"],
        body["properties"]["creationData"]
    );
}

#[test]
fn a_copy_that_cannot_be_leaves_nothing() {
    let managed = Managed::new();
    let client = managed.client(&managed.admin);
    with_disk(&managed);
    managed.host.ok("disk resize d --size 2GiB");
    let line = &format!("PUT {COMPUTE}/disks/c");
    let mut smaller = copy(&managed);
    smaller["properties"]["diskSizeGB"] = json!(1);
    assert_eq!(client.refused(line, Some(&smaller)).0, 400);
    let mut none = copy(&managed);
    none["properties"]["creationData"]["sourceResourceId"] =
        json!(DEFAULT.replacen('~', &managed.subscription(), 1) + "/disks/none");
    assert_eq!(client.refused(line, Some(&none)).0, 404);
    managed
        .host
        .ok("disk grant-access d --duration-in-seconds 600");
    let (status, code) = client.refused(line, Some(&copy(&managed)));
    assert_eq!((status, code.as_str()), (409, "OperationNotAllowed"));
    managed.host.ok("disk revoke-access d");
    assert_eq!(
        managed.host.json("disk list").as_array().unwrap().len(),
        1,
        "d alone"
    );
    assert_eq!(layers(&managed.host, "d"), 1);
    assert_eq!(fs::read_dir(managed.host.disks()).unwrap().count(), 1);
    managed.host.is_clean("d");
}

/// A guest writes a number to one place, and then to another: in a copy of one moment the first place has the number
/// of the second one, or the next. Both are far from each other, and in no order that a copy could follow.
#[test]
fn a_copy_of_an_attached_disk_is_of_one_moment() {
    const FIRST: u64 = 40_000;
    const SECOND: u64 = 8;
    let managed = Managed::on(Host::that_attaches());
    let client = managed.client(&managed.admin);
    with_disk(&managed);
    let daemon = managed.host.attach("d");
    let (over, body) = (AtomicBool::new(false), copy(&managed));
    let copies = ["c1", "c2", "c3", "c4"];
    let written = thread::scope(|scope| {
        let guest = scope.spawn(|| {
            let mut frontend = daemon.connect();
            let mut number = 0u64;
            while !over.load(Ordering::Acquire) {
                number += 1;
                let block = number.to_le_bytes().repeat(512);
                for sector in [FIRST, SECOND] {
                    frontend.queues[0].write(sector, &block).unwrap();
                }
            }
            number
        });
        for name in copies {
            thread::sleep(Duration::from_millis(100));
            client.ok(&format!("PUT {COMPUTE}/disks/{name}"), Some(&body));
        }
        over.store(true, Ordering::Release);
        guest.join().unwrap()
    });
    let mut before = 0;
    for name in copies {
        let number = |sector: u64| {
            let block = managed.host.read(name, sector * 512, 4096);
            let number = u64::from_le_bytes(block[..8].try_into().unwrap());
            assert!(block == number.to_le_bytes().repeat(512), "{name}: torn");
            number
        };
        let (first, second) = (number(FIRST), number(SECOND));
        assert!(
            first == second || first == second + 1,
            "{name}: {first} {second}"
        );
        assert!(before < second && first <= written, "{name}: {second}");
        before = second;
        managed.host.is_clean(name);
    }
    daemon.stop();
    managed.host.is_clean("d");
}

/// Whether anything was written is known while the guest is held up, whether it has flushed or not.
#[test]
fn copies_of_an_attached_disk_that_did_not_change_take_no_layer() {
    let managed = Managed::on(Host::that_attaches());
    let client = managed.client(&managed.admin);
    let content = with_disk(&managed);
    let daemon = managed.host.attach("d");
    let mut frontend = daemon.connect();
    let body = copy(&managed);
    let made = |name: &str| {
        client.ok(&format!("PUT {COMPUTE}/disks/{name}"), Some(&body));
        layers(&managed.host, "d")
    };
    for name in ["c1", "c2", "c3"] {
        assert_eq!(made(name), 2, "{name}");
    }
    for (number, name) in ["c4", "c5"].into_iter().enumerate() {
        frontend.queues[0]
            .write(0, &[number as u8 + 1; 4096])
            .unwrap();
        assert_eq!(made(name), 3 + number, "{name}");
    }
    assert_eq!(frontend.queues[0].read(0, 4096).unwrap(), [2; 4096]);
    drop(frontend);
    daemon.stop();
    for name in ["c1", "c2", "c3", "c4", "c5", "d"] {
        let first = match name {
            "c4" => vec![1; 4096],
            "c5" | "d" => vec![2; 4096],
            _ => content[..4096].to_vec(),
        };
        let found = managed.host.ok(&["disk", "decrypt", name]);
        assert!(found[..4096] == first, "{name}");
        assert!(found[4096..] == content[4096..], "{name}");
        managed.host.is_clean(name);
    }
}

/// The rule after any kill: the API and the command line see the same disks, each is whole, and nothing else is left.
fn assert_whole(managed: &Managed, content: &[u8]) {
    let client = managed.client(&managed.admin);
    let listed = client.ok(&format!("GET {COMPUTE}/disks"), None);
    let by_hand = managed.host.json("disk list");
    let by_hand = by_hand.as_array().unwrap();
    assert_eq!(
        listed["value"].as_array().unwrap().len() + 1,
        by_hand.len(),
        "each copy is in its group"
    );
    for disk in by_hand {
        let name = disk["name"].as_str().unwrap();
        assert!(
            managed.host.ok(&["disk", "decrypt", name]) == content,
            "{name}"
        );
        // A kill may leave files of a layer that no header names yet.
        managed.host.run(&["disk", "check", name, "--repair"]);
        managed.host.is_clean(name);
    }
    let directories = fs::read_dir(managed.host.disks()).unwrap().count();
    assert_eq!(directories, by_hand.len(), "nothing half made is left");
    assert_eq!(managed.host.json("snapshot list"), json!([]));
}

#[test]
fn a_kill_leaves_whole_copies_or_none() {
    let mut managed = Managed::new();
    let content = with_disk(&managed);
    for round in 0..u64::from(deaths(5)) {
        let client = managed.client(&managed.admin);
        let body = &copy(&managed);
        thread::scope(|scope| {
            let client = &client;
            let puts = scope.spawn(move || {
                for at in 0.. {
                    let line = format!("PUT {COMPUTE}/disks/c{round}-{at}");
                    let asked = catch_unwind(AssertUnwindSafe(|| client.ask(&line, Some(body))));
                    if asked.is_err() || at == 20 {
                        return;
                    }
                }
            });
            thread::sleep(Duration::from_millis(60 + 47 * round));
            kill_process(managed.served.pid(), Signal::KILL).unwrap();
            puts.join().unwrap();
        });
        managed.served = serve(&managed.host);
        // The copies go, and with them the layers that they have made necessary.
        assert_whole(&managed, &content);
        let client = managed.client(&managed.admin);
        client.ok("DELETE ~/resourceGroups/rg", None);
        group(&client);
        eventually("the layers are merged", || {
            managed.host.ok("disk create other --size 1MiB");
            managed.host.ok("disk delete other --yes");
            layers(&managed.host, "d") == 1
        });
    }
    assert!(managed.host.ok("disk decrypt d") == content);
}

/// The process that has the source attached makes the copy, and dies with it.
#[test]
fn a_kill_of_the_attach_leaves_whole_copies_or_none() {
    let managed = Managed::on(Host::that_attaches());
    let content = with_disk(&managed);
    let client = managed.client(&managed.admin);
    let mut daemon = managed.host.attach("d");
    for round in 0..u64::from(deaths(4)) {
        thread::scope(|scope| {
            let (client, managed) = (&client, &managed);
            let puts = scope.spawn(move || {
                for at in 0..4 {
                    let line = format!("PUT {COMPUTE}/disks/c{round}-{at}");
                    client.ask(&line, Some(&copy(managed)));
                }
            });
            thread::sleep(Duration::from_millis(40 + 61 * round));
            daemon.kill();
            puts.join().unwrap();
        });
        daemon = managed.host.reattach(daemon);
        daemon.terminate();
        assert_whole(&managed, &content);
        daemon = managed.host.attach("d");
    }
    daemon.stop();
}
