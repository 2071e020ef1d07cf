//! Double encryption: the data under two DEKs, one for each of two owners of keys.

use std::fs;

use aes::Aes256;
use aes::cipher::KeyInit;
use disks::Disk;
use installation::envelope::{Header, HeaderFile, LayerRecord, ResourceKind};
use serde_json::Value;
use test_support::{Host, KEY, VAULT, text};
use uuid::Uuid;
use xts_mode::{Xts128, get_tweak_default};

const BLOCK: usize = 4096;
const TWICE: &str = "EncryptionAtRestWithPlatformAndCustomerKeys";
const ONCE: &str = "EncryptionAtRestWithCustomerKey";
const PLATFORM: &str = "platform-key --vault-name platform";

/// A host with the sets `once` and `twice` of one key, and a disk under one of them, or the platform's key.
struct Disks {
    host: Host,
    content: Vec<u8>,
}

impl Disks {
    fn new(set: Option<&str>) -> Self {
        let host = Host::new();
        host.encryption_set("once", &["get", "wrapKey", "unwrapKey"]);
        host.ok(&format!(
            "disk-encryption-set create twice --key-url https://{VAULT}.vault.localhost/keys/{KEY} \
             --encryption-type {TWICE}"
        ));
        let twice = host.json("disk-encryption-set show twice");
        assert_eq!(twice["encryptionType"], TWICE);
        let identity = twice["identity"]["principalId"].as_str().unwrap();
        host.ok(&format!(
            "keyvault set-policy {VAULT} --object-id {identity} --key-permissions get wrapKey unwrapKey"
        ));
        let raw = host.raw_image("disk.raw");
        let content = fs::read(&raw).unwrap();
        let create = ["disk", "create", "d", "--source", text(&raw)];
        let under = set.map(|set| ["--disk-encryption-set", set]);
        host.ok(&[&create[..], under.as_ref().map_or(&[], |under| &under[..])].concat());
        Self { host, content }
    }

    fn move_to(&self, set: &str) {
        self.host
            .ok(&format!("disk update d --disk-encryption-set {set}"));
        assert_eq!(self.host.json("disk show d")["job"], Value::Null);
    }

    fn is_readable(&self, disk: &str) {
        let read = self.host.ok(&format!("disk decrypt {disk}"));
        assert!(read == self.content, "{disk} holds something else");
    }

    fn layers(&self, kind: ResourceKind, name: &str) -> Vec<LayerRecord> {
        let installation = self.host.installation();
        let disk = Disk::of_kind(&installation, kind, name).unwrap();
        disk.header_file()
            .unwrap()
            .read()
            .unwrap()
            .claims()
            .layers
            .clone()
    }

    /// How many blocks of the disk's files decrypt to what it holds, by passes of a library, the outer one first.
    fn decrypted_by(&self, passes: &[Vec<u8>]) -> usize {
        let installation = self.host.installation();
        let disk = Disk::find(&installation, "d").unwrap();
        let cipher = |half: &[u8]| Aes256::new_from_slice(half).unwrap();
        let xts: Vec<_> = passes
            .iter()
            .map(|dek| Xts128::new(cipher(&dek[..32]), cipher(&dek[32..])))
            .collect();
        let mut found = 0;
        for entry in fs::read_dir(disk.directory()).unwrap().flatten() {
            if entry
                .path()
                .extension()
                .is_none_or(|extension| extension != "data")
            {
                continue;
            }
            let bytes = fs::read(entry.path()).unwrap();
            for (number, block) in bytes.chunks_exact(BLOCK).enumerate() {
                let Some(plaintext) = self.content.get(number * BLOCK..(number + 1) * BLOCK) else {
                    break;
                };
                let mut block = block.to_vec();
                for pass in &xts {
                    pass.decrypt_sector(&mut block, get_tweak_default(number as u128 * 8));
                }
                let is_data = plaintext.iter().any(|byte| *byte != 0);
                found += usize::from(is_data && block == plaintext);
            }
        }
        found
    }

    fn blocks_of_data(&self) -> usize {
        let blocks = self.content.chunks_exact(BLOCK);
        blocks
            .filter(|block| block.iter().any(|byte| *byte != 0))
            .count()
    }

    /// The keys of the disk's passes, the outer one first.
    fn keys(&self) -> Vec<Vec<u8>> {
        let installation = self.host.installation();
        let disk = Disk::find(&installation, "d").unwrap();
        let header = disk.header_file().unwrap().read().unwrap();
        let (_, dek) = disk.unlock(&installation, header).unwrap();
        let outer = dek.outer().map(|outer| outer.expose().to_vec());
        outer.into_iter().chain([dek.expose().to_vec()]).collect()
    }

    /// Azure's name of how the disk is encrypted.
    fn kind(&self, of: &str) -> Value {
        self.host.json(of)["encryption"]["type"].take()
    }
}

#[test]
fn the_file_is_two_passes_of_any_xts_and_either_key_stops_it() {
    let disks = Disks::new(Some("twice"));
    assert_eq!(disks.kind("disk show d"), TWICE);
    disks.is_readable("d");
    let keys = disks.keys();
    assert_eq!(keys.len(), 2);
    let all = disks.blocks_of_data();
    assert_eq!(disks.decrypted_by(&keys), all);
    // Neither key does it alone, and not in another order.
    assert_eq!(disks.decrypted_by(&keys[..1]), 0);
    assert_eq!(disks.decrypted_by(&keys[1..]), 0);
    assert_eq!(disks.decrypted_by(&[keys[1].clone(), keys[0].clone()]), 0);

    let customers = format!("{KEY} --vault-name {VAULT}");
    for key in [PLATFORM, &customers] {
        let enable = format!("keyvault key set-attributes {key} --enabled");
        disks.host.ok(&format!("{enable} false"));
        let refused = disks.host.refused_with("KeyDisabled", "disk decrypt d");
        let name = key.split(' ').next().unwrap();
        assert!(refused.contains(name), "{refused}");
        disks.host.ok(&format!("{enable} true"));
        disks.is_readable("d");
    }
    disks.host.is_clean("d");
}

#[test]
fn both_keys_are_said_to_be_needed() {
    let disks = Disks::new(Some("twice"));
    let unsafe_to_disable = |key: &str| {
        let answer = disks
            .host
            .json(&format!("keyvault key what-if --disable {key}"));
        assert_eq!(answer["safeToDisable"], "no", "{answer}");
        answer
    };
    for key in [PLATFORM, &format!("{KEY} --vault-name {VAULT}")] {
        let answer = unsafe_to_disable(key);
        assert_eq!(answer["resources"][0]["name"], "d", "{answer}");
        let sets = answer["diskEncryptionSets"].as_array().unwrap();
        assert!(sets.contains(&"twice".into()), "{answer}");
    }
    // Also while there is nothing but the set, whose next disk would need it.
    disks.host.ok("disk delete d --yes");
    let answer = unsafe_to_disable(PLATFORM);
    assert_eq!(answer["diskEncryptionSets"], serde_json::json!(["twice"]));
    // With a row that says less than the header, the header counts.
    assert_eq!(disks.host.json("disk list"), serde_json::json!([]));
}

#[test]
fn each_key_is_rotated_by_itself() {
    let disks = Disks::new(Some("twice"));
    let versions = || {
        let layer = disks.layers(ResourceKind::Disk, "d").remove(0);
        let platform = layer.platform_envelope.unwrap();
        (layer.envelope.key_version, platform.key_version)
    };
    let first = versions();
    let dek = disks.keys();
    disks
        .host
        .ok(&format!("keyvault key rotate {KEY} --vault-name {VAULT}"));
    disks
        .host
        .ok("disk-encryption-set update twice --enable-auto-key-rotation");
    let second = versions();
    assert_ne!(second.0, first.0);
    assert_eq!(second.1, first.1);
    disks.host.ok(&format!("keyvault key rotate {PLATFORM}"));
    disks.host.ok("disk update d --disk-encryption-set twice");
    let third = versions();
    assert_eq!(third.0, second.0);
    assert_ne!(third.1, second.1);
    // No data was touched.
    assert!(disks.keys() == dek);
    disks.is_readable("d");
    disks.host.ok("disk rotate-dek d");
    assert!(disks.keys().iter().all(|key| !dek.contains(key)));
    assert_eq!(disks.decrypted_by(&disks.keys()), disks.blocks_of_data());
    disks.is_readable("d");
}

#[test]
fn a_disk_moves_into_it_and_out_of_it() {
    for before in [None, Some("once")] {
        let disks = Disks::new(before);
        disks.move_to("twice");
        assert_eq!(disks.kind("disk show d"), TWICE);
        let layers = disks.layers(ResourceKind::Disk, "d");
        assert!(layers.len() == 1 && layers[0].is_double(), "{layers:?}");
        assert_eq!(disks.decrypted_by(&disks.keys()), disks.blocks_of_data());
        disks.is_readable("d");

        disks.move_to("once");
        assert_eq!(disks.kind("disk show d"), ONCE);
        let layers = disks.layers(ResourceKind::Disk, "d");
        assert!(layers.len() == 1 && !layers[0].is_double(), "{layers:?}");
        assert_eq!(disks.keys().len(), 1);
        disks.is_readable("d");
        disks.host.is_clean("d");
    }
}

#[test]
fn snapshots_clones_and_images_are_as_their_layers_are() {
    let disks = Disks::new(Some("once"));
    let host = &disks.host;
    host.ok("snapshot create before --source d");
    disks.move_to("twice");
    host.ok("snapshot create after --source d");
    assert_eq!(disks.kind("snapshot show before"), ONCE);
    assert_eq!(disks.kind("snapshot show after"), TWICE);
    host.ok("disk create partly --source before --disk-encryption-set twice");
    // What it shares is encrypted once, until it is copied.
    assert_eq!(disks.kind("disk show partly"), ONCE);
    disks.is_readable("partly");
    host.ok("disk flatten partly");
    assert_eq!(disks.kind("disk show partly"), TWICE);
    disks.is_readable("partly");
    host.ok("disk create whole --source after");
    assert_eq!(disks.kind("disk show whole"), TWICE);
    host.ok("image create img --source whole");
    assert_eq!(disks.kind("image show img"), TWICE);
    host.ok("disk revert d --snapshot after --yes");
    for disk in ["d", "whole"] {
        disks.is_readable(disk);
    }
    host.ok("disk flatten whole");
    host.ok("snapshot delete after --yes");
    disks.is_readable("d");
    for disk in ["d", "partly", "whole"] {
        host.is_clean(disk);
    }
    let catalog = |host: &Host| {
        let rows = host.installation().catalog().resources().unwrap();
        let mut rows: Vec<_> = rows
            .into_iter()
            .map(|row| (row.record.name, row.record.layers))
            .collect();
        rows.sort_by(|one, other| one.0.cmp(&other.0));
        rows
    };
    let before = catalog(host);
    fs::remove_file(host.state().join("catalog.db")).unwrap();
    host.ok("catalog rebuild");
    assert_eq!(catalog(host), before);
    let twice = host.json("disk-encryption-set show twice");
    assert_eq!(twice["encryptionType"], TWICE);
}

/// Nothing proves a header to a catalog that is made again: one that says less than others does not weaken their set.
#[test]
fn a_forged_header_does_not_weaken_a_set() {
    let disks = Disks::new(Some("twice"));
    let host = &disks.host;
    let installation = host.installation();
    let disk = Disk::find(&installation, "d").unwrap();
    let header = disk.header_file().unwrap().read().unwrap();
    let (header, dek) = disk.unlock(&installation, header).unwrap();
    let mut payload = (*header).clone();
    payload.disk = Uuid::new_v4();
    // It is found first.
    payload.name = "a".into();
    payload.layers[0].platform_envelope = None;
    let forged = host.disks().join("a");
    fs::create_dir(&forged).unwrap();
    HeaderFile::create(&forged.join("header"), &Header::new(payload), &dek).unwrap();
    for name in [
        "catalog.db",
        "catalog.db-wal",
        "catalog.db-shm",
        "catalog-copy.json",
    ] {
        let _ = fs::remove_file(host.state().join(name));
    }
    host.ok("catalog rebuild");
    let twice = host.json("disk-encryption-set show twice");
    assert_eq!(twice["encryptionType"], TWICE);
}

/// What a layer beneath is refused by is the platform's key, not the customer's.
#[test]
fn a_refusal_names_the_key_that_refuses() {
    let disks = Disks::new(Some("twice"));
    let host = &disks.host;
    let versions = || {
        let list = host.json(&format!("keyvault key list-versions {PLATFORM}"));
        list.as_array().unwrap().clone()
    };
    let first = versions()[0]["kid"].as_str().unwrap().to_owned();
    host.ok(&format!("keyvault key rotate {PLATFORM}"));
    host.ok("snapshot create s1 --source d");
    host.write("d", 0, &[1; 4096]);
    host.ok("snapshot create s2 --source d");
    let version = first.rsplit('/').next().unwrap();
    host.ok(&format!(
        "keyvault key set-attributes {PLATFORM} --version {version} --enabled false"
    ));
    let refused = host.refused("disk create clone --source s2");
    assert!(refused.contains(&first), "{refused}");
    assert!(!refused.contains(KEY), "{refused}");
}

#[test]
fn what_would_only_look_double_is_refused() {
    let disks = Disks::new(Some("once"));
    let host = &disks.host;
    host.ok("snapshot create s --source d");
    let refused = host.refused("snapshot update s --disk-encryption-set twice");
    assert!(refused.contains("is encrypted once"), "{refused}");
    assert_eq!(disks.kind("snapshot show s"), ONCE);
    let refused = host.refused(&format!(
        "disk-encryption-set create same --key-url https://platform.vault.localhost/keys/platform-key \
         --encryption-type {TWICE}"
    ));
    assert!(refused.contains("a key of another vault"), "{refused}");
}

#[test]
fn the_platforms_key_is_not_purged_while_it_wraps_something() {
    let disks = Disks::new(Some("twice"));
    let host = &disks.host;
    host.ok(&format!("keyvault key delete {PLATFORM} --yes"));
    let refused = host.refused(&format!("keyvault key purge {PLATFORM} --yes"));
    assert!(
        refused.contains("'twice' wraps new disks with it (and 1 more)"),
        "{refused}"
    );
    host.ok(&format!("keyvault key recover {PLATFORM}"));
    disks.is_readable("d");
}

/// A move whose copying was cut off goes on by the same command, and is not turned round before it has ended.
#[test]
fn a_move_that_was_cut_off_goes_on() {
    let disks = Disks::new(Some("once"));
    let host = &disks.host;
    let installation = host.installation();
    disks::update(&installation, ResourceKind::Disk, "d", Some("twice")).unwrap();
    host.ok("disk rotate-dek d --no-wait");
    assert_eq!(host.json("disk show d")["job"]["kind"], "rotate");
    let refused = host.refused("disk update d --disk-encryption-set once");
    assert!(refused.contains("rotate-dek"), "{refused}");
    assert_eq!(
        host.json("disk show d")["encryption"]["diskEncryptionSetId"],
        "twice"
    );
    disks.move_to("twice");
    assert_eq!(disks.kind("disk show d"), TWICE);
    disks.is_readable("d");
}

/// A rotation that is no move: the key's newer version wraps the disk nonetheless.
#[test]
fn a_disk_is_wrapped_anew_while_a_rotation_waits() {
    let disks = Disks::new(Some("once"));
    let host = &disks.host;
    host.ok("disk rotate-dek d --no-wait");
    let key = |host: &Host| host.json("disk show d")["encryption"]["keyUrl"].clone();
    let before = key(host);
    host.ok(&format!("keyvault key rotate {KEY} --vault-name {VAULT}"));
    host.ok("disk update d --disk-encryption-set once");
    assert_ne!(key(host), before);
    assert_eq!(host.json("disk show d")["job"]["kind"], "rotate");
    disks.is_readable("d");
}
