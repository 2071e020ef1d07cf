//! What a host has, made and looked at in this process: a process of the program's takes a tenth of a second to
//! seed its random generator.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use disks::{layer_map, lower_layers, open_files};
use installation::Installation;
use installation::catalog::{DesIdentity, DiskEncryptionSetRecord, EncryptionType};
use installation::envelope::{LayerRecord, ResourceKind};
use time::OffsetDateTime;
use uuid::Uuid;
use vault::{AttributeChange, KeyId, KeyPermission, KeySize, NewKey, Permissions, VaultSettings};
use volume::Volume;
use volume::pipeline::DiskIo;

use crate::{Host, MARKER, clean, noise};

/// The vault key that [`Host::encryption_set`] names.
pub const KEY: &str = "key1";
/// The vault that it is in.
pub const VAULT: &str = "vault1";

/// The files of a disk of one layer.
pub struct DiskFiles {
    /// Its header.
    pub header: PathBuf,
    /// Its ciphertext.
    pub data: PathBuf,
    /// Its map.
    pub map: PathBuf,
}

impl Host {
    /// The installation, opened in this process.
    pub fn installation(&self) -> Installation {
        Installation::open(self.state()).unwrap()
    }

    /// The installation in another state directory.
    pub fn installation_in(&self, state: &Path) -> Installation {
        Installation::open(state).unwrap()
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
                encryption_type: EncryptionType::default(),
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

    /// Discards a part of an unattached disk, as a guest does, and makes that durable.
    pub fn discard(&self, name: &str, at: u64, length: u64) {
        let mut io = self.opened(name);
        io.discard(at, length).unwrap();
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
        let disk = disks::Disk::find(&installation, name).unwrap();
        let claim = disk.claim().unwrap();
        let found = disk.header_file().unwrap().read().unwrap();
        let (header, deks) = disk.unlock_all(&installation, found).unwrap();
        let paths = |layer: &LayerRecord| disk.layer_paths(layer);
        let top = header.top().unwrap();
        let map = layer_map(&header, top, &paths(top)).unwrap();
        let files = open_files(claim, &header, paths).unwrap();
        let lower = lower_layers(&header, paths).unwrap();
        let volume = Arc::new(Volume::open_private(map, lower).unwrap());
        DiskIo::open(volume, files, &deks).unwrap()
    }

    /// Holds a disk that nobody uses to the rule of [`clean`].
    pub fn is_clean(&self, disk: &str) {
        clean::assert_clean_disk(|arguments| self.command(arguments), disk);
    }

    /// The layers of a disk, a snapshot or an image, from the bottom up.
    pub fn layers(&self, kind: ResourceKind, name: &str) -> Vec<Uuid> {
        let disk = disks::Disk::of_kind(&self.installation(), kind, name).unwrap();
        let header = disk.header_file().unwrap().read().unwrap();
        header.claims().layers.iter().map(|l| l.id).collect()
    }

    /// The files of a disk in the state directory.
    pub fn files(&self, disk: &str) -> DiskFiles {
        let directory = self.disks().join(disk);
        let with = |extension: &str| {
            let mut found = fs::read_dir(&directory)
                .unwrap()
                .map(|entry| entry.unwrap().path())
                .filter(|path| path.extension().is_some_and(|e| e == extension));
            let file = found.next().unwrap();
            assert!(
                found.next().is_none(),
                "{disk} has several layers: which one?"
            );
            file
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
