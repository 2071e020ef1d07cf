//! AES-256-XTS by each engine, and by other libraries where they are installed: guest memory to a host buffer and back,
//! by the same code and in turn, so that what else the machine does falls on all of them alike.
//!
//! Usage: cargo bench --bench cipher

// Clippy exempts only functions with #[test], and this program has nobody to report an error to.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod libraries;

use std::ptr::NonNull;
use std::time::{Duration, Instant};

use keys::Dek;
use keys::units::ByteOffset;
#[cfg(not(feature = "fips"))]
use xts::PortableEngine;
use xts::{AwsLcEngine, Cipher, Cursor, DataUnit, Direction, SharedSlice, XtsEngine};

/// Each of these is as long as `TURN`.
const ROUNDS: usize = 21;
const TURN: Duration = Duration::from_millis(5);
const LENS: [usize; 2] = [4 << 10, 64 << 10];

fn main() {
    let dek = Dek::generate().unwrap();
    println!("GB/s with one thread, medians of {ROUNDS} rounds; the best of all is 1.00");
    for unit in [DataUnit::B512, DataUnit::B4096] {
        let mut ciphers: Vec<Cipher> = engines(&dek)
            .into_iter()
            .map(|engine| Cipher::with_engine(engine, &dek, unit).unwrap())
            .collect();
        agree(&mut ciphers);
        // Double encryption, with the engine that is used for that.
        let twice = Dek::generate()
            .unwrap()
            .with_outer(Dek::generate().unwrap());
        ciphers.push(Cipher::new(&twice.unwrap(), unit).unwrap());
        for len in LENS {
            for direction in [Direction::Encrypt, Direction::Decrypt] {
                println!(
                    "\nunits of {} bytes, {} KiB, {direction:?}",
                    unit.bytes(),
                    len >> 10
                );
                compare(&mut ciphers, len, direction);
            }
        }
    }
}

fn engines(dek: &Dek) -> Vec<Box<dyn XtsEngine>> {
    let mut all: Vec<Box<dyn XtsEngine>> = vec![
        Box::new(AwsLcEngine::new(dek).unwrap()),
        #[cfg(not(feature = "fips"))]
        Box::new(PortableEngine::new(dek).unwrap()),
    ];
    all.extend(libraries::installed(dek));
    all
}

/// A guest's memory and a host's buffer.
struct Memory {
    guest: Box<[u8]>,
    host: Vec<u8>,
}

impl Memory {
    fn new(len: usize) -> Self {
        Self {
            guest: (0..len).map(|i| (i % 251) as u8).collect(),
            host: vec![0; len],
        }
    }

    fn transform(&mut self, cipher: &mut Cipher, direction: Direction) {
        let (start, len) = (NonNull::from(&mut self.guest[0]), self.guest.len());
        // SAFETY: the guest's memory outlives the slice, and nothing else uses it meanwhile.
        let slices = [unsafe { SharedSlice::new(start, len) }];
        let (at, cursor) = (ByteOffset(1 << 20), Cursor::default());
        match direction {
            Direction::Encrypt => cipher.encrypt(at, &slices, cursor, &mut self.host),
            Direction::Decrypt => cipher.decrypt(at, &self.host, &slices, cursor),
        }
    }
}

/// What is compared does the same.
fn agree(ciphers: &mut [Cipher]) {
    let all = ciphers.iter_mut().map(|cipher| {
        let mut memory = Memory::new(64 << 10);
        let plain = memory.guest.clone();
        memory.transform(cipher, Direction::Encrypt);
        memory.guest.fill(0);
        memory.transform(cipher, Direction::Decrypt);
        assert!(
            memory.guest == plain,
            "{} does not decrypt",
            cipher.engine_name()
        );
        (cipher.engine_name(), memory.host)
    });
    let all: Vec<_> = all.collect();
    for (name, ciphertext) in &all[1..] {
        assert!(*ciphertext == all[0].1, "{name} encrypts in another way");
    }
}

fn compare(ciphers: &mut [Cipher], len: usize, direction: Direction) {
    let mut memory = Memory::new(len);
    let mut rates = vec![Vec::new(); ciphers.len()];
    for _ in 0..ROUNDS {
        for (cipher, rates) in ciphers.iter_mut().zip(&mut rates) {
            let (start, mut bytes) = (Instant::now(), 0);
            while start.elapsed() < TURN {
                memory.transform(cipher, direction);
                bytes += len;
            }
            rates.push(bytes as f64 / start.elapsed().as_secs_f64() / 1e9);
        }
    }
    let median = |rates: &mut Vec<f64>| {
        rates.sort_by(f64::total_cmp);
        rates[ROUNDS / 2]
    };
    let rates: Vec<f64> = rates.iter_mut().map(median).collect();
    let best = rates.iter().copied().fold(0.0, f64::max);
    let names = ciphers.iter().map(Cipher::engine_name);
    let mut names: Vec<_> = names.map(str::to_owned).collect();
    if let Some(last) = names.last_mut() {
        last.push_str(", twice");
    }
    for (name, rate) in names.iter().zip(rates) {
        println!("  {name:28} {rate:6.2}  {:.2}", rate / best);
    }
}
