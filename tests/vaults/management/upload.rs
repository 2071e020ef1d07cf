//! Disks that are uploaded.

use std::fs;

use rustix::process::{Signal, kill_process};
use serde_json::{Value, json};
use test_support::{Host, MARKER, holds, qemu_img, text};

use super::blob::{Blob, FOOTER, access, asked, revoke, state};
use super::client::{Client, Managed};
use super::vaults::group;

const D: &str = "~/resourceGroups/rg/providers/Microsoft.Compute/disks/d";
const CHUNK: usize = 1 << 20;

fn upload_of(bytes: usize) -> Value {
    json!({"location": "local", "properties": {"creationData": {
        "createOption": "Upload", "uploadSizeBytes": bytes,
    }}})
}

/// The content of an image, and a VHD of it that QEMU has made.
fn vhd(host: &Host) -> (Vec<u8>, Vec<u8>) {
    let raw = host.raw_image("disk.raw");
    let vhd = host.path("disk.vhd");
    let options = "subformat=fixed,force_size=on";
    qemu_img(&[
        "convert",
        "-f",
        "raw",
        "-O",
        "vpc",
        "-o",
        options,
        text(&raw),
        text(&vhd),
    ]);
    (fs::read(raw).unwrap(), fs::read(vhd).unwrap())
}

/// A disk that waits to be uploaded.
fn made<'a>(managed: &'a Managed, bytes: usize) -> Client<'a> {
    let client = managed.client(&managed.admin);
    group(&client);
    client.ok(&format!("PUT {D}"), Some(&upload_of(bytes)));
    assert_eq!(state(&client, D), "ReadyToUpload");
    client
}

fn content(managed: &Managed) -> Vec<u8> {
    let file = managed.host.path("back.raw");
    let _ = fs::remove_file(&file);
    managed.host.ok(&[
        "disk",
        "export",
        "d",
        "--file",
        text(&file),
        "--format",
        "raw",
    ]);
    fs::read(file).unwrap()
}

fn put(blob: &Blob, vhd: &[u8], at: usize) {
    let part = &vhd[at..(at + CHUNK).min(vhd.len())];
    let got = blob.put(at as u64, part);
    assert_eq!(got.status, 201, "{got:?}");
    assert_eq!(got.header("x-ms-request-server-encrypted"), Some("true"));
}

#[test]
fn a_vhd_is_uploaded_in_any_order() {
    let managed = Managed::on(Host::that_attaches());
    let (raw, vhd) = vhd(&managed.host);
    assert_eq!(vhd.len(), raw.len() + FOOTER);
    let client = made(&managed, vhd.len());
    let socket = managed.host.file("d.sock");
    let attach = format!("attach d --socket-path {socket}");
    let is_not_used = || {
        for command in [
            "disk decrypt d",
            "snapshot create s --source d",
            // Last: one that is not refused does not end.
            attach.as_str(),
        ] {
            let said = managed.host.refused_with("OperationNotAllowed", command);
            assert!(said.contains("revoke-access"), "{command}: {said}");
        }
        let begin = format!("POST {D}/beginGetAccess");
        let (status, code) = client.refused(&begin, Some(&asked("Read", 60)));
        assert_eq!((status, code.as_str()), (409, "OperationNotAllowed"));
    };
    is_not_used();
    let blob = access(&client, D, "Write", 3600);
    assert_eq!(state(&client, D), "ActiveUpload");
    is_not_used();
    // From the end, in steps that meet every piece once, over what was there and was taken away again.
    let pieces = vhd.len().div_ceil(CHUNK);
    blob.put(3 << 20, &[9; CHUNK]);
    assert_eq!(blob.clear(3 << 20, CHUNK as u64).status, 201);
    for step in 0..pieces {
        put(&blob, &vhd, (pieces - 1 + 7 * step) % pieces * CHUNK);
    }
    // What is cleared in the middle of a block is gone, and the rest of the block stays.
    assert_eq!(blob.clear((6 << 20) + 512, 1024).status, 201);
    let mut wanted = raw.clone();
    wanted[(6 << 20) + 512..][..1024].fill(0);
    assert!(!holds(&managed.host.state(), MARKER), "in the clear");
    revoke(&client, D);
    assert_eq!(blob.put(0, &[1; 512]).refusal().0, 403);
    assert_eq!(state(&client, D), "Unattached");
    assert!(content(&managed) == wanted);
    managed.host.is_clean("d");
    // It is a disk as any other.
    managed.host.ok("snapshot create s --source d");
    let read = access(&client, D, "Read", 60);
    assert!(read.curl(&[]).body[..raw.len()] == wanted);
    assert_eq!(read.put(0, &[1; 512]).refusal().0, 403);
    let (status, code) = client.refused(
        &format!("POST {D}/beginGetAccess"),
        Some(&asked("Write", 60)),
    );
    assert_eq!((status, code.as_str()), (409, "OperationNotAllowed"));
}

#[test]
fn what_is_no_part_of_the_upload_is_refused() {
    let managed = Managed::new();
    let client = managed.client(&managed.admin);
    group(&client);
    for bytes in [0, 512, 20 << 20, (20 << 20) + 1024, (1 << 20) + 1] {
        let (status, code) = client.refused(&format!("PUT {D}"), Some(&upload_of(bytes)));
        assert_eq!(
            (status, code.as_str()),
            (400, "InvalidParameter"),
            "{bytes}"
        );
    }
    let size = 20 << 20;
    let mut other = upload_of(size + FOOTER);
    other["properties"]["diskSizeGB"] = json!(7);
    assert_eq!(client.refused(&format!("PUT {D}"), Some(&other)).0, 400);
    let client = made(&managed, size + FOOTER);
    let blob = access(&client, D, "Write", 3600);
    let size = size as u64;
    assert_eq!(
        blob.put(size + 512, &[1; 512]).refusal(),
        (416, "InvalidPageRange".into())
    );
    assert_eq!(
        blob.put(size, &[1; 1024]).refusal(),
        (416, "InvalidPageRange".into())
    );
    assert_eq!(
        blob.put(100, &[1; 512]).refusal(),
        (416, "InvalidPageRange".into())
    );
    assert_eq!(
        blob.put(0, &[1; 511]).refusal(),
        (416, "InvalidPageRange".into())
    );
    assert_eq!(
        blob.put(0, &vec![1; (4 << 20) + 512]).refusal(),
        (413, "RequestBodyTooLarge".into())
    );
    assert_eq!(blob.put(0, &vec![1; 4 << 20]).status, 201);
    let page = blob.with("&comp=page");
    let range = "x-ms-range: bytes=0-511";
    let what = "x-ms-page-write: update";
    for (arguments, status) in [
        (vec!["-X", "PUT", "-H", what, "-H", range], 411),
        (
            vec!["-X", "PUT", "-H", what, "-H", range, "--data-binary", "x"],
            400,
        ),
        (vec!["-X", "PUT", "-H", what, "--data-binary", "x"], 400),
        (vec!["-X", "PUT", "-H", range, "--data-binary", "x"], 400),
    ] {
        assert_eq!(page.curl(&arguments).refusal().0, status, "{arguments:?}");
    }
    assert_eq!(
        blob.range("0-9").refusal().0,
        403,
        "whoever writes does not read"
    );
    assert_eq!(blob.curl(&["--head"]).status, 200);
}

/// What is wrong with an upload, and how it is made so.
type Crooked<'a> = (&'a str, &'a dyn Fn(&Blob));

#[test]
fn an_upload_without_its_footer_is_no_disk() {
    let managed = Managed::new();
    let size = 2 << 20;
    let client = made(&managed, size + FOOTER);
    let raw = managed.host.path("other.raw");
    fs::write(&raw, vec![0; size + CHUNK]).unwrap();
    let other = managed.host.path("other.vhd");
    let options = "subformat=fixed,force_size=on";
    qemu_img(&[
        "convert",
        "-f",
        "raw",
        "-O",
        "vpc",
        "-o",
        options,
        text(&raw),
        text(&other),
    ]);
    let other = fs::read(other).unwrap();
    fs::write(&raw, vec![0; size]).unwrap();
    let right = managed.host.path("right.vhd");
    qemu_img(&[
        "convert",
        "-f",
        "raw",
        "-O",
        "vpc",
        "-o",
        options,
        text(&raw),
        text(&right),
    ]);
    let right = fs::read(right).unwrap();
    let footer = |vhd: &[u8]| vhd[vhd.len() - FOOTER..].to_vec();
    let mut torn = footer(&right);
    torn[100] ^= 1;
    let at = size as u64;
    let crooked: [Crooked; 5] = [
        ("none", &|_| ()),
        ("of another size", &|blob| {
            assert_eq!(blob.put(at, &footer(&other)).status, 201)
        }),
        ("torn", &|blob| assert_eq!(blob.put(at, &torn).status, 201)),
        ("zeros", &|blob| {
            assert_eq!(blob.put(at, &[0; FOOTER]).status, 201)
        }),
        ("taken away", &|blob| {
            assert_eq!(blob.put(at, &footer(&right)).status, 201);
            assert_eq!(blob.clear(at, 512).status, 201);
        }),
    ];
    for (what, upload) in crooked {
        let blob = access(&client, D, "Write", 3600);
        upload(&blob);
        let (status, code) = client.refused(&format!("POST {D}/endGetAccess"), None);
        assert_eq!((status, code.as_str()), (409, "InvalidVhd"), "{what}");
        assert_eq!(
            blob.put(0, &[1; 512]).refusal().0,
            403,
            "{what}: access has ended"
        );
        assert_eq!(state(&client, D), "ReadyToUpload", "{what}");
        managed
            .host
            .refused_with("OperationNotAllowed", "disk decrypt d");
    }
    // Once more is nothing to refuse.
    revoke(&client, D);
    let first = access(&client, D, "Write", 3600);
    let blob = access(&client, D, "Write", 3600);
    assert_eq!(
        first.put(0, &[1; 512]).refusal().0,
        403,
        "one writes at a time"
    );
    assert_eq!(blob.put(at, &footer(&right)).status, 201);
    managed.host.ok("disk revoke-access d");
    assert_eq!(state(&client, D), "Unattached");
    assert!(content(&managed).iter().all(|byte| *byte == 0));
    client.ok(&format!("DELETE {D}"), None);
}

#[test]
fn a_server_that_is_killed_in_an_upload_goes_on_with_it() {
    let mut managed = Managed::new();
    let (raw, vhd) = vhd(&managed.host);
    made(&managed, vhd.len());
    let mut blob = access(&managed.client(&managed.admin), D, "Write", 3600);
    let pieces = vhd.len().div_ceil(CHUNK);
    for piece in 0..pieces {
        // What was answered is there, whatever dies; what was under way is written again.
        if piece % 8 == 4 {
            let slow = {
                let (blob, part) = (blob.clone(), vhd[piece * CHUNK..][..CHUNK].to_vec());
                std::thread::spawn(move || {
                    let asked =
                        std::panic::AssertUnwindSafe(|| blob.put((piece * CHUNK) as u64, &part));
                    drop(std::panic::catch_unwind(asked));
                })
            };
            std::thread::sleep(std::time::Duration::from_millis(piece as u64));
            kill_process(managed.served.pid(), Signal::KILL).unwrap();
            slow.join().unwrap();
            managed
                .host
                .refused_with("OperationNotAllowed", "disk decrypt d");
            managed.serve_again();
            assert_eq!(state(&managed.client(&managed.admin), D), "ActiveUpload");
            blob = blob.moved_to(&managed);
        }
        put(&blob, &vhd, piece * CHUNK);
    }
    kill_process(managed.served.pid(), Signal::KILL).unwrap();
    managed.serve_again();
    revoke(&managed.client(&managed.admin), D);
    assert!(content(&managed) == raw);
    managed.host.is_clean("d");
}
