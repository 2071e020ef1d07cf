//! Messages that are none, and frontends that don't go on.

use std::io::Write;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use rustix::net::sockopt::{Timeout, set_socket_timeout};
use test_support::frontend::device::{Frontend, Setup};
use test_support::frontend::eventfd::EventFd;
use test_support::frontend::message::{
    Connection, NEED_REPLY, REPLY, VERSION, header, request, vring_state, words,
};
use test_support::rng::Rng;

use super::Victim;

fn open(victim: &Victim) -> Connection {
    Connection::open(victim.daemon.socket()).unwrap()
}

/// Sends bytes on a connection that has negotiated, and on one that hasn't.
fn try_bytes(victim: &Victim, case: &str, bytes: &[u8]) {
    let conn = open(victim);
    let _ = conn.send_raw(bytes, &[]);
    drop(conn);
    let frontend = victim.connect();
    let _ = frontend.conn.send_raw(bytes, &[]);
    victim.assert_unharmed_after(frontend, case);
}

#[test]
fn bytes_that_are_no_message() {
    let victim = Victim::new();
    for seed in 0..20 {
        let mut rng = Rng::new(seed);
        let len = rng.within(1..4096) as usize;
        try_bytes(&victim, &format!("garbage of seed {seed}"), &rng.bytes(len));
    }
    try_bytes(&victim, "zeros", &[0; 4096]);
    try_bytes(&victim, "ones", &[0xff; 4096]);
    try_bytes(&victim, "HTTP", b"GET / HTTP/1.1\r\nHost: disk\r\n\r\n");
}

#[test]
fn headers_that_lie() {
    let victim = Victim::new();
    for size in [1u32, 4095, 4096, 4097, 65_536, 1 << 20, 1 << 31, u32::MAX] {
        for request in [
            request::GET_FEATURES,
            request::SET_MEM_TABLE,
            request::SET_CONFIG,
            77,
        ] {
            let case = format!("request {request} of {size} bytes");
            try_bytes(&victim, &case, &header(request, VERSION, size));
        }
    }
    for flags in [0u32, 2, 3, REPLY | VERSION, u32::MAX, 0xffff_fff0 | VERSION] {
        try_bytes(
            &victim,
            &format!("flags {flags:#x}"),
            &header(request::GET_FEATURES, flags, 0),
        );
    }
    for request in [
        0u32,
        19,
        20,
        22,
        23,
        26,
        27,
        28,
        29,
        30,
        33,
        35,
        39,
        40,
        41,
        99,
        u32::MAX,
    ] {
        let bytes = [
            header(request, VERSION | NEED_REPLY, 8).to_vec(),
            vec![0; 8],
        ]
        .concat();
        try_bytes(&victim, &format!("unknown request {request}"), &bytes);
    }
}

/// Every request with bodies of sizes that are not its own.
#[test]
fn bodies_of_the_wrong_size() {
    let victim = Victim::new();
    for request in 0..=42u32 {
        for size in [
            0usize, 1, 4, 7, 8, 9, 12, 16, 24, 39, 40, 41, 48, 264, 265, 4096,
        ] {
            // Many on one evening: only some look whether all is well.
            let conn = open(&victim);
            let _ = conn.send(request, NEED_REPLY, &vec![0; size], &[]);
            drop(conn);
        }
        if request % 6 == 0 {
            victim.assert_unharmed(&format!("request {request} of wrong sizes"));
        }
    }
    victim.assert_unharmed("bodies of wrong sizes");
    for request in 0..=42u32 {
        let frontend = victim.connect();
        let _ = frontend.conn.send(request, NEED_REPLY, &[0xff; 40], &[]);
        drop(frontend);
    }
    victim.assert_unharmed("bodies of ones");
}

/// File descriptors too many, or where none belong, or none where one belongs.
#[test]
fn the_wrong_number_of_descriptors() {
    let victim = Victim::new();
    let event = EventFd::new();
    for count in [1usize, 2, 8, 9, 33, 253] {
        let fds = vec![event.as_fd(); count];
        for (request, body) in [
            (request::GET_FEATURES, vec![]),
            (request::SET_OWNER, vec![]),
            (request::SET_VRING_KICK, words(&[0])),
            (request::SET_VRING_CALL, words(&[0])),
            (request::SET_VRING_NUM, vring_state(0, 128)),
            (request::SET_MEM_TABLE, words(&[1, 0, 4096, 0, 0])),
            (request::ADD_MEM_REG, words(&[0, 1 << 40, 4096, 1 << 40, 0])),
            (request::SET_LOG_BASE, words(&[4096, 0])),
            (99, vec![]),
        ] {
            let frontend = victim.connect();
            let _ = frontend.conn.send(request, NEED_REPLY, &body, &fds);
            drop(frontend);
        }
        victim.assert_unharmed(&format!("{count} descriptors"));
    }
    for (request, body) in [
        (request::SET_VRING_KICK, words(&[0])),
        (request::SET_VRING_CALL, words(&[0])),
        (request::SET_VRING_ERR, words(&[0])),
        (request::SET_MEM_TABLE, words(&[1, 0, 4096, 0, 0])),
        (request::ADD_MEM_REG, words(&[0, 1 << 40, 4096, 1 << 40, 0])),
        (request::SET_LOG_BASE, words(&[4096, 0])),
        (request::SET_LOG_FD, vec![]),
        (request::SET_BACKEND_REQ_FD, vec![]),
        (request::SET_INFLIGHT_FD, words(&[4096, 0, 2 | 128 << 16])),
    ] {
        let frontend = victim.connect();
        let _ = frontend.conn.send(request, NEED_REPLY, &body, &[]);
        victim.assert_unharmed_after(frontend, &format!("request {request} without descriptor"));
    }
    // Descriptors in the middle of a message.
    let conn = open(&victim);
    let bytes = [
        header(request::SET_FEATURES, VERSION, 8).to_vec(),
        vec![0; 8],
    ]
    .concat();
    conn.send_raw(&bytes[..6], &[event.as_fd()]).unwrap();
    let _ = conn.send_raw(&bytes[6..14], &[event.as_fd(), event.as_fd()]);
    let _ = conn.send_raw(&bytes[14..], &[event.as_fd()]);
    drop(conn);
    victim.assert_unharmed("descriptors in the middle of a message");
}

#[test]
fn config_requests_that_overflow() {
    let victim = Victim::new();
    for (offset, size) in [
        (u32::MAX, 1u32),
        (u32::MAX - 3, 8),
        (0, 4097),
        (4096, 4),
        (60, 4036),
        (0x100, 3841),
        (0, 0),
    ] {
        for request in [request::GET_CONFIG, request::SET_CONFIG] {
            let mut body = Vec::new();
            [offset, size, 0]
                .iter()
                .for_each(|word| body.extend(word.to_le_bytes()));
            body.resize(12 + size.min(8192) as usize, 0);
            let frontend = victim.connect();
            let _ = frontend.conn.send(request, 0, &body, &[]);
            frontend.barrier_or_end();
            let case = format!("request {request} at {offset:#x} of {size}");
            victim.assert_unharmed_after(frontend, &case);
        }
    }
    // A size that isn't that of the body.
    for (told, sent) in [(60u32, 8usize), (8, 60), (u32::MAX, 60), (0xffff_fff4, 60)] {
        let mut body = Vec::new();
        [0, told, 0]
            .iter()
            .for_each(|word| body.extend(word.to_le_bytes()));
        body.resize(12 + sent, 0);
        let frontend = victim.connect();
        let _ = frontend.conn.send(request::GET_CONFIG, 0, &body, &[]);
        let case = format!("a config request of {told} with {sent} bytes");
        victim.assert_unharmed_after(frontend, &case);
    }
}

#[test]
fn messages_out_of_order() {
    let victim = Victim::new();
    let mut rng = Rng::new(31);
    // Single requests on a connection that has negotiated nothing.
    for request in 1..=40u32 {
        let conn = open(&victim);
        let _ = conn.send(request, 0, &words(&[0]), &[]);
        let _ = conn.send(request::GET_FEATURES, 0, &[], &[]);
        drop(conn);
    }
    victim.assert_unharmed("single requests");
    // Well-formed requests in any order, on a running device, with no answer read.
    for round in 0..30 {
        let frontend = victim.connect();
        let event = EventFd::new();
        for _ in 0..rng.within(1..30) {
            let index = rng.within(0..3) as u32;
            let state = vring_state(index, rng.pick(&[0, 1, 128]));
            let _ = match rng.within(0..9) {
                0 => frontend
                    .conn
                    .send(request::SET_VRING_ENABLE, 0, &state, &[]),
                1 => frontend.conn.send(request::GET_VRING_BASE, 0, &state, &[]),
                2 => frontend.conn.send(request::SET_VRING_BASE, 0, &state, &[]),
                3 => frontend.conn.send(request::SET_VRING_NUM, 0, &state, &[]),
                4 => frontend.conn.send(request::RESET_DEVICE, 0, &[], &[]),
                5 => frontend.conn.send(request::RESET_OWNER, 0, &[], &[]),
                6 => frontend.conn.send(request::SET_OWNER, 0, &[], &[]),
                7 => {
                    let kick = words(&[u64::from(index)]);
                    frontend
                        .conn
                        .send(request::SET_VRING_KICK, 0, &kick, &[event.as_fd()])
                }
                _ => {
                    let features = frontend.features & rng.next();
                    frontend
                        .conn
                        .send(request::SET_FEATURES, 0, &words(&[features]), &[])
                }
            };
            frontend.queues.iter().for_each(|queue| queue.kick.signal());
        }
        victim.assert_unharmed_after(frontend, &format!("round {round} of any order"));
    }
}

/// Frontends that stop in the middle: each ends when it goes, and the next is served.
#[test]
fn frontends_that_stall() {
    let victim = Victim::new();
    let features = header(request::SET_FEATURES, VERSION, 8);
    for len in [1, 4, 11, 12] {
        let mut conn = UnixStream::connect(victim.daemon.socket()).unwrap();
        conn.write_all(&features[..len]).unwrap();
        std::thread::sleep(Duration::from_millis(30));
        drop(conn);
        victim.assert_unharmed(&format!("{len} bytes of a message, then nothing"));
    }
    // Says all it has to say and reads no answer: soon the socket is full, and stays so.
    let conn = open(&victim);
    let a_moment = Some(Duration::from_millis(500));
    set_socket_timeout(&conn, Timeout::Send, a_moment).unwrap();
    for _ in 0..2000 {
        if conn.send(request::GET_FEATURES, 0, &[], &[]).is_err() {
            break;
        }
    }
    drop(conn);
    victim.assert_unharmed("answers that nobody reads");
    // Half set up.
    let conn = open(&victim);
    let half = Frontend::negotiate(conn, &Setup::default()).unwrap();
    half.set_mem_table().unwrap();
    victim.assert_unharmed_after(half, "a device that is set up half");
    // Half closed.
    let frontend = victim.connect();
    rustix::net::shutdown(frontend.conn.as_fd(), rustix::net::Shutdown::Write).unwrap();
    assert!(
        frontend.conn.closed_by_peer(),
        "a connection that was shut down stays"
    );
    victim.assert_unharmed_after(frontend, "a shutdown");
}

#[test]
fn a_thousand_connections() {
    let victim = Victim::new();
    for i in 0..1000 {
        let conn = open(&victim);
        if i % 3 == 0 {
            let _ = conn.send(request::GET_FEATURES, 0, &[], &[]);
        }
        drop(conn);
        if i % 250 == 249 {
            victim.assert_unharmed(&format!("{} connections", i + 1));
        }
    }
    // Set up completely, and gone.
    for _ in 0..50 {
        drop(victim.connect());
    }
    victim.assert_unharmed("50 devices");
}

/// Who comes second waits or is turned away, and doesn't disturb the first.
#[test]
fn a_second_frontend_while_the_first_is_served() {
    let victim = Victim::new();
    let mut first = victim.connect();
    let second: Vec<_> = (0..20).map(|_| open(&victim)).collect();
    for conn in &second {
        let _ = conn.send(request::GET_FEATURES, 0, &[], &[]);
    }
    first.queues[0].assert_serves(super::KEPT, 1);
    drop(second);
    first.queues[1].assert_serves(super::KEPT, 2);
    victim.assert_unharmed_after(first, "others that knock");
}
