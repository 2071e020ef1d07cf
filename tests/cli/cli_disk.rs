//! `sealdisk disk` as its users see it: what works.

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::process::{Command, Stdio};

use disks::Disk;
use test_support::{Host, MARKER, allocated, holds, one_line, program, qemu_img, text};

const ALL: &[&str] = &["get", "wrapKey", "unwrapKey"];

#[test]
fn images_of_every_format_come_out_as_they_went_in() {
    let host = Host::new();
    let raw = host.raw_image("disk.raw");
    let content = fs::read(&raw).unwrap();
    let formats = [
        ("raw", "raw", &[][..]),
        ("qcow2", "qcow2", &[]),
        ("vpc", "vhd", &["-o", "force_size=on"]),
        ("vhdx", "vhdx", &[]),
        ("vmdk", "vmdk", &[]),
    ];
    for (format, extension, options) in formats {
        let image = host.path(&format!("image.{extension}"));
        let convert = ["convert", "-f", "raw", "-O", format];
        qemu_img(&[&convert, options, &[text(&raw), text(&image)]].concat());
        host.ok(&["disk", "create", format, "--source", text(&image)]);
        let plaintext = host.ok(&["disk", "decrypt", format]);
        assert!(plaintext == content, "{format} differs");
        // 3 MiB and 8 KiB of data; the zeros between take nothing.
        let data = host.files(format).data;
        assert_eq!(fs::metadata(&data).unwrap().len(), content.len() as u64);
        assert!(allocated(&data) < 4 << 20, "{format}: {}", allocated(&data));
    }
    // An installation of its own for each would hide what one leaves in the other's way.
    assert_eq!(host.json(&["disk", "list"]).as_array().unwrap().len(), 5);
    assert!(!holds(&host.state(), MARKER));
}

#[test]
fn neither_plaintext_nor_key_is_in_the_state_directory() {
    let host = Host::new();
    host.encryption_set("set1", ALL);
    let raw = host.raw_image("disk.raw");
    for (name, sector_size) in [("d512", "512"), ("d4096", "4096")] {
        let create = ["disk", "create", name, "--source", text(&raw)];
        let options = [
            "--disk-encryption-set",
            "set1",
            "--sector-size",
            sector_size,
        ];
        host.ok(&[&create[..], &options].concat());
        host.ok(&["disk", "update", name, "--platform-managed"]);

        let installation = host.installation();
        let disk = Disk::find(&installation, name).unwrap();
        let header = disk.header_file().unwrap().read().unwrap();
        let (_, dek) = disk.unlock(&installation, header).unwrap();
        for half in dek.expose().chunks(32) {
            assert!(!holds(&host.state(), half));
        }
    }
    assert!(!holds(&host.state(), MARKER));
    assert!(
        holds(raw.parent().unwrap(), MARKER),
        "the search finds nothing"
    );
}

#[test]
fn an_empty_disk_takes_no_space_and_reads_as_zeros() {
    let host = Host::new();
    host.ok(&["disk", "create", "empty", "--size", "1GiB"]);
    let show = host.json(&["disk", "show", "empty"]);
    assert_eq!(show["diskSizeBytes"], 1 << 30);
    assert_eq!(show["diskState"], "Unattached");
    assert_eq!(
        show["encryption"]["type"],
        "EncryptionAtRestWithPlatformKey"
    );
    assert!(show["usedBytes"].as_u64().unwrap() < 1 << 20);
    let file = host.path("empty.raw");
    host.ok(&["disk", "decrypt", "empty", "--output-file", text(&file)]);
    assert_eq!(fs::metadata(&file).unwrap().len(), 1 << 30);
    assert_eq!(allocated(&file), 0);
    for path in [&file, &host.files("empty").data] {
        assert_eq!(fs::metadata(path).unwrap().mode() & 0o777, 0o600);
    }
}

#[test]
fn a_decrypted_file_is_sparse_and_a_pipe_gets_all() {
    let host = Host::new();
    let raw = host.raw_image("disk.raw");
    let create = ["disk", "create", "big", "--source", text(&raw)];
    host.ok(&[&create[..], &["--size", "32MiB"]].concat());
    let mut content = fs::read(&raw).unwrap();
    content.resize(32 << 20, 0);
    assert!(host.ok(&["disk", "decrypt", "big"]) == content);
    let file = host.path("big.raw");
    host.ok(&["disk", "decrypt", "big", "--output-file", text(&file)]);
    assert!(fs::read(&file).unwrap() == content);
    assert!(allocated(&file) < 4 << 20);
}

#[test]
fn an_odd_image_is_filled_up_and_that_is_said() {
    let host = Host::new();
    let image = host.path("odd.raw");
    fs::write(&image, vec![7; 10_000]).unwrap();
    let output = host.run(&["disk", "create", "odd", "--source", text(&image)]);
    let note = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{note}");
    assert!(
        note.contains("10000 bytes are filled up with zeros to 12288"),
        "{note}"
    );
    let plaintext = host.ok(&["disk", "decrypt", "odd"]);
    assert_eq!(plaintext.len(), 12_288);
    assert!(plaintext[..10_000].iter().all(|&b| b == 7));
    assert!(plaintext[10_000..].iter().all(|&b| b == 0));
}

#[test]
fn the_ciphertext_is_where_data_dir_says_until_the_disk_is_deleted() {
    let host = Host::new();
    let elsewhere = host.path("elsewhere");
    let raw = host.raw_image("disk.raw");
    let create = ["disk", "create", "d", "--source", text(&raw)];
    host.ok(&[&create[..], &["--data-dir", text(&elsewhere)]].concat());
    assert_eq!(fs::read_dir(host.disks()).unwrap().count(), 0);
    assert_eq!(fs::read_dir(elsewhere.join("d")).unwrap().count(), 3);
    assert!(host.ok(&["disk", "decrypt", "d"]) == fs::read(&raw).unwrap());
    host.ok(&["disk", "delete", "d", "--yes"]);
    assert_eq!(fs::read_dir(&elsewhere).unwrap().count(), 0);
    host.assert_no_disks();
}

#[test]
fn a_re_wrapped_disk_has_the_same_data_and_nothing_of_the_old_wrapping() {
    let host = Host::new();
    let first = host.encryption_set("first", ALL);
    host.encryption_set("second", ALL);
    let raw = host.raw_image("disk.raw");
    let create = ["disk", "create", "d", "--source", text(&raw)];
    host.ok(&[&create[..], &["--disk-encryption-set", "first"]].concat());
    let files = host.files("d");
    let ciphertext = fs::read(&files.data).unwrap();
    let wrapped = |host: &Host| {
        let header = fs::read(host.files("d").header).unwrap();
        let header = String::from_utf8_lossy(&header);
        let at = header.find("\"wrapped\": \"").unwrap() + 12;
        header[at..at + 60].to_owned()
    };
    let old = wrapped(&host);

    host.ok(&["disk", "update", "d", "--disk-encryption-set", "second"]);
    let show = host.json(&["disk", "show", "d"]);
    assert_eq!(show["encryption"]["diskEncryptionSetId"], "second");
    assert_eq!(
        show["encryption"]["type"],
        "EncryptionAtRestWithCustomerKey"
    );
    assert!(!holds(&host.disks(), old.as_bytes()));
    // The old identity is not needed any more.
    host.grant(first, &["get"]);
    host.ok(&["disk", "decrypt", "d"]);

    host.ok(&["disk", "update", "d", "--platform-managed"]);
    let show = host.json(&["disk", "show", "d"]);
    assert_eq!(
        show["encryption"]["diskEncryptionSetId"],
        serde_json::Value::Null
    );
    let url = show["encryption"]["keyUrl"].as_str().unwrap().to_owned();
    assert!(
        url.starts_with("https://platform.vault.localhost/keys/platform-key/"),
        "{url}"
    );
    assert!(fs::read(&files.data).unwrap() == ciphertext);
    assert!(host.ok(&["disk", "decrypt", "d"]) == fs::read(&raw).unwrap());
}

#[test]
fn a_disk_in_use_is_re_wrapped_but_neither_deleted_nor_decrypted() {
    let host = Host::new();
    host.ok(&["disk", "create", "d", "--size", "1MiB"]);
    host.encryption_set("set1", ALL);
    // As the data plane holds it.
    let in_use = File::open(host.files("d").data).unwrap();
    in_use.lock().unwrap();
    assert_eq!(host.json(&["disk", "show", "d"])["diskState"], "Attached");
    let file = host.path("plain");
    for command in [
        &["disk", "delete", "d", "--yes"][..],
        &["disk", "decrypt", "d", "--output-file", text(&file)],
    ] {
        let refusal = host.refused_with("OperationNotAllowed", command);
        assert!(refusal.contains("in use"), "{refusal}");
    }
    assert!(!file.exists());
    host.ok(&["disk", "update", "d", "--disk-encryption-set", "set1"]);
    drop(in_use);
    host.ok(&["disk", "decrypt", "d", "--output-file", text(&file)]);
    host.ok(&["disk", "delete", "d", "--yes"]);
    host.assert_no_disks();
}

#[test]
fn the_catalog_follows_the_header_when_it_stayed_behind() {
    let host = Host::new();
    host.encryption_set("set1", ALL);
    host.ok(&["disk", "create", "d", "--size", "1MiB"]);
    // Killed between the header's update and the catalog's: the catalog is an older one.
    let before = host.installation().catalog().disk("d").unwrap();
    host.ok(&["disk", "update", "d", "--disk-encryption-set", "set1"]);
    let after = host.installation().catalog().disk("d").unwrap();
    assert_ne!(before.record, after.record);
    let installation = host.installation();
    installation
        .catalog()
        .update_disk(after.rev, &before.record)
        .unwrap();

    // The set's identity is what opens the disk, so it must not go.
    let delete = ["disk-encryption-set", "delete", "set1", "--yes"];
    let refusal = host.refused_with("InUseDiskEncryptionSetCannotBeDeleted", &delete);
    assert!(refusal.contains("used by the disk 'd'"), "{refusal}");
    let list = host.json(&["disk", "list"]);
    assert_eq!(list[0]["encryption"]["diskEncryptionSetId"], "set1");
    let healed = host.installation().catalog().disk("d").unwrap();
    assert_eq!(healed.record, after.record);
}

#[test]
fn plaintext_is_not_written_to_a_terminal_or_over_a_file() {
    let host = Host::new();
    host.ok(&["disk", "create", "d", "--size", "1MiB"]);
    let file = host.path("precious");
    fs::write(&file, "precious").unwrap();
    let refusal = host.refused_with(
        "Conflict",
        &["disk", "decrypt", "d", "--output-file", text(&file)],
    );
    assert!(refusal.contains("exists already"), "{refusal}");
    assert_eq!(fs::read(&file).unwrap(), b"precious");

    // `script` gives its child a terminal.
    let command = format!(
        "{} --state-dir {} disk decrypt d",
        program().display(),
        text(&host.state())
    );
    let output = Command::new("script")
        .args(["-qec", &command, "/dev/null"])
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let shown = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        !output.status.success() && shown.contains("terminal"),
        "{shown}"
    );
}

#[test]
fn a_reader_that_goes_away_is_an_error() {
    let host = Host::new();
    host.ok(&["disk", "create", "d", "--size", "64MiB"]);
    let mut child = host
        .command(&["disk", "decrypt", "d"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let line = one_line(&child.wait_with_output().unwrap());
    assert!(line.contains("standard output"), "{line}");
}
