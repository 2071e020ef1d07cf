//! The encrypted file: a tar archive within an age file, written and read in one pass.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, BufReader, Read, Write};
use std::path::Path;

use age::secrecy::SecretString;
use age::{Decryptor, Encryptor};

use super::BackupError;
use super::manifest::{FORMAT, Item, ItemKind, Manifest, is_plain};
use keys::Hashing;

/// The name of the first entry.
const MANIFEST: &str = "manifest.json";
/// Longest manifest that is read: hundreds of thousands of entries.
const MANIFEST_LIMIT: u64 = 64 << 20;
/// The cost of guessing a passphrase, as of the program `age`: 2^18 is a second and 256 MiB.
const WORK_FACTOR: u8 = 18;
/// A file that asks for more is refused: it would take minutes and gigabytes.
const MAX_WORK_FACTOR: u8 = 22;

/// For whom an archive is encrypted.
pub enum Protection {
    /// For who knows the passphrase.
    Passphrase(SecretString),
    /// For who has the identity of one of these recipients.
    Recipients(Vec<age::x25519::Recipient>),
}

/// What opens an archive.
pub enum Secret {
    /// The passphrase.
    Passphrase(SecretString),
    /// Identities, of which one is a recipient's.
    Identities(Vec<age::x25519::Identity>),
}

/// Writes an archive.
pub(super) struct Writer<W: Write>(tar::Builder<age::stream::StreamWriter<W>>);

impl<W: Write> Writer<W> {
    pub(super) fn new(out: W, protection: &Protection) -> io::Result<Self> {
        let encryptor = match protection {
            Protection::Passphrase(passphrase) => {
                let mut recipient = age::scrypt::Recipient::new(passphrase.clone());
                recipient.set_work_factor(WORK_FACTOR);
                Encryptor::with_recipients(std::iter::once(&recipient as &dyn age::Recipient))
            }
            Protection::Recipients(recipients) => {
                let recipients = recipients.iter().map(|r| r as &dyn age::Recipient);
                Encryptor::with_recipients(recipients)
            }
        };
        let encryptor = encryptor.map_err(|e| io::Error::other(e.to_string()))?;
        Ok(Self(tar::Builder::new(encryptor.wrap_output(out)?)))
    }

    pub(super) fn manifest(&mut self, manifest: &Manifest) -> io::Result<()> {
        let text = serde_json::to_vec_pretty(manifest)?;
        let created = manifest.created.unix_timestamp();
        self.add(MANIFEST, text.len() as u64, created, &mut text.as_slice())
    }

    /// Adds an entry of exactly that length.
    pub(super) fn add(
        &mut self,
        path: &str,
        bytes: u64,
        time: i64,
        content: &mut dyn Read,
    ) -> io::Result<()> {
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes);
        header.set_mode(0o600);
        header.set_mtime(u64::try_from(time).unwrap_or_default());
        header.set_cksum();
        let mut content = content.take(bytes);
        self.0.append_data(&mut header, path, &mut content)?;
        match content.limit() {
            0 => Ok(()),
            _ => Err(io::Error::other(
                "the file became shorter while it was read",
            )),
        }
    }

    pub(super) fn finish(self) -> io::Result<W> {
        self.0.into_inner()?.finish()
    }
}

/// Reads an archive: `begin` gets the manifest, then `visit` each entry with its content, of which it
/// need not read all. When this returns without an error the archive was whole, down to its end, and each
/// entry was what the manifest says.
pub(super) fn read<E: From<BackupError>>(
    path: &Path,
    secret: &Secret,
    begin: impl FnOnce(&Manifest) -> Result<(), E>,
    mut visit: impl FnMut(&Item, &mut dyn Read) -> Result<(), E>,
) -> Result<Manifest, E> {
    let damaged = |why: &dyn std::fmt::Display| BackupError::Damaged {
        path: path.into(),
        why: why.to_string(),
    };
    let file = File::open(path).map_err(BackupError::io("open", path))?;
    let decryptor = Decryptor::new_buffered(BufReader::with_capacity(1 << 16, file))
        .map_err(|e| damaged(&e))?;
    let mut archive = tar::Archive::new(decrypt(path, decryptor, secret)?);
    let mut entries = archive.entries().map_err(|e| damaged(&e))?;
    let mut next = || -> Result<Option<_>, BackupError> {
        entries
            .next()
            .transpose()
            .map_err(|e| damaged(&format!("it was cut off or changed: {e}")))
    };
    let first = next()?.ok_or_else(|| damaged(&"it is empty"))?;
    if first.path_bytes().as_ref() != MANIFEST.as_bytes() {
        return Err(damaged(&"it does not begin with a manifest").into());
    }
    let manifest: Manifest = serde_json::from_reader(first.take(MANIFEST_LIMIT))
        .map_err(|e| damaged(&format!("its manifest cannot be read: {e}")))?;
    if manifest.format != FORMAT {
        let why = format!("format {} is not known, {FORMAT} is", manifest.format);
        return Err(damaged(&why).into());
    }
    let mut paths = BTreeSet::new();
    for item in &manifest.items {
        let path = item.path.as_str();
        if !is_plain(path) || ItemKind::at(path) != Some(item.kind) || !paths.insert(path) {
            let what = format!("it names an entry {path:?}, which is none of a backup");
            return Err(damaged(&what).into());
        }
    }
    begin(&manifest)?;
    for item in &manifest.items {
        let entry = next()?.ok_or_else(|| damaged(&format!("{} is missing", item.path)))?;
        let is_file = entry.header().entry_type() == tar::EntryType::Regular;
        let same = entry.path_bytes().as_ref() == item.path.as_bytes();
        if !is_file || !same || entry.size() != item.bytes {
            return Err(damaged(&format!("{} is not what the manifest says", item.path)).into());
        }
        let mut content = Content::new(entry);
        let visited = visit(item, &mut content);
        // What could not be read is the archive's fault, whatever the visitor has made of it.
        if let Some(why) = content.failed.take() {
            return Err(damaged(&format!("it was cut off or changed: {why}")).into());
        }
        visited?;
        io::copy(&mut content, &mut io::sink())
            .map_err(|e| damaged(&format!("it was cut off or changed: {e}")))?;
        if content.hashing.hex() != item.sha256 {
            return Err(damaged(&format!("{} is not what the manifest says", item.path)).into());
        }
    }
    if next()?.is_some() {
        return Err(damaged(&"it has more entries than its manifest").into());
    }
    // The end is authenticated too.
    io::copy(&mut archive.into_inner(), &mut io::sink())
        .map_err(|e| damaged(&format!("it was cut off or changed: {e}")))?;
    Ok(manifest)
}

/// The content of an entry, which is hashed, and keeps the first error of reading it.
struct Content<R> {
    hashing: Hashing<R>,
    failed: Option<io::Error>,
}

impl<R: Read> Content<R> {
    fn new(entry: R) -> Self {
        Self {
            hashing: Hashing::new(entry),
            failed: None,
        }
    }
}

impl<R: Read> Read for Content<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.hashing.read(buffer).map_err(|e| {
            if e.kind() == io::ErrorKind::Interrupted || self.failed.is_some() {
                return e;
            }
            let said = io::Error::new(e.kind(), e.to_string());
            self.failed = Some(e);
            said
        })
    }
}

fn decrypt<R: io::BufRead>(
    path: &Path,
    decryptor: Decryptor<R>,
    secret: &Secret,
) -> Result<age::stream::StreamReader<R>, BackupError> {
    let key = |why: String| BackupError::Key {
        path: path.into(),
        why,
    };
    let opened = match (secret, decryptor.is_scrypt()) {
        (Secret::Passphrase(_), false) => {
            return Err(key(
                "it was made for recipients: give --identity-file".into()
            ));
        }
        (Secret::Identities(_), true) => {
            return Err(key(
                "it was made with a passphrase: give --passphrase-file".into()
            ));
        }
        (Secret::Passphrase(passphrase), true) => {
            let mut identity = age::scrypt::Identity::new(passphrase.clone());
            identity.set_max_work_factor(MAX_WORK_FACTOR);
            decryptor.decrypt(std::iter::once(&identity as &dyn age::Identity))
        }
        (Secret::Identities(identities), false) => {
            decryptor.decrypt(identities.iter().map(|i| i as &dyn age::Identity))
        }
    };
    opened.map_err(|e| match e {
        age::DecryptError::DecryptionFailed | age::DecryptError::NoMatchingKeys => {
            key(match secret {
                Secret::Passphrase(_) => "the passphrase is wrong".into(),
                Secret::Identities(_) => "no identity is one of its recipients".into(),
            })
        }
        other => BackupError::Damaged {
            path: path.into(),
            why: other.to_string(),
        },
    })
}
#[cfg(test)]
mod tests {
    use time::OffsetDateTime;
    use uuid::Uuid;

    use super::*;

    /// Reads an archive with these entries, which anybody can make for a recipient.
    fn read_with(entries: &[(&str, ItemKind)]) -> Result<Manifest, BackupError> {
        let identity = age::x25519::Identity::generate();
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("backup");
        let item = |(path, kind): &(&str, ItemKind)| Item {
            path: (*path).into(),
            kind: *kind,
            bytes: 1,
            sha256: keys::hex(&keys::sha256(b"x")),
            moment: None,
            keys: std::collections::BTreeMap::new(),
        };
        let manifest = Manifest {
            format: FORMAT,
            program: "test".into(),
            created: OffsetDateTime::UNIX_EPOCH,
            installation: Uuid::nil(),
            state_dir: "/state".into(),
            master_keys: true,
            items: entries.iter().map(item).collect(),
            left_out: Vec::new(),
            archived: Vec::new(),
            catalog_at: None,
        };
        let protection = Protection::Recipients(vec![identity.to_public()]);
        let mut writer = Writer::new(File::create(&path).unwrap(), &protection).unwrap();
        writer.manifest(&manifest).unwrap();
        for (path, _) in entries {
            writer.add(path, 1, 0, &mut b"x".as_slice()).unwrap();
        }
        writer.finish().unwrap();
        read(
            &path,
            &Secret::Identities(vec![identity]),
            |_| Ok(()),
            |_, _| Ok(()),
        )
    }

    #[test]
    fn what_is_looked_at_is_what_a_restore_puts_in_its_place() {
        let good = [
            ("audit.key", ItemKind::File),
            ("tokens/17-ab.p8", ItemKind::File),
            ("tls/authority.key", ItemKind::File),
            ("segments/vault-v-1-2.jsonl", ItemKind::Segment),
            ("vaults/v/master-1.tpm2", ItemKind::File),
            ("vaults/v/master.key", ItemKind::MasterKey),
            ("catalog.db", ItemKind::Catalog),
            ("vaults/v/vault.db", ItemKind::Vault),
            ("audit.db", ItemKind::AuditLog),
        ];
        assert_eq!(read_with(&good).unwrap().items.len(), good.len());
        for (entries, why) in [
            (&[("catalog.db", ItemKind::File)][..], "catalog.db"),
            (&[("x.db", ItemKind::Catalog)], "x.db"),
            (&[("vaults/v/vault.db", ItemKind::AuditLog)], "vault.db"),
            (&[("vaults/v/w/vault.db", ItemKind::Vault)], "vault.db"),
            (&[("tokens/master.key", ItemKind::MasterKey)], "master.key"),
            // SQLite would take what is in it for the database's.
            (
                &[("catalog.db-journal", ItemKind::File)],
                "catalog.db-journal",
            ),
            (&[("vaults/v/vault.db-wal", ItemKind::File)], "vault.db-wal"),
            (&[("disks/d/header", ItemKind::File)], "disks/d/header"),
            (&[good[0], good[0]], "audit.key"),
        ] {
            let refused = read_with(entries).unwrap_err().to_string();
            assert!(refused.contains(why), "{refused}");
        }
    }
}
