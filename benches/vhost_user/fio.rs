//! fio on the bare file: what the machine gives without a daemon and without a guest.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::Value;
use test_support::expect_success;

use crate::machine::{busy_time, children_time};
use crate::pattern::{Pattern, READS_OF_TEN, Work};
use crate::report::{Measured, QUANTILES};

/// The same pattern by io_uring with O_DIRECT, on one CPU.
pub fn measure(file: &Path, pattern: &Pattern, limit: Duration, cpu: usize) -> Measured {
    let rw = match (pattern.random, pattern.work) {
        (true, Work::Read) => "randread",
        (true, Work::Write | Work::Synced) => "randwrite",
        (true, Work::Mixed) => "randrw",
        (false, Work::Read) => "read",
        (false, Work::Write | Work::Synced) => "write",
        (false, Work::Mixed) => "rw",
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
    fio.arg(format!("--rwmixread={}", 10 * READS_OF_TEN))
        .arg("--unified_rw_reporting=1");
    // A job of fio's that syncs after every write is one writer.
    let (jobs, depth) = match pattern.work {
        Work::Synced => (pattern.depth, 1),
        _ => (1, pattern.depth),
    };
    if pattern.work == Work::Synced {
        fio.args(["--fdatasync=1", "--thread", "--group_reporting"]);
    }
    fio.arg(format!("--numjobs={jobs}"))
        .arg(format!("--iodepth={depth}"));
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
    let io = &job["mixed"];
    let number = |value: &Value| value.as_f64().expect("a number in fio's output");
    let requests = number(&io["total_ios"]);
    let seconds = number(&io["runtime"]) / 1e3;
    let percentile = |quantile: f64| {
        let percent = format!("{:.6}", 100.0 * quantile);
        let latency = &io["clat_ns"]["percentile"][percent];
        (quantile, number(latency) / 1e3)
    };
    // Of a write and its sync fio has two latencies, of which no distribution of both can be made.
    let latency = match pattern.work {
        Work::Synced => Vec::new(),
        _ => QUANTILES.map(percentile).to_vec(),
    };
    Measured {
        requests: requests as u64,
        seconds,
        cpu_seconds: cpu.as_secs_f64(),
        latency,
        others,
    }
}
