//! A known-answer test of the cipher, for a process that is about to serve a disk.
//!
//! A cipher that is wrong on this host (a defect of the CPU, or of what was built for it) would write what no other
//! program can read. So it shows before the first byte of a disk is encrypted.

use std::ptr::NonNull;

use keys::units::ByteOffset;
use keys::{DEK_LEN, Dek, LockedBytes, sha256};

use super::CipherError;
use super::aws_lc::AwsLcEngine;
use super::engine::{DataUnit, XtsEngine};
#[cfg(not(feature = "fips"))]
use super::portable::PortableEngine;
use super::scatter::Cipher;
use super::shared::{Cursor, SharedSlice};

/// Two keys, of IEEE 1619-2018, annex B, vector 10: digits of e and of pi.
const KEY: [u8; DEK_LEN] = [
    0x27, 0x18, 0x28, 0x18, 0x28, 0x45, 0x90, 0x45, 0x23, 0x53, 0x60, 0x28, 0x74, 0x71, 0x35, 0x26,
    0x62, 0x49, 0x77, 0x57, 0x24, 0x70, 0x93, 0x69, 0x99, 0x59, 0x57, 0x49, 0x66, 0x96, 0x76, 0x27,
    0x31, 0x41, 0x59, 0x26, 0x53, 0x58, 0x97, 0x93, 0x23, 0x84, 0x62, 0x64, 0x33, 0x83, 0x27, 0x95,
    0x02, 0x88, 0x41, 0x97, 0x16, 0x93, 0x99, 0x37, 0x51, 0x05, 0x82, 0x09, 0x74, 0x94, 0x45, 0x92,
];

/// Bytes that are encrypted: 0 to 255, again and again.
const LEN: usize = 4096;

/// Where of a disk they are.
const AT: ByteOffset = ByteOffset(255 * 512 * 8);

/// Where the memory that they are in is cut: engines get long runs and short ones.
const CUTS: [usize; 6] = [1, 17, 64, 300, 1024, 2900];

/// The SHA-256 of the ciphertext. OpenSSL's `EVP_aes_256_xts` makes the same.
const ANSWERS: [(DataUnit, [u8; 32]); 2] = [
    (
        DataUnit::B512,
        [
            0xfc, 0xe5, 0x3e, 0xaf, 0x48, 0xf6, 0x1b, 0x2d, 0x3c, 0x92, 0x96, 0x7d, 0xdb, 0x4f,
            0xbd, 0x5b, 0x7a, 0xf5, 0xac, 0xe9, 0x20, 0x3c, 0xbd, 0xfd, 0x36, 0x1c, 0xc5, 0x3b,
            0xa5, 0xca, 0x51, 0x5b,
        ],
    ),
    (
        DataUnit::B4096,
        [
            0xd0, 0x81, 0x46, 0xf5, 0x53, 0xcd, 0x7b, 0xd7, 0x4b, 0x86, 0x41, 0xe5, 0x99, 0xb2,
            0xd4, 0x11, 0xff, 0x1a, 0x29, 0x9e, 0xc7, 0x7a, 0x81, 0xf8, 0x80, 0xf9, 0x26, 0xfe,
            0x7a, 0xc8, 0x15, 0xab,
        ],
    ),
];

/// Whether each engine that a cipher may use here encrypts as the standard says, and decrypts it again.
///
/// # Errors
/// [`CipherError::Wrong`] for one that does not; as [`Cipher::new`].
pub fn self_test() -> Result<(), CipherError> {
    for engine in engines() {
        for (unit, answer) in &ANSWERS {
            let dek = dek()?;
            let mut cipher = Cipher::with_engine(engine(&dek)?, &dek, *unit)?;
            if !is_right(&mut cipher, answer) {
                return Err(CipherError::Wrong {
                    engine: cipher.engine_name(),
                });
            }
        }
    }
    Ok(())
}

type Make = fn(&Dek) -> Result<Box<dyn XtsEngine>, CipherError>;

/// What makes each engine.
fn engines() -> Vec<Make> {
    let aws_lc: Make = |dek| Ok(Box::new(AwsLcEngine::new(dek)?));
    #[cfg(not(feature = "fips"))]
    let portable: Make = |dek| Ok(Box::new(PortableEngine::new(dek)?));
    vec![
        aws_lc,
        #[cfg(not(feature = "fips"))]
        portable,
    ]
}

fn dek() -> Result<Dek, CipherError> {
    let mut bytes = LockedBytes::zeroed(DEK_LEN)?;
    bytes.as_mut_slice().copy_from_slice(&KEY);
    Ok(Dek::from_locked(bytes)?)
}

fn is_right(cipher: &mut Cipher, answer: &[u8; 32]) -> bool {
    let plain: Vec<u8> = (0..LEN).map(|at| at as u8).collect();
    let mut encrypted = vec![0; LEN];
    let from = cut(NonNull::from(plain.as_slice()).cast());
    cipher.encrypt(AT, &from, Cursor::default(), &mut encrypted);
    let mut decrypted = vec![0u8; LEN];
    let into = cut(NonNull::from(decrypted.as_mut_slice()).cast());
    cipher.decrypt(AT, &encrypted, &into, Cursor::default());
    sha256(&encrypted) == *answer && decrypted == plain
}

/// `LEN` bytes at an address, in pieces.
fn cut(at: NonNull<u8>) -> Vec<SharedSlice> {
    let ends = CUTS.into_iter().chain([LEN]);
    let starts = [0].into_iter().chain(CUTS);
    starts
        .zip(ends)
        // SAFETY: both vectors that are cut have `LEN` bytes, live until the cipher is done, and are not looked at
        // before.
        .map(|(start, end)| unsafe { SharedSlice::new(at.add(start), end - start) })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_engines_of_this_host_are_right() {
        self_test().unwrap();
    }

    #[test]
    fn a_wrong_one_shows() {
        let dek = dek().unwrap();
        let (unit, answer) = ANSWERS[1];
        let mut cipher = Cipher::new(&dek, unit).unwrap();
        assert!(is_right(&mut cipher, &answer));
        let mut other = Cipher::new(&dek, DataUnit::B512).unwrap();
        assert!(!is_right(&mut other, &answer));
    }
}
