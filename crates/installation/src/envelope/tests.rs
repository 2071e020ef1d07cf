//! Header files that are torn, flipped, truncated, exchanged or foreign.

use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::PathBuf;

use proptest::prelude::*;
use tempfile::TempDir;
use time::OffsetDateTime;
use uuid::Uuid;

use super::*;
use keys::{Dek, LockedBytes};
use vault::{Caller, KeyBundle, KeyId, KeyVault, VaultError, WrapAlgorithm, Wrapped};

/// Where the slots are.
const FIRST: usize = SLOT_OFFSETS[0] as usize;
const SECOND: usize = SLOT_OFFSETS[1] as usize;

pub(super) fn header(dek: &Dek, key_version: &str) -> Header {
    let (disk, layer) = (Uuid::new_v4(), Uuid::new_v4());
    Header::new(HeaderPayload {
        kind: ResourceKind::Disk,
        disk,
        name: "boot-1".into(),
        size: 1 << 30,
        created: OffsetDateTime::now_utc(),
        disk_encryption_set: Some("des1".into()),
        attach: Uuid::nil(),
        generation: 1,
        incremental: false,
        source: None,
        job: None,
        gone: Vec::new(),
        session: None,
        write_through: false,
        failed_sync: None,
        upload: None,
        logical_sector_size: 512,
        layers: vec![LayerRecord {
            id: layer,
            origin: disk,
            size: 1 << 30,
            data_unit: 512,
            disk_encryption_set: Some("des1".into()),
            envelope: Envelope {
                vault_url: "https://v.vault.localhost".into(),
                key_name: "k".into(),
                key_version: key_version.into(),
                algorithm: WrapAlgorithm::RsaOaep256,
                wrapped: vec![0xa5; 384],
            },
            platform_envelope: None,
            check: DekCheck::new(layer, dek),
        }],
    })
}

/// A header file that was created with one header and updated to another.
struct Updated {
    _dir: TempDir,
    path: PathBuf,
    dek: Dek,
    old: Header,
    new: Header,
    /// The file before and after the update.
    before: Vec<u8>,
    after: Vec<u8>,
}

fn updated() -> Updated {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("header");
    let dek = Dek::generate().unwrap();
    let old = header(&dek, "old");
    let mut new = old.clone();
    new.layers[0].envelope.key_version = "new".into();
    let file = HeaderFile::create(&path, &old, &dek).unwrap();
    let before = std::fs::read(&path).unwrap();
    file.lock().unwrap().write(&new, &dek).unwrap();
    let after = std::fs::read(&path).unwrap();
    Updated {
        _dir: dir,
        path,
        dek,
        old,
        new,
        before,
        after,
    }
}

impl Updated {
    /// Reads `bytes` as the header file; the file must not have been changed by that.
    fn read(&self, bytes: &[u8]) -> Result<Header, EnvelopeError> {
        std::fs::write(&self.path, bytes).unwrap();
        let result = HeaderFile::open(&self.path)
            .unwrap()
            .read()
            .and_then(|h| h.authenticate(&self.dek));
        assert_eq!(std::fs::read(&self.path).unwrap(), bytes);
        result
    }

    /// Puts `edit`ed bytes of the newest slot under a checksum that is correct for them.
    fn forge(&self, edit: impl FnOnce(&mut [u8])) -> Result<Header, EnvelopeError> {
        let mut bytes = self.after.clone();
        let slot = &mut bytes[FIRST..SECOND];
        edit(slot);
        slot[56..60].fill(0);
        let checksum = crc32c::crc32c(slot);
        slot[56..60].copy_from_slice(&checksum.to_le_bytes());
        self.read(&bytes)
    }

    fn forge_text(&self, from: &str, to: &str) -> Result<Header, EnvelopeError> {
        self.forge(|slot| {
            let length = u32::from_le_bytes(slot[12..16].try_into().unwrap()) as usize;
            let json = String::from_utf8(slot[512..512 + length].to_vec()).unwrap();
            assert!(json.contains(from), "{json}");
            let json = json.replace(from, to);
            slot[512..].fill(0);
            slot[512..512 + json.len()].copy_from_slice(json.as_bytes());
            slot[12..16].copy_from_slice(&u32::try_from(json.len()).unwrap().to_le_bytes());
        })
    }
}

#[test]
fn an_update_goes_into_the_other_slot_and_is_read_back() {
    let u = updated();
    assert_eq!(u.before.len() as u64, HEADER_FILE_LEN);
    assert!(u.after[..FIRST].iter().all(|byte| *byte == 0));
    assert_eq!(u.before[SECOND..], u.after[SECOND..]);
    assert_ne!(u.before[FIRST..SECOND], u.after[FIRST..SECOND]);
    assert_eq!(u.read(&u.before).unwrap(), u.old);
    assert_eq!(u.read(&u.after).unwrap(), u.new);
    assert_eq!(std::fs::metadata(&u.path).unwrap().mode() & 0o777, 0o600);
}

#[test]
fn write_both_leaves_nothing_of_the_old_wrapping() {
    let u = updated();
    let file = HeaderFile::open(&u.path).unwrap();
    let mut newest = u.new.clone();
    newest.layers[0].envelope.wrapped = vec![0x3c; 384];
    file.lock().unwrap().write_both(&newest, &u.dek).unwrap();
    let text = String::from_utf8_lossy(&std::fs::read(&u.path).unwrap()).into_owned();
    assert!(
        !text.contains("paWlpaWl"),
        "base64 of a5a5a5 is still there"
    );
    assert_eq!(file.read().unwrap().authenticate(&u.dek).unwrap(), newest);
}

#[test]
fn an_existing_header_is_never_overwritten_by_create() {
    let u = updated();
    assert!(matches!(
        HeaderFile::create(&u.path, &u.old, &u.dek),
        Err(EnvelopeError::Io { call: "create", .. })
    ));
    assert_eq!(std::fs::read(&u.path).unwrap(), u.after);
}

#[test]
fn two_torn_copies_are_an_error_and_are_not_written_to() {
    let u = updated();
    let mut bytes = u.after.clone();
    bytes[FIRST + 600] ^= 1;
    bytes[SECOND + 600] ^= 1;
    assert!(matches!(
        u.read(&bytes),
        Err(EnvelopeError::BothTorn { .. })
    ));
    let file = HeaderFile::open(&u.path).unwrap();
    assert!(matches!(
        file.lock().unwrap().write(&u.new, &u.dek),
        Err(EnvelopeError::BothTorn { .. })
    ));
    assert_eq!(std::fs::read(&u.path).unwrap(), bytes);
}

#[test]
fn the_next_update_replaces_a_torn_copy() {
    for torn in [FIRST, SECOND] {
        let u = updated();
        let mut bytes = u.after.clone();
        bytes[torn + 600] ^= 1;
        let survivor = u.read(&bytes).unwrap();
        assert_eq!(
            survivor,
            if torn == FIRST {
                u.old.clone()
            } else {
                u.new.clone()
            }
        );
        let file = HeaderFile::open(&u.path).unwrap();
        let mut next = survivor.clone();
        next.attach = Uuid::new_v4();
        file.lock().unwrap().write(&next, &u.dek).unwrap();
        assert_eq!(file.read().unwrap().authenticate(&u.dek).unwrap(), next);
        let now = std::fs::read(&u.path).unwrap();
        let other = FIRST + SECOND - torn;
        assert_eq!(now[other..other + SLOT_LEN], bytes[other..other + SLOT_LEN]);
    }
}

#[test]
fn foreign_and_erased_files_are_told_apart() {
    let u = updated();
    let size = u.after.len();
    assert!(matches!(
        u.read(&vec![0x51; size]),
        Err(EnvelopeError::Foreign { .. })
    ));
    assert!(matches!(
        u.read(&vec![0; size]),
        Err(EnvelopeError::Erased { .. })
    ));
    HeaderFile::open(&u.path)
        .unwrap()
        .lock()
        .unwrap()
        .erase()
        .unwrap();
    assert!(std::fs::read(&u.path).unwrap().iter().all(|&b| b == 0));
}

#[test]
fn whole_copies_that_this_version_cannot_use_have_errors_of_their_own() {
    let u = updated();
    assert!(matches!(
        u.forge(|s| s[8] = 3),
        Err(EnvelopeError::NewerFormat { found: 3, .. })
    ));
    let reason = |result: Result<Header, EnvelopeError>| match result {
        Err(EnvelopeError::Malformed { reason, .. }) => reason,
        other => panic!("{other:?}"),
    };
    assert!(reason(u.forge(|s| s[8] = 0)).contains("format 0"));
    // A copy of version 1 has its own place.
    assert!(reason(u.forge(|s| s[8] = 1)).contains("format 1"));
    assert!(reason(u.forge(|s| s[12..16].fill(0xff))).contains("4294967295"));
    assert!(reason(u.forge(|s| s[12] -= 1)).contains("EOF"));
    for (from, to, wanted) in [
        ("\"attach\"", "\"mustKnow\": 1, \"attach\"", "mustKnow"),
        ("\"attach\"", "\"attached\"", "attach"),
        ("\"RSA-OAEP-256\"", "\"RSA1_5\"", "RSA1_5"),
        ("\"size\": 1073741824", "\"size\": 1073741825", "multiple"),
        ("\"size\": 1073741824", "\"size\": 0", "size of 0"),
        ("1073741824", "-1", "invalid value"),
        ("\"dataUnit\": 512", "\"dataUnit\": 520", "data unit"),
        ("boot-1", "../boot", "name"),
        ("boot-1", "\\u001b[2J", "name"),
        ("\"des1\"", "\"d\\u0007\"", "odd characters"),
    ] {
        let reason = reason(u.forge_text(from, to));
        assert!(reason.contains(wanted), "{reason}");
    }
    // Also where it is the other one that counts.
    let older = u.forge(|s| {
        s[16] = 1;
        s[12] -= 1;
    });
    assert!(reason(older).contains("EOF"));
}

#[test]
fn memory_for_one_file_is_memory_for_the_next() {
    let (u, other) = (updated(), updated());
    let of_version_1 = u._dir.path().join("old");
    std::fs::write(&of_version_1, include_bytes!("version-1.header")).unwrap();
    let erased = u._dir.path().join("erased");
    std::fs::write(&erased, vec![0; HEADER_FILE_LEN as usize]).unwrap();
    let mut buffer = HeaderBuffer::default();
    for path in [&of_version_1, &u.path, &erased, &of_version_1, &other.path] {
        let file = HeaderFile::open(path).unwrap();
        match (file.read(), file.read_with(&mut buffer)) {
            (Ok(alone), Ok(after)) => {
                assert_eq!(alone.is_alone(), after.is_alone());
                assert_eq!(alone.sequence(), after.sequence());
                assert_eq!(alone.claims(), &after.into_claims());
            }
            (Err(EnvelopeError::Erased { .. }), Err(EnvelopeError::Erased { .. })) => {
                assert_eq!(path, &erased);
            }
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn altered_headers_fail_authentication() {
    let u = updated();
    for (from, to) in [
        ("1073741824", "2147483648"),
        ("\"k\"", "\"other\""),
        ("boot-1", "boot-2"),
        ("paWl", "aaaa"),
        ("\"dataUnit\": 512", "\"dataUnit\": 4096"),
    ] {
        let altered = u.forge_text(from, to);
        assert!(
            matches!(altered, Err(EnvelopeError::Unauthentic { .. })),
            "{from}: {altered:?}"
        );
    }
    // The sequence number is authenticated too: an old copy cannot be made to look new.
    assert!(matches!(
        u.forge(|s| s[16] = 77),
        Err(EnvelopeError::Unauthentic { .. })
    ));
}

#[test]
fn the_header_of_another_disk_is_refused_by_its_dek() {
    let (u, other) = (updated(), updated());
    assert!(matches!(
        u.read(&other.after),
        Err(EnvelopeError::WrongDek { .. })
    ));
    // Even with the check value of the right layer put in, the HMAC is the other disk's.
    let check = |h: &Header| serde_json::to_value(&h.layers[0].check).unwrap();
    let layers = [&u.new, &other.new].map(|h| (check(h), h.layers[0].id.to_string()));
    let bytes = other.forge(|slot| {
        let text = String::from_utf8_lossy(&slot[512..]).into_owned();
        let text = text
            .replace(layers[1].0.as_str().unwrap(), layers[0].0.as_str().unwrap())
            .replace(&layers[1].1, &layers[0].1);
        slot[512..].copy_from_slice(text.as_bytes());
    });
    assert!(matches!(bytes, Err(EnvelopeError::WrongDek { .. })));
    let forged = std::fs::read(&other.path).unwrap();
    assert!(matches!(
        u.read(&forged),
        Err(EnvelopeError::Unauthentic { .. })
    ));
}

#[test]
fn a_reader_waits_for_an_update() {
    let u = updated();
    let (holder, reader) = (
        HeaderFile::open(&u.path).unwrap(),
        HeaderFile::open(&u.path).unwrap(),
    );
    let mut lock = holder.lock().unwrap();
    std::thread::scope(|scope| {
        let read = scope.spawn(|| reader.read().unwrap().authenticate(&u.dek).unwrap());
        // Between these two the file is in the middle of an update of both slots.
        lock.write(&u.old, &u.dek).unwrap();
        lock.write(&u.old, &u.dek).unwrap();
        drop(lock);
        assert_eq!(read.join().unwrap(), u.old);
    });
}

/// Stands for a vault whose one key is XOR: what matters here is what the envelope does around it.
struct XorVault;

impl KeyVault for XorVault {
    fn url(&self) -> &str {
        "https://v.vault.localhost"
    }

    fn key(&self, _: &Caller, _: &KeyId) -> Result<KeyBundle, VaultError> {
        unreachable!("an envelope does not look at keys")
    }

    fn wrap_key(
        &self,
        _: &Caller,
        _: &KeyId,
        _: WrapAlgorithm,
        secret: &[u8],
    ) -> Result<Wrapped, VaultError> {
        Ok(Wrapped {
            key_version: "0123".into(),
            value: secret.iter().map(|b| b ^ 0x5a).collect(),
        })
    }

    fn unwrap_key(
        &self,
        _: &Caller,
        key: &KeyId,
        _: WrapAlgorithm,
        wrapped: &[u8],
    ) -> Result<LockedBytes, VaultError> {
        assert_eq!(key.version.as_deref(), Some("0123"));
        let mut bytes = LockedBytes::zeroed(wrapped.len()).unwrap();
        for (to, from) in bytes.as_mut_slice().iter_mut().zip(wrapped) {
            *to = from ^ 0x5a;
        }
        Ok(bytes)
    }
}

#[test]
fn an_exchanged_envelope_is_noticed_when_it_is_unwrapped() {
    let caller = Caller::local(Uuid::new_v4());
    let key = KeyId {
        name: "k".into(),
        version: None,
    };
    let (dek, foreign) = (Dek::generate().unwrap(), Dek::generate().unwrap());
    let mut layer = header(&dek, "0123").layers[0].clone();
    layer.envelope = wrap_dek(&XorVault, &caller, &key, &dek).unwrap();
    assert_eq!(
        layer.envelope.key_url(),
        "https://v.vault.localhost/keys/k/0123"
    );
    let unwrap = |layer: &LayerRecord| {
        let dek = unwrap_one(&XorVault, &caller, layer.id, &layer.envelope)?;
        layer.joined(dek, None)
    };
    let back = unwrap(&layer).unwrap();
    assert_eq!(back.expose(), dek.expose());

    layer.envelope = wrap_dek(&XorVault, &caller, &key, &foreign).unwrap();
    let refused = unwrap(&layer);
    assert!(matches!(refused, Err(EnvelopeError::WrongDek { .. })));

    layer.envelope.vault_url = "https://elsewhere.vault.localhost".into();
    let refused = unwrap(&layer);
    assert!(matches!(refused, Err(EnvelopeError::OtherVault { .. })));
}

#[test]
fn a_check_value_belongs_to_one_layer() {
    let dek = Dek::generate().unwrap();
    let (one, two) = (Uuid::new_v4(), Uuid::new_v4());
    assert!(DekCheck::new(one, &dek).verify(one, &dek).is_ok());
    assert!(DekCheck::new(one, &dek).verify(two, &dek).is_err());
}

#[test]
fn disk_names_follow_azure() {
    for good in ["a", "_x", "vm1-os.disk_2", &"n".repeat(80)] {
        assert!(check_disk_name(good).is_ok(), "{good}");
    }
    for bad in [
        "",
        ".",
        "..",
        "-a",
        ".a",
        "a/b",
        "a b",
        "ä",
        "a\n",
        &"n".repeat(81),
    ] {
        assert!(check_disk_name(bad).is_err(), "{bad}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]

    #[test]
    fn any_flipped_bit_gives_the_old_or_the_new_header(bit in 0..HEADER_FILE_LEN as usize * 8) {
        let u = updated();
        let mut bytes = u.after.clone();
        bytes[bit / 8] ^= 1 << (bit % 8);
        let read = u.read(&bytes).unwrap();
        let wanted = if (FIRST..SECOND).contains(&(bit / 8)) { &u.old } else { &u.new };
        prop_assert_eq!(&read, wanted);
    }

    #[test]
    fn a_truncated_or_grown_file_is_refused(length in 0..4 * SLOT_LEN) {
        let u = updated();
        let mut bytes = u.after.clone();
        bytes.resize(length, 0);
        let read = u.read(&bytes);
        if length as u64 == HEADER_FILE_LEN {
            prop_assert!(read.is_ok());
        } else if length == 32 << 10 {
            // The length of a file of version 1, in which there is nothing.
            let erased = matches!(read, Err(EnvelopeError::Erased { .. }));
            prop_assert!(erased);
        } else {
            let refused = matches!(read, Err(EnvelopeError::Length { actual, .. }) if actual == length as u64);
            prop_assert!(refused);
        }
    }

    /// Power fails in the middle of an update: any subset of its 512-byte sectors arrived.
    #[test]
    fn a_torn_update_gives_the_old_or_the_new_header(
        arrived in proptest::collection::vec(any::<bool>(), SLOT_LEN / 512),
    ) {
        let u = updated();
        let mut bytes = u.before.clone();
        for sector in (0..arrived.len()).filter(|&i| arrived[i]) {
            let range = FIRST + sector * 512..FIRST + (sector + 1) * 512;
            bytes[range.clone()].copy_from_slice(&u.after[range]);
        }
        let whole = bytes[FIRST..SECOND] == u.after[FIRST..SECOND];
        let read = u.read(&bytes).unwrap();
        prop_assert_eq!(&read, if whole { &u.new } else { &u.old });
        // And the disk can be updated from there.
        let file = HeaderFile::open(&u.path).unwrap();
        file.lock().unwrap().write(&u.new, &u.dek).unwrap();
        prop_assert_eq!(&file.read().unwrap().authenticate(&u.dek).unwrap(), &u.new);
    }

    /// Bytes of a foreign writer under a correct checksum: an error of its own, never a panic.
    #[test]
    fn forged_slots_never_panic(
        edits in proptest::collection::vec((0..SLOT_LEN, any::<u8>()), 1..40),
        length in proptest::option::of(any::<u32>()),
    ) {
        let u = updated();
        let result = u.forge(|slot| {
            for (at, value) in &edits {
                slot[*at] = *value;
            }
            if let Some(length) = length {
                slot[12..16].copy_from_slice(&length.to_le_bytes());
            }
        });
        if let Ok(header) = result {
            prop_assert!(header == u.new || header == u.old);
        }
    }
}

#[test]
fn a_file_that_is_no_regular_file_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let link = dir.path().join("header");
    std::os::unix::fs::symlink("/etc/passwd", &link).unwrap();
    assert!(matches!(
        HeaderFile::open(&link),
        Err(EnvelopeError::Io { call: "open", .. })
    ));
    let file = std::fs::File::create(dir.path().join("empty")).unwrap();
    file.write_all_at(b"x", 0).unwrap();
    let short = HeaderFile::open(&dir.path().join("empty")).unwrap();
    assert!(matches!(
        short.read(),
        Err(EnvelopeError::Length { actual: 1, .. })
    ));
}
