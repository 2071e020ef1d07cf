//! Data planes that die again and again, or do not die although they should.

use std::sync::mpsc::sync_channel;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Resource, Rlimit, prlimit};
use test_support::frontend::client::Status;
use test_support::small_fs::SmallFs;
use test_support::{
    AttachOptions, Daemon, Disk, PATIENCE, await_end, data_plane_of, kill, open_files, threads,
};

use super::{MIB_8, assert_goes_on, is_qsd, next_data_plane, serving, settle, strike};

/// Kills whatever data plane there is, for a while. How many that were.
fn kill_all(daemon: &Daemon, time: Duration) -> u64 {
    let (end, mut dead) = (Instant::now() + time, Vec::new());
    while Instant::now() < end {
        if let Some(pid) = data_plane_of(daemon.pid()) {
            kill(pid);
            if !dead.contains(&pid) {
                dead.push(pid);
            }
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    dead.len() as u64
}

#[test]
fn those_that_die_at_once_are_started_more_and_more_rarely() {
    if is_qsd() {
        return;
    }
    let disk = Disk::new(MIB_8);
    let mut daemon = disk.attach(&AttachOptions::default());
    let mut frontend = daemon.connect();
    let died = kill_all(&daemon, Duration::from_secs(4));
    // At 0, 0.25, 0.75, 1.75 and 3.75 s, and less on a busy host. Each is two processes for a moment, until it
    // has namespaces of its own.
    assert!((2..=12).contains(&died), "{died} were killed");
    // The next one goes on, when its time has come.
    assert_goes_on(&mut frontend, 1);
    assert!(daemon.log().contains("another one is started in 500 ms"));
    kill_all(&daemon, Duration::from_secs(1));
    // One that waits for its next try ends when it is told to, in order.
    drop(frontend);
    let status = daemon.terminate();
    assert!(status.success(), "{status}\n{}", daemon.log());
}

/// How many files the attach process may have open.
fn limit_files(daemon: &Daemon, current: u64) {
    let attach = Pid::from_raw(daemon.pid().cast_signed());
    let limit = Rlimit {
        current: Some(current),
        maximum: Some(4096),
    };
    prlimit(attach, Resource::Nofile, limit).unwrap();
}

/// Waits until one more than the first has died, or could not be started.
fn await_second_death(daemon: &Daemon) {
    let end = Instant::now() + PATIENCE;
    while !daemon.log().contains("another one is started in 250 ms") {
        assert!(Instant::now() < end, "{}", daemon.log());
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// A host that lacks what a process needs to start one.
#[test]
fn one_that_cannot_be_started_is_tried_again() {
    if is_qsd() {
        return;
    }
    let disk = Disk::new(MIB_8);
    let mut daemon = disk.attach(&AttachOptions::default());
    let mut frontend = daemon.connect();
    // What the data plane has kept so far is taken.
    let mut before = 0;
    while before != open_files(daemon.pid()).len() {
        before = open_files(daemon.pid()).len();
        std::thread::sleep(Duration::from_millis(200));
    }
    limit_files(&daemon, 4);
    kill(daemon.data_plane());
    await_second_death(&daemon);
    let queue = &mut frontend.queues[0];
    let pending = queue.begin_write(0, &[1; 512]);
    assert_eq!(queue.next_within(Duration::from_millis(300)), None);
    limit_files(&daemon, 4096);
    assert_eq!(queue.complete(pending).status, Status::Ok);
    let reason = serving(&disk)["lastRestart"]["reason"].take();
    let reason = reason.as_str().unwrap();
    assert!(reason.contains("Too many open files"), "{reason}");

    limit_files(&daemon, 4);
    kill(daemon.data_plane());
    std::thread::sleep(Duration::from_millis(300));
    let status = daemon.terminate();
    assert!(
        !status.success(),
        "nothing could be flushed\n{}",
        daemon.log()
    );
}

/// Requests that may be what they die of are named, without data.
#[test]
fn in_a_loop_the_requests_that_are_done_again_are_named() {
    let Some(fs) = SmallFs::mount("tmpfs") else {
        return;
    };
    let disk = fs.disk(2 * MIB_8);
    let daemon = disk.attach(&AttachOptions::default());
    let mut frontend = daemon.connect();
    // They stay in flight, waiting for space.
    let ballast = fs.fill();
    let queue = &mut frontend.queues[0];
    queue.arena.reset();
    let pending = queue.begin_write(2048, &[1; 1 << 20]);
    assert_eq!(queue.next_within(Duration::from_millis(300)), None);
    let named = "is done again: write of 1048576 bytes at sector 2048";
    strike(&daemon);
    daemon_serves(&daemon, 1);
    assert!(!daemon.log().contains(named), "it may be a single death");
    strike(&daemon);
    daemon_serves(&daemon, 2);
    let log = daemon.log();
    assert!(
        log.contains("queue 0: head ") && log.contains(named),
        "{log}"
    );
    drop(ballast);
    assert_eq!(queue.complete(pending).status, Status::Ok);
}

/// Waits until the disk is served again, for the so many-th time.
fn daemon_serves(daemon: &Daemon, times: usize) {
    let end = Instant::now() + PATIENCE;
    while daemon.log().matches("is served again").count() < times {
        assert!(Instant::now() < end, "{}", daemon.log());
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// The thread of a queue, stopped by a debugger: the process itself sees that it hangs, and ends.
#[test]
fn a_queue_that_hangs_is_given_up() {
    if is_qsd() {
        return;
    }
    let disk = Disk::new(MIB_8);
    let daemon = disk.attach(&AttachOptions::default());
    let mut frontend = daemon.connect();
    let dead = daemon.data_plane();
    let Some(stopped) = Stopped::thread(dead, "queue-1") else {
        eprintln!("not tested: no thread can be stopped here");
        return;
    };
    let queue = &mut frontend.queues[1];
    let pending = queue.begin_write(0, &[1; 512]);
    // The others go on meanwhile.
    frontend.queues[0].assert_serves(4096, 1);
    await_end(dead);
    drop(stopped);
    next_data_plane(&daemon, dead);
    let queue = &mut frontend.queues[1];
    assert_eq!(queue.complete(pending).status, Status::Ok);
    let log = daemon.log();
    assert!(
        log.contains("the thread of queue 1 gives no sign of life for 30 s"),
        "{log}"
    );
    assert_goes_on(&mut frontend, 2);
}

/// A thread that does not run. Who stops it has to see it end.
struct Stopped(Option<JoinHandle<()>>);

impl Stopped {
    fn thread(pid: u32, name: &str) -> Option<Self> {
        let (thread, _) = threads(pid).into_iter().find(|(_, its)| its == name)?;
        let thread = thread.cast_signed();
        let (tell, told) = sync_channel(1);
        let debugger = std::thread::spawn(move || {
            let nothing = std::ptr::null_mut::<libc::c_void>();
            // SAFETY: both calls take no memory of this process.
            let stopped = unsafe {
                libc::ptrace(libc::PTRACE_SEIZE, thread, nothing, nothing) == 0
                    && libc::ptrace(libc::PTRACE_INTERRUPT, thread, nothing, nothing) == 0
            };
            tell.send(stopped).unwrap();
            let mut status = 0;
            // SAFETY: the status is this thread's; the call fails when the thread is gone.
            while stopped && unsafe { libc::waitpid(thread, &raw mut status, libc::__WALL) } > 0 {}
        });
        told.recv().unwrap().then_some(Self(Some(debugger)))
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        if let Some(debugger) = self.0.take().filter(|_| !std::thread::panicking()) {
            debugger.join().unwrap();
        }
    }
}

/// As above, where no frontend was there: the memory that outlives a data plane is made anew for the next one.
#[test]
fn one_that_served_nobody_is_tried_again_too() {
    if is_qsd() {
        return;
    }
    let disk = Disk::new(MIB_8);
    let daemon = disk.attach(&AttachOptions::default());
    settle(daemon.data_plane());
    limit_files(&daemon, 4);
    kill(daemon.data_plane());
    await_second_death(&daemon);
    limit_files(&daemon, 4096);
    let mut frontend = daemon.connect();
    assert_goes_on(&mut frontend, 1);
    drop(frontend);
    daemon.stop();
}
