//! docs/format.md is true: the commands in it are run, and what it says of the ciphertext and the
//! map is enough to read a disk back without any code of this crate.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use aes::Aes256;
use aes::cipher::KeyInit;
use disks::{Disk, LayerOp, SnapshotRequest, Unattached, layer_map, lower_layers, open_files};
use hkdf::Hkdf;
use hmac::{Hmac, Mac};
use installation::envelope::{LayerRecord, ResourceKind};
use serde_json::Value;
use sha2::Sha256;
use test_support::{Host, MARKER, text};
use volume::Volume;
use volume::pipeline::DiskIo;
use xts_mode::Xts128;

/// The shell commands behind the marker in docs/format.md.
fn documented_commands() -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/format.md");
    let document = fs::read_to_string(path).unwrap();
    let (_, after) = document
        .split_once("<!-- tests/cli/format.rs runs this block -->\n```sh\n")
        .unwrap();
    after.split_once("```").unwrap().0.to_owned()
}

/// What the documented commands make of a disk's header: the DEKs of its layers, from the bottom up.
fn documented_deks(key: &Path, disk: &Path) -> Vec<Vec<u8>> {
    let secrets = tempfile::tempdir_in("/dev/shm").unwrap();
    let output = Command::new("sh")
        .args(["-e", "-u", "-c", &documented_commands()])
        .env("KEY", key)
        .env("DISK", disk)
        .env("SECRETS", secrets.path())
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    let deks: Vec<_> = (1..)
        .map_while(|layer| fs::read(secrets.path().join(format!("dek.{layer}"))).ok())
        .collect();
    assert!(deks.iter().all(|dek| dek.len() == 64));
    deks
}

/// As [`documented_deks`] of a disk of one layer.
fn documented_dek(key: &Path, disk: &Path) -> Vec<u8> {
    let deks = documented_deks(key, disk);
    assert_eq!(deks.len(), 1);
    deks[0].clone()
}

/// A slot of version 1, as docs/format.md describes it.
fn slot_of_version_1(payload: &[u8], sequence: u64, dek: &[u8]) -> Vec<u8> {
    let mut slot = vec![0; 16384];
    slot[..8].copy_from_slice(b"SEALDISK");
    slot[8..12].copy_from_slice(&1_u32.to_le_bytes());
    slot[12..16].copy_from_slice(&u32::try_from(payload.len()).unwrap().to_le_bytes());
    slot[16..24].copy_from_slice(&sequence.to_le_bytes());
    let mut key = [0; 64];
    Hkdf::<Sha256>::new(None, dek)
        .expand(b"sealdisk header authentication v1", &mut key)
        .unwrap();
    let mac = Hmac::<Sha256>::new_from_slice(&key)
        .unwrap()
        .chain_update(&slot[..24])
        .chain_update(payload)
        .finalize();
    slot[24..56].copy_from_slice(&mac.into_bytes());
    slot[512..512 + payload.len()].copy_from_slice(payload);
    let sum = crc32c::crc32c(&slot);
    slot[56..60].copy_from_slice(&sum.to_le_bytes());
    slot
}

/// Gives a disk the header that it would have had in version 1.
fn make_version_1(header: &Path, dek: &[u8]) {
    let file = fs::read(header).unwrap();
    let slot = &file[64 << 10..];
    let length = u32::from_le_bytes(slot[12..16].try_into().unwrap()) as usize;
    let mut payload: Value = serde_json::from_slice(&slot[512..512 + length]).unwrap();
    for field in ["kind", "generation", "incremental", "source", "job"] {
        payload.as_object_mut().unwrap().remove(field).unwrap();
    }
    for field in ["origin", "size", "diskEncryptionSet"] {
        let layer = payload["layers"][0].as_object_mut().unwrap();
        layer.remove(field).unwrap();
    }
    let payload = serde_json::to_vec_pretty(&payload).unwrap();
    let slots = [8, 7].map(|sequence| slot_of_version_1(&payload, sequence, dek));
    fs::write(header, slots.concat()).unwrap();
}

/// Puts what a layer has over what is beneath it, as docs/format.md describes it.
fn put_over(plaintext: &mut [u8], data: &[u8], map: &[u8], dek: &[u8], data_unit: usize) {
    assert_eq!(&map[..8], b"SDBLKMAP");
    let xts = Xts128::new(
        Aes256::new_from_slice(&dek[..32]).unwrap(),
        Aes256::new_from_slice(&dek[32..]).unwrap(),
    );
    for (block, content) in plaintext[..data.len()].chunks_mut(4096).enumerate() {
        let states = &map[4096 + block / 2016 * 512..][..504];
        let within = block % 2016;
        match states[within / 4] >> (2 * (within % 4)) & 3 {
            0 => continue,
            1 => {}
            _ => {
                content.fill(0);
                continue;
            }
        }
        for (unit, bytes) in content.chunks_mut(data_unit).enumerate() {
            let at = block * 4096 + unit * data_unit;
            bytes.copy_from_slice(&data[at..at + data_unit]);
            let mut tweak = [0; 16];
            tweak[..8].copy_from_slice(&(at as u64 / 512).to_le_bytes());
            xts.decrypt_sector(bytes, tweak.into());
        }
    }
}

/// Reads a disk of one layer.
fn read_back(data: &[u8], map: &[u8], dek: &[u8], data_unit: usize, size: usize) -> Vec<u8> {
    let mut plaintext = vec![0; size.next_multiple_of(4096)];
    assert_eq!(data.len(), plaintext.len());
    put_over(&mut plaintext, data, map, dek, data_unit);
    plaintext.truncate(size);
    plaintext
}

/// A vault key of which the private part is in a file, and the set `myset` of it.
fn own_key(host: &Host) -> PathBuf {
    let key = host.path("key.pem");
    let made = Command::new("openssl")
        .args(["genpkey", "-quiet", "-algorithm", "RSA", "-out", text(&key)])
        .status()
        .unwrap();
    assert!(made.success());
    host.ok(&["keyvault", "create", "mine"]);
    let import = ["keyvault", "key", "import", "mykey", "--vault-name", "mine"];
    host.ok(&[&import[..], &["--pem-file", text(&key)]].concat());
    let url = "https://mine.vault.localhost/keys/mykey";
    let set = host.json(&["disk-encryption-set", "create", "myset", "--key-url", url]);
    let identity = set["identity"]["principalId"].as_str().unwrap();
    let grant = ["keyvault", "set-policy", "mine", "--object-id", identity];
    let permissions = ["--key-permissions", "get", "wrapKey", "unwrapKey"];
    host.ok(&[&grant[..], &permissions].concat());
    key
}

#[test]
fn a_disk_is_read_back_by_what_the_document_says() {
    let host = Host::new();
    let raw = host.raw_image("disk.raw");
    let content = fs::read(&raw).unwrap();
    let key = own_key(&host);
    for (name, sector_size) in [("small", 512), ("large", 4096)] {
        let unit = sector_size.to_string();
        let create = [
            "disk",
            "create",
            name,
            "--source",
            text(&raw),
            "--sector-size",
            &unit,
        ];
        host.ok(&create);
        // So that the newest header is not the one that was written first.
        host.ok(&["disk", "update", name, "--disk-encryption-set", "myset"]);
        let dek = documented_dek(&key, &host.disks().join(name));
        let files = host.files(name);
        let (data, map) = (fs::read(files.data).unwrap(), fs::read(files.map).unwrap());
        assert!(
            !data
                .windows(MARKER.len())
                .any(|w| w[0] == MARKER[0] && w == MARKER)
        );
        let plaintext = read_back(&data, &map, &dek, sector_size, content.len());
        assert!(plaintext == content, "{name} differs");

        make_version_1(&files.header, &dek);
        assert_eq!(documented_dek(&key, &host.disks().join(name)), dek);
        let of_version_1 = fs::read(&files.header).unwrap();
        let plaintext = host.path("plaintext");
        let decrypt = ["disk", "decrypt", name, "--output-file", text(&plaintext)];
        host.ok(&decrypt);
        assert!(fs::read(&plaintext).unwrap() == content, "{name} differs");
        assert!(fs::read(&files.header).unwrap() == of_version_1);
        fs::remove_file(&plaintext).unwrap();
        // The next update makes it one of version 2, and nothing of the old wrapping is left.
        host.ok(&["disk", "update", name, "--disk-encryption-set", "myset"]);
        let updated = fs::read(&files.header).unwrap();
        assert_eq!(updated.len(), 192 << 10);
        assert!(updated[..64 << 10].iter().all(|byte| *byte == 0));
        assert_eq!(documented_dek(&key, &host.disks().join(name)), dek);
        host.ok(&decrypt);
        assert!(fs::read(&plaintext).unwrap() == content, "{name} differs");
        fs::remove_file(&plaintext).unwrap();
    }
}

/// Makes a snapshot of a disk that nobody has attached, then writes to the disk.
fn push_and_write(host: &Host, name: &str, snapshot: &str, at: u64, bytes: &[u8]) {
    let installation = host.installation();
    let disk = Disk::find(&installation, name).unwrap();
    let claim = disk.claim().unwrap();
    let snapshot = LayerOp::CreateSnapshot(SnapshotRequest {
        kind: ResourceKind::Snapshot,
        name: snapshot.into(),
        incremental: false,
        data_dir: None,
    });
    let nowhere = Path::new("/dev/shm/there-is-no-such-directory");
    let mut nobody = Unattached::settled(&installation, &disk, claim, nowhere).unwrap();
    snapshot.apply(&installation, &disk, &mut nobody).unwrap();
    let header = disk.header_file().unwrap().read().unwrap();
    let (header, deks) = disk.unlock_all(&installation, header).unwrap();
    let paths = |layer: &LayerRecord| disk.layer_paths(layer);
    let files = open_files(nobody.claimed().unwrap(), &header, paths).unwrap();
    let top = header.top().unwrap();
    let map = layer_map(&header, top, &paths(top)).unwrap();
    let lower = lower_layers(&header, paths).unwrap();
    let volume = Arc::new(Volume::open_private(map, lower).unwrap());
    let mut io = DiskIo::open(volume, files, &deks).unwrap();
    io.write_at(at, bytes).unwrap();
    io.flush().unwrap();
}

#[test]
fn a_stack_of_layers_is_read_back_by_what_the_document_says() {
    let host = Host::new();
    let raw = host.raw_image("disk.raw");
    let mut content = fs::read(&raw).unwrap();
    let key = own_key(&host);
    let create = ["disk", "create", "d", "--source", text(&raw)];
    host.ok(&[&create[..], &["--disk-encryption-set", "myset"]].concat());
    // Zeros that are written, part of a block, and what was in no layer before; then the disk is larger.
    push_and_write(&host, "d", "one", 5 << 20, &[0; 8192]);
    content[5 << 20..][..8192].fill(0);
    push_and_write(&host, "d", "two", (6 << 20) + 1024, &[3; 512]);
    content[(6 << 20) + 1024..][..512].fill(3);
    host.ok(&["disk", "resize", "d", "--size", "32MiB"]);
    content.resize(32 << 20, 0);
    push_and_write(&host, "d", "three", 30 << 20, &[4; 4096]);
    content[30 << 20..][..4096].fill(4);

    let directory = host.disks().join("d");
    let deks = documented_deks(&key, &directory);
    let shown = host.json(&["disk", "show", "d"]);
    let layers = shown["layers"].as_array().unwrap();
    assert_eq!((deks.len(), layers.len()), (4, 4));
    let mut plaintext = vec![0; content.len()];
    for (layer, dek) in layers.iter().zip(&deks) {
        let id = layer["id"].as_str().unwrap();
        let file = |extension: &str| fs::read(directory.join(format!("{id}.{extension}"))).unwrap();
        put_over(&mut plaintext, &file("data"), &file("map"), dek, 4096);
    }
    assert!(plaintext == content);
    assert!(host.ok(&["disk", "decrypt", "d"]) == content);
}
