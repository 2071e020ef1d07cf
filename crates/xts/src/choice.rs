//! Which engine encrypts: the one that is fastest on this CPU, as a measurement of a millisecond shows. What a CPU says
//! that it can do does not tell how fast a library does it there.

use std::sync::OnceLock;
use std::time::{Duration, Instant};

use keys::Dek;

use super::engine::{DataUnit, Direction, XtsEngine};
use super::tweak::TweakValue;
use super::{AwsLcEngine, CipherError, PortableEngine};
use keys::units::Sector;

/// How long an engine is measured.
const TIME: Duration = Duration::from_micros(250);
/// Data units of 4096 bytes of one turn, or as many bytes in smaller ones.
const TURN: usize = 4096;
/// How much faster, in percent, an engine has to be than the one before it: less is chance.
const MARGIN: u128 = 105;

type Make = fn(&Dek) -> Result<Box<dyn XtsEngine>, CipherError>;

/// All engines; where two are equally fast, the first.
const ENGINES: [Make; 2] = [
    |dek| Ok(Box::new(AwsLcEngine::new(dek)?)),
    |dek| Ok(Box::new(PortableEngine::new(dek)?)),
];

/// What was measured of an engine.
#[derive(Debug, Clone, Copy)]
pub struct Measured {
    /// Its name.
    pub engine: &'static str,
    /// Bytes a second, encrypted and decrypted in turn, in the caches.
    pub rate: u64,
}

/// What was measured, and the place of the fastest.
struct Choice {
    measured: [Measured; ENGINES.len()],
    fastest: usize,
}

/// What each engine does on this CPU in data units of this length, and which is used: the first.
///
/// # Errors
/// As [`Cipher::new`](super::Cipher::new).
pub fn measured_engines(unit: DataUnit) -> Result<Vec<Measured>, CipherError> {
    let choice = choice(unit)?;
    let mut all = choice.measured.to_vec();
    all.swap(0, choice.fastest);
    Ok(all)
}

/// The fastest engine for data units of this length, with `dek` expanded.
pub(super) fn engine_for(dek: &Dek, unit: DataUnit) -> Result<Box<dyn XtsEngine>, CipherError> {
    ENGINES[choice(unit)?.fastest](dek)
}

/// Measured once in a process.
fn choice(unit: DataUnit) -> Result<&'static Choice, CipherError> {
    static OF_512: OnceLock<Choice> = OnceLock::new();
    static OF_4096: OnceLock<Choice> = OnceLock::new();
    let known = match unit {
        DataUnit::B512 => &OF_512,
        DataUnit::B4096 => &OF_4096,
    };
    match known.get() {
        Some(choice) => Ok(choice),
        None => {
            let choice = choose(unit)?;
            Ok(known.get_or_init(|| choice))
        }
    }
}

fn choose(unit: DataUnit) -> Result<Choice, CipherError> {
    // It encrypts nothing but zeros of this process.
    let dek = Dek::generate()?;
    let mut measured = [Measured {
        engine: "",
        rate: 0,
    }; ENGINES.len()];
    for (make, measured) in ENGINES.iter().zip(&mut measured) {
        let mut engine = make(&dek)?;
        measured.rate = rate(engine.as_mut(), unit);
        measured.engine = engine.name();
    }
    let fastest = fastest(measured.map(|measured| measured.rate));
    Ok(Choice { measured, fastest })
}

/// The first that no other is clearly faster than.
fn fastest(rates: [u64; ENGINES.len()]) -> usize {
    let faster = |best: usize, other: usize| match u128::from(rates[other]) * 100
        > u128::from(rates[best]) * MARGIN
    {
        true => other,
        false => best,
    };
    (1..rates.len()).fold(0, faster)
}

/// Bytes a second at its best: what else runs on the CPU makes a turn longer, and nothing makes it shorter.
fn rate(engine: &mut dyn XtsEngine, unit: DataUnit) -> u64 {
    let from = [0u8; TURN];
    let mut into = [0u8; TURN];
    let mut best = Duration::MAX;
    let start = Instant::now();
    loop {
        let turn = Instant::now();
        for direction in [Direction::Encrypt, Direction::Decrypt] {
            let tweak = TweakValue::plain64(Sector(0));
            let len = unit.bytes() as usize;
            for (from, into) in from.chunks(len).zip(into.chunks_mut(len)) {
                // SAFETY: both have a data unit's bytes, and a shared and a unique slice are apart.
                unsafe { engine.run(direction, &tweak, from.as_ptr(), into.as_mut_ptr(), len) };
            }
        }
        best = best.min(turn.elapsed());
        if start.elapsed() > TIME {
            let nanos = best.as_nanos().max(1);
            return u64::try_from(2 * TURN as u128 * 1_000_000_000 / nanos).unwrap_or(u64::MAX);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_is_used_where_no_other_is_clearly_faster() {
        assert_eq!(fastest([100, 50]), 0);
        assert_eq!(fastest([100, 105]), 0, "it may be chance");
        assert_eq!(fastest([100, 106]), 1);
        assert_eq!(fastest([0, 1]), 1);
        assert_eq!(fastest([u64::MAX, 1]), 0);
    }

    #[test]
    fn the_engine_that_is_used_is_the_fastest_that_was_measured() {
        for unit in [DataUnit::B512, DataUnit::B4096] {
            let all = measured_engines(unit).unwrap();
            let dek = Dek::generate().unwrap();
            assert_eq!(engine_for(&dek, unit).unwrap().name(), all[0].engine);
            for other in &all[1..] {
                assert!(other.rate <= all[0].rate / 100 * 105 + 105, "{all:?}");
            }
            assert!(all.iter().all(|measured| measured.rate > 0), "{all:?}");
        }
    }
}
