//! Requests of virtio-blk, of every shape that drivers make.

use test_support::frontend::SECTOR;
use test_support::frontend::client::{Status, UNMAP, kind};
use test_support::frontend::device::{Setup, feature};
use test_support::frontend::queue::{Desc, INDIRECT, NEXT, Seg, WRITE};
use test_support::rng::Rng;
use test_support::{AttachOptions, Disk, frontend};

use super::MIB;

/// SLOF, the firmware of pseries guests, sets the barrier flag of virtio before 1.0 in each request.
#[test]
fn the_legacy_barrier_flag_is_ignored() {
    const BARRIER: u32 = 1 << 31;
    let disk = Disk::new(4 * MIB);
    let daemon = disk.attach(&AttachOptions::default());
    let queue = &mut daemon.connect().queues[0];
    let data = Rng::new(8).bytes(4096);
    let at = queue.arena.alloc(4096, 16);
    queue.mem.write(at, &data);
    let written = queue.request(BARRIER | kind::OUT, 8, &[Seg::out(at, 4096)]);
    assert_eq!(queue.complete(written).status, Status::Ok);
    queue.mem.fill(at, 0, 4096);
    let read = queue.request(BARRIER | kind::IN, 8, &[Seg::into(at, 4096)]);
    assert_eq!(queue.complete(read).status, Status::Ok);
    assert!(queue.mem.read(at, 4096) == data);
    let flushed = queue.request(BARRIER | kind::FLUSH, 0, &[]);
    assert_eq!(queue.complete(flushed).status, Status::Ok);
    let scsi = queue.request(BARRIER | 2, 0, &[]);
    assert_eq!(queue.complete(scsi).status, Status::Unsupp);
}

/// One segment is offered; what has more is well-formed, and not served.
#[test]
fn more_segments_than_are_offered_are_unsupported() {
    let disk = Disk::new(4 * MIB);
    let daemon = disk.attach(&AttachOptions::default());
    let mut frontend = daemon.connect();
    let config = frontend.config();
    assert_eq!(config.max_discard_seg(), 1);
    assert_eq!(config.max_write_zeroes_seg(), 1);
    let queue = &mut frontend.queues[0];
    let data = Rng::new(9).bytes(8192);
    queue.write(0, &data).unwrap();
    let two = [(0, 8, 0), (8, 8, 0)];
    assert_eq!(queue.discard(&two), Err(Status::Unsupp));
    assert_eq!(queue.write_zeroes(&two), Err(Status::Unsupp));
    assert!(queue.read(0, 8192) == Ok(data), "something was done");
}

#[test]
fn never_written_blocks_read_as_zeros() {
    let disk = Disk::new(4 * MIB);
    let daemon = disk.attach(&AttachOptions::default());
    let queue = &mut daemon.connect().queues[0];
    assert_eq!(queue.read(0, MIB as usize), Ok(vec![0; MIB as usize]));
    let last = 4 * MIB / 512 - 1;
    assert_eq!(queue.read(last, SECTOR), Ok(vec![0; SECTOR]));
}

#[test]
fn a_sector_written_into_a_never_written_block_leaves_the_rest_zeros() {
    let disk = Disk::new(4 * MIB);
    let daemon = disk.attach(&AttachOptions::default());
    let queue = &mut daemon.connect().queues[0];
    let data = Rng::new(5).bytes(SECTOR);
    for sector in [3, 8, 31, 4 * MIB / 512 - 1] {
        queue.write(sector, &data).unwrap();
        let block = sector / 8 * 8;
        let mut expected = vec![0; 8 * SECTOR];
        let at = (sector - block) as usize * SECTOR;
        expected[at..at + SECTOR].copy_from_slice(&data);
        assert!(
            queue.read(block, 8 * SECTOR) == Ok(expected),
            "around sector {sector}"
        );
    }
}

/// A model of the disk, to compare after writes of every shape.
#[test]
fn reads_and_writes_of_every_shape() {
    let disk = Disk::new(4 * MIB);
    let daemon = disk.attach(&AttachOptions::default());
    let mut frontend = daemon.connect();
    let mut model = vec![0u8; 4 * MIB as usize];
    let mut rng = Rng::new(6);
    let shapes: &[&[usize]] = &[
        &[512],
        &[100, 412],
        &[1, 511],
        &[1, 1, 509, 1],
        &[15, 17, 480],
        &[16, 496],
        &[4095, 1],
        &[513, 3583],
        &[1; 512],
        &[7, 505, 1024, 2047, 513],
        &[4096],
        &[4097, 4095, 512],
        &[65536],
        &[131_071, 1],
    ];
    for round in 0..4 {
        for lens in shapes {
            // Chains of 512 descriptors need a table.
            let queue = &mut frontend.queues[round % 2];
            queue.indirect = lens.len() > 32;
            if lens.len() > 120 {
                continue;
            }
            let len: usize = lens.iter().sum();
            let sector = rng.within(0..(4 * MIB - len as u64) / 512);
            let at = sector as usize * SECTOR;
            let data = rng.bytes(len);
            assert_eq!(
                queue.write_split(sector, &data, lens),
                Ok(()),
                "write of {lens:?}"
            );
            model[at..at + len].copy_from_slice(&data);
            let back = queue.read_split(sector, lens);
            assert!(back == Ok(data), "read of {lens:?} at sector {sector}");
        }
    }
    let queue = &mut frontend.queues[0];
    queue.indirect = false;
    let whole = queue.read(0, model.len()).unwrap();
    let wrong = whole
        .chunks(SECTOR)
        .zip(model.chunks(SECTOR))
        .position(|(a, b)| a != b);
    assert_eq!(wrong, None, "the first sector that differs from the model");
}

#[test]
fn large_requests_of_many_segments() {
    let disk = Disk::new(16 * MIB);
    let daemon = disk.attach(&AttachOptions::default());
    let mut frontend = daemon.connect_with(&Setup {
        indirect: true,
        ..Default::default()
    });
    let segments = frontend.config().seg_max().min(254) as usize;
    assert!(segments >= 126, "drivers use as many as a queue of 128 has");
    let queue = &mut frontend.queues[0];
    let mut rng = Rng::new(7);
    for lens in [
        vec![8192; 126],
        vec![4096; segments],
        vec![512 << 10; 4],
        vec![512; 126],
    ] {
        let len: usize = lens.iter().sum();
        let data = rng.bytes(len);
        assert_eq!(
            queue.write_split(17, &data, &lens),
            Ok(()),
            "{} segments",
            lens.len()
        );
        assert!(
            queue.read_split(17, &lens) == Ok(data),
            "{} segments of {len}",
            lens.len()
        );
    }
    // The largest that the direct ring of 128 holds.
    queue.indirect = false;
    let data = rng.bytes(126 * 8192);
    queue.write_split(9, &data, &[8192; 126]).unwrap();
    assert!(queue.read_split(9, &[8192; 126]) == Ok(data));
}

#[test]
fn a_header_in_the_ring_and_the_rest_in_a_table() {
    // A device takes any number of descriptors followed by one table (§2.7.5.3.2).
    let disk = Disk::new(4 * MIB);
    let daemon = disk.attach(&AttachOptions::default());
    let queue = &mut daemon.connect().queues[0];
    let data = Rng::new(14).bytes(1024);
    queue.write(6, &data).unwrap();
    queue.arena.reset();
    let header = queue.arena.alloc(16, 16);
    queue
        .mem
        .write(header, &frontend::client::request_header(kind::IN, 6));
    let (at, status) = (queue.arena.alloc(1024, 16), queue.arena.alloc(1, 1));
    let table = queue.arena.alloc(32, 16);
    let into = |addr, len, flags, next| {
        Desc {
            addr,
            len,
            flags: WRITE | flags,
            next,
        }
        .bytes()
    };
    queue.mem.write(
        table,
        &[into(at, 1024, NEXT, 1), into(status, 1, 0, 0)].concat(),
    );
    let places = queue.take(2);
    let first = Desc {
        addr: header,
        len: 16,
        flags: NEXT,
        next: places[1],
    };
    queue.write_desc(places[0], first);
    queue.write_desc(
        places[1],
        Desc {
            addr: table,
            len: 32,
            flags: INDIRECT,
            next: 0,
        },
    );
    queue.push(places[0]);
    queue.kick_if_wanted(1);
    assert_eq!(queue.wait_for(places[0]).len, 1025);
    assert_eq!(queue.mem.read(at, 1024), data);
}

#[test]
fn get_id_is_the_serial() {
    let disk = Disk::new(4 * MIB);
    let options = AttachOptions {
        serial: Some("serial-of-20-bytes-xx".into()),
        ..Default::default()
    };
    // 21 characters don't fit, and 20 fit without a terminator.
    let options = AttachOptions {
        serial: options.serial.map(|s| s[..20].to_owned()),
        ..options
    };
    let daemon = disk.attach(&options);
    assert_eq!(
        &daemon.connect().queues[0].get_id().unwrap(),
        b"serial-of-20-bytes-x"
    );
    drop(daemon);
    let daemon = disk.attach(&AttachOptions {
        serial: Some("abc".into()),
        ..Default::default()
    });
    assert_eq!(&daemon.connect().queues[0].get_id().unwrap()[..4], b"abc\0");
    drop(daemon);
    let daemon = disk.attach(&AttachOptions::default());
    let default = daemon.connect().queues[0].get_id().unwrap();
    assert_ne!(
        default, [0; 20],
        "a disk has a serial of its own by default"
    );
}

#[test]
fn unknown_request_types_are_unsupported() {
    let disk = Disk::new(4 * MIB);
    let daemon = disk.attach(&AttachOptions::default());
    let queue = &mut daemon.connect().queues[0];
    // SCSI_CMD, GET_LIFETIME, SECURE_ERASE, the zone commands, and one that nobody has.
    for kind in [2, 10, 14, 15, 16, 26, 0x7fff_ffff, u32::MAX] {
        let data = queue.arena.alloc(512, 512);
        let pending = queue.request(kind, 0, &[Seg::into(data, 512)]);
        assert_eq!(
            queue.complete(pending).status,
            Status::Unsupp,
            "type {kind}"
        );
        let pending = queue.request(kind, 0, &[]);
        assert_eq!(
            queue.complete(pending).status,
            Status::Unsupp,
            "type {kind} without data"
        );
    }
    queue.assert_serves(0, 8);
}

#[test]
fn a_read_only_disk_refuses_to_change() {
    let disk = Disk::new(4 * MIB);
    let data = Rng::new(9).bytes(4096);
    let daemon = disk.attach(&AttachOptions::default());
    daemon.connect().queues[0].write(0, &data).unwrap();
    drop(daemon);
    let daemon = disk.attach(&AttachOptions {
        read_only: true,
        ..Default::default()
    });
    let mut frontend = daemon.connect();
    assert_ne!(frontend.offered & feature::RO, 0);
    let queue = &mut frontend.queues[0];
    assert_eq!(queue.write(0, &[1; 512]), Err(Status::IoErr));
    assert!(queue.discard(&[(0, 8, 0)]).is_err());
    assert!(queue.write_zeroes(&[(0, 8, 0)]).is_err());
    assert_eq!(queue.read(0, 4096), Ok(data));
    assert_eq!(queue.get_id().map(drop), Ok(()));
}

#[test]
fn zeroed_and_discarded_blocks_read_as_zeros() {
    let disk = Disk::new(16 * MIB);
    let daemon = disk.attach(&AttachOptions::default());
    let mut frontend = daemon.connect();
    let queue = &mut frontend.queues[0];
    let data = Rng::new(10).bytes(MIB as usize);
    for (sector, sectors, flags) in [
        (0, 2048, 0),
        (0, 2048, UNMAP),
        (8, 16, 0),
        (8, 16, UNMAP),
        (3, 1, 0),
        (5, 9, UNMAP),
    ] {
        queue.write(0, &data).unwrap();
        queue.write_zeroes(&[(sector, sectors, flags)]).unwrap();
        let mut expected = data.clone();
        let at = sector as usize * SECTOR;
        expected[at..at + sectors as usize * SECTOR].fill(0);
        let case = format!("zeroes of {sectors} at {sector}, flags {flags}");
        assert!(queue.read(0, expected.len()) == Ok(expected), "{case}");
    }
    // viostor discards in units of 8 sectors.
    for (sector, sectors) in [(0, 8), (8, 8), (16, 1024), (2040, 8)] {
        queue.write(0, &data).unwrap();
        queue.discard(&[(sector, sectors, 0)]).unwrap();
        let mut expected = data.clone();
        let at = sector as usize * SECTOR;
        expected[at..at + sectors as usize * SECTOR].fill(0);
        assert!(
            queue.read(0, expected.len()) == Ok(expected),
            "discard of {sectors} at {sector}"
        );
    }
    // A discard of less than a block may leave that block, and must leave its neighbours.
    queue.write(0, &data).unwrap();
    queue.discard(&[(3, 10, 0)]).unwrap();
    let back = queue.read(0, data.len()).unwrap();
    assert!(back[..3 * SECTOR] == data[..3 * SECTOR]);
    assert!(back[13 * SECTOR..] == data[13 * SECTOR..]);
    for sector in 3..13 {
        let at = sector * SECTOR..(sector + 1) * SECTOR;
        let zeros = back[at.clone()].iter().all(|&byte| byte == 0);
        assert!(
            zeros || back[at.clone()] == data[at],
            "sector {sector} is neither old nor zeros"
        );
    }
}

#[test]
fn discards_of_several_segments() {
    let disk = Disk::new(16 * MIB);
    let daemon = disk.attach(&AttachOptions::default());
    let mut frontend = daemon.connect();
    let most = frontend.config().max_discard_seg().min(16);
    let queue = &mut frontend.queues[0];
    let data = Rng::new(11).bytes(MIB as usize);
    for zeroes in [false, true] {
        queue.write(0, &data).unwrap();
        let ranges: Vec<_> = (0..most).map(|i| (u64::from(i) * 32, 16, 0)).collect();
        if zeroes {
            queue.write_zeroes(&ranges).unwrap();
        } else {
            queue.discard(&ranges).unwrap();
        }
        let mut expected = data.clone();
        for (sector, sectors, _) in ranges {
            let at = sector as usize * SECTOR;
            expected[at..at + sectors as usize * SECTOR].fill(0);
        }
        assert!(
            queue.read(0, expected.len()) == Ok(expected),
            "zeroes: {zeroes}"
        );
    }
}

#[test]
fn unmap_on_discard_is_unsupported() {
    let disk = Disk::new(4 * MIB);
    let daemon = disk.attach(&AttachOptions::default());
    let queue = &mut daemon.connect().queues[0];
    queue.write(0, &[7; 4096]).unwrap();
    assert_eq!(queue.discard(&[(0, 8, UNMAP)]), Err(Status::Unsupp));
    for flags in [2, 3, 1 << 31] {
        assert_eq!(
            queue.discard(&[(0, 8, flags)]),
            Err(Status::Unsupp),
            "flags {flags}"
        );
        assert_eq!(
            queue.write_zeroes(&[(0, 8, flags)]),
            Err(Status::Unsupp),
            "flags {flags}"
        );
    }
    assert_eq!(queue.read(0, 4096), Ok(vec![7; 4096]));
}

#[test]
fn two_queues_writing_sectors_of_one_block_lose_none() {
    let disk = Disk::new(16 * MIB);
    let daemon = disk.attach(&AttachOptions::default());
    let mut frontend = daemon.connect();
    // Blocks that were never written, and blocks that were.
    for round in 0..2u64 {
        std::thread::scope(|scope| {
            for (half, queue) in frontend.queues.iter_mut().enumerate() {
                scope.spawn(move || {
                    // Each queue writes every second sector, eight of them in flight.
                    for block in 0..256u64 {
                        queue.arena.reset();
                        let writes: Vec<_> = (0..4)
                            .map(|i| {
                                let sector = block * 8 + i * 2 + half as u64;
                                let at = queue.arena.alloc(512, 512);
                                queue.mem.write(at, &stamp(sector, round));
                                queue.request(kind::OUT, sector, &[Seg::out(at, 512)])
                            })
                            .collect();
                        for write in writes {
                            assert_eq!(queue.complete(write).status, Status::Ok);
                        }
                    }
                });
            }
        });
        let back = frontend.queues[0].read(0, 256 * 4096).unwrap();
        for (sector, bytes) in back.chunks(SECTOR).enumerate() {
            assert!(
                bytes == stamp(sector as u64, round),
                "sector {sector} of round {round}"
            );
        }
    }
}

fn stamp(sector: u64, round: u64) -> Vec<u8> {
    Rng::new(sector * 2 + round).bytes(SECTOR)
}

#[test]
fn a_status_byte_on_a_page_of_its_own() {
    let disk = Disk::new(4 * MIB);
    let daemon = disk.attach(&AttachOptions::default());
    let queue = &mut daemon.connect().queues[0];
    let page = queue.arena.alloc(8192, 4096);
    queue.mem.fill(page, 0xcc, 8192);
    let (header, data) = (queue.arena.alloc(16, 4096), queue.arena.alloc(4096, 4096));
    queue.mem.write(header, &[0; 16]);
    for status in [page, page + 4095, page + 8191] {
        let segs = [
            Seg::out(header, 16),
            Seg::into(data, 4096),
            Seg::into(status, 1),
        ];
        let head = queue.submit(&segs);
        assert_eq!(queue.wait_for(head).len, 4097);
        assert_eq!(queue.mem.read(status, 1), [0]);
        queue.mem.fill(status, 0xcc, 1);
        assert_eq!(
            queue.mem.read(page, 8192),
            [0xcc; 8192],
            "only the status byte was written"
        );
    }
}

#[test]
fn a_status_byte_at_the_end_of_the_data() {
    // virtio 1.x leaves the framing to the driver: data and status may share a buffer (§2.7.4).
    let disk = Disk::new(4 * MIB);
    let daemon = disk.attach(&AttachOptions::default());
    let queue = &mut daemon.connect().queues[0];
    let data = Rng::new(12).bytes(1024);
    queue.write(4, &data).unwrap();
    queue.arena.reset();
    let header = queue.arena.alloc(16, 16);
    queue
        .mem
        .write(header, &frontend::client::request_header(kind::IN, 4));
    let at = queue.arena.alloc(1025, 16);
    let head = queue.submit(&[Seg::out(header, 16), Seg::into(at, 1025)]);
    assert_eq!(queue.wait_for(head).len, 1025);
    assert_eq!(queue.mem.read(at, 1024), data);
    assert_eq!(queue.mem.read(at + 1024, 1), [0]);
}

#[test]
fn headers_split_over_descriptors_are_legal() {
    let disk = Disk::new(4 * MIB);
    let daemon = disk.attach(&AttachOptions::default());
    let queue = &mut daemon.connect().queues[0];
    let data = Rng::new(13).bytes(512);
    queue.arena.reset();
    let header = queue.arena.alloc(64, 16);
    let bytes = frontend::client::request_header(kind::OUT, 11);
    for split in [1usize, 4, 8, 15] {
        // The second part of the header lies elsewhere, and once together with the data.
        for joined in [false, true] {
            let at = queue.arena.alloc(1024, 1);
            let (first, second) = bytes.split_at(split);
            queue.mem.write(header, first);
            queue.mem.write(at, second);
            queue.mem.write(at + second.len() as u64, &data);
            let status = queue.arena.alloc(1, 1);
            queue.mem.write(status, &[0xee]);
            let rest = second.len() as u32;
            let mut segs = vec![Seg::out(header, split as u32)];
            if joined {
                segs.push(Seg::out(at, rest + 512));
            } else {
                segs.push(Seg::out(at, rest));
                segs.push(Seg::out(at + u64::from(rest), 512));
            }
            segs.push(Seg::into(status, 1));
            let head = queue.submit(&segs);
            assert_eq!(
                queue.wait_for(head).len,
                1,
                "split at {split}, joined {joined}"
            );
            assert_eq!(
                queue.mem.read(status, 1),
                [0],
                "split at {split}, joined {joined}"
            );
        }
    }
    assert_eq!(queue.read(11, 512), Ok(data));
}

#[test]
fn a_request_without_data_changes_nothing() {
    let disk = Disk::new(4 * MIB);
    let daemon = disk.attach(&AttachOptions::default());
    let queue = &mut daemon.connect().queues[0];
    queue.write(0, &[3; 512]).unwrap();
    queue.arena.reset();
    for kind in [kind::IN, kind::OUT] {
        let pending = queue.request(kind, 0, &[]);
        // Neither answer is wrong; none at all, or one byte more, would be.
        let done = queue.complete(pending);
        assert!(
            matches!(done.status, Status::Ok | Status::IoErr),
            "{done:?}"
        );
        assert_eq!(done.len, 1);
    }
    assert_eq!(queue.read(0, 512), Ok(vec![3; 512]));
}

#[test]
fn flush_is_served_at_any_depth() {
    let disk = Disk::new(4 * MIB);
    let daemon = disk.attach(&AttachOptions::default());
    let mut frontend = daemon.connect();
    let queue = &mut frontend.queues[0];
    queue.flush().unwrap();
    queue.arena.reset();
    let at = queue.arena.alloc(4096, 4096);
    let mut all = Vec::new();
    for i in 0..20 {
        all.push(queue.request(kind::OUT, i * 8, &[Seg::out(at, 4096)]));
        all.push(queue.request(kind::FLUSH, 0, &[]));
    }
    for pending in all {
        assert_eq!(queue.complete(pending).status, Status::Ok);
    }
}

/// What threads encrypt together is what one thread decrypts, and the other way round.
#[test]
fn large_requests_are_the_same_with_threads_that_help() {
    const HELPED: &[&str] = &["--crypto-threads", "2"];
    let disk = Disk::new(16 * MIB);
    let mut rng = Rng::new(31);
    let lens = [60_000, 300_016, 4096, 688, 400_128];
    let data = rng.bytes(lens.iter().sum());
    let sector = |place: u64| place * 2 * MIB / 512;
    for (place, writer, reader) in [(0, HELPED, &[][..]), (1, &[], HELPED), (2, HELPED, HELPED)] {
        let options = |arguments| AttachOptions {
            arguments,
            ..AttachOptions::default()
        };
        let daemon = disk.attach(&options(writer));
        let queue = &mut daemon.connect().queues[0];
        queue.write_split(sector(place), &data, &lens).unwrap();
        daemon.stop();
        let daemon = disk.attach(&options(reader));
        let queue = &mut daemon.connect().queues[0];
        assert!(queue.read_split(sector(place), &lens) == Ok(data.clone()));
        daemon.stop();
    }
}
