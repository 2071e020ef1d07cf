//! Encrypts pages that are scattered over memory into one buffer, decrypts them back, and says how fast that was: by one
//! thread, with another that helps, and twice, as double encryption does.

use std::ptr::NonNull;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use keys::Dek;
use keys::units::ByteOffset;
use xts::{Cipher, CipherError, CryptoThreads, Cursor, DataUnit, SharedSlice};

/// Bytes of a request: what fits into an L2 cache with its ciphertext.
const LEN: usize = 64 << 10;
/// Bytes of the pieces that it lies in.
const PIECE: usize = 4096;
/// How long to measure.
const TIME: Duration = Duration::from_millis(500);
/// Requests of what a guest asks for at once, after a while in which it asked for nothing.
const BURST: u32 = 16;

fn main() -> Result<(), CipherError> {
    let dek = Dek::generate()?;
    for unit in [DataUnit::B512, DataUnit::B4096] {
        measure(&mut Cipher::new(&dek, unit)?, unit, "alone");
        let helper = Arc::new(CryptoThreads::start(1)?);
        measure(
            &mut Cipher::with_threads(&dek, unit, &helper)?,
            unit,
            "with a helper",
        );
        let twice = Dek::generate()?.with_outer(Dek::generate()?)?;
        measure(&mut Cipher::new(&twice, unit)?, unit, "twice");
    }
    Ok(())
}

fn measure(cipher: &mut Cipher, unit: DataUnit, how: &str) {
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
    let burst = burst(|| cipher.decrypt(at, &ciphertext, &slices, start));
    assert_eq!(pages, before);
    println!(
        "{} {how}, data units of {} bytes: encrypts {encrypted:.1} GB/s, decrypts {decrypted:.1} GB/s, {BURST} times {} KiB \
         after a pause in {} µs",
        cipher.engine_name(),
        unit.bytes(),
        LEN >> 10,
        burst.as_micros(),
    );
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

/// How long [`BURST`] of them take, of which the first comes while a helper sleeps; the median.
fn burst(mut work: impl FnMut()) -> Duration {
    let one = |_| {
        thread::sleep(Duration::from_millis(2));
        let start = Instant::now();
        (0..BURST).for_each(|_| work());
        start.elapsed()
    };
    let mut all: Vec<Duration> = (0..101).map(one).collect();
    all.sort_unstable();
    all[all.len() / 2]
}
