//! The machine: CPU time of processes, pinning, and what a table has to say about where it is from.

use std::fs;
use std::mem::MaybeUninit;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::Duration;

use rustix::process::Pid;
use rustix::thread::{CpuSet, sched_setaffinity};
use serde_json::{Value, json};

/// User and system time of all threads of a process so far, those that have ended too.
pub fn cpu_time(pid: u32) -> Duration {
    let mut clock = 0;
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: both calls only write to the variable that they are given.
    let result = unsafe {
        match libc::clock_getcpuclockid(pid as i32, &mut clock) {
            0 => libc::clock_gettime(clock, &mut time),
            error => error,
        }
    };
    assert_eq!(result, 0, "process {pid} has a clock of its CPU time");
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// The same of the calling thread.
pub fn thread_time() -> Duration {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: the call only writes to the variable that it is given.
    let result = unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &mut time) };
    assert_eq!(result, 0, "a thread has a clock of its CPU time");
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// The same of all child processes that were waited for.
pub fn children_time() -> Duration {
    let mut usage = MaybeUninit::<libc::rusage>::zeroed();
    // SAFETY: the call only writes to the structure that it is given, of which zeros are a value.
    let usage = unsafe {
        assert_eq!(
            libc::getrusage(libc::RUSAGE_CHILDREN, usage.as_mut_ptr()),
            0
        );
        usage.assume_init()
    };
    let time = |t: libc::timeval| Duration::new(t.tv_sec as u64, t.tv_usec as u32 * 1000);
    time(usage.ru_utime) + time(usage.ru_stime)
}

/// Bytes that are free on the file system of a directory.
pub fn available(dir: &Path) -> u64 {
    let found = rustix::fs::statvfs(dir).unwrap();
    found.f_bavail * found.f_frsize
}

/// Time that all CPUs together spent on anything, from /proc/stat. What the hypervisor took away is
/// among it: for a measurement it is as bad as another program.
pub fn busy_time() -> Duration {
    let stat = fs::read_to_string("/proc/stat").unwrap();
    let numbers = stat.lines().next().unwrap().split_whitespace().skip(1);
    let numbers: Vec<u64> = numbers.map(|n| n.parse().unwrap()).collect();
    // user, nice, system, idle, iowait, irq, softirq, steal
    let busy: u64 = [0, 1, 2, 5, 6, 7].iter().map(|&i| numbers[i]).sum();
    let per_second = rustix::param::clock_ticks_per_second();
    Duration::from_secs_f64(busy as f64 / per_second as f64)
}

/// Keeps the calling thread on one CPU.
pub fn pin(cpu: usize) {
    let mut set = CpuSet::new();
    set.set(cpu);
    sched_setaffinity(None::<Pid>, &set).unwrap();
}

/// CPUs that this process may use, as it was before it pinned a thread.
pub fn cpus() -> usize {
    static CPUS: OnceLock<usize> = OnceLock::new();
    *CPUS.get_or_init(|| std::thread::available_parallelism().map_or(1, usize::from))
}

/// What a result is worth nothing without.
pub fn description(sealdisk: &Path) -> Value {
    let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpuinfo
        .lines()
        .find_map(|line| line.strip_prefix("model name"));
    let model = model.map_or("unknown", |rest| rest.trim_start_matches([' ', '\t', ':']));
    let vaes = cpuinfo.contains(" vaes");
    let version = |program: &str| first_line(Command::new(program).arg("--version"));
    json!({
        "cpu": model,
        "vaes": vaes,
        "cpus": cpus(),
        "memory_gib": memory_gib(),
        "kernel": first_line(Command::new("uname").args(["-sr"])),
        "sealdisk": first_line(Command::new(sealdisk).arg("--version")),
        "qsd": version("qemu-storage-daemon"),
        "fio": version("fio"),
        "date": first_line(Command::new("date").args(["-u", "+%Y-%m-%d %H:%M UTC"])),
    })
}

fn memory_gib() -> u64 {
    let meminfo = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let total = meminfo
        .split_whitespace()
        .nth(1)
        .and_then(|kib| kib.parse::<u64>().ok());
    total.unwrap_or_default().div_ceil(1 << 20)
}

/// The file system of a directory and the device below it.
pub fn place(dir: &Path) -> Value {
    let of_mount = |path: &Path, column: &str| {
        first_line(
            Command::new("findmnt")
                .args(["-n", "-o", column, "-T"])
                .arg(path),
        )
    };
    let source = of_mount(dir, "SOURCE");
    let mut device = match block_device(&source) {
        Some(queue) => described(&source, &queue),
        None => source.clone(),
    };
    let backing = block_device(&source)
        .and_then(|queue| fs::read_to_string(queue.with_file_name("loop/backing_file")).ok());
    if let Some(backing) = backing {
        let backing = Path::new(backing.trim_end());
        let (fs, below) = (of_mount(backing, "FSTYPE"), of_mount(backing, "SOURCE"));
        let below = match block_device(&below) {
            Some(queue) => described(&below, &queue),
            None => below,
        };
        device = format!("{device}: a file on {fs} ({below})");
    }
    json!({ "fs": of_mount(dir, "FSTYPE"), "options": of_mount(dir, "OPTIONS"), "device": device })
}

/// Bytes of the smallest direct read or write.
pub fn sector(dir: &Path) -> u32 {
    let source = first_line(
        Command::new("findmnt")
            .args(["-n", "-o", "SOURCE", "-T"])
            .arg(dir),
    );
    let sector = block_device(&source).and_then(|queue| {
        let sector = fs::read_to_string(queue.join("logical_block_size")).ok()?;
        sector.trim_end().parse().ok()
    });
    sector.unwrap_or(512)
}

/// Where the kernel tells of the queue of a block device, or of the disk that it is a part of.
fn block_device(source: &str) -> Option<PathBuf> {
    let name = source.strip_prefix("/dev/")?;
    let name = name.strip_prefix("mapper/").map_or_else(
        || Some(name.to_owned()),
        |_| {
            let target = fs::canonicalize(source).ok()?;
            Some(target.file_name()?.to_str()?.to_owned())
        },
    )?;
    let device = fs::canonicalize(Path::new("/sys/class/block").join(name)).ok()?;
    let queue = device.join("queue");
    if queue.exists() {
        return Some(queue);
    }
    Some(device.parent()?.join("queue")).filter(|queue| queue.exists())
}

fn described(source: &str, queue: &Path) -> String {
    let read = |path: PathBuf| fs::read_to_string(path).unwrap_or_default();
    let sectors: u64 = read(queue.with_file_name("size"))
        .trim()
        .parse()
        .unwrap_or(0);
    let scheduler = read(queue.join("scheduler"));
    let scheduler = scheduler.split(['[', ']']).nth(1).unwrap_or("none");
    let model = read(queue.with_file_name("device/model"));
    let direct = read(queue.with_file_name("loop/dio"));
    let mut text = format!(
        "{source}, {} GiB, sectors of {} bytes, scheduler {scheduler}",
        sectors >> 21,
        read(queue.join("logical_block_size")).trim(),
    );
    if !model.trim().is_empty() {
        text = format!("{text}, {}", model.trim());
    }
    if direct.trim() == "1" {
        text = format!("{text}, direct I/O");
    }
    text
}

fn first_line(program: &mut Command) -> String {
    let output = program
        .output()
        .map(|out| String::from_utf8_lossy(&out.stdout).into_owned());
    let output = output.unwrap_or_default();
    output.lines().next().unwrap_or_default().to_owned()
}
