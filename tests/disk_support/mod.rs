//! An installation in a temporary directory and the real binary that works on it.

#![allow(dead_code, reason = "each test binary uses its part")]
#![allow(
    clippy::unwrap_used,
    reason = "the lint's exception for tests does not reach functions that tests call"
)]

#[path = "../support/clean.rs"]
pub mod clean;

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::Arc;

use disks::{Disk, layer_map, lower_layers, open_files};
use installation::Installation;
use installation::catalog::{DesIdentity, DiskEncryptionSetRecord};
use installation::envelope::{LayerRecord, ResourceKind};
use serde_json::Value;
use tempfile::TempDir;
use time::OffsetDateTime;
use uuid::Uuid;
use vault::{AttributeChange, KeyId, KeyPermission, KeySize, NewKey, Permissions, VaultSettings};
use volume::Volume;
use volume::pipeline::DiskIo;

/// The vault key that disk encryption sets of these tests name.
pub const KEY: &str = "key1";
pub const VAULT: &str = "vault1";

pub struct Host {
    dir: TempDir,
}

impl Host {
    pub fn new() -> Self {
        Self {
            dir: tempfile::tempdir().unwrap(),
        }
    }

    /// A path for this test's own files.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn state(&self) -> PathBuf {
        self.path("state")
    }

    pub fn disks(&self) -> PathBuf {
        self.state().join("disks")
    }

    pub fn installation(&self) -> Installation {
        Installation::open(&self.state()).unwrap()
    }

    /// The installation in another state directory.
    pub fn installation_in(&self, state: &Path) -> Installation {
        Installation::open(state).unwrap()
    }

    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_sealdisk"));
        command
            .arg("--state-dir")
            .arg(self.state())
            .args(arguments)
            .env_remove("RUST_LOG")
            // Backups work with `fips` too, if told.
            .env("SEALDISK_ALLOW_NON_FIPS", "1")
            .stdin(Stdio::null());
        command
    }

    pub fn run(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    /// Runs a command that must succeed and returns its standard output.
    pub fn ok(&self, arguments: &[&str]) -> Vec<u8> {
        let output = self.run(arguments);
        assert!(output.status.success(), "{arguments:?}: {output:?}");
        output.stdout
    }

    pub fn json(&self, arguments: &[&str]) -> Value {
        let output = self.ok(&[arguments, &["-o", "json"]].concat());
        serde_json::from_slice(&output).unwrap()
    }

    /// Runs a command that must be refused: with a status that is not 0, and one line on stderr,
    /// which is returned.
    pub fn refused(&self, arguments: &[&str]) -> String {
        one_line(&self.run(arguments))
    }

    /// As [`Host::refused`], and the code of the JSON form must be `code`.
    pub fn refused_with(&self, code: &str, arguments: &[&str]) -> String {
        let line = self.refused(&[arguments, &["-o", "json"]].concat());
        let value: Value = serde_json::from_str(&line).unwrap();
        assert_eq!(value["code"], code, "{line}");
        value["message"].as_str().unwrap().to_owned()
    }

    /// Nothing of any disk is left: no file, no row, no process.
    pub fn assert_no_disks(&self) {
        let left: Vec<_> = fs::read_dir(self.disks()).unwrap().flatten().collect();
        assert!(left.is_empty(), "{left:?}");
        assert!(self.installation().catalog().disks().unwrap().is_empty());
        assert_eq!(self.json(&["disk", "list"]), serde_json::json!([]));
    }

    /// Makes a vault with a key, and a disk encryption set `name` whose identity has `permissions`.
    pub fn encryption_set(&self, name: &str, permissions: &[&str]) -> Uuid {
        let installation = self.installation();
        let operator = installation.operator();
        if installation.vault(VAULT).is_err() {
            let vault = installation
                .create_vault(VAULT, &VaultSettings::default())
                .unwrap();
            vault
                .create_key(&operator, KEY, &NewKey::new(KeySize::Rsa2048))
                .unwrap();
        }
        let principal_id = Uuid::new_v4();
        installation
            .catalog()
            .insert_des(&DiskEncryptionSetRecord {
                name: name.into(),
                identity: DesIdentity::SystemAssigned,
                principal_id,
                key_url: format!("https://{VAULT}.vault.localhost/keys/{KEY}"),
                previous_keys: Vec::new(),
                auto_rotation: false,
                last_rotation: None,
                created: OffsetDateTime::now_utc(),
            })
            .unwrap();
        self.grant(principal_id, permissions);
        principal_id
    }

    /// Gives an identity exactly these permissions.
    pub fn grant(&self, identity: Uuid, permissions: &[&str]) {
        let installation = self.installation();
        let permissions: Permissions = KeyPermission::ALL
            .iter()
            .copied()
            .filter(|p| permissions.contains(&p.name()))
            .collect();
        installation
            .vault(VAULT)
            .unwrap()
            .set_policy(&installation.operator(), identity, &permissions)
            .unwrap();
    }

    /// Changes the attributes of the key's latest version.
    pub fn set_key(&self, change: &AttributeChange) {
        let installation = self.installation();
        let key = KeyId {
            name: KEY.into(),
            version: None,
        };
        installation
            .vault(VAULT)
            .unwrap()
            .update_key(&installation.operator(), &key, &(*change).into())
            .unwrap();
    }

    /// Writes to an unattached disk, as a guest does, and makes it durable.
    pub fn write(&self, name: &str, at: u64, bytes: &[u8]) {
        let mut io = self.opened(name);
        io.write_at(at, bytes).unwrap();
        io.flush().unwrap();
    }

    /// What an unattached disk holds.
    pub fn read(&self, name: &str, at: u64, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        self.opened(name).read_at(at, &mut bytes).unwrap();
        bytes
    }

    fn opened(&self, name: &str) -> DiskIo {
        let installation = self.installation();
        let disk = Disk::find(&installation, name).unwrap();
        let found = disk.header_file().unwrap().read().unwrap();
        let claim = disk.claim(found.claims()).unwrap();
        let (header, deks) = disk.unlock_all(&installation, found).unwrap();
        let paths = |layer: &LayerRecord| disk.layer_paths(layer);
        let top = header.top().unwrap();
        let map = layer_map(&header, top, &paths(top)).unwrap();
        let files = open_files(claim, &header, paths).unwrap();
        let lower = lower_layers(&header, paths).unwrap();
        let volume = Arc::new(Volume::open_private(map, lower).unwrap());
        DiskIo::open(volume, files, &deks).unwrap()
    }

    /// Holds a disk that nobody uses to the rule of `support/clean.rs`.
    pub fn is_clean(&self, disk: &str) {
        clean::assert_clean_disk(|arguments| self.command(arguments), disk);
    }

    /// The layers of a disk, a snapshot or an image, from the bottom up.
    pub fn layers(&self, kind: ResourceKind, name: &str) -> Vec<Uuid> {
        let disk = Disk::of_kind(&self.installation(), kind, name).unwrap();
        let header = disk.header_file().unwrap().read().unwrap();
        header.claims().layers.iter().map(|l| l.id).collect()
    }

    /// The files of a disk in the state directory.
    pub fn files(&self, disk: &str) -> DiskFiles {
        let directory = self.disks().join(disk);
        let with = |extension: &str| {
            fs::read_dir(&directory)
                .unwrap()
                .map(|entry| entry.unwrap().path())
                .find(|path| path.extension().is_some_and(|e| e == extension))
                .unwrap()
        };
        DiskFiles {
            header: directory.join("header"),
            data: with("data"),
            map: with("map"),
        }
    }

    /// Writes a raw image of 24 MiB: data at the beginning, in the middle and at the end, each with
    /// `MARKER` in it, and zeros between.
    pub fn raw_image(&self, name: &str) -> PathBuf {
        let mut content = vec![0; 24 << 20];
        for (at, length) in [(0, 4096), (5 << 20, 3 << 20), ((24 << 20) - 4096, 4096)] {
            noise(&mut content[at..at + length]);
            content[at + 100..at + 100 + MARKER.len()].copy_from_slice(MARKER);
        }
        let path = self.path(name);
        fs::write(&path, content).unwrap();
        path
    }
}

pub struct DiskFiles {
    pub header: PathBuf,
    pub data: PathBuf,
    pub map: PathBuf,
}

/// Plaintext that must be nowhere but in images and decrypted files.
pub const MARKER: &[u8] = b"plaintext that nobody but the guest may see";

/// The only line on stderr of a command that was refused.
pub fn one_line(output: &Output) -> String {
    assert!(!output.status.success(), "{output:?}");
    let stderr = String::from_utf8(output.stderr.clone()).unwrap();
    let line = stderr.strip_suffix('\n').unwrap_or(&stderr);
    assert!(!line.is_empty() && !line.contains('\n'), "{stderr:?}");
    line.to_owned()
}

/// Fills with bytes that do not repeat and are not zeros.
pub fn noise(bytes: &mut [u8]) {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    for byte in bytes {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        *byte = state as u8 | 1;
    }
}

pub fn qemu_img(arguments: &[&str]) {
    let output = Command::new("qemu-img").args(arguments).output().unwrap();
    assert!(output.status.success(), "{output:?}");
}

pub fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Bytes that a file takes on its file system.
pub fn allocated(path: &Path) -> u64 {
    fs::metadata(path).unwrap().blocks() * 512
}

/// Whether a regular file below `directory` holds `needle`.
pub fn holds(directory: &Path, needle: &[u8]) -> bool {
    fs::read_dir(directory).unwrap().flatten().any(|entry| {
        let kind = entry.file_type().unwrap();
        if kind.is_dir() {
            return holds(&entry.path(), needle);
        }
        let content = fs::read(entry.path()).unwrap();
        let first = needle[0];
        let found = |w: &[u8]| w[0] == first && w == needle;
        kind.is_file() && content.windows(needle.len()).any(found)
    })
}
