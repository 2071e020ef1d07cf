//! What is done with a chain: virtio 1.2 §5.2.6.1 and §5.2.6.2.

use proptest::prelude::*;
use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN,
    VIRTIO_BLK_T_OUT, VIRTIO_BLK_T_WRITE_ZEROES,
};

use super::*;

/// As old drivers know them.
const BARRIER: u32 = 1 << 31;
const FLUSH_OUT: u32 = 5;

const STATUS: (u64, u32) = (DATA + 0x3000, 1);
const PART: u64 = DATA + 0x200;

const DISK: Disk = Disk {
    capacity: Sector(1000),
    block_sectors: 1,
    read_only: false,
    serial: *b"a serial number\0\0\0\0\0",
    discard: true,
    most_zero_sectors: 100,
};
const READ_ONLY: Disk = Disk {
    read_only: true,
    ..DISK
};

const IO_ERROR: Action = Action::Answer {
    status: Status::IoError,
    written: 0,
};
const UNSUPPORTED: Action = Action::Answer {
    status: Status::Unsupported,
    written: 0,
};

/// What is done with a request that has `readable` and `writable` bytes of data.
fn act(guest: &Guest, disk: &Disk, kind: u32, sector: u64, data: (u32, u32)) -> Action {
    guest.put_header(DATA, kind, sector);
    let (readable, writable) = data;
    let table = linked(&[(DATA, 16), (PART, readable)], &[(PART, writable), STATUS]);
    interpret(&guest.read(&table).unwrap(), disk, true)
}

fn segment(guest: &Guest, kind: u32, (sector, sectors, flags): (u64, u32, u32)) -> Action {
    guest.put(PART, &sector.to_le_bytes());
    guest.put(PART + 8, &sectors.to_le_bytes());
    guest.put(PART + 12, &flags.to_le_bytes());
    // The sector of the header means nothing.
    act(guest, &DISK, kind, u64::MAX, (16, 0))
}

fn submit(kind: RequestKind, at: u64, len: u64) -> Action {
    Action::Submit(BlockRequest {
        kind,
        at: ByteOffset(at),
        len,
    })
}

#[test]
fn reads_and_writes_of_whole_sectors_on_the_disk() {
    let guest = Guest::new();
    let write = RequestKind::Write { durable: true };
    let read = act(&guest, &DISK, VIRTIO_BLK_T_IN, 998, (0, 1024));
    assert_eq!(read, submit(RequestKind::Read, 998 * 512, 1024));
    let written = act(&guest, &DISK, VIRTIO_BLK_T_OUT, 0, (512, 0));
    assert_eq!(written, submit(write, 0, 512));
    let none = act(&guest, &DISK, VIRTIO_BLK_T_IN, 1000, (0, 0));
    assert_eq!(none, submit(RequestKind::Read, 1000 * 512, 0));
}

#[test]
fn sizes_and_places_off_the_disk_are_errors() {
    let guest = Guest::new();
    for len in [1, 511, 513, 1023] {
        assert_eq!(act(&guest, &DISK, VIRTIO_BLK_T_IN, 0, (0, len)), IO_ERROR);
        assert_eq!(act(&guest, &DISK, VIRTIO_BLK_T_OUT, 0, (len, 0)), IO_ERROR);
    }
    for sector in [999, 1000, 1001, 1 << 55, u64::MAX - 1, u64::MAX] {
        let read = act(&guest, &DISK, VIRTIO_BLK_T_IN, sector, (0, 1024));
        let write = act(&guest, &DISK, VIRTIO_BLK_T_OUT, sector, (1024, 0));
        assert_eq!((read, write), (IO_ERROR, IO_ERROR), "sector {sector}");
    }
}

#[test]
fn data_in_the_wrong_direction_is_an_error() {
    let guest = Guest::new();
    for (kind, data) in [
        (VIRTIO_BLK_T_IN, (512, 512)),
        (VIRTIO_BLK_T_OUT, (512, 512)),
        (VIRTIO_BLK_T_FLUSH, (512, 0)),
        (VIRTIO_BLK_T_FLUSH, (0, 512)),
        (VIRTIO_BLK_T_GET_ID, (1, 20)),
        (VIRTIO_BLK_T_DISCARD, (16, 1)),
        (VIRTIO_BLK_T_WRITE_ZEROES, (16, 1)),
    ] {
        let action = act(&guest, &DISK, kind, 0, data);
        assert_eq!(action, IO_ERROR, "type {kind}");
    }
}

#[test]
fn unknown_types_are_unsupported() {
    let guest = Guest::new();
    // 12 is not offered (lifetime), 14 neither (secure erase), 2 and 7 are old SCSI.
    for kind in [
        2,
        3,
        7,
        9,
        12,
        14,
        1 << 30,
        BARRIER | 2,
        BARRIER | 12,
        u32::MAX,
    ] {
        let action = act(&guest, &DISK, kind, 0, (16, 512));
        assert_eq!(action, UNSUPPORTED, "type {kind}");
    }
}

/// Virtio before 1.0 has a barrier flag beside the type; SLOF sets it in each read.
#[test]
fn the_legacy_barrier_flag_changes_nothing() {
    for (kind, data) in [
        (VIRTIO_BLK_T_IN, (0, 512)),
        (VIRTIO_BLK_T_OUT, (512, 0)),
        (VIRTIO_BLK_T_FLUSH, (0, 0)),
        (FLUSH_OUT, (0, 0)),
        (VIRTIO_BLK_T_GET_ID, (0, 20)),
        (VIRTIO_BLK_T_DISCARD, (16, 0)),
        (VIRTIO_BLK_T_WRITE_ZEROES, (16, 0)),
        (VIRTIO_BLK_T_IN, (512, 512)),
        (VIRTIO_BLK_T_OUT, (512, 512)),
    ] {
        for disk in [&DISK, &READ_ONLY] {
            let (with, without) = (Guest::new(), Guest::new());
            let action = act(&with, disk, BARRIER | kind, 3, data);
            assert_eq!(action, act(&without, disk, kind, 3, data), "type {kind}");
        }
    }
}

/// Virtio 0.9.5, Appendix D: "the FLUSH and FLUSH_OUT types are equivalent".
#[test]
fn a_flush_of_old_drivers_is_a_flush() {
    let guest = Guest::new();
    let action = act(&guest, &DISK, FLUSH_OUT, 0, (0, 0));
    assert_eq!(action, submit(RequestKind::Flush, 0, 0));
    assert_eq!(act(&guest, &DISK, FLUSH_OUT, 0, (512, 0)), IO_ERROR);
}

#[test]
fn a_read_only_disk_is_only_read() {
    let guest = Guest::new();
    for kind in [
        VIRTIO_BLK_T_OUT,
        VIRTIO_BLK_T_DISCARD,
        VIRTIO_BLK_T_WRITE_ZEROES,
    ] {
        let action = act(&guest, &READ_ONLY, kind, 0, (16, 0));
        assert_eq!(action, IO_ERROR, "type {kind}");
    }
    let read = act(&guest, &READ_ONLY, VIRTIO_BLK_T_IN, 0, (0, 512));
    assert_eq!(read, submit(RequestKind::Read, 0, 512));
}

#[test]
fn the_serial_number_goes_as_far_as_there_is_room() {
    for room in [0, 1, 15, 20, 40] {
        let guest = Guest::new();
        let before = guest.get(PART, 40);
        let written = room.min(20);
        let action = act(&guest, &DISK, VIRTIO_BLK_T_GET_ID, 99, (0, room));
        let status = Status::Ok;
        assert_eq!(action, Action::Answer { status, written });
        let after = guest.get(PART, 40);
        let written = written as usize;
        assert_eq!(after[..written], DISK.serial[..written]);
        assert_eq!(after[written..], before[written..], "nothing beside it");
    }
}

#[test]
fn discard_and_write_zeroes_take_one_segment_on_the_disk() {
    let guest = Guest::new();
    let zero = |release| RequestKind::Zero {
        release,
        durable: true,
    };
    for (kind, flags, release) in [
        (VIRTIO_BLK_T_DISCARD, 0, true),
        (VIRTIO_BLK_T_WRITE_ZEROES, 0, false),
        (VIRTIO_BLK_T_WRITE_ZEROES, 1, true),
    ] {
        let action = segment(&guest, kind, (900, 100, flags));
        assert_eq!(action, submit(zero(release), 900 * 512, 100 * 512));
        for place in [
            (901, 100),
            (0, 101),
            (1001, 0),
            (u64::MAX, 1),
            (u64::MAX - 50, 100),
            (1 << 55, 1),
            (0, u32::MAX),
        ] {
            let action = segment(&guest, kind, (place.0, place.1, flags));
            assert_eq!(action, IO_ERROR, "type {kind} at {place:?}");
        }
        for len in [0, 8, 15, 17, 31, 33] {
            assert_eq!(act(&guest, &DISK, kind, 0, (len, 0)), IO_ERROR);
        }
        // More segments than are offered.
        for len in [32, 48, 160] {
            assert_eq!(act(&guest, &DISK, kind, 0, (len, 0)), UNSUPPORTED);
        }
    }
}

/// §5.2.6.2: unknown flags, and UNMAP on a discard, are answered with UNSUPP.
#[test]
fn unknown_flags_of_a_segment_are_unsupported() {
    let guest = Guest::new();
    for (kind, flags) in [
        (VIRTIO_BLK_T_DISCARD, 1),
        (VIRTIO_BLK_T_DISCARD, 2),
        (VIRTIO_BLK_T_WRITE_ZEROES, 2),
        (VIRTIO_BLK_T_WRITE_ZEROES, 3),
        (VIRTIO_BLK_T_WRITE_ZEROES, 1 << 31),
    ] {
        let action = segment(&guest, kind, (0, 1, flags));
        assert_eq!(action, UNSUPPORTED, "type {kind}, flags {flags}");
    }
}

proptest! {
    /// Whether a range is on the disk, in numbers that cannot overflow.
    #[test]
    fn only_what_is_on_the_disk_is_done(
        sector in prop_oneof![0u64..1100, any::<u64>()],
        sectors in 0u32..20,
    ) {
        let guest = Guest::new();
        let action = act(&guest, &DISK, VIRTIO_BLK_T_IN, sector, (0, sectors * 512));
        let inside = u128::from(sector) + u128::from(sectors) <= 1000;
        let expected = if inside {
            submit(RequestKind::Read, sector * 512, u64::from(sectors) * 512)
        } else {
            IO_ERROR
        };
        prop_assert_eq!(action, expected);
    }
}
