//! Queues and memory that a hostile VMM describes wrongly.

use std::os::fd::AsFd;

use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use test_support::frontend::client::kind;
use test_support::frontend::device::{Frontend, Setup, mem_region, vring_addr};
use test_support::frontend::eventfd::EventFd;
use test_support::frontend::memory::{Region, USER_BASE};
use test_support::frontend::message::{Connection, request, vring_state, words};
use test_support::frontend::queue::{Queue, Seg};

use super::{KEPT, MIB, Victim};

/// Does one hostile thing on a fresh, running frontend, kicks its first queue, and looks whether
/// the daemon has survived.
fn try_on(victim: &Victim, case: &str, act: impl FnOnce(&mut Frontend)) {
    let mut frontend = victim.connect();
    // Refusals are not looked at here, so a missing one isn't waited for either.
    frontend
        .conn
        .set_patience(std::time::Duration::from_secs(2));
    act(&mut frontend);
    for queue in &frontend.queues {
        queue.kick.signal();
    }
    // Refused with an error, with the end of the connection, or taken and harmless.
    frontend.barrier_or_end();
    std::thread::sleep(std::time::Duration::from_millis(10));
    victim.assert_unharmed_after(frontend, case);
}

/// Makes a request available that a working queue would serve.
fn push_read(queue: &mut Queue) {
    let at = queue.arena.alloc(512, 16);
    queue.request(kind::IN, KEPT, &[Seg::into(at, 512)]);
}

#[test]
fn queue_sizes_that_are_none() {
    let victim = Victim::new();
    for size in [0u32, 3, 6, 100, 127, 1025, 32_768, 65_535, 65_536, u32::MAX] {
        for stopped in [false, true] {
            try_on(
                &victim,
                &format!("a queue of {size}, stopped: {stopped}"),
                |frontend| {
                    if stopped {
                        frontend.stop_queue(0).unwrap();
                    }
                    let _ = frontend.set(request::SET_VRING_NUM, &vring_state(0, size), &[]);
                    let _ = frontend.set_queue_fds(0);
                    push_read(&mut frontend.queues[0]);
                },
            );
        }
    }
}

#[test]
fn ring_addresses_outside_memory() {
    let victim = Victim::new();
    let memory = victim.connect().mem.clone();
    let region = &memory.regions()[1];
    let (start, end) = (region.user(), region.user() + region.size);
    let places = [
        0,
        16,
        end,
        end - 16,
        start - 1,
        start + 1,
        start + 3,
        USER_BASE + 0x7777_0000_0000,
        u64::MAX - 15,
    ];
    for place in places {
        for which in 0..3 {
            for running in [false, true] {
                let case = format!("ring {which} at {place:#x}, running: {running}");
                try_on(&victim, &case, |frontend| {
                    if !running {
                        frontend.stop_queue(0).unwrap();
                    }
                    let queue = &frontend.queues[0];
                    let mut at = [queue.desc, queue.used, queue.avail].map(|gpa| gpa + USER_BASE);
                    at[which] = place;
                    let body = vring_addr(0, 0, at[0], at[1], at[2], 0);
                    let _ = frontend.set(request::SET_VRING_ADDR, &body, &[]);
                    let _ = frontend.set_queue_fds(0);
                    let _ = frontend.enable(0, true);
                    push_read(&mut frontend.queues[0]);
                });
            }
        }
    }
}

#[test]
fn rings_that_reach_over_the_end_of_memory() {
    let victim = Victim::new();
    for size in [4u64, 128, 1024] {
        try_on(
            &victim,
            &format!("a ring of {size} at the end of memory"),
            |frontend| {
                frontend.stop_queue(0).unwrap();
                let region = &frontend.mem.regions()[2];
                let end = region.user() + region.size;
                let _ = frontend.set(request::SET_VRING_NUM, &vring_state(0, size as u32), &[]);
                let body = vring_addr(0, 0, end - 16 * size + 16, end - 8, end - 6, 0);
                let _ = frontend.set(request::SET_VRING_ADDR, &body, &[]);
                let _ = frontend.set_queue_fds(0);
                let _ = frontend.enable(0, true);
            },
        );
    }
}

#[test]
fn rings_on_top_of_each_other() {
    let victim = Victim::new();
    try_on(&victim, "desc, avail and used in one place", |frontend| {
        frontend.stop_queue(0).unwrap();
        let at = frontend.queues[0].desc + USER_BASE;
        let _ = frontend.set(
            request::SET_VRING_ADDR,
            &vring_addr(0, 0, at, at, at, 0),
            &[],
        );
        let _ = frontend.set_queue_fds(0);
        push_read(&mut frontend.queues[0]);
    });
    try_on(&victim, "two queues on the same rings", |frontend| {
        frontend.stop_queue(1).unwrap();
        let queue = &frontend.queues[0];
        let at = [queue.desc, queue.used, queue.avail].map(|gpa| gpa + USER_BASE);
        let body = vring_addr(1, 0, at[0], at[1], at[2], 0);
        let _ = frontend.set(request::SET_VRING_ADDR, &body, &[]);
        let _ = frontend.set_queue_fds(1);
        push_read(&mut frontend.queues[0]);
    });
}

#[test]
fn queues_that_do_not_exist() {
    let victim = Victim::new();
    for index in [64u32, 255, 256, 4096, 65_536, u32::MAX] {
        let call = EventFd::new();
        let low = words(&[u64::from(index & 0xff)]);
        for (request, body, fd) in [
            (request::SET_VRING_NUM, vring_state(index, 128), false),
            (request::SET_VRING_BASE, vring_state(index, 0), false),
            (request::GET_VRING_BASE, vring_state(index, 0), false),
            (request::SET_VRING_ENABLE, vring_state(index, 1), false),
            (
                request::SET_VRING_ADDR,
                vring_addr(index, 0, USER_BASE, USER_BASE, USER_BASE, 0),
                false,
            ),
            (request::SET_VRING_KICK, low.clone(), true),
            (request::SET_VRING_CALL, low.clone(), true),
            (request::SET_VRING_ERR, low.clone(), true),
        ] {
            let mut frontend = victim.connect();
            let fds = [call.as_fd()];
            let _ = frontend.send_only(request, &body, if fd { &fds } else { &[] });
            let _ = frontend.conn.receive();
            frontend.queues.clear();
            victim.assert_unharmed_after(frontend, &format!("request {request} of queue {index}"));
        }
    }
}

#[test]
fn start_indices_of_any_value() {
    let victim = Victim::new();
    for base in [1u32, 127, 65_535, 65_536, u32::MAX] {
        try_on(
            &victim,
            &format!("a queue that starts at {base}"),
            |frontend| {
                frontend.stop_queue(0).unwrap();
                let _ = frontend.set(request::SET_VRING_BASE, &vring_state(0, base), &[]);
                let _ = frontend.set_queue_fds(0);
                push_read(&mut frontend.queues[0]);
            },
        );
    }
}

#[test]
fn enable_values_that_are_neither() {
    let victim = Victim::new();
    for on in [2u32, 255, u32::MAX] {
        try_on(&victim, &format!("enable {on}"), |frontend| {
            let _ = frontend.set(request::SET_VRING_ENABLE, &vring_state(0, on), &[]);
        });
    }
}

/// QEMU waits for replies without a limit: a refusal says so or ends the connection.
#[test]
fn a_refusal_never_leaves_the_frontend_waiting() {
    let victim = Victim::new();
    let log = Region::new(0, 4096);
    for (case, request, body, fd) in [
        (
            "enable 2",
            request::SET_VRING_ENABLE,
            vring_state(0, 2),
            false,
        ),
        (
            "enable of a queue that isn't",
            request::SET_VRING_ENABLE,
            vring_state(99, 1),
            false,
        ),
        (
            "a log behind its file",
            request::SET_LOG_BASE,
            words(&[1 << 40, 0]),
            true,
        ),
        (
            "a log without file",
            request::SET_LOG_BASE,
            words(&[4096, 0]),
            false,
        ),
        (
            "inflight",
            request::GET_INFLIGHT_FD,
            words(&[0, 0, 2 | 128 << 16]),
            false,
        ),
        (
            "a config that overflows",
            request::GET_CONFIG,
            words(&[u64::MAX, 0]),
            false,
        ),
        (
            "the base of a queue that isn't",
            request::GET_VRING_BASE,
            vring_state(99, 0),
            false,
        ),
        (
            "features that aren't",
            request::SET_FEATURES,
            words(&[u64::MAX]),
            false,
        ),
        (
            "a queue of 3",
            request::SET_VRING_NUM,
            vring_state(0, 3),
            false,
        ),
        ("an unknown request", 77, vec![], false),
    ] {
        let frontend = victim.connect();
        frontend
            .conn
            .set_patience(std::time::Duration::from_secs(10));
        let fds = if fd { vec![log.fd()] } else { vec![] };
        frontend.send_only(request, &body, &fds).unwrap();
        if let Err(error) = frontend.conn.receive() {
            use std::io::ErrorKind::{TimedOut, WouldBlock};
            let waiting = matches!(error.kind(), WouldBlock | TimedOut);
            assert!(!waiting, "{case}: neither answered nor closed");
        }
        victim.assert_unharmed_after(frontend, case);
    }
}

#[test]
fn memory_smaller_than_announced() {
    // Pages that no file stands behind raise SIGBUS in whoever touches them.
    let victim = Victim::new();
    for (len, offset) in [(4096, 0), (4 * MIB - 4096, 0), (4 * MIB, 4096)] {
        let fd = memfd_create("short", MemfdFlags::CLOEXEC).unwrap();
        ftruncate(&fd, len).unwrap();
        let mut frontend = victim.connect();
        let gpa = 0x20_0000_0000u64;
        let body = mem_region(gpa, 4 * MIB, gpa + USER_BASE, offset);
        if frontend
            .set(request::ADD_MEM_REG, &body, &[fd.as_fd()])
            .is_ok()
        {
            for kind in [kind::IN, kind::OUT] {
                let queue = &mut frontend.queues[0];
                let addr = gpa + 4 * MIB - 4096;
                let data = Seg {
                    addr,
                    len: 4096,
                    writable: kind == kind::IN,
                };
                queue.request(kind, KEPT, &[data]);
            }
            std::thread::sleep(std::time::Duration::from_millis(100));
        }
        victim.assert_unharmed_after(frontend, &format!("memory of {len} bytes at {offset}"));
    }
}

#[test]
fn memory_tables_that_are_none() {
    let victim = Victim::new();
    let memory = Region::new(0, MIB);
    let region = |gpa, size, user, offset| [gpa, size, user, offset];
    let top = u64::MAX - MIB + 1;
    let tables: Vec<(&str, Vec<[u64; 4]>)> = vec![
        ("no region", vec![]),
        ("a region of nothing", vec![region(0, 0, USER_BASE, 0)]),
        (
            "a region around the end of addresses",
            vec![region(top + 1, MIB, USER_BASE, 0)],
        ),
        (
            "a region up to the end of addresses",
            vec![region(top, MIB, USER_BASE, 0)],
        ),
        (
            "user addresses around the end",
            vec![region(0, MIB, top + 1, 0)],
        ),
        (
            "an offset that overflows",
            vec![region(0, MIB, USER_BASE, u64::MAX - 4095)],
        ),
        (
            "an offset behind the file",
            vec![region(0, MIB, USER_BASE, 1 << 40)],
        ),
        ("an odd offset", vec![region(0, MIB, USER_BASE, 1)]),
        ("an odd size", vec![region(0, 4097, USER_BASE, 0)]),
        ("an exabyte", vec![region(0, 1 << 60, USER_BASE, 0)]),
        ("everything", vec![region(0, u64::MAX, USER_BASE, 0)]),
        (
            "two regions in one place",
            vec![
                region(0, MIB, USER_BASE, 0),
                region(4096, MIB, USER_BASE + MIB, 0),
            ],
        ),
    ];
    for (case, table) in &tables {
        for at_start in [false, true] {
            let mut body = words(&[table.len() as u64]);
            table.iter().for_each(|region| body.extend(words(region)));
            let fds = vec![memory.fd(); table.len()];
            let mut frontend = if at_start {
                let conn = Connection::open(victim.daemon.socket()).unwrap();
                Frontend::negotiate(conn, &Setup::default()).unwrap()
            } else {
                victim.connect()
            };
            let _ = frontend.set(request::SET_MEM_TABLE, &body, &fds);
            frontend.queues.iter_mut().for_each(push_read);
            victim.assert_unharmed_after(frontend, &format!("{case}, at the start: {at_start}"));
        }
    }
}

#[test]
fn memory_regions_that_are_none() {
    let victim = Victim::new();
    let memory = Region::new(0, MIB);
    for (gpa, size, user, offset) in [
        (0, MIB, USER_BASE, 0),
        (0x30_0000_0000, 0, USER_BASE + 0x30_0000_0000, 0),
        (u64::MAX - 4095, MIB, USER_BASE, 0),
        (0x30_0000_0000, 1 << 50, USER_BASE, 0),
        (0x30_0000_0000, MIB, u64::MAX - 4095, 0),
        (0x30_0000_0000, MIB, USER_BASE + 0x30_0000_0000, u64::MAX),
    ] {
        for remove in [false, true] {
            try_on(
                &victim,
                &format!("region {gpa:#x}+{size:#x}, remove: {remove}"),
                |frontend| {
                    let body = mem_region(gpa, size, user, offset);
                    if remove {
                        let _ = frontend.set(request::REM_MEM_REG, &body, &[]);
                    } else {
                        let _ = frontend.set(request::ADD_MEM_REG, &body, &[memory.fd()]);
                    }
                    push_read(&mut frontend.queues[0]);
                },
            );
        }
    }
    try_on(&victim, "more regions than slots", |frontend| {
        for i in 0..600u64 {
            let gpa = 0x30_0000_0000 + i * MIB;
            let body = mem_region(gpa, MIB, gpa + USER_BASE, 0);
            if frontend
                .set(request::ADD_MEM_REG, &body, &[memory.fd()])
                .is_err()
            {
                break;
            }
        }
    });
}

/// The memory of rings and of requests in flight goes away under them.
#[test]
fn memory_that_goes_while_in_use() {
    let victim = Victim::new();
    for round in 0..10u64 {
        try_on(&victim, "the table is replaced under load", |frontend| {
            for queue in &mut frontend.queues {
                for i in 0..16 {
                    let at = queue.arena.alloc(65536, 4096);
                    queue.request(kind::OUT, KEPT + i * 128, &[Seg::out(at, 65536)]);
                }
            }
            std::thread::sleep(std::time::Duration::from_micros(50 * round));
            let other = Region::new(0, MIB);
            let body = words(&[1, 0, MIB, USER_BASE, 0]);
            let _ = frontend.set(request::SET_MEM_TABLE, &body, &[other.fd()]);
        });
        try_on(&victim, "all regions are removed under load", |frontend| {
            for queue in &mut frontend.queues {
                for i in 0..16 {
                    let at = queue.arena.alloc(65536, 4096);
                    queue.request(kind::IN, i * 128, &[Seg::into(at, 65536)]);
                }
            }
            let mem = frontend.mem.clone();
            for region in mem.regions() {
                let _ = frontend.remove_region(region);
            }
        });
    }
}

/// File descriptors that are something else than they should be.
#[test]
fn descriptors_of_the_wrong_kind() {
    let victim = Victim::new();
    let file = std::fs::File::open("/proc/self/exe").unwrap();
    let null = std::fs::File::options()
        .read(true)
        .write(true)
        .open("/dev/null")
        .unwrap();
    let (reader, writer) = std::io::pipe().unwrap();
    drop(writer);
    let directory = std::fs::File::open("/").unwrap();
    // A pipe that is full, and blocks whoever writes to it; its reader does not read.
    let (full_reader, full) = std::io::pipe().unwrap();
    rustix::io::ioctl_fionbio(&full, true).unwrap();
    while rustix::io::write(&full, &[0; 4096]).is_ok() {}
    rustix::io::ioctl_fionbio(&full, false).unwrap();
    let fds = [
        file.as_fd(),
        null.as_fd(),
        reader.as_fd(),
        directory.as_fd(),
        full.as_fd(),
        full_reader.as_fd(),
    ];
    for (kind, fd) in fds.into_iter().enumerate() {
        for request in [
            request::SET_VRING_KICK,
            request::SET_VRING_CALL,
            request::SET_VRING_ERR,
        ] {
            try_on(
                &victim,
                &format!("request {request} with fd of kind {kind}"),
                |frontend| {
                    let _ = frontend.set(request, &words(&[0]), &[fd]);
                    push_read(&mut frontend.queues[0]);
                },
            );
        }
        try_on(&victim, &format!("memory of kind {kind}"), |frontend| {
            let gpa = 0x30_0000_0000;
            let body = mem_region(gpa, MIB, gpa + USER_BASE, 0);
            let _ = frontend.set(request::ADD_MEM_REG, &body, &[fd]);
        });
        try_on(&victim, &format!("a log of kind {kind}"), |frontend| {
            let _ = frontend.send_only(request::SET_LOG_BASE, &words(&[MIB, 0]), &[fd]);
        });
    }
}

#[test]
fn logs_that_are_none() {
    let victim = Victim::new();
    let log = Region::new(0, 4096);
    for (size, offset) in [
        (0, 0),
        (16, 0),
        (4096, 0),
        (1 << 40, 0),
        (4096, 1),
        (4096, u64::MAX - 8),
    ] {
        try_on(
            &victim,
            &format!("a log of {size} at {offset:#x}"),
            |frontend| {
                let body = words(&[size, offset]);
                let _ = frontend
                    .conn
                    .send(request::SET_LOG_BASE, 0, &body, &[log.fd()]);
                let _ = frontend.conn.receive();
                // LOG_ALL, and then reads to memory that the log may not cover.
                let features = frontend.features | 1 << 26;
                if frontend.set_features(features).is_ok() {
                    let high = frontend.mem.regions()[2].gpa;
                    let queue = &mut frontend.queues[0];
                    queue.request(kind::IN, KEPT, &[Seg::into(high, 4096)]);
                    push_read(queue);
                    std::thread::sleep(std::time::Duration::from_millis(30));
                }
            },
        );
    }
}
