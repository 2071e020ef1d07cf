//! Counts the instructions that a request takes, our own and the cipher's: the way of a request through our own code,
//! with the cipher and without I/O.
//!
//! A processor counts instructions, but a virtual machine seldom may ask it, and valgrind 3.19 (Debian 12) does not know
//! `mlock2`, without which no key is held. So the kernel runs the counted part one instruction at a time
//! (`ptrace`), and each is counted for the function that it is in. The same program gives the same counts
//! again; the cipher's depend on what the processor can do.
//!
//! `scripts/instructions` compares them with what is recorded.
//!
//! Usage: cargo bench -p test-support --features request-path --bench instructions

// Clippy exempts only functions with #[test], and this program has nobody to report an error to.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::hint::black_box;
use std::os::unix::process::CommandExt;
use std::process::Command;

use dataplane::counters::{Counters, Outcome};
use nix::sys::ptrace;
use nix::sys::signal::{Signal, raise};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::Pid;
use test_support::request_path::{Load, RequestPath};
use xts::DataUnit;

/// Requests of 4 KiB that are counted; of larger ones, fewer.
const REQUESTS: u64 = 64;

/// What is counted: the data file is memory, the guest writes, bytes of a request, requests at a time.
const CASES: [(&str, bool, bool, u32, u64); 12] = [
    ("file/read/4KiB/qd1", false, false, 4096, 1),
    ("file/write/4KiB/qd1", false, true, 4096, 1),
    ("file/read/4KiB/qd32", false, false, 4096, 32),
    ("file/write/4KiB/qd32", false, true, 4096, 32),
    ("file/read/64KiB/qd8", false, false, 64 << 10, 8),
    ("file/write/64KiB/qd8", false, true, 64 << 10, 8),
    ("memory/read/4KiB/qd1", true, false, 4096, 1),
    ("memory/write/4KiB/qd1", true, true, 4096, 1),
    ("memory/read/4KiB/qd32", true, false, 4096, 32),
    ("memory/write/4KiB/qd32", true, true, 4096, 32),
    ("memory/read/64KiB/qd8", true, false, 64 << 10, 8),
    ("memory/write/64KiB/qd8", true, true, 64 << 10, 8),
];

/// What it is to count a request, which is in each of the cases too: the call for when it is taken and that for when it
/// is answered.
const RECORDING: &str = "recording";

fn main() {
    let arguments: Vec<String> = std::env::args()
        .skip(1)
        .filter(|a| a != "--bench")
        .collect();
    if let [name] = arguments.as_slice() {
        return load(name);
    }
    let functions = Functions::of_this_program();
    println!("case\town\tcipher");
    for (name, _, _, bytes, depth) in CASES {
        let requests = rounds(bytes, depth) * depth;
        let Counts { own, cipher } = count(name, &functions);
        println!("{name}\t{}\t{}", own / requests, cipher / requests);
    }
    let Counts { own, cipher } = count(RECORDING, &functions);
    println!("{RECORDING}\t{}\t{}", own / REQUESTS, cipher / REQUESTS);
}

fn rounds(bytes: u32, depth: u64) -> u64 {
    (REQUESTS * 4096 / u64::from(bytes) / depth).max(1)
}

/// What is counted, between two signals.
fn load(name: &str) {
    if name == RECORDING {
        return record();
    }
    let case = CASES.iter().find(|case| case.0 == name);
    let (_, mapped, write, bytes, depth) = *case.expect("no such case");
    let mut path = RequestPath::new(DataUnit::B4096, mapped);
    let load = Load {
        write,
        bytes,
        segments: 1,
        depth,
        shift: 0,
    };
    path.prepare(&load);
    // What is done only once is over by then.
    path.round(&load);
    raise(Signal::SIGUSR1).unwrap();
    (0..rounds(bytes, depth)).for_each(|_| path.round(&load));
    raise(Signal::SIGUSR1).unwrap();
}

/// Requests with latencies from 1 µs to 4 s, counted between two signals.
fn record() {
    let mut counters = Counters::unseen(1).unwrap().queue(0);
    let begin = counters.moment();
    let moments: Vec<u64> = (0..REQUESTS)
        .map(|request| begin + (1 << (11 + request % 22)) + request)
        .collect();
    let mut round = || {
        for moment in &moments {
            counters.at(begin);
            let asked = counters.taken(black_box(0));
            counters.at(*moment);
            counters.answered(asked, Outcome::Done(black_box(4096)));
        }
    };
    // The first touches memory that is not there yet.
    round();
    raise(Signal::SIGUSR1).unwrap();
    round();
    raise(Signal::SIGUSR1).unwrap();
}

/// Instructions of a run.
#[derive(Default)]
struct Counts {
    own: u64,
    cipher: u64,
}

/// Has this program run a case, and counts.
fn count(name: &str, functions: &Functions) -> Counts {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.arg(name);
    // SAFETY: a system call, between fork and exec.
    unsafe { command.pre_exec(|| Ok(ptrace::traceme()?)) };
    let child = Pid::from_raw(command.spawn().unwrap().id() as i32);
    let wait = || waitpid(child, None).unwrap();
    assert!(
        matches!(wait(), WaitStatus::Stopped(_, Signal::SIGTRAP)),
        "it has not started"
    );
    // Where the program is in its memory is not the same each time.
    let base = functions.base(child);
    ptrace::cont(child, None).unwrap();
    assert!(
        matches!(wait(), WaitStatus::Stopped(_, Signal::SIGUSR1)),
        "it has failed"
    );
    let mut counts = Counts::default();
    let mut last = 0;
    loop {
        ptrace::step(child, None).unwrap();
        match wait() {
            WaitStatus::Stopped(_, Signal::SIGTRAP) => {}
            WaitStatus::Stopped(_, Signal::SIGUSR1) => break,
            other => panic!("{other:?}"),
        }
        let at = ptrace::getregs(child).unwrap().rip.wrapping_sub(base);
        // An instruction that repeats itself (`rep stosb`) is one.
        if std::mem::replace(&mut last, at) == at {
            continue;
        }
        match functions.is_cipher(at) {
            true => counts.cipher += 1,
            false => counts.own += 1,
        }
    }
    ptrace::cont(child, None).unwrap();
    assert_eq!(wait(), WaitStatus::Exited(child, 0));
    counts
}

/// Where the functions of this program are.
struct Functions(Vec<(u64, bool)>);

impl Functions {
    fn of_this_program() -> Self {
        let program = std::env::current_exe().unwrap();
        let listed = Command::new("nm").arg("-n").arg(program).output();
        let listed = String::from_utf8(listed.expect("nm (binutils) is needed").stdout).unwrap();
        let function = |line: &str| {
            let mut words = line.split_whitespace();
            let at = u64::from_str_radix(words.next()?, 16).ok()?;
            let name = words.nth(1)?;
            let is_cipher =
                name.contains("aws_lc") && ["aes", "xts"].iter().any(|of| name.contains(of));
            Some((at, is_cipher))
        };
        let all: Vec<_> = listed.lines().filter_map(function).collect();
        assert!(
            all.iter().any(|(_, is_cipher)| *is_cipher),
            "the program has no names"
        );
        Self(all)
    }

    /// Whether an address of the program is in the cipher.
    fn is_cipher(&self, at: u64) -> bool {
        let next = self.0.partition_point(|(start, _)| *start <= at);
        next.checked_sub(1).is_some_and(|index| self.0[index].1)
    }

    /// Where `child` has the start of the program.
    fn base(&self, child: Pid) -> u64 {
        let program = std::env::current_exe().unwrap();
        let maps = std::fs::read_to_string(format!("/proc/{child}/maps")).unwrap();
        let first = maps
            .lines()
            .find(|line| line.ends_with(program.to_str().unwrap()));
        let start = first.and_then(|line| line.split('-').next());
        u64::from_str_radix(start.expect("the program is not in its memory"), 16).unwrap()
    }
}
