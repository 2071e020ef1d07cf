//! Encrypts pages that are scattered over memory into one buffer, decrypts them back, and says how fast that was.

use std::ptr::NonNull;
use std::time::{Duration, Instant};

use keys::Dek;
use keys::units::ByteOffset;
use xts::{Cipher, CipherError, Cursor, DataUnit, SharedSlice};

/// Bytes of a request: what fits into an L2 cache with its ciphertext.
const LEN: usize = 64 << 10;
/// Bytes of the pieces that it lies in.
const PIECE: usize = 4096;
/// How long to measure.
const TIME: Duration = Duration::from_millis(500);

fn main() -> Result<(), CipherError> {
    let dek = Dek::generate()?;
    for unit in [DataUnit::B512, DataUnit::B4096] {
        let mut cipher = Cipher::new(&dek, unit)?;
        let mut pages: Vec<Vec<u8>> = (0..LEN / PIECE).map(|i| vec![i as u8; PIECE]).collect();
        let before = pages.clone();
        let slices: Vec<_> = pages
            .iter_mut()
            .map(|page| {
                let start = NonNull::from(&mut page[..]).cast();
                // SAFETY: `pages` is neither moved nor used until the cipher is done.
                unsafe { SharedSlice::new(start, page.len()) }
            })
            .collect();
        let mut ciphertext = vec![0; LEN];
        let (start, at) = (Cursor::default(), ByteOffset(0));
        let encrypted = rate(|| cipher.encrypt(at, &slices, start, &mut ciphertext));
        let decrypted = rate(|| cipher.decrypt(at, &ciphertext, &slices, start));
        assert_eq!(pages, before);
        println!(
            "{}, data units of {} bytes: encrypts {encrypted:.1} GB/s, decrypts {decrypted:.1} GB/s",
            cipher.engine_name(),
            unit.bytes()
        );
    }
    Ok(())
}

/// Gigabytes a second at which `work` does [`LEN`] bytes.
fn rate(mut work: impl FnMut()) -> f64 {
    let start = Instant::now();
    let mut bytes = 0.0;
    while start.elapsed() < TIME {
        work();
        bytes += LEN as f64;
    }
    bytes / start.elapsed().as_secs_f64() / 1e9
}
