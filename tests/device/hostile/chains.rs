//! Descriptor chains that can't be followed: the chain comes back with no data written, the queue
//! and its neighbour go on.

use test_support::frontend;
use test_support::frontend::client::{NO_STATUS, kind, request_header};
use test_support::frontend::device::{Frontend, Setup, feature};
use test_support::frontend::queue::{Desc, INDIRECT, NEXT, Queue, WRITE};

use super::Victim;

/// Where a hostile chain finds a proper header, data and status.
struct Parts {
    header: u64,
    data: u64,
    status: u64,
    /// WRITE where the device writes the data.
    direction: u16,
}

impl Parts {
    fn new(queue: &mut Queue, kind: u32) -> Self {
        queue.arena.reset();
        let parts = Self {
            header: queue.arena.alloc(16, 16),
            data: queue.arena.alloc(65536, 4096),
            status: queue.arena.alloc(1, 1),
            direction: if kind == kind::IN { WRITE } else { 0 },
        };
        queue
            .mem
            .write(parts.header, &request_header(kind, super::KEPT));
        queue.mem.fill(parts.data, 0x5a, 65536);
        queue.mem.write(parts.status, &[NO_STATUS]);
        parts
    }

    fn header(&self, next: u16) -> Desc {
        Desc {
            addr: self.header,
            len: 16,
            flags: NEXT,
            next,
        }
    }

    fn data(&self, next: u16) -> Desc {
        Desc {
            addr: self.data,
            len: 512,
            flags: NEXT | self.direction,
            next,
        }
    }

    fn status(&self) -> Desc {
        Desc {
            addr: self.status,
            len: 1,
            flags: WRITE,
            next: 0,
        }
    }
}

/// Submits a chain of which the test wrote the descriptors, and demands that it comes back with no
/// data written, that a correct chain behind it is served, and so is the other queue. Where the
/// status byte can be found, the device may say so there.
fn assert_refused(frontend: &mut Frontend, head: u16, parts: &Parts, case: &str) {
    let queue = &mut frontend.queues[0];
    queue.push(head);
    queue.kick.signal();
    let used = queue.wait_for(head);
    let status = queue.mem.read(parts.status, 1)[0];
    let refused = matches!((used.len, status), (0, NO_STATUS) | (1, 1));
    assert!(
        refused,
        "{case}: came back with length {} and status {status}",
        used.len
    );
    let data = queue.mem.read(parts.data, 65536);
    assert!(
        data.iter().all(|&byte| byte == 0x5a),
        "{case}: the data buffer was written"
    );
    queue.assert_serves(super::KEPT, 21);
    frontend.queues[1].assert_serves(super::KEPT, 22);
}

/// Runs a case for reads and writes, on a fresh connection each.
fn try_chain(victim: &Victim, case: &str, write: impl Fn(&mut Queue, &Parts) -> u16) {
    for kind in [kind::IN, kind::OUT] {
        let mut frontend = victim.connect();
        let parts = Parts::new(&mut frontend.queues[0], kind);
        let head = write(&mut frontend.queues[0], &parts);
        assert_refused(&mut frontend, head, &parts, case);
    }
}

#[test]
fn chains_that_loop_or_leave_the_table() {
    let victim = Victim::new();
    try_chain(
        &victim,
        "a descriptor that is its own next",
        |queue, parts| {
            let d = queue.take(2);
            queue.write_desc(d[0], parts.header(d[1]));
            queue.write_desc(d[1], parts.data(d[1]));
            d[0]
        },
    );
    try_chain(&victim, "a loop back to the head", |queue, parts| {
        let d = queue.take(3);
        queue.write_desc(d[0], parts.header(d[1]));
        queue.write_desc(d[1], parts.data(d[2]));
        queue.write_desc(
            d[2],
            Desc {
                flags: WRITE | NEXT,
                next: d[0],
                ..parts.status()
            },
        );
        d[0]
    });
    try_chain(&victim, "a head that is its own next", |queue, parts| {
        let d = queue.take(1);
        queue.write_desc(d[0], parts.header(d[0]));
        d[0]
    });
    try_chain(&victim, "next beyond the table", |queue, parts| {
        let d = queue.take(2);
        queue.write_desc(d[0], parts.header(d[1]));
        queue.write_desc(d[1], parts.data(queue.size));
        d[0]
    });
    try_chain(&victim, "next far beyond the table", |queue, parts| {
        let d = queue.take(2);
        queue.write_desc(d[0], parts.header(d[1]));
        queue.write_desc(d[1], parts.data(u16::MAX));
        d[0]
    });
    try_chain(
        &victim,
        "a status that announces more, out of the table",
        |queue, parts| {
            let d = queue.take(3);
            queue.write_desc(d[0], parts.header(d[1]));
            queue.write_desc(d[1], parts.data(d[2]));
            queue.write_desc(
                d[2],
                Desc {
                    flags: WRITE | NEXT,
                    next: 40_000,
                    ..parts.status()
                },
            );
            d[0]
        },
    );
    victim.assert_unharmed("chains that loop");
}

#[test]
fn heads_beyond_the_table() {
    let victim = Victim::new();
    for head in [128u16, 129, 4096, u16::MAX] {
        let mut frontend = victim.connect();
        let queue = &mut frontend.queues[0];
        queue.expect(head);
        queue.push(head);
        queue.kick.signal();
        // Given back, skipped or the queue given up: the neighbour is served in any case.
        if let Some(used) = queue.next_within(std::time::Duration::from_millis(300)) {
            assert_eq!(used.len, 0);
        }
        frontend.queues[1].assert_serves(super::KEPT, 3);
        victim.assert_unharmed_after(frontend, &format!("head {head}"));
    }
}

/// Memory that holds an indirect table of these descriptors.
fn table(queue: &mut Queue, descs: &[Desc]) -> u64 {
    let at = queue.arena.alloc(16 * descs.len() as u64, 16);
    let bytes: Vec<u8> = descs.iter().flat_map(Desc::bytes).collect();
    queue.mem.write(at, &bytes);
    at
}

/// A head that is an indirect table.
fn indirect(queue: &mut Queue, addr: u64, len: u32, more: u16) -> u16 {
    let head = queue.take(1)[0];
    queue.write_desc(
        head,
        Desc {
            addr,
            len,
            flags: INDIRECT | more,
            next: head,
        },
    );
    head
}

#[test]
fn indirect_tables_that_are_none() {
    let victim = Victim::new();
    let proper = |parts: &Parts| [parts.header(1), parts.data(2), parts.status()];
    for len in [0, 1, 15, 17, 31, 47, 49] {
        try_chain(
            &victim,
            &format!("an indirect table of {len} bytes"),
            |queue, parts| {
                let at = table(queue, &proper(parts));
                indirect(queue, at, len, 0)
            },
        );
    }
    try_chain(&victim, "a table shorter than its chain", |queue, parts| {
        let at = table(queue, &proper(parts));
        indirect(queue, at, 32, 0)
    });
    try_chain(&victim, "a table outside memory", |queue, _| {
        indirect(queue, 0x7777_0000_0000, 48, 0)
    });
    try_chain(
        &victim,
        "a table at the end of the address space",
        |queue, _| indirect(queue, u64::MAX - 15, 48, 0),
    );
    try_chain(&victim, "a table of 4 GiB", |queue, parts| {
        let at = table(queue, &[parts.header(2_000)]);
        indirect(queue, at, 0xffff_fff0, 0)
    });
    try_chain(&victim, "a table in a table", |queue, parts| {
        let inner = table(queue, &proper(parts));
        let desc = Desc {
            addr: inner,
            len: 48,
            flags: INDIRECT,
            next: 0,
        };
        let at = table(queue, &[desc]);
        indirect(queue, at, 16, 0)
    });
    try_chain(
        &victim,
        "a table in a table, behind a header",
        |queue, parts| {
            let inner = table(queue, &[parts.data(1), parts.status()]);
            let desc = Desc {
                addr: inner,
                len: 32,
                flags: INDIRECT,
                next: 0,
            };
            let at = table(queue, &[parts.header(1), desc]);
            indirect(queue, at, 32, 0)
        },
    );
    try_chain(&victim, "a loop in a table", |queue, parts| {
        let at = table(queue, &[parts.header(1), parts.data(1)]);
        indirect(queue, at, 32, 0)
    });
    try_chain(&victim, "a table whose next leaves it", |queue, parts| {
        let at = table(
            queue,
            &[parts.header(1), parts.data(2), parts.data(u16::MAX)],
        );
        indirect(queue, at, 48, 0)
    });
    victim.assert_unharmed("indirect tables that are none");
}

#[test]
fn an_indirect_table_of_65535_entries() {
    let victim = Victim::new();
    for entries in [300u16, 1024, 65_535] {
        try_chain(&victim, &format!("a table of {entries}"), |queue, parts| {
            let mut descs: Vec<Desc> = (1..entries - 1)
                .map(|next| Desc {
                    len: 16,
                    ..parts.data(next + 1)
                })
                .collect();
            descs.insert(0, parts.header(1));
            descs.push(parts.status());
            let at = table(queue, &descs);
            indirect(queue, at, 16 * u32::from(entries), 0)
        });
    }
    victim.assert_unharmed("long tables");
}

#[test]
fn an_indirect_table_that_announces_a_next() {
    let victim = Victim::new();
    let mut frontend = victim.connect();
    let queue = &mut frontend.queues[0];
    let parts = Parts::new(queue, kind::IN);
    let at = table(queue, &[parts.header(1), parts.data(2), parts.status()]);
    let head = indirect(queue, at, 48, NEXT);
    queue.push(head);
    queue.kick.signal();
    // The standard forbids it to the driver: ignored or refused.
    let used = queue.wait_for(head);
    assert!(used.len == 0 || used.len == 513, "{used:?}");
    queue.assert_serves(super::KEPT, 5);
    victim.assert_unharmed_after(frontend, "a table with NEXT");
}

#[test]
fn indirect_tables_without_the_feature() {
    let victim = Victim::new();
    let setup = Setup::default().without(feature::INDIRECT_DESC);
    let mut frontend = victim.connect_with(&setup);
    let queue = &mut frontend.queues[0];
    let parts = Parts::new(queue, kind::IN);
    let at = table(queue, &[parts.header(1), parts.data(2), parts.status()]);
    let head = indirect(queue, at, 48, 0);
    queue.push(head);
    queue.kick.signal();
    // The standard forbids it to the driver; served or given back, but not lost.
    let used = queue.wait_for(head);
    assert!(used.len == 0 || used.len == 513, "{used:?}");
    queue.assert_serves(super::KEPT, 5);
    victim.assert_unharmed_after(frontend, "an indirect table that was not negotiated");
}

#[test]
fn descriptors_that_are_not_in_memory() {
    let victim = Victim::new();
    let memory = victim.connect().mem.clone();
    let end = memory.regions()[1].end();
    let high = memory.regions()[2].end();
    let places = [
        (end, "behind a region"),
        (end - 511, "over the end of a region"),
        (high - 1, "over the end of memory"),
        (0x7777_0000_0000, "in a hole"),
        (u64::MAX - 511, "up to the end of the address space"),
        (u64::MAX - 10, "wrapping around the address space"),
        (frontend::memory::USER_BASE, "at the frontend's own address"),
    ];
    for (addr, place) in places {
        try_chain(
            &victim,
            &format!("a data buffer {place}"),
            |queue, parts| {
                let d = queue.take(3);
                queue.write_desc(d[0], parts.header(d[1]));
                queue.write_desc(
                    d[1],
                    Desc {
                        addr,
                        ..parts.data(d[2])
                    },
                );
                queue.write_desc(d[2], parts.status());
                d[0]
            },
        );
        try_chain(&victim, &format!("a header {place}"), |queue, parts| {
            let d = queue.take(3);
            let addr = if addr == end - 511 { end - 15 } else { addr };
            let addr = if addr == u64::MAX - 511 {
                u64::MAX - 15
            } else {
                addr
            };
            queue.write_desc(
                d[0],
                Desc {
                    addr,
                    ..parts.header(d[1])
                },
            );
            queue.write_desc(d[1], parts.data(d[2]));
            queue.write_desc(d[2], parts.status());
            d[0]
        });
    }
    for (addr, place) in [
        (end, "behind"),
        (u64::MAX, "at the last address"),
        (high, "above"),
    ] {
        try_chain(&victim, &format!("a status {place}"), |queue, parts| {
            let d = queue.take(3);
            queue.write_desc(d[0], parts.header(d[1]));
            queue.write_desc(d[1], parts.data(d[2]));
            queue.write_desc(
                d[2],
                Desc {
                    addr,
                    ..parts.status()
                },
            );
            d[0]
        });
    }
    try_chain(&victim, "a data buffer of 4 GiB", |queue, parts| {
        let d = queue.take(3);
        queue.write_desc(d[0], parts.header(d[1]));
        queue.write_desc(
            d[1],
            Desc {
                addr: 4096,
                len: 0xffff_fe00,
                ..parts.data(d[2])
            },
        );
        queue.write_desc(d[2], parts.status());
        d[0]
    });
    victim.assert_unharmed("descriptors outside memory");
}
