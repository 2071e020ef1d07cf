//! Chains that can be followed and make no proper request.

use test_support::frontend::SECTOR;
use test_support::frontend::client::{
    NO_STATUS, Status, UNMAP, kind, range_segment, request_header,
};
use test_support::frontend::device::Setup;
use test_support::frontend::queue::{Queue, Seg, Used};
use test_support::rng::Rng;

use super::{KEPT, Victim};

/// Submits segments and returns what came back.
fn submit(queue: &mut Queue, segs: &[Seg]) -> Used {
    let head = queue.submit(segs);
    queue.wait_for(head)
}

#[test]
fn headers_that_are_too_short() {
    let victim = Victim::new();
    let mut frontend = victim.connect();
    let queue = &mut frontend.queues[0];
    for len in [0u32, 1, 4, 8, 15] {
        queue.arena.reset();
        let (header, data) = (queue.arena.alloc(16, 16), queue.arena.alloc(512, 16));
        queue.mem.fill(data, 0x5a, 512);
        let status = queue.arena.alloc(1, 1);
        queue.mem.write(status, &[NO_STATUS]);
        let segs = [
            Seg::out(header, len),
            Seg::into(data, 512),
            Seg::into(status, 1),
        ];
        let used = submit(queue, &segs);
        assert!(used.len <= 1, "a header of {len} bytes: {used:?}");
        assert_ne!(queue.mem.read(status, 1), [0], "a header of {len} bytes");
        assert_eq!(queue.mem.read(data, 512), [0x5a; 512]);
    }
    // No header at all: only writable buffers, and only one.
    let at = queue.arena.alloc(512, 16);
    for segs in [
        &[Seg::into(at, 512)][..],
        &[Seg::into(at, 16), Seg::into(at, 1)],
    ] {
        assert!(submit(queue, segs).len <= 1);
    }
    queue.assert_serves(KEPT, 1);
    victim.assert_unharmed_after(frontend, "headers that are too short");
}

#[test]
fn requests_without_a_status_byte() {
    let victim = Victim::new();
    let mut frontend = victim.connect();
    let queue = &mut frontend.queues[0];
    for kind in [
        kind::IN,
        kind::OUT,
        kind::FLUSH,
        kind::GET_ID,
        kind::DISCARD,
        99,
    ] {
        queue.arena.reset();
        let (header, data) = (queue.arena.alloc(16, 16), queue.arena.alloc(512, 16));
        queue.mem.write(header, &request_header(kind, KEPT));
        for segs in [
            &[Seg::out(header, 16)][..],
            &[Seg::out(header, 16), Seg::out(data, 512)],
            &[Seg::out(header, 16), Seg::out(data, 512), Seg::out(data, 1)],
            &[Seg::out(header, 16), Seg::into(data, 0)],
        ] {
            assert_eq!(
                submit(queue, segs).len,
                0,
                "type {kind} of {} buffers",
                segs.len()
            );
        }
    }
    queue.assert_serves(KEPT, 2);
    victim.assert_unharmed_after(frontend, "requests without a status byte");
}

#[test]
fn buffers_of_the_wrong_direction() {
    let victim = Victim::new();
    let mut frontend = victim.connect();
    let queue = &mut frontend.queues[0];
    // Over the content that is kept: nothing of this may be written.
    for kind in [kind::IN, kind::OUT] {
        queue.arena.reset();
        let (header, data) = (queue.arena.alloc(16, 16), queue.arena.alloc(1024, 16));
        let status = queue.arena.alloc(1, 1);
        queue.mem.write(header, &request_header(kind, 0));
        let h = Seg::out(header, 16);
        let (out, into) = (Seg::out(data, 512), Seg::into(data, 512));
        let (s, wrong_s) = (Seg::into(status, 1), Seg::out(status, 1));
        let wrong = if kind == kind::IN { out } else { into };
        for (case, segs) in [
            ("a writable header", vec![Seg::into(header, 16), wrong, s]),
            ("a readable status", vec![h, wrong, wrong_s]),
            ("data of the other direction", vec![h, wrong, s]),
            ("data of both directions", vec![h, out, into, s]),
            ("readable data behind writable", vec![h, into, out, s]),
            ("a status, then data", vec![h, s, out]),
        ] {
            queue.mem.write(header, &request_header(kind, 0));
            queue.mem.fill(data, 0x5a, 1024);
            queue.mem.write(status, &[NO_STATUS]);
            let used = submit(queue, &segs);
            let status = queue.mem.read(status, 1)[0];
            assert!(
                used.len <= 1,
                "{case}, type {kind}: {used:?}, status {status}"
            );
            assert_ne!(status, 0, "{case}, type {kind}: done");
            if used.len == 0 {
                let data = queue.mem.read(data, 1024);
                assert!(data.iter().all(|&byte| byte == 0x5a), "{case}, type {kind}");
            }
        }
    }
    queue.assert_serves(KEPT, 3);
    victim.assert_unharmed_after(frontend, "buffers of the wrong direction");
}

#[test]
fn sizes_that_are_no_sectors() {
    let victim = Victim::new();
    let mut frontend = victim.connect();
    let queue = &mut frontend.queues[0];
    for kind in [kind::IN, kind::OUT] {
        for lens in [
            &[1u32][..],
            &[511],
            &[513],
            &[512, 1],
            &[100, 100],
            &[4095],
            &[0, 3],
        ] {
            queue.arena.reset();
            let data: Vec<Seg> = lens
                .iter()
                .map(|&len| Seg {
                    addr: queue.arena.alloc(8192, 1),
                    len,
                    writable: kind == kind::IN,
                })
                .collect();
            let pending = queue.request(kind, 0, &data);
            let done = queue.complete(pending);
            assert_ne!(done.status, Status::Ok, "type {kind} of {lens:?}");
            assert!(done.len <= 1, "type {kind} of {lens:?}: {done:?}");
        }
    }
    victim.assert_unharmed_after(frontend, "sizes that are no sectors");
}

#[test]
fn zero_length_buffers_are_no_harm() {
    let victim = Victim::new();
    let mut frontend = victim.connect();
    let queue = &mut frontend.queues[0];
    for kind in [kind::OUT, kind::IN] {
        queue.arena.reset();
        let at = queue.arena.alloc(512, 16);
        queue.mem.fill(at, 0x77, 512);
        let writable = kind == kind::IN;
        let seg = |len| Seg {
            addr: at,
            len,
            writable,
        };
        // The standard forbids them to the driver: refused or ignored.
        let nowhere = Seg {
            addr: u64::MAX,
            len: 0,
            writable,
        };
        for data in [[seg(0), seg(512)], [seg(512), seg(0)], [nowhere, seg(512)]] {
            let pending = queue.request(kind, KEPT + 1, &data);
            let done = queue.complete(pending);
            let whole = if writable { 513 } else { 1 };
            assert!(matches!(done.len, 0 | 1) || done.len == whole, "{done:?}");
        }
    }
    queue.assert_serves(KEPT, 5);
    victim.assert_unharmed_after(frontend, "zero-length buffers");
}

#[test]
fn sectors_beyond_the_disk() {
    let victim = Victim::new();
    let mut frontend = victim.connect();
    let capacity = frontend.config().capacity();
    let queue = &mut frontend.queues[0];
    for kind in [kind::IN, kind::OUT] {
        for (sector, len) in [
            (capacity, 512),
            (capacity - 1, 1024),
            (capacity - 7, 4096),
            (capacity + 1, 512),
            (u64::MAX, 512),
            (u64::MAX - 1, 1024),
            (u64::MAX / 512, 512),
            (u64::MAX / 512 + 1, 512),
            (1 << 55, 512),
            (1 << 63, 512),
            (capacity, 0),
        ] {
            queue.arena.reset();
            let at = queue.arena.alloc(4096, 16);
            queue.mem.fill(at, 0x5a, 4096);
            let data = Seg {
                addr: at,
                len,
                writable: kind == kind::IN,
            };
            let data = if len == 0 { vec![] } else { vec![data] };
            let pending = queue.request(kind, sector, &data);
            let done = queue.complete(pending);
            if len > 0 {
                let case = format!("type {kind} of {len} at {sector:#x}");
                assert_eq!((done.status, done.len), (Status::IoErr, 1), "{case}");
                assert_eq!(queue.mem.read(at, 4096), [0x5a; 4096], "{case}");
            }
        }
    }
    // The last sectors are in reach.
    queue.assert_serves(capacity - 8, 6);
    victim.assert_unharmed_after(frontend, "sectors beyond the disk");
}

#[test]
fn requests_of_gigabytes() {
    let victim = Victim::new();
    let setup = Setup {
        indirect: true,
        queue_size: 256,
        ..Default::default()
    };
    let mut frontend = victim.connect_with(&setup);
    let region = frontend.mem.regions()[0].size as u32;
    let queue = &mut frontend.queues[0];
    // The same memory over and over, so that it is all valid; more than the disk has, and more
    // than 32 bits count.
    for (segments, len) in [(2, region), (64, 128 << 20), (100, region), (200, 64 << 20)] {
        for kind in [kind::IN, kind::OUT] {
            queue.arena.reset();
            let seg = Seg {
                addr: 0,
                len,
                writable: kind == kind::IN,
            };
            let pending = queue.request(kind, KEPT, &vec![seg; segments]);
            let done = queue.complete(pending);
            assert_ne!(done.status, Status::Ok, "{segments} x {len}");
            assert!(done.len <= 1);
        }
    }
    queue.assert_serves(KEPT, 7);
    victim.assert_unharmed_after(frontend, "requests of gigabytes");
}

#[test]
fn discards_that_are_none() {
    let victim = Victim::new();
    let mut frontend = victim.connect();
    let config = frontend.config();
    let capacity = config.capacity();
    let sectors = config.max_discard_sectors();
    let zeroes = config.max_write_zeroes_sectors();
    let queue = &mut frontend.queues[0];
    for kind in [kind::DISCARD, kind::WRITE_ZEROES] {
        let most = if kind == kind::DISCARD {
            sectors
        } else {
            zeroes
        };
        let mut refuse = |bytes: &[u8], case: &str| {
            queue.arena.reset();
            let at = queue.arena.alloc(bytes.len() as u64 + 1, 8);
            queue.mem.write(at, bytes);
            let data = [Seg::out(at, bytes.len() as u32)];
            let data = if bytes.is_empty() { &[][..] } else { &data[..] };
            let pending = queue.request(kind, 0, data);
            let done = queue.complete(pending);
            assert_ne!(done.status, Status::Ok, "type {kind}: {case}");
            assert!(done.len <= 1, "type {kind}: {case}");
        };
        let segment = |sector, sectors, flags| range_segment(sector, sectors, flags);
        refuse(&[], "no segment");
        for len in [1, 8, 15] {
            refuse(&segment(0, 8, 0)[..len], "half a segment");
        }
        refuse(
            &[&segment(0, 8, 0)[..], &segment(8, 8, 0)[..8]].concat(),
            "one and a half",
        );
        refuse(&segment(capacity, 1, 0), "behind the end");
        refuse(&segment(capacity - 1, 2, 0), "over the end");
        refuse(&segment(u64::MAX, 1, 0), "the last sector of all");
        refuse(&segment(u64::MAX - 7, 16, 0), "wrapping around");
        refuse(&segment(u64::MAX / 512 - 1, 8, 0), "bytes that overflow");
        refuse(&segment(0, u32::MAX, 0), "4 G sectors");
        refuse(&segment(0, 8, 2), "an unknown flag");
        refuse(&segment(0, 8, u32::MAX), "all flags");
        if u64::from(most) < capacity {
            refuse(&segment(0, most + 1, 0), "more than max_sectors");
        }
        let many = vec![segment(KEPT, 8, 0); 4096].concat();
        refuse(&many, "4096 segments");
        // A good one first and then a bad one: nothing of it is done.
        let mixed = [segment(0, 8, 0), segment(capacity, 8, 0)].concat();
        if config.max_discard_seg().min(config.max_write_zeroes_seg()) > 1 {
            refuse(&mixed, "a good and a bad segment");
        }
        if kind == kind::DISCARD {
            refuse(&segment(0, 8, UNMAP), "UNMAP on a discard");
        }
        // Writable segments.
        queue.arena.reset();
        let at = queue.arena.alloc(16, 16);
        queue.mem.write(at, &segment(0, 8, 0));
        let pending = queue.request(kind, 0, &[Seg::into(at, 16)]);
        assert_ne!(
            queue.complete(pending).status,
            Status::Ok,
            "a writable segment"
        );
    }
    queue.assert_serves(KEPT, 8);
    victim.assert_unharmed_after(frontend, "discards that are none");
}

#[test]
fn segments_of_a_discard_may_be_split_over_buffers() {
    let victim = Victim::new();
    let mut frontend = victim.connect();
    let queue = &mut frontend.queues[0];
    queue.write(KEPT, &[5; 8192]).unwrap();
    queue.arena.reset();
    let at = queue.arena.alloc(64, 16);
    queue.mem.write(at, &range_segment(KEPT + 8, 8, 0));
    let data = [Seg::out(at, 5), Seg::out(at + 5, 11)];
    let pending = queue.request(kind::WRITE_ZEROES, 0, &data);
    assert_eq!(queue.complete(pending).status, Status::Ok);
    let expected = [vec![5; 4096], vec![0; 4096]].concat();
    assert_eq!(queue.read(KEPT, 8192), Ok(expected));
    victim.assert_unharmed_after(frontend, "a split segment");
}

#[test]
fn ids_into_buffers_of_other_sizes() {
    let victim = Victim::new();
    let mut frontend = victim.connect();
    let queue = &mut frontend.queues[0];
    for len in [0u32, 1, 19, 20, 21, 512, 65536] {
        queue.arena.reset();
        let at = queue.arena.alloc(65536, 16);
        queue.mem.fill(at, 0x5a, 65536);
        let data = if len == 0 {
            vec![]
        } else {
            vec![Seg::into(at, len)]
        };
        let pending = queue.request(kind::GET_ID, 0, &data);
        let done = queue.complete(pending);
        assert!(done.len <= 21.max(len + 1), "{len}: {done:?}");
        let behind = queue.mem.read(at + u64::from(len.min(65535)), 1);
        assert!(
            len == 65536 || behind == [0x5a],
            "written behind a buffer of {len}"
        );
    }
    victim.assert_unharmed_after(frontend, "identifiers");
}

/// The guest rewrites its buffers, headers included, while the device works on them: each byte that
/// is written is one that the guest had there, and nothing else happens.
#[test]
fn buffers_that_change_while_in_flight() {
    let victim = Victim::new();
    let mut frontend = victim.connect();
    let mut rng = Rng::new(12);
    let (old, new) = ([0x11u8; 65536], [0x22u8; 65536]);
    for _ in 0..40 {
        let queue = &mut frontend.queues[0];
        queue.arena.reset();
        let requests: Vec<_> = (0..8)
            .map(|i| {
                let at = queue.arena.alloc(65536, 16);
                queue.mem.write(at, &old);
                (
                    queue.request(kind::OUT, KEPT + i * 128, &[Seg::out(at, 65536)]),
                    at,
                )
            })
            .collect();
        for &(pending, at) in &requests {
            queue.mem.write(at, &new);
            // The header too: a device that reads it twice would write elsewhere.
            let sector = rng.within(0..KEPT);
            queue
                .mem
                .write(pending.header, &request_header(kind::OUT, sector));
        }
        // Some may have been read after the header was changed: put the kept content back.
        for (pending, _) in requests {
            assert!(matches!(
                queue.complete(pending).status,
                Status::Ok | Status::IoErr
            ));
        }
        let back = queue.read(KEPT, 8 * 65536).unwrap();
        // A device that encrypts in place, or reads twice, would leave something else.
        let foreign = back.iter().position(|byte| ![0, 0x11, 0x22].contains(byte));
        assert_eq!(foreign, None, "a byte that the guest never had there");
    }
    frontend.queues[0].write(0, &victim.content).unwrap();
    victim.assert_unharmed_after(frontend, "buffers that change");
}

/// Reads into the ring itself, and into the buffers of other requests.
#[test]
fn buffers_that_overlap_the_rings() {
    let victim = Victim::new();
    for seed in 0..6 {
        let mut frontend = victim.connect();
        let queue = &mut frontend.queues[0];
        let target = [queue.desc, queue.avail, queue.used][seed % 3];
        let garbage = Rng::new(seed as u64).bytes(4096);
        queue.write(KEPT, &garbage).unwrap();
        queue.arena.reset();
        for _ in 0..8 {
            queue.request(kind::IN, KEPT, &[Seg::into(target, 4096)]);
        }
        std::thread::sleep(std::time::Duration::from_millis(20));
        frontend.queues[1].assert_serves(KEPT + 16, 4);
        victim.assert_unharmed_after(frontend, "reads into the ring");
    }
    let mut frontend = victim.connect();
    let queue = &mut frontend.queues[0];
    let pattern = Rng::new(7).bytes(SECTOR * 64);
    queue.write(KEPT, &pattern).unwrap();
    queue.arena.reset();
    let at = queue.arena.alloc(65536, 16);
    // Many reads into one buffer, and writes from it.
    let all: Vec<_> = (0..24)
        .map(|i| {
            let seg = |writable| Seg {
                addr: at + i * 512,
                len: 16384,
                writable,
            };
            let (kind, seg) = if i % 2 == 0 {
                (kind::IN, seg(true))
            } else {
                (kind::OUT, seg(false))
            };
            queue.request(kind, KEPT + 2000 + i * 4, &[seg])
        })
        .collect();
    for pending in all {
        assert_eq!(queue.complete(pending).status, Status::Ok);
    }
    victim.assert_unharmed_after(frontend, "buffers that overlap");
}
