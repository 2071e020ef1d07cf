//! Disks and snapshots that are read over the network.

use std::fs;

use serde_json::json;
use test_support::{Host, qemu_img, text};

use super::blob::{Blob, DISKS, FOOTER, SNAPSHOTS, access, revoke, state};
use super::client::{Client, Managed};

const MIB: u64 = 1 << 20;

/// A disk `d` with the content of an image.
fn with_disk(managed: &Managed) -> Vec<u8> {
    let raw = managed.host.raw_image("disk.raw");
    managed
        .host
        .ok(&["disk", "create", "d", "--source", text(&raw)]);
    fs::read(raw).unwrap()
}

#[test]
fn a_disk_is_read_whole_and_by_ranges() {
    let managed = Managed::new();
    let client = managed.client(&managed.admin);
    let content = with_disk(&managed);
    let size = content.len();
    let d = &format!("{DISKS}/d");
    let blob = access(&client, d, "Read", 3600);
    assert_eq!(state(&client, d), "ActiveSAS");
    assert_eq!(managed.host.json("disk show d")["diskState"], "ActiveSAS");

    let whole = blob.curl(&[]);
    assert_eq!(whole.status, 200, "{}", whole.head);
    assert_eq!(whole.body.len(), size + FOOTER);
    assert!(whole.body[..size] == content);
    for (range, wanted) in [
        ("0-0".to_owned(), 0..1),
        ("100-5000".into(), 100..5001),
        // Into a hole, out of it, and across pieces.
        ("4090-9000000".into(), 4090..9_000_001),
        ("5242879-6000000".into(), 5_242_879..6_000_001),
        (format!("{}-{}", size - 10, size + 19), size - 10..size + 20),
        (format!("{size}-"), size..size + FOOTER),
        ("-512".into(), size..size + FOOTER),
        (format!("{}-99999999999", size - 1), size - 1..size + FOOTER),
    ] {
        let got = blob.range(&range);
        assert_eq!(got.status, 206, "{range}: {}", got.head);
        assert!(got.body == whole.body[wanted.clone()], "{range}");
        let of = format!(
            "bytes {}-{}/{}",
            wanted.start,
            wanted.end - 1,
            size + FOOTER
        );
        assert_eq!(got.header("content-range"), Some(of.as_str()));
    }
    let both = ["-r", "0-9", "-H", "x-ms-range: bytes=5242880-5242889"];
    assert!(blob.curl(&both).body == content[5_242_880..5_242_890]);
    let behind = blob.range(&format!("{}-", size + FOOTER));
    assert_eq!(behind.refusal(), (416, "InvalidRange".into()));
    let wrong = blob.curl(&["-H", "Range: bytes=9-3"]);
    assert_eq!(wrong.refusal(), (400, "InvalidHeaderValue".into()));

    let head = blob.curl(&["--head"]);
    assert_eq!(head.status, 200);
    let length = (size + FOOTER).to_string();
    for (name, wanted) in [
        ("content-length", length.as_str()),
        ("x-ms-blob-type", "PageBlob"),
        ("accept-ranges", "bytes"),
    ] {
        assert_eq!(head.header(name), Some(wanted), "{}", head.head);
    }
    assert!(head.header("last-modified").unwrap().ends_with(" GMT"));
    let etag = head.header("etag").unwrap();
    let unchanged = blob.curl(&["-r", "0-9", "-H", &format!("If-Match: {etag}")]);
    assert_eq!(unchanged.status, 206);
    let other = blob.curl(&["-H", "If-Match: \"0x1\""]);
    assert_eq!(other.refusal(), (412, "ConditionNotMet".into()));

    // QEMU takes it for what it is.
    let vhd = managed.host.path("d.vhd");
    fs::write(&vhd, &whole.body).unwrap();
    let info = std::process::Command::new("qemu-img")
        .args(["info", "--output=json", "-f", "vpc", text(&vhd)])
        .output()
        .unwrap();
    let info: serde_json::Value = serde_json::from_slice(&info.stdout).unwrap();
    assert_eq!(info["virtual-size"], size);
    let back = managed.host.path("back.raw");
    qemu_img(&["convert", "-f", "vpc", "-O", "raw", text(&vhd), text(&back)]);
    assert!(fs::read(&back).unwrap() == content);

    revoke(&client, d);
    assert_eq!(
        blob.curl(&[]).refusal(),
        (403, "AuthenticationFailed".into())
    );
    assert_eq!(state(&client, d), "Unattached");
    let export = managed.host.file("export.raw");
    managed
        .host
        .ok(&format!("disk export d --file {export} --format raw"));
    assert!(fs::read(export).unwrap() == whole.body[..size]);
}

#[test]
fn several_read_at_once_and_by_several_grants() {
    let managed = Managed::new();
    let client = managed.client(&managed.admin);
    let content = with_disk(&managed);
    let d = &format!("{DISKS}/d");
    let blobs = [
        access(&client, d, "Read", 3600),
        access(&client, d, "Read", 3600),
    ];
    assert_ne!(blobs[0].url, blobs[1].url);
    std::thread::scope(|scope| {
        for at in 0..6 {
            let (blob, content) = (&blobs[at % 2], &content);
            scope.spawn(move || {
                for _ in 0..3 {
                    assert!(blob.curl(&[]).body[..content.len()] == content[..]);
                    assert!(blob.range("5242880-9437183").body == content[5 << 20..9 << 20]);
                }
            });
        }
    });
    revoke(&client, d);
    for blob in blobs {
        assert_eq!(blob.range("0-9").status, 403);
    }
}

#[test]
fn a_list_has_what_is_data() {
    let managed = Managed::new();
    let client = managed.client(&managed.admin);
    managed.host.ok("disk create d --size 64MiB");
    let block = |at: u64| (false, at, at + 4095);
    let end = 64 * MIB;
    for at in [MIB, 8 * MIB, 8 * MIB + 4096, end - 4096] {
        managed.host.write("d", at, &[7; 4096]);
    }
    let blob = access(&client, &format!("{DISKS}/d"), "Read", 3600).with("&comp=pagelist");
    let last = (false, end - 4096, end + 511);
    let two = (false, 8 * MIB, 8 * MIB + 8191);
    assert_eq!(blob.curl(&[]).pages(), [block(MIB), two, last]);
    let length = (end + 512).to_string();
    assert_eq!(
        blob.curl(&[]).header("x-ms-blob-content-length"),
        Some(length.as_str())
    );
    let part = blob.curl(&["-H", "x-ms-range: bytes=1048676-8392000"]);
    let wanted = [(false, MIB, MIB + 4095), (false, 8 * MIB, 8_392_191)];
    assert_eq!(part.pages(), wanted, "whole sectors");
    let first = blob.with("&maxresults=1").curl(&[]);
    assert_eq!(first.pages(), [block(MIB)]);
    let marker = format!("<NextMarker>{}</NextMarker>", 8 * MIB);
    assert!(String::from_utf8(first.body).unwrap().contains(&marker));
    let rest = blob.with(&format!("&marker={}", 8 * MIB)).curl(&[]);
    assert_eq!(rest.pages(), [two, last]);
    let empty = blob.curl(&["-H", "x-ms-range: bytes=0-1048575"]);
    assert_eq!(empty.pages(), []);
}

fn snapshot(host: &Host, name: &str, of: &str) {
    host.ok(&format!("snapshot create {name} --source {of}"));
}

/// Reads what a list says has changed over what was there.
fn brought_up(client: &Client<'_>, of: &str, since: &str, mut old: Vec<u8>) -> Vec<u8> {
    let blob = access(client, of, "Read", 3600);
    let list = blob.with(&format!("&comp=pagelist&prevsnapshot={since}"));
    for (is_hole, start, end) in list.curl(&[]).pages() {
        let part = &mut old[start as usize..=end as usize];
        match is_hole {
            true => part.fill(0),
            false => part.copy_from_slice(&blob.range(&format!("{start}-{end}")).body),
        }
    }
    old
}

#[test]
fn a_list_has_what_changed_since_an_earlier_snapshot() {
    let managed = Managed::new();
    let client = managed.client(&managed.admin);
    let host = &managed.host;
    for disk in ["d", "other"] {
        host.ok(&format!("disk create {disk} --size 16MiB"));
    }
    host.write("d", MIB, &[1; 4096]);
    host.write("d", 8 * MIB, &[2; 8192]);
    snapshot(host, "s1", "d");
    snapshot(host, "apart", "other");
    host.write("d", 2 * MIB, &[3; 4096]);
    host.discard("d", 8 * MIB, 4096);
    snapshot(host, "s2", "d");
    host.write("d", MIB, &[4; 512]);

    let s1 = access(&client, &format!("{SNAPSHOTS}/s1"), "Read", 3600);
    let s2 = access(&client, &format!("{SNAPSHOTS}/s2"), "Read", 3600);
    assert_eq!(state(&client, &format!("{SNAPSHOTS}/s2")), "ActiveSAS");
    let footer = (false, 16 * MIB, 16 * MIB + 511);
    let changed = [
        (false, 2 * MIB, 2 * MIB + 4095),
        (true, 8 * MIB, 8 * MIB + 4095),
        footer,
    ];
    let list = s2.with("&comp=pagelist");
    let id = format!("{SNAPSHOTS}/s1").replacen('~', &managed.subscription(), 1);
    for since in ["s1", &id] {
        let since = list.with(&format!("&prevsnapshot={since}"));
        assert_eq!(since.curl(&[]).pages(), changed);
    }
    let header = format!("x-ms-previous-snapshot-url: {}", s1.url);
    assert_eq!(list.curl(&["-H", &header]).pages(), changed);
    let (url, _) = s1.url.split_once("&sig=").unwrap();
    let header = format!("x-ms-previous-snapshot-url: {url}&sig=none");
    assert_eq!(list.curl(&["-H", &header]).refusal().0, 403);
    for since in ["nothing", "apart"] {
        let got = list.with(&format!("&prevsnapshot={since}")).curl(&[]);
        let refusal = (404, "PreviousSnapshotNotFound".into());
        assert_eq!(got.refusal(), refusal, "{since}");
    }

    let d = &format!("{DISKS}/d");
    let whole = access(&client, d, "Read", 3600).curl(&[]).body;
    for since in ["s1", "s2"] {
        let old = access(&client, &format!("{SNAPSHOTS}/{since}"), "Read", 3600);
        let now = brought_up(&client, d, since, old.curl(&[]).body);
        assert!(now == whole, "since {since}");
    }
}

#[test]
fn what_is_granted_is_neither_attached_nor_changed_nor_deleted() {
    let managed = Managed::on(Host::that_attaches());
    let client = managed.client(&managed.admin);
    let host = &managed.host;
    with_disk(&managed);
    snapshot(host, "s", "d");
    let d = &format!("{DISKS}/d");
    let blob = access(&client, d, "Read", 3600);
    let of_snapshot = access(&client, &format!("{SNAPSHOTS}/s"), "Read", 3600);
    let socket = host.file("d.sock");
    // Before anybody reads, and while somebody has it open.
    for round in 0..2 {
        for command in [
            "disk delete d --yes".into(),
            "disk resize d --size 1GiB".into(),
            "disk unregister d".into(),
            "snapshot create s9 --source d".into(),
            "snapshot delete s --yes".into(),
            // Last: one that is not refused does not end.
            format!("attach d --socket-path {socket}"),
        ] {
            let said = host.refused_with("OperationNotAllowed", &command);
            assert!(said.contains("revoke-access"), "{round}: {command}: {said}");
        }
        let grown = json!({"properties": {"diskSizeGB": 2}});
        for (line, body) in [
            (format!("DELETE {d}"), None),
            (format!("PATCH {d}"), Some(&grown)),
            (format!("DELETE {SNAPSHOTS}/s"), None),
        ] {
            let (status, code) = client.refused(&line, body);
            assert_eq!(
                (status, code.as_str()),
                (409, "OperationNotAllowed"),
                "{line}"
            );
        }
        assert_eq!(blob.range("0-4095").status, 206);
        assert_eq!(of_snapshot.range("0-4095").status, 206);
    }
    client.ok(&format!("PATCH {d}"), Some(&json!({"tags": {"a": "b"}})));
    host.ok("disk revoke-access d");
    host.ok("snapshot revoke-access s");
    host.ok("disk resize d --size 1GiB");
    host.ok("snapshot delete s --yes");
    host.ok("disk delete d --yes");
    assert_eq!(blob.range("0-4095").refusal().0, 403);
}

#[test]
fn the_command_line_grants_and_a_server_that_starts_again_serves() {
    let mut managed = Managed::new();
    let content = with_disk(&managed);
    let granted = managed.host.json(&format!(
        "disk grant-access d --duration-in-seconds 3600 --endpoint {}",
        managed.base()
    ));
    let blob = Blob::at(&managed, granted["accessSAS"].as_str().unwrap());
    assert!(blob.range("5242880-5243903").body == content[5 << 20..(5 << 20) + 1024]);
    managed.serve_again();
    let blob = blob.moved_to(&managed);
    assert!(blob.range("5242880-5243903").body == content[5 << 20..(5 << 20) + 1024]);
    managed.host.ok("disk revoke-access d");
    assert_eq!(blob.range("0-9").refusal().0, 403);
}
