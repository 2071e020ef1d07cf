//! The header file of a disk, as whoever has the host's files may have changed it.
#![no_main]

use std::cell::LazyCell;

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use sealdisk::envelope::{HeaderFile, MAX_DISK_SIZE, SLOT_LEN, UnverifiedHeader, check_disk_name};
use sealdisk::keys::Dek;
use sealdisk_fuzz::{Edit, Scratch, edited};

const VALID: &[u8] = br#"{"disk":"00000000-0000-0000-0000-000000000001","name":"boot-1","size":1073741824,"created":"2026-11-02T10:11:12Z","diskEncryptionSet":"des1","attach":"00000000-0000-0000-0000-000000000002","layers":[{"id":"00000000-0000-0000-0000-000000000003","dataUnit":512,"envelope":{"vaultUrl":"https://v.vault.localhost","keyName":"k","keyVersion":"1","algorithm":"RSA-OAEP-256","wrapped":"AAAA"},"check":"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"}]}"#;

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
    slots: [Slot; 2],
    length: Option<u16>,
}

impl Slot {
    fn bytes(self) -> Vec<u8> {
        let mut slot = vec![0; SLOT_LEN];
        let mut put = |at: usize, bytes: &[u8]| {
            let end = (at + bytes.len()).min(SLOT_LEN);
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
                let json = edited(VALID, &edits);
                put(0, b"SEALDISK");
                put(8, &version.unwrap_or(1).to_le_bytes());
                put(12, &length.unwrap_or(json.len() as u32).to_le_bytes());
                put(16, &sequence.to_le_bytes());
                put(512, &json);
                let checksum = crc32c::crc32c(&slot);
                slot[56..60].copy_from_slice(&checksum.to_le_bytes());
                if let Some((at, bits)) = flip {
                    slot[usize::from(at) % SLOT_LEN] ^= bits;
                }
            }
        }
        slot
    }
}

fn check(header: UnverifiedHeader, sequences: [u64; 2], dek: &Dek) {
    let claims = header.claims();
    assert!(sequences.contains(&header.sequence()));
    assert!(check_disk_name(&claims.name).is_ok());
    assert!(claims.size > 0 && claims.size <= MAX_DISK_SIZE);
    let layer = claims.top().unwrap();
    assert!(claims.size.is_multiple_of(layer.data_unit.into()));
    let envelope = &layer.envelope;
    for text in [
        envelope.key_url(),
        claims.disk_encryption_set.clone().unwrap_or_default(),
    ] {
        assert!(text.bytes().all(|b| b.is_ascii_graphic()), "{text:?}");
    }
    // Nobody guesses a MAC under a key that is not in the input.
    assert!(header.authenticate(dek).is_err());
}

thread_local! {
    static FILE: LazyCell<Scratch> = LazyCell::new(|| Scratch::new(".header"));
    static DEK: LazyCell<Dek> = LazyCell::new(|| Dek::generate().unwrap());
}

fuzz_target!(|input: Input| {
    let mut bytes = input.slots.map(Slot::bytes).concat();
    let sequence = |slot: usize| {
        let at = slot * SLOT_LEN + 16;
        u64::from_le_bytes(std::array::from_fn(|i| bytes[at + i]))
    };
    let sequences = [sequence(0), sequence(1)];
    if let Some(length) = input.length {
        bytes.resize(usize::from(length), 0);
    }
    FILE.with(|file| {
        file.fill(&bytes);
        if let Ok(header) = HeaderFile::open(file.path()).unwrap().read() {
            DEK.with(|dek| check(header, sequences, dek));
        }
        assert!(
            std::fs::read(file.path()).unwrap() == bytes,
            "a reader wrote"
        );
    });
});
