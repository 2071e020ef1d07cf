//! fio on the bare file: what the machine gives without a daemon and without a guest.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::Value;
use test_support::expect_success;

use crate::load::Pattern;
use crate::machine::{busy_time, children_time};
use crate::report::Measured;

/// The same pattern by io_uring with O_DIRECT, on one CPU.
pub fn measure(file: &Path, pattern: &Pattern, limit: Duration, cpu: usize) -> Measured {
    let rw = match (pattern.random, pattern.write) {
        (true, false) => "randread",
        (true, true) => "randwrite",
        (false, false) => "read",
        (false, true) => "write",
    };
    let mut fio = Command::new("fio");
    fio.args([
        "--name=bare",
        "--ioengine=io_uring",
        "--direct=1",
        "--time_based",
    ]);
    fio.args(["--norandommap", "--output-format=json"]);
    fio.arg(format!("--filename={}", file.display()));
    fio.arg(format!("--rw={rw}"))
        .arg(format!("--bs={}", pattern.bytes));
    fio.arg(format!("--iodepth={}", pattern.depth));
    fio.arg(format!("--runtime={}ms", limit.as_millis()));
    fio.arg(format!("--cpus_allowed={cpu}"));
    let (before, start) = ((busy_time(), children_time()), Instant::now());
    let output = expect_success(&mut fio).stdout;
    // fio itself does not count the kernel's threads that io_uring runs for it.
    let cpu = children_time() - before.1;
    let others = (busy_time() - before.0).saturating_sub(cpu);
    let others = others.as_secs_f64() / start.elapsed().as_secs_f64();
    let text = String::from_utf8(output).unwrap();
    // Notes come before the object.
    let json: Value = serde_json::from_str(&text[text.find('{').unwrap()..]).unwrap();
    let job = &json["jobs"][0];
    let io = &job[if pattern.write { "write" } else { "read" }];
    let number = |value: &Value| value.as_f64().expect("a number in fio's output");
    let requests = number(&io["total_ios"]);
    let seconds = number(&io["runtime"]) / 1e3;
    let percentile = |p: &str| number(&io["clat_ns"]["percentile"][p]) / 1e3;
    Measured {
        requests: requests as u64,
        seconds,
        cpu_seconds: cpu.as_secs_f64(),
        p50_us: percentile("50.000000"),
        p99_us: percentile("99.000000"),
        p999_us: percentile("99.900000"),
        others,
    }
}
