//! The header file of a disk, as whoever has the host's files may have changed it.
#![no_main]

use std::cell::LazyCell;

use arbitrary::Arbitrary;
use installation::envelope::{
    HEADER_FILE_LEN, HeaderFile, MAX_DISK_SIZE, SLOT_LEN, SLOT_OFFSETS, UnverifiedHeader,
    check_disk_name,
};
use keys::Dek;
use keys::units::MAX_LAYERS;
use libfuzzer_sys::fuzz_target;
use sealdisk_fuzz::{Edit, Scratch, edited};

/// Bytes of a slot of version 1, which are at the beginning of the file.
const OLD_SLOT_LEN: usize = 16 << 10;
const VALID_1: &[u8] = br#"{"disk":"00000000-0000-0000-0000-000000000001","name":"boot-1","size":1073741824,"created":"2026-11-02T10:11:12Z","diskEncryptionSet":"des1","attach":"00000000-0000-0000-0000-000000000002","layers":[{"id":"00000000-0000-0000-0000-000000000003","dataUnit":512,"envelope":{"vaultUrl":"https://v.vault.localhost","keyName":"k","keyVersion":"1","algorithm":"RSA-OAEP-256","wrapped":"AAAA"},"check":"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"}]}"#;
const VALID_2: &[u8] = br#"{"kind":"disk","disk":"00000000-0000-0000-0000-000000000001","name":"boot-1","size":1073741824,"created":"2026-11-02T10:11:12Z","diskEncryptionSet":"des1","attach":"00000000-0000-0000-0000-000000000002","generation":1,"incremental":false,"source":{"kind":"image","id":"00000000-0000-0000-0000-000000000005","name":"i"},"job":{"kind":"flatten","drop":["00000000-0000-0000-0000-000000000004"],"paused":false,"rate":1},"layers":[{"id":"00000000-0000-0000-0000-000000000004","origin":"00000000-0000-0000-0000-000000000006","size":1048576,"dataUnit":4096,"diskEncryptionSet":null,"envelope":{"vaultUrl":"https://v.vault.localhost","keyName":"k","keyVersion":"1","algorithm":"RSA-OAEP-256","wrapped":"AAAA"},"check":"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"},{"id":"00000000-0000-0000-0000-000000000003","origin":"00000000-0000-0000-0000-000000000001","size":1073741824,"dataUnit":512,"diskEncryptionSet":"des1","envelope":{"vaultUrl":"https://v.vault.localhost","keyName":"k","keyVersion":"1","algorithm":"RSA-OAEP-256","wrapped":"AAAA"},"check":"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"}]}"#;

#[derive(Debug, Arbitrary)]
enum Slot {
    Zero,
    Raw(Vec<u8>),
    /// With a correct checksum, which anybody can compute.
    Sealed {
        version: Option<u32>,
        length: Option<u32>,
        sequence: u64,
        edits: Vec<Edit>,
        flip: Option<(u16, u8)>,
    },
}

#[derive(Debug, Arbitrary)]
struct Input {
    old: [Slot; 2],
    /// Without them the file is one of version 1.
    new: Option<[Slot; 2]>,
    length: Option<u32>,
}

impl Slot {
    fn bytes(self, of_version: u32) -> Vec<u8> {
        let (len, valid) = match of_version {
            1 => (OLD_SLOT_LEN, VALID_1),
            _ => (SLOT_LEN, VALID_2),
        };
        let mut slot = vec![0; len];
        let mut put = |at: usize, bytes: &[u8]| {
            let end = (at + bytes.len()).min(len);
            slot[at..end].copy_from_slice(&bytes[..end - at]);
        };
        match self {
            Self::Zero => {}
            Self::Raw(bytes) => put(0, &bytes),
            Self::Sealed {
                version,
                length,
                sequence,
                edits,
                flip,
            } => {
                let json = edited(valid, &edits);
                put(0, b"SEALDISK");
                put(8, &version.unwrap_or(of_version).to_le_bytes());
                put(12, &length.unwrap_or(json.len() as u32).to_le_bytes());
                put(16, &sequence.to_le_bytes());
                put(512, &json);
                let checksum = crc32c::crc32c(&slot);
                slot[56..60].copy_from_slice(&checksum.to_le_bytes());
                if let Some((at, bits)) = flip {
                    slot[usize::from(at) % len] ^= bits;
                }
            }
        }
        slot
    }
}

fn check(header: UnverifiedHeader, sequences: &[u64], dek: &Dek) {
    let claims = header.claims();
    assert!(sequences.contains(&header.sequence()));
    assert!(check_disk_name(&claims.name).is_ok());
    assert!(claims.size > 0 && claims.size <= MAX_DISK_SIZE);
    assert!((1..=MAX_LAYERS).contains(&claims.layers.len()));
    assert_eq!(claims.top().unwrap().size, claims.size);
    for layer in &claims.layers {
        assert!(layer.size > 0 && layer.size <= claims.size);
        assert!(layer.size.is_multiple_of(layer.data_unit.into()));
        for text in [
            layer.envelope.key_url(),
            layer.disk_encryption_set.clone().unwrap_or_default(),
        ] {
            assert!(text.bytes().all(|b| b.is_ascii_graphic()), "{text:?}");
        }
    }
    // Nobody guesses a MAC under a key that is not in the input.
    assert!(header.authenticate(dek).is_err());
}

thread_local! {
    static FILE: LazyCell<Scratch> = LazyCell::new(|| Scratch::new(".header"));
    static DEK: LazyCell<Dek> = LazyCell::new(|| Dek::generate().unwrap());
}

fuzz_target!(|input: Input| {
    let mut bytes = input.old.map(|slot| slot.bytes(1)).concat();
    let mut slots = vec![0, OLD_SLOT_LEN];
    if let Some(new) = input.new {
        bytes.resize(SLOT_OFFSETS[0] as usize, 0);
        bytes.extend(new.map(|slot| slot.bytes(2)).concat());
        slots.extend(SLOT_OFFSETS.map(|at| at as usize));
    }
    let sequence = |at: usize| u64::from_le_bytes(std::array::from_fn(|i| bytes[at + 16 + i]));
    let sequences: Vec<u64> = slots.into_iter().map(sequence).collect();
    if let Some(length) = input.length {
        bytes.resize(length as usize % (2 * HEADER_FILE_LEN as usize), 0);
    }
    FILE.with(|file| {
        file.fill(&bytes);
        if let Ok(header) = HeaderFile::open(file.path()).unwrap().read() {
            DEK.with(|dek| check(header, &sequences, dek));
        }
        assert!(
            std::fs::read(file.path()).unwrap() == bytes,
            "a reader wrote"
        );
    });
});
