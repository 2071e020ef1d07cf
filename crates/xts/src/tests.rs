//! The engines against the NIST and IEEE vectors, and scattered memory against whole data units.

use std::ptr::NonNull;

use aes::Aes256;
use aes::cipher::KeyInit;
use proptest::prelude::*;
use test_support::key_schedule;
use xts_mode::{Xts128, get_tweak_default};

use super::*;
use keys::units::{ByteOffset, Sector};
use keys::{Dek, LockedBytes, ROOMY_STACK, spawn_with_keys, with_wiped_call_stack};

fn dek(bytes: &[u8]) -> Dek {
    let mut locked = LockedBytes::zeroed(bytes.len()).unwrap();
    locked.as_mut_slice().copy_from_slice(bytes);
    Dek::from_locked(locked).unwrap()
}

fn unhex(text: &str) -> Vec<u8> {
    (0..text.len() / 2)
        .map(|i| u8::from_str_radix(&text[2 * i..2 * i + 2], 16).unwrap())
        .collect()
}

fn engines(key: &[u8]) -> Vec<Box<dyn XtsEngine>> {
    vec![
        #[cfg(not(feature = "fips"))]
        Box::new(PortableEngine::new(&dek(key)).unwrap()),
        Box::new(AwsLcEngine::new(&dek(key)).unwrap()),
    ]
}

#[test]
fn nist_vectors() {
    let file = include_str!("../../../tests/vectors/XTSGenAES256.rsp");
    let (mut direction, mut checked) = (Direction::Encrypt, 0);
    let (mut key, mut tweak, mut pt, mut ct) = (vec![], vec![], vec![], vec![]);
    for line in file.lines() {
        match line.split_once(" = ") {
            None if line == "[DECRYPT]" => direction = Direction::Decrypt,
            Some(("Key", value)) => key = unhex(value),
            Some(("i", value)) => tweak = unhex(value),
            Some(("PT", value)) => pt = unhex(value),
            Some(("CT", value)) => ct = unhex(value),
            _ => continue,
        }
        if pt.is_empty() || ct.is_empty() {
            continue;
        }
        let value = TweakValue(tweak.clone().try_into().unwrap());
        let (from, to) = match direction {
            Direction::Encrypt => (&pt, &ct),
            Direction::Decrypt => (&ct, &pt),
        };
        for mut engine in engines(&key) {
            let mut out = vec![0; from.len()];
            // SAFETY: both vectors have `from.len()` bytes.
            unsafe {
                engine.run(
                    direction,
                    &value,
                    from.as_ptr(),
                    out.as_mut_ptr(),
                    from.len(),
                )
            };
            assert_eq!(&out, to, "{} {direction:?}", engine.name());
        }
        checked += 1;
        (pt, ct) = (vec![], vec![]);
    }
    assert!(checked >= 500, "only {checked} vectors were read");
}

/// IEEE 1619-2018 annex B, vector 10: a whole 512-byte data unit with number 0xff.
#[test]
fn ieee_1619_vector_10() {
    let key = unhex(concat!(
        "2718281828459045235360287471352662497757247093699959574966967627",
        "3141592653589793238462643383279502884197169399375105820974944592"
    ));
    let plain: Vec<u8> = (0..512).map(|i| i as u8).collect();
    let mut out = vec![0; 512];
    let mut cipher = Cipher::new(&dek(&key), DataUnit::B512).unwrap();
    cipher.encrypt(
        ByteOffset(0xff * 512),
        &[shared(&plain)],
        Cursor::default(),
        &mut out,
    );
    assert_eq!(out[..16], unhex("1c3b3a102f770386e4836c99e370cf9b"));
    assert_eq!(out[504..], unhex("b9c6e693e148c151"));
}

/// Memory that is only read.
fn shared(bytes: &[u8]) -> SharedSlice {
    // SAFETY: the tests keep the vector alive and unchanged while the cipher reads it.
    unsafe { SharedSlice::new(NonNull::from(bytes).cast(), bytes.len()) }
}

fn shared_mut(bytes: &mut [u8]) -> SharedSlice {
    // SAFETY: the tests keep the vector alive and do not look at it while the cipher works on it.
    unsafe { SharedSlice::new(NonNull::from(&mut *bytes).cast(), bytes.len()) }
}

/// The bytes cut into slices at the given relative places, each on memory of its own.
fn cut(bytes: &[u8], cuts: &[usize]) -> Vec<Vec<u8>> {
    let mut places: Vec<usize> = cuts.iter().map(|c| c % (bytes.len() + 1)).collect();
    places.extend([0, bytes.len()]);
    places.sort_unstable();
    places
        .windows(2)
        .map(|pair| bytes[pair[0]..pair[1]].to_vec())
        .collect()
}

/// What the library makes of whole data units: the judge of everything below.
fn reference(key: &[u8], unit: DataUnit, first: Sector, plain: &[u8]) -> Vec<u8> {
    let half = |r: std::ops::Range<usize>| Aes256::new_from_slice(&key[r]).unwrap();
    let xts = Xts128::new(half(0..32), half(32..64));
    let mut out = plain.to_vec();
    for (i, unit_bytes) in out.chunks_mut(unit.bytes() as usize).enumerate() {
        let sector = first.0 + i as u64 * unit.bytes() / 512;
        xts.encrypt_sector(unit_bytes, get_tweak_default(u128::from(sector)));
    }
    out
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// However the guest cuts its memory and wherever in a data unit a request starts, the
    /// ciphertext is that of whole data units, and decrypting gives the bytes back.
    #[test]
    fn scattered_is_the_same_as_whole(
        seed in any::<[u8; 32]>(),
        large in any::<bool>(),
        double in any::<bool>(),
        start in 0usize..24,
        sectors in 1usize..24,
        cuts in prop::collection::vec(any::<usize>(), 0..12),
    ) {
        let key: Vec<u8> = (0..64u8).map(|i| seed[i as usize % 32] ^ i).collect();
        let unit = if large { DataUnit::B4096 } else { DataUnit::B512 };
        let area: Vec<u8> = (0..48 * 512).map(|i| (i / 7) as u8 ^ seed[i % 32]).collect();
        let mut whole = reference(&key, unit, Sector(1 << 33), &area);
        let outer = key.iter().map(|byte| byte ^ 0x5a).collect::<Vec<_>>();
        if double {
            whole = reference(&outer, unit, Sector(1 << 33), &whole);
        }
        let base = (1u64 << 33) * 512;
        let range = start * 512..(start + sectors) * 512;

        for engine in engines(&key) {
            let dek = match double {
                true => dek(&key).with_outer(dek(&outer)).unwrap(),
                false => dek(&key),
            };
            let mut cipher = Cipher::with_engine(engine, &dek, unit).unwrap();
            let at = ByteOffset(base + range.start as u64);
            let guest = cut(&area[range.clone()], &cuts);
            let slices: Vec<_> = guest.iter().map(|piece| shared(piece)).collect();
            let mut out = vec![0; range.len()];
            cipher.encrypt(at, &slices, Cursor::default(), &mut out);
            prop_assert_eq!(&out, &whole[range.clone()]);

            let (mut block, mut by_blocks) = ([0u8; 4096], Vec::new());
            let block = NonNull::from(&mut block).cast::<u8>();
            let then = |done, part| {
                // SAFETY: the block is an array that nobody else looks at, and the cipher is not at it now.
                let bytes = unsafe { std::slice::from_raw_parts(block.as_ptr(), part) };
                assert_eq!(done, by_blocks.len());
                by_blocks.extend_from_slice(bytes);
                assert!((at.0 + by_blocks.len() as u64).is_multiple_of(4096) || by_blocks.len() == range.len());
            };
            // SAFETY: the block has 4096 bytes, apart from the guest's.
            unsafe { cipher.encrypt_by_blocks(at, &slices, Cursor::default(), range.len(), block, then) };
            prop_assert_eq!(&by_blocks, &out);

            let mut back: Vec<_> = guest.iter().map(|piece| vec![0xee; piece.len()]).collect();
            let slices: Vec<_> = back.iter_mut().map(|piece| shared_mut(piece)).collect();
            // The second half alone, by a cursor, then the first.
            let middle = range.len() / 512 / 2 * 512;
            let mut cursor = Cursor::default();
            cursor.advance(&slices, middle);
            cipher.decrypt(at.plus(middle as u64), &out[middle..], &slices, cursor);
            cipher.decrypt(at, &out[..middle], &slices, Cursor::default());
            prop_assert_eq!(back.concat(), &area[range.clone()]);
        }
    }

    #[test]
    fn zeros_encrypt_as_zeros_do(
        start in 0u64..32,
        sectors in 1usize..24,
        large in any::<bool>(),
        double in any::<bool>(),
    ) {
        let key: Vec<u8> = (1..65).collect();
        let unit = if large { DataUnit::B4096 } else { DataUnit::B512 };
        let dek = match double {
            true => dek(&key).with_outer(dek(&[key.as_slice(), &[9]].concat()[1..])).unwrap(),
            false => dek(&key),
        };
        let mut cipher = Cipher::new(&dek, unit).unwrap();
        let zeros = vec![0; sectors * 512];
        let (mut expected, mut out) = (zeros.clone(), zeros.clone());
        cipher.encrypt(ByteOffset(start * 512), &[shared(&zeros)], Cursor::default(), &mut expected);
        cipher.encrypt_zeros(ByteOffset(start * 512), &mut out);
        prop_assert_eq!(out, expected);
    }
}

#[test]
#[cfg(feature = "fips")]
fn the_validated_module_approves() {
    use keys::is_approved;
    let key: Vec<u8> = (0..64).collect();
    let mut cipher = Cipher::new(&dek(&key), DataUnit::B4096).unwrap();
    let (from, mut into) = ([7; 512], [0; 512]);
    for direction in [Direction::Encrypt, Direction::Decrypt] {
        let run = || cipher.transform(direction, ByteOffset(0), &from, &mut into);
        assert!(is_approved(run), "{direction:?}");
    }
}

/// What lies on a stack does not stay there: values are copied to the heap with the gaps in them.
#[test]
fn nothing_of_a_key_is_left_on_the_stack() {
    let key: Vec<u8> = (0..64).map(|i| i * 3 + 1).collect();
    let outer: Vec<u8> = (0..64).map(|i| i * 3 + 2).collect();
    let mut needles = Vec::new();
    for half in key.chunks(32).chain(outer.chunks(32)) {
        for round in key_schedule::round_keys(half) {
            needles.push(key_schedule::for_decryption(&round));
            needles.push(round);
        }
    }
    let look = move || {
        let make = || {
            let dek = dek(&key).with_outer(dek(&outer)).unwrap();
            Cipher::new(&dek, DataUnit::B4096)
        };
        let mut cipher = with_wiped_call_stack(make).unwrap();
        let (from, mut into) = (vec![7; 8192], vec![0; 8192]);
        let memory = std::fs::File::open("/proc/self/mem").unwrap();
        let mut below = vec![0u8; 128 * 1024];
        for direction in [Direction::Encrypt, Direction::Decrypt] {
            for at in [0, 512] {
                cipher.transform(direction, ByteOffset(at), &from, &mut into);
                let here = (&raw const direction).expose_provenance() as u64;
                let start = here - below.len() as u64;
                std::os::unix::fs::FileExt::read_exact_at(&memory, &mut below, start).unwrap();
                let left = below
                    .windows(16)
                    .filter(|bytes| needles.iter().any(|needle| needle == bytes));
                assert_eq!(left.count(), 0, "{direction:?} at {at}");
            }
        }
    };
    spawn_with_keys("cipher".into(), ROOMY_STACK, look)
        .unwrap()
        .join()
        .unwrap();
}
