//! What a disk asks of its host, and what happens when the host does not give it.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Resource, Rlimit, setrlimit};
use test_support::frontend::client::{kind, range_segment};
use test_support::frontend::device::{Frontend, Setup};
use test_support::frontend::queue::Seg;
use test_support::rng::Rng;
use test_support::{
    AttachOptions, Daemon, Disk, PATIENCE, expect_success, rlimits, seccomp, threads,
};

use super::MIB;
use crate::supervise::is_qsd;

fn attach_command(disk: &Disk, arguments: &[&str]) -> (Command, std::path::PathBuf) {
    let socket = disk.runtime().join("refused.sock");
    let mut command = disk.command(&["attach", "disk", "--socket-path"]);
    command
        .arg(&socket)
        .args(arguments)
        .stdin(Stdio::null())
        .stderr(Stdio::piped());
    (command, socket)
}

/// A disk that is attached, with a frontend.
struct Served {
    frontend: Frontend,
    daemon: Daemon,
    _disk: Disk,
}

impl Served {
    fn new(size: u64, options: &AttachOptions, setup: &Setup) -> Self {
        let disk = Disk::new(size);
        let daemon = disk.attach(options);
        let frontend = daemon.connect_with(setup);
        Self {
            frontend,
            daemon,
            _disk: disk,
        }
    }

    /// With queues of both sides.
    fn with_queues(size: u64, queues: u32, arguments: &'static [&'static str]) -> Self {
        let options = AttachOptions {
            queues: Some(queues),
            arguments,
            ..Default::default()
        };
        let setup = Setup {
            queues: queues.min(8),
            ..Default::default()
        };
        Self::new(size, &options, &setup)
    }

    /// Of 128 GiB, for long discards.
    fn large() -> Self {
        let setup = Setup {
            indirect: true,
            ..Default::default()
        };
        Self::new(128 * GIB, &AttachOptions::default(), &setup)
    }
}

const GIB: u64 = 1 << 30;

/// An attach that `prepare` has spoilt ends by itself, with one line that says all of `named`.
fn assert_attach_refused(
    disk: &Disk,
    arguments: &[&str],
    named: &[&str],
    prepare: impl FnOnce(&mut Command),
) {
    let (mut command, socket) = attach_command(disk, arguments);
    prepare(&mut command);
    assert_refused(command.spawn().unwrap(), &socket, named);
}

/// An attach ends by itself, without having had a socket, with one line that says all of `named`.
fn assert_refused(mut child: Child, socket: &Path, named: &[&str]) {
    while child.try_wait().unwrap().is_none() {
        if socket.exists() {
            let _ = child.kill();
            panic!("it is attached, though it can't serve: {named:?}");
        }
        thread::sleep(Duration::from_millis(2));
    }
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(!socket.exists());
    let errors: Vec<_> = said.lines().filter(|l| l.starts_with("error")).collect();
    assert_eq!(errors.len(), 1, "{said}");
    for named in named {
        assert!(errors[0].contains(named), "'{named}' is missing: {said}");
    }
}

/// Nothing says that the disk is attached, or was.
fn assert_nothing_left(disk: &Disk) {
    let shown = expect_success(&mut disk.command(&["disk", "show", "disk", "-o", "json"])).stdout;
    let shown: serde_json::Value = serde_json::from_slice(&shown).unwrap();
    assert_eq!(shown["diskState"], "Unattached", "{shown}");
    assert!(shown["session"].is_null(), "{shown}");
    let left = std::fs::read_dir(disk.runtime()).unwrap();
    let left = left.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let left: Vec<_> = left.filter(|name| name.ends_with(".map")).collect();
    assert!(left.is_empty(), "{left:?}");
}

/// Once what was missing is there, the disk is attached as if nothing had been.
fn assert_served(disk: &Disk) {
    let daemon = disk.attach(&AttachOptions::default());
    daemon.connect().queues[0].assert_serves(0, 1);
}

#[test]
fn an_attach_without_io_uring_names_what_forbids_it() {
    if is_qsd() {
        return;
    }
    let disk = Disk::new(4 * MIB);
    let of_the_ring = [
        libc::SYS_io_uring_setup,
        libc::SYS_io_uring_enter,
        libc::SYS_io_uring_register,
    ];
    for call in of_the_ring {
        let named = ["io_uring", "kernel.io_uring_disabled", "SystemCallFilter="];
        assert_attach_refused(&disk, &[], &named, |command| {
            seccomp::forbid(command, &[call], libc::EPERM);
        });
    }
    for (errno, named) in [
        (libc::ENOSYS, "SystemCallFilter="),
        (libc::EMFILE, "LimitNOFILE="),
        (libc::EINVAL, "Linux 6.1"),
    ] {
        assert_attach_refused(&disk, &[], &[named], |command| {
            seccomp::forbid(command, &[libc::SYS_io_uring_setup], errno);
        });
    }
    assert_served(&disk);
}

/// Memory may come back: it is waited for a moment.
#[test]
fn an_attach_without_memory_names_the_limits() {
    if is_qsd() {
        return;
    }
    let disk = Disk::new(4 * MIB);
    assert_attach_refused(&disk, &[], &["MemoryMax=", "--num-queues"], |command| {
        seccomp::forbid(command, &[libc::SYS_io_uring_setup], libc::ENOMEM);
    });
    // Where locked memory is limited, that may be what the kernel means.
    let named = ["RLIMIT_MEMLOCK", "4096 KiB", "MemoryMax=", "--num-queues"];
    assert_attach_refused(&disk, &[], &named, |command| {
        rlimits::limit(command, libc::RLIMIT_MEMLOCK, 4 << 20);
        seccomp::forbid(command, &[libc::SYS_io_uring_setup], libc::ENOMEM);
    });
    assert_nothing_left(&disk);
    let (mut command, socket) = attach_command(&disk, &["--memory", "1MiB"]);
    command.stderr(Stdio::piped());
    let output = command.output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains("--memory is too little"), "{said}");
    assert!(!socket.exists());
}

#[test]
fn an_attach_with_low_limits_names_them() {
    if is_qsd() {
        return;
    }
    let disk = Disk::new(4 * MIB);
    let cases = [
        // Enough to open the disk, and not for the thread that checks its key.
        (libc::RLIMIT_MEMLOCK, 400 << 10, "LimitMEMLOCK="),
        // Enough for the attach process, which unwraps the key, and for half of the queues.
        (libc::RLIMIT_MEMLOCK, 1 << 20, "LimitMEMLOCK="),
        // Enough for the queues, and too few for what a frontend sends.
        (libc::RLIMIT_NOFILE, 600, "LimitNOFILE="),
    ];
    for (resource, most, named) in cases {
        assert_attach_refused(&disk, &["--num-queues", "16"], &[named], |command| {
            rlimits::limit(command, resource, most);
        });
        assert_nothing_left(&disk);
    }
    assert_served(&disk);
}

/// What README says that an ordinary user needs is enough, of which buffers take nothing that rings need.
#[test]
fn an_ordinary_user_is_served_with_as_much_locked_memory_as_is_said() {
    if is_qsd() {
        return;
    }
    let disk = Disk::new(4 * MIB);
    for (queues, layers) in [(16, 1), (16, 3), (1, 3), (40, 3)] {
        while layers_of(&disk) < layers {
            // What did not change gets no layer.
            assert_served(&disk);
            let name = format!("s{}", layers_of(&disk));
            let made = ["snapshot", "create", &name, "--source", "disk"];
            expect_success(&mut disk.command(&made));
        }
        let locked = (512 + queues * (128 + 16 * layers as u64)) << 10;
        let (mut command, socket) = attach_command(&disk, &["--num-queues", &queues.to_string()]);
        rlimits::limit(&mut command, libc::RLIMIT_MEMLOCK, locked);
        let mut child = command.spawn().unwrap();
        let end = Instant::now() + PATIENCE;
        while !socket.exists() && child.try_wait().unwrap().is_none() {
            assert!(Instant::now() < end);
            thread::sleep(Duration::from_millis(5));
        }
        let is_served = socket.exists();
        let pid = rustix::process::Pid::from_child(&child);
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        let output = child.wait_with_output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(
            is_served && output.status.success(),
            "{queues} queues, {layers} layers: {said}"
        );
    }
}

fn layers_of(disk: &Disk) -> usize {
    let shown = expect_success(&mut disk.command(&["disk", "show", "disk", "-o", "json"])).stdout;
    let shown: serde_json::Value = serde_json::from_slice(&shown).unwrap();
    shown["layers"].as_array().unwrap().len()
}

/// The kernel has no memory for the moment, again and again, under load: no request fails, and the process
/// goes on.
#[test]
fn refused_calls_of_the_ring_fail_no_request() {
    if is_qsd() {
        return;
    }
    let disk = Disk::new(16 * MIB);
    let (mut command, socket) = attach_command(&disk, &["--poll-us", "0"]);
    let log = disk.runtime().join("log");
    command.stderr(std::fs::File::create(&log).unwrap());
    let calls = AtomicU32::new(0);
    let errors = [libc::EAGAIN, libc::ENOMEM, libc::EBUSY, libc::EINTR];
    let (mut child, supervisor) =
        seccomp::spawn_supervised(&mut command, libc::SYS_io_uring_enter, move |_| {
            let call = calls.fetch_add(1, Ordering::Relaxed) as usize;
            // Runs of them, of all lengths up to seven.
            (call % 16 < call / 16 % 8).then(|| errors[call % errors.len()])
        })
        .unwrap();
    let end = Instant::now() + PATIENCE;
    while !socket.exists() {
        assert!(Instant::now() < end && child.try_wait().unwrap().is_none());
        thread::sleep(Duration::from_millis(5));
    }
    let mut frontend = Frontend::open(&socket, &Setup::default());
    let mut random = Rng::new(8);
    for round in 0..30 {
        let data = random.bytes(64 << 10);
        let queue = &mut frontend.queues[round % 2];
        let sector = (round as u64 % 8) * 256;
        queue.write(sector, &data).unwrap();
        if round % 5 == 0 {
            queue.flush().unwrap();
        }
        assert!(queue.read(sector, data.len()).unwrap() == data);
    }
    drop(frontend);
    let pid = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    let ended = child.wait().unwrap();
    let log = std::fs::read_to_string(log).unwrap();
    assert!(ended.success(), "{ended}: {log}");
    supervisor.join();
}

/// A number of kilobytes from /proc/PID/status.
fn status_kb(pid: u32, what: &str) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with(what)).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// The threads of a process whose name begins so.
fn threads_named(pid: u32, name: &str) -> Vec<u32> {
    let all = threads(pid).into_iter();
    all.filter_map(|(id, its)| its.starts_with(name).then_some(id))
        .collect()
}

/// All queues have as much under way as they can.
fn load_all(frontend: &mut Frontend, depth: u64) {
    for (n, queue) in (0..).zip(&mut frontend.queues) {
        queue.arena.reset();
        let at = queue.arena.alloc(64 << 10, 4096);
        for i in 0..depth {
            let sector = (n * depth + i) * 128;
            queue.request(kind::OUT, sector, &[Seg::out(at, 64 << 10)]);
        }
    }
    for queue in &mut frontend.queues {
        while queue.in_flight() > 0 {
            queue.next_used();
        }
    }
}

#[test]
fn memory_and_threads_stay_within_what_was_allowed() {
    if is_qsd() {
        return;
    }
    let disk = Disk::new(256 * MIB);
    let daemon = disk.attach(&AttachOptions {
        queues: Some(8),
        arguments: &["--memory", "24MiB"],
        ..Default::default()
    });
    let show = expect_success(&mut disk.command(&["disk", "show", "disk", "-o", "json"]));
    let show = String::from_utf8(show.stdout).unwrap().replace(' ', "");
    assert!(show.contains("\"queues\":8"), "{show}");
    assert!(
        show.contains(&format!("\"memoryBytes\":{}", 24 * MIB)),
        "{show}"
    );

    let pid = daemon.data_plane();
    let idle = status_kb(pid, "VmPin");
    assert!(idle <= 8 * 256, "{idle} kB are pinned without a guest");
    let mut frontend = daemon.connect_with(&Setup {
        queues: 8,
        ..Default::default()
    });
    let mut most = 0;
    for _ in 0..4 {
        load_all(&mut frontend, 32);
        most = most.max(status_kb(pid, "VmPin"));
        let workers = threads_named(pid, "iou-wrk").len();
        assert!(workers <= 64, "{workers} threads of the kernel");
    }
    assert!(most <= 24 * 1024, "{most} kB are pinned under load");
    // What is not needed any more is given back.
    let end = Instant::now() + PATIENCE;
    while status_kb(pid, "VmPin") > idle {
        assert!(Instant::now() < end, "{} kB", status_kb(pid, "VmPin"));
        thread::sleep(Duration::from_millis(50));
    }
    frontend.queues[3].assert_serves(0, 4);
}

/// One buffer for each queue suffices for any request.
#[test]
fn the_least_memory_is_enough_to_go_on() {
    if is_qsd() {
        return;
    }
    // 1 MiB, and 320 KiB for each queue.
    let mut served = Served::with_queues(64 * MIB, 8, &["--memory", "3584KiB"]);
    load_all(&mut served.frontend, 16);
    for (n, queue) in (0..).zip(&mut served.frontend.queues) {
        // Parts of blocks, which are merged.
        queue.write(n * 64 + 3, &Rng::new(n).bytes(512)).unwrap();
        queue.flush().unwrap();
        assert_eq!(queue.read(n * 64 + 3, 512).unwrap(), Rng::new(n).bytes(512));
    }
}

/// Fills the first ring with discards of a gigabyte each; the used index before.
fn discard_all(frontend: &mut Frontend) -> u16 {
    let queue = &mut frontend.queues[0];
    queue.arena.reset();
    let before = queue.used_idx();
    for i in 0..100 {
        let at = queue.arena.alloc(16, 8);
        let segment = range_segment(i * GIB / 512, (GIB / 512) as u32, 0);
        queue.mem.write(at, &segment);
        queue.request(kind::DISCARD, 0, &[Seg::out(at, 16)]);
    }
    before
}

/// Starts the first queue where it was stopped, and waits until nothing of it is under way.
pub fn go_on(frontend: &mut Frontend, base: u16) {
    frontend.queues[0].base = base;
    frontend.start_queue(0).unwrap();
    let queue = &mut frontend.queues[0];
    queue.kick.signal();
    while queue.in_flight() > 0 {
        queue.next_used();
    }
}

/// A ring full of discards of a gigabyte each: who stops it waits for one of them at most.
#[test]
fn a_ring_full_of_large_discards_can_be_stopped() {
    if is_qsd() {
        return;
    }
    let mut served = Served::large();
    let frontend = &mut served.frontend;
    // A machine that is busy may be done with all of them before the stop arrives.
    for _ in 0..20 {
        let before = discard_all(frontend);
        // It has begun with them.
        frontend.queues[0].next_used();
        let base = frontend.stop_queue(0).unwrap();
        let done = base.wrapping_sub(before);
        go_on(frontend, base);
        frontend.queues[0].assert_serves(0, 1);
        if done < 100 {
            return;
        }
    }
    panic!("a stop always waits for the whole ring");
}

/// The mapping of a thread's stack: its lines in smaps.
fn stack_flags(pid: u32, thread: u32) -> Option<String> {
    let blocked = std::fs::read_to_string(format!("/proc/{pid}/task/{thread}/syscall")).ok()?;
    // The number of the call, six arguments, the stack pointer and the instruction pointer.
    let pointer = blocked.split_whitespace().nth(7)?.strip_prefix("0x")?;
    let pointer = u64::from_str_radix(pointer, 16).ok()?;
    let smaps = std::fs::read_to_string(format!("/proc/{pid}/smaps")).ok()?;
    let mut lines = smaps.lines().skip_while(|line| {
        let range = line.split(' ').next().and_then(|r| r.split_once('-'));
        let number = |text| u64::from_str_radix(text, 16);
        !range.is_some_and(|(start, end)| {
            matches!((number(start), number(end)), (Ok(s), Ok(e)) if (s..e).contains(&pointer))
        })
    });
    lines.find(|l| l.starts_with("VmFlags")).map(str::to_owned)
}

fn assert_stacks_locked(pid: u32, names: &[&str]) {
    for name in names {
        let threads = threads_named(pid, name);
        assert!(!threads.is_empty(), "{name}");
        for thread in threads {
            let end = Instant::now() + PATIENCE;
            let is_there = || Path::new(&format!("/proc/{pid}/task/{thread}")).exists();
            // One that runs shows no stack pointer. One that has just begun has the name of the thread that has made it,
            // and has locked nothing yet.
            loop {
                let flags = stack_flags(pid, thread);
                let has = |flag| flags.iter().any(|all| all.split(' ').any(|f| f == flag));
                if (has("lo") && has("dd")) || !is_there() {
                    break;
                }
                assert!(Instant::now() < end, "{name}: {flags:?}");
                thread::sleep(Duration::from_millis(5));
            }
        }
    }
}

/// AES leaves round keys on stacks: they must be neither swapped nor dumped.
#[test]
fn stacks_of_threads_with_keys_are_locked_and_not_dumped() {
    if is_qsd() || !rustix::process::geteuid().is_root() {
        eprintln!("not tested: only root may see the stacks of these processes");
        return;
    }
    let disk = Disk::new(16 * MIB);
    let daemon: Daemon = disk.attach(&AttachOptions {
        queues: Some(4),
        ..Default::default()
    });
    let mut frontend = daemon.connect();
    for queue in &mut frontend.queues {
        queue.assert_serves(0, 1);
    }
    let plane = daemon.data_plane();
    assert_stacks_locked(plane, &["queue-"]);
    // The first threads of both processes have the name of the program.
    assert_stacks_locked(plane, &["sealdisk"]);
    assert_stacks_locked(daemon.pid(), &["sealdisk", "key-check"]);
    // Beside these two there is the launcher, which has no key.
    assert_eq!(daemon.processes().len(), 3);
    assert_eq!(frontend.queues[0].read(0, 512).map(|d| d.len()), Ok(512));
}

/// The figures of docs/performance.md.
#[test]
#[ignore = "measures, and proves nothing"]
fn figures() {
    let unlimited = Rlimit {
        current: None,
        maximum: None,
    };
    let many = match setrlimit(Resource::Memlock, unlimited) {
        Ok(()) => 128,
        Err(_) => 32,
    };
    for queues in [16, many] {
        let disk = Disk::new(64 * MIB);
        let daemon = disk.attach(&AttachOptions {
            queues: Some(queues),
            ..Default::default()
        });
        let pinned = status_kb(daemon.data_plane(), "VmPin");
        eprintln!("{queues} queues, no guest: {pinned} kB pinned");
    }
    let mut served = Served::with_queues(256 * MIB, 16, &[]);
    let pid = served.daemon.data_plane();
    let (mut pinned, mut workers) = (0, 0);
    for _ in 0..8 {
        load_all(&mut served.frontend, 32);
        pinned = pinned.max(status_kb(pid, "VmPin"));
        workers = workers.max(threads_named(pid, "iou-wrk").len());
    }
    eprintln!("8 queues that write: {pinned} kB pinned, {workers} threads of the kernel");
    drop(served);

    let mut served = Served::large();
    let frontend = &mut served.frontend;
    for _ in 0..3 {
        let discards = discard_all(frontend);
        let begun = Instant::now();
        let base = frontend.stop_queue(0).unwrap();
        let took = begun.elapsed();
        let done = base.wrapping_sub(discards);
        eprintln!("a stop among 100 discards of 1 GiB took {took:?}; {done} were done");
        go_on(frontend, base);
    }
}
