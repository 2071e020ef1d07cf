//! What our own code costs for each request: the whole way from the avail ring to the used ring,
//! with the cipher and without I/O.

// Clippy exempts only functions with #[test], and this program has nobody to report an error to.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
// `criterion_group!` makes a public function.
#![allow(missing_docs)]

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use test_support::request_path::{Load, RequestPath};
use xts::DataUnit;

fn request_path(criterion: &mut Criterion) {
    for (mapped, file) in [(false, "file"), (true, "mapped")] {
        let mut path = RequestPath::new(DataUnit::B4096, mapped);
        let mut group = criterion.benchmark_group(format!("request_path/{file}"));
        for (bytes, size, depth) in [
            (4096, "4KiB", 1),
            (4096, "4KiB", 32),
            (64 << 10, "64KiB", 8),
            (1 << 20, "1MiB", 8),
        ] {
            for (write, direction) in [(false, "read"), (true, "write")] {
                let load = Load {
                    write,
                    bytes,
                    segments: 1,
                    depth,
                    shift: 0,
                };
                path.prepare(&load);
                // Elements are requests; one iteration is `depth` of them.
                group.throughput(Throughput::Elements(depth));
                group.bench_function(format!("{direction}/{size}/qd{depth}"), |bencher| {
                    bencher.iter(|| path.round(&load));
                });
            }
        }
        group.finish();
    }
}

criterion_group!(benches, request_path);
criterion_main!(benches);
