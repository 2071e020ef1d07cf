//! AES-256-XTS by each engine: guest memory to a host buffer and back.

// Clippy exempts only functions with #[test], and this program has nobody to report an error to.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
// `criterion_group!` makes a public function.
#![allow(missing_docs)]

use std::ptr::NonNull;

use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, Criterion, Throughput, criterion_group, criterion_main};
use keys::Dek;
use keys::units::ByteOffset;
#[cfg(not(feature = "fips"))]
use xts::PortableEngine;
use xts::{AwsLcEngine, Cipher, Cursor, DataUnit, SharedSlice, XtsEngine};

fn cipher(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("cipher");
    for unit in [DataUnit::B512, DataUnit::B4096] {
        let dek = Dek::generate().unwrap();
        let engines: Vec<Box<dyn XtsEngine>> = vec![
            Box::new(AwsLcEngine::new(&dek).unwrap()),
            #[cfg(not(feature = "fips"))]
            Box::new(PortableEngine::new(&dek).unwrap()),
        ];
        for engine in engines {
            let mut cipher = Cipher::with_engine(engine, &dek, unit).unwrap();
            for len in [4 << 10, 64 << 10] {
                both_ways(&mut group, &mut cipher, unit, len);
            }
        }
    }
    group.finish();
}

fn both_ways(
    group: &mut BenchmarkGroup<'_, WallTime>,
    cipher: &mut Cipher,
    unit: DataUnit,
    len: usize,
) {
    let mut guest = vec![0x5a; len].into_boxed_slice();
    let mut host = vec![0; len];
    // SAFETY: `guest` lives as long as the slice and is used by nothing else meanwhile.
    let slices = [unsafe { SharedSlice::new(NonNull::from(&mut guest[0]), len) }];
    let name = format!(
        "{}/unit{}/{}KiB",
        cipher.engine_name(),
        unit.bytes(),
        len >> 10
    );
    group.throughput(Throughput::Bytes(len as u64));
    group.bench_function(format!("{name}/encrypt"), |bencher| {
        bencher.iter(|| cipher.encrypt(ByteOffset(0), &slices, Cursor::default(), &mut host));
    });
    group.bench_function(format!("{name}/decrypt"), |bencher| {
        bencher.iter(|| cipher.decrypt(ByteOffset(0), &host, &slices, Cursor::default()));
    });
}

criterion_group!(benches, cipher);
criterion_main!(benches);
