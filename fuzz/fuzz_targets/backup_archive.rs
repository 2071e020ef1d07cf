//! A backup, as whoever stores it, or knows for whom it is encrypted, may have made it.
#![no_main]

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};

use age::x25519::Identity;
use age::{Decryptor, Encryptor};
use arbitrary::Arbitrary;
use installation::Installation;
use installation::backup::{
    BackupError, CreateBackup, ItemKind, Protection, Secret, Verified, create, verify,
};
use libfuzzer_sys::fuzz_target;
use sealdisk_fuzz::{Edit, edited};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tempfile::TempDir;
use time::{Duration, OffsetDateTime};
use vault::{KeySize, NewKey, Permissions, VaultSettings};

const KINDS: [&str; 6] = [
    "catalog",
    "vault",
    "auditLog",
    "segment",
    "masterKey",
    "file",
];
const PATHS: [&str; 11] = [
    "catalog.db",
    "audit.db",
    "audit.key",
    "vaults/main/vault.db",
    "vaults/main/master.key",
    "vaults/other/vault.db",
    "tokens/1.p8",
    "segments/vault-main-000000000001-000000000003.jsonl",
    "catalog.db-wal",
    "../x",
    "/x",
];

#[derive(Debug, Arbitrary)]
enum Entry {
    /// One of the good backup's, changed.
    Of(u8, Vec<Edit>),
    /// Any.
    Small(Vec<u8>),
}

#[derive(Debug, Arbitrary)]
struct NewItem {
    path: Option<u8>,
    other_path: String,
    kind: Option<u8>,
    entry: Entry,
    /// What the manifest says is not so.
    lie: Option<u32>,
}

#[derive(Debug, Arbitrary)]
enum Input {
    /// The file itself.
    File(Vec<Edit>),
    /// The tar archive in it.
    Archive(Vec<Edit>),
    /// The manifest in that.
    Manifest(Vec<Edit>),
    /// Other entries, of which the manifest says the truth or not.
    Items(Vec<NewItem>),
}

struct Fixture {
    dir: TempDir,
    secret: Secret,
    identity: Identity,
    file: Vec<u8>,
    archive: Vec<u8>,
    manifest: Value,
    entries: Vec<Vec<u8>>,
}

impl Fixture {
    fn new() -> Self {
        let dir = tempfile::tempdir_in("/dev/shm").unwrap();
        let identity = Identity::generate();
        let installation = Installation::open(dir.path().join("state")).unwrap();
        installation.audit_log().unwrap();
        let vault = installation.create_vault("main", &VaultSettings::default());
        let (vault, operator) = (vault.unwrap(), installation.operator());
        vault
            .set_policy(&operator, operator.object_id, &Permissions::all())
            .unwrap();
        let key = NewKey::new(KeySize::Rsa2048);
        vault.create_key(&operator, "k", &key).unwrap();
        let segments = installation.state_dir().join("segments");
        fs::create_dir(&segments).unwrap();
        let later = OffsetDateTime::now_utc() + Duration::HOUR;
        vault
            .archive_audit(&operator, "vault/main", &segments, later)
            .unwrap();
        let path = dir.path().join("good");
        let request = CreateBackup {
            path: &path,
            protection: Protection::Recipients(vec![identity.to_public()]),
            master_keys: true,
            allow_non_fips: false,
        };
        create(&installation, &request).unwrap();
        let file = fs::read(&path).unwrap();
        let mut archive = Vec::new();
        let one = std::iter::once(&identity as &dyn age::Identity);
        let opened = Decryptor::new(file.as_slice()).unwrap().decrypt(one);
        opened.unwrap().read_to_end(&mut archive).unwrap();
        let mut entries: Vec<Vec<u8>> = tar::Archive::new(archive.as_slice())
            .entries()
            .unwrap()
            .map(|entry| {
                let mut bytes = Vec::new();
                entry.unwrap().read_to_end(&mut bytes).unwrap();
                bytes
            })
            .collect();
        Self {
            manifest: serde_json::from_slice(&entries.remove(0)).unwrap(),
            secret: Secret::Identities(vec![identity.clone()]),
            identity,
            file,
            archive,
            entries,
            dir,
        }
    }

    fn sealed(&self, archive: &[u8]) -> Vec<u8> {
        let recipient = self.identity.to_public();
        let one = std::iter::once(&recipient as &dyn age::Recipient);
        let mut file = Vec::new();
        let mut stream = Encryptor::with_recipients(one)
            .unwrap()
            .wrap_output(&mut file)
            .unwrap();
        std::io::Write::write_all(&mut stream, archive).unwrap();
        stream.finish().unwrap();
        file
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("backup")
    }

    fn verify(&self, file: &[u8]) -> Result<Verified, BackupError> {
        fs::write(self.path(), file).unwrap();
        verify(
            &self.path(),
            &self.secret,
            &[],
            &[],
            &self.dir.path().join("work"),
        )
    }
}

fn archive(manifest: &[u8], entries: &[(String, Vec<u8>)]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    let manifest = ("manifest.json".to_owned(), manifest.to_vec());
    for (path, bytes) in std::iter::once(&manifest).chain(entries) {
        let mut header = tar::Header::new_gnu();
        // Such a name as `tar` would not take is put there as it is.
        let name = &mut header.as_old_mut().name;
        let length = path.len().min(name.len());
        name[..length].copy_from_slice(&path.as_bytes()[..length]);
        header.set_size(bytes.len() as u64);
        header.set_mode(0o600);
        header.set_cksum();
        builder.append(&header, bytes.as_slice()).unwrap();
    }
    builder.into_inner().unwrap()
}

impl NewItem {
    fn path(&self) -> String {
        match self.path {
            Some(n) => PATHS[usize::from(n) % PATHS.len()].into(),
            None => self.other_path.chars().take(60).collect(),
        }
    }

    fn bytes(&self, fixture: &Fixture) -> Vec<u8> {
        match &self.entry {
            Entry::Of(n, edits) => edited(
                &fixture.entries[usize::from(*n) % fixture.entries.len()],
                edits,
            ),
            Entry::Small(bytes) => bytes.clone(),
        }
    }

    /// What the manifest says of it.
    fn item(&self, fixture: &Fixture) -> Value {
        let bytes = self.bytes(fixture);
        // The good one's of that path knows a vault's keys.
        let known = fixture.manifest["items"].as_array().unwrap().iter();
        let good = known.clone().find(|item| item["path"] == self.path());
        let mut item = good.cloned().unwrap_or(json!({"kind": "file"}));
        item["path"] = self.path().into();
        if let Some(kind) = self.kind {
            item["kind"] = KINDS[usize::from(kind) % KINDS.len()].into();
        }
        let lie = self.lie.unwrap_or_default();
        item["bytes"] = (bytes.len() as u64 + u64::from(lie)).into();
        let hash: Vec<String> = Sha256::digest(&bytes)
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        item["sha256"] = hash.concat().into();
        item
    }
}

/// What was read to its end is what a restore puts into a state directory.
fn check(verified: &Verified) {
    assert_eq!(verified.items.len(), verified.manifest.items.len());
    for item in &verified.manifest.items {
        let path = Path::new(&item.path);
        assert!(path.is_relative() && !item.path.contains(char::is_control));
        let mut parts = path.components();
        assert!(parts.all(|part| matches!(part, std::path::Component::Normal(_))));
        // A database that is called something else is put in its place unseen.
        let kind = match path.file_name().and_then(|name| name.to_str()) {
            Some("catalog.db") => ItemKind::Catalog,
            Some("audit.db") => ItemKind::AuditLog,
            Some("vault.db") => ItemKind::Vault,
            Some("master.key") => ItemKind::MasterKey,
            _ if path.starts_with("segments") => ItemKind::Segment,
            _ => ItemKind::File,
        };
        assert_eq!(item.kind, kind, "{}", item.path);
    }
}

thread_local! {
    static FIXTURE: Fixture = Fixture::new();
}

fuzz_target!(|input: Input| {
    FIXTURE.with(|fixture| {
        let good = serde_json::to_vec(&fixture.manifest).unwrap();
        let paths = fixture.manifest["items"].as_array().unwrap().iter();
        let paths = paths.map(|item| item["path"].as_str().unwrap().to_owned());
        let file = match &input {
            Input::File(edits) => edited(&fixture.file, edits),
            Input::Archive(edits) => fixture.sealed(&edited(&fixture.archive, edits)),
            Input::Manifest(edits) => {
                let entries: Vec<_> = paths.zip(fixture.entries.iter().cloned()).collect();
                fixture.sealed(&archive(&edited(&good, edits), &entries))
            }
            Input::Items(items) => {
                let mut manifest = fixture.manifest.clone();
                let items = || items.iter().take(12);
                manifest["items"] = items().map(|item| item.item(fixture)).collect();
                let entries: Vec<_> = items()
                    .map(|item| (item.path(), item.bytes(fixture)))
                    .collect();
                let manifest = serde_json::to_vec(&manifest).unwrap();
                fixture.sealed(&archive(&manifest, &entries))
            }
        };
        match fixture.verify(&file) {
            Ok(verified) => {
                check(&verified);
                // Every byte of the file is authenticated.
                assert!(!matches!(input, Input::File(_)) || file == fixture.file);
                assert!(file != fixture.file || verified.findings.is_empty());
            }
            Err(error) => assert!(file != fixture.file, "{error}"),
        }
    });
});
