//! Which chains are read, and as what: virtio 1.2 §2.7.5, §5.2.6.

use super::*;

const STATUS: (u64, u32) = (DATA + 0x3000, 1);

#[test]
fn a_chain_is_header_data_and_status() {
    let guest = Guest::new();
    guest.put_header(DATA, 1, 7);
    let table = linked(&[(DATA, 16), (DATA + 0x100, 512)], &[STATUS]);
    let chain = guest.read(&table).unwrap();
    assert_eq!((chain.header.kind, chain.header.sector), (1, Sector(7)));
    assert_eq!((chain.readable, chain.writable), (512, 0));
    assert_eq!(chain.status, GuestAddress(STATUS.0));
    assert_eq!(data(&chain), guest.get(DATA + 0x100, 512));
}

/// §2.7.4: a driver may frame a request as it likes.
#[test]
fn header_data_and_status_may_be_cut_anywhere() {
    let guest = Guest::new();
    guest.put_header(DATA, 0, 3);
    let (before, after) = (DATA + 0x200, DATA + 0x800);
    let readable = [(DATA, 1), (DATA + 1, 0), (DATA + 1, 15)];
    // The status is the last byte behind the data, or alone behind a part of no length.
    for writable in [
        vec![(before, 500), (after, 13)],
        vec![(before, 500), (after, 12), (after + 12, 1), (0, 0)],
    ] {
        let chain = guest.read(&linked(&readable, &writable)).unwrap();
        assert_eq!((chain.header.kind, chain.header.sector), (0, Sector(3)));
        assert_eq!((chain.readable, chain.writable), (0, 512));
        assert_eq!(chain.status, GuestAddress(after + 12));
        let marks: Vec<u8> = (0..512u32).map(|i| i as u8).collect();
        Cursor::default().write(&chain.data, &marks);
        assert_eq!(guest.get(before, 500), marks[..500]);
        assert_eq!(guest.get(after, 12), marks[500..]);
    }
}

#[test]
fn header_and_data_may_share_a_descriptor() {
    let guest = Guest::new();
    guest.put_header(DATA, 1, 0);
    let chain = guest.read(&linked(&[(DATA, 16 + 512)], &[STATUS])).unwrap();
    assert_eq!(data(&chain), guest.get(DATA + 16, 512));
}

#[test]
fn a_range_may_go_over_the_border_of_touching_regions() {
    let guest = Guest::new();
    guest.put_header(BORDER - 5, 1, 9);
    let parts = [(BORDER - 5, 16), (BORDER - 100, 512)];
    let chain = guest.read(&linked(&parts, &[STATUS])).unwrap();
    assert_eq!((chain.header.kind, chain.header.sector), (1, Sector(9)));
    assert_eq!(data(&chain), guest.get(BORDER - 100, 512));
}

#[test]
fn ranges_outside_memory_are_refused() {
    let guest = Guest::new();
    for (at, len) in [
        (END - 511, 512),
        (END, 1),
        (DATA - 1, 16),
        (0xffff, 2),
        (u64::MAX, 1),
        (u64::MAX - 100, 512),
        (DATA, 0x6000 - 1 + 0x4000),
    ] {
        let outside = ChainError::OutsideMemory {
            at: GuestAddress(at),
            len,
        };
        let limits = ChainLimits {
            bytes: u64::MAX / 2,
            ..LIMITS
        };
        for table in [
            linked(&[(at, len.max(16))], &[STATUS]),
            linked(&[(DATA, 16), (at, len)], &[STATUS]),
            linked(&[(DATA, 16)], &[(at, len), STATUS]),
        ] {
            let error = guest.read_with(&table, limits).err();
            assert!(
                matches!(error, Some(ChainError::OutsideMemory { at: found, .. }) if found.0 == at),
                "{table:x?}: {error:?}"
            );
        }
        let last = guest.read_with(&linked(&[(DATA, 16), (at, len)], &[STATUS]), limits);
        assert_eq!(last.err(), Some(outside));
    }
}

#[test]
fn a_status_outside_memory_is_refused_before_anything_is_read() {
    let guest = Guest::new();
    for status in [(END, 1), (u64::MAX, 1), (u64::MAX, 3), (END - 512, 513)] {
        let error = guest.error(&linked(&[(DATA, 16)], &[status]));
        assert!(matches!(error, ChainError::OutsideMemory { .. }), "{error}");
    }
}

#[test]
fn a_part_without_length_may_be_anywhere() {
    let guest = Guest::new();
    guest.put_header(DATA, 4, 0);
    let nowhere = (0xdead_0000_0000, 0);
    let table = linked(&[nowhere, (DATA, 16), nowhere], &[nowhere, STATUS, nowhere]);
    let chain = guest.read(&table).unwrap();
    assert_eq!(
        (chain.header.kind, chain.readable, chain.writable),
        (4, 0, 0)
    );
    assert!(chain.data.iter().all(|slice| slice.is_empty()));
    assert_eq!(chain.status, GuestAddress(STATUS.0));
}

#[test]
fn loops_are_refused() {
    let guest = Guest::new();
    guest.put_header(DATA, 1, 0);
    // More descriptors than the table has: only a loop can have those.
    let limits = ChainLimits {
        segments: 1000,
        ..LIMITS
    };
    for table in [
        vec![(DATA, 16, NEXT, 0)],
        vec![(DATA, 16, NEXT, 1), (DATA, 1, NEXT | WRITE, 1)],
        vec![(DATA, 16, NEXT, 1), (DATA, 1, NEXT, 0)],
    ] {
        let error = guest.read_with(&table, limits).err();
        assert_eq!(error, Some(ChainError::Broken), "{table:x?}");
    }
}

#[test]
fn a_chain_that_leaves_its_table_is_refused() {
    let guest = Guest::new();
    guest.put_header(DATA, 4, 0);
    for next in [QUEUE_SIZE, QUEUE_SIZE + 1, u16::MAX] {
        // All that a request needs is there, but another descriptor is promised.
        let table = [(DATA, 16, NEXT, 1), (STATUS.0, 1, NEXT | WRITE, next)];
        assert_eq!(guest.error(&table), ChainError::Broken);
    }
}

#[test]
fn more_descriptors_than_offered_are_refused() {
    let guest = Guest::new();
    guest.put_header(DATA, 1, 0);
    let limits = ChainLimits {
        segments: 2,
        ..LIMITS
    };
    let part = (DATA + 0x100, 256);
    let most = linked(&[(DATA, 16), part, part], &[STATUS]);
    assert!(guest.read_with(&most, limits).is_ok());
    let more = linked(&[(DATA, 16), part, part, (0, 0)], &[STATUS]);
    let error = guest.read_with(&more, limits).err();
    assert_eq!(error, Some(ChainError::TooManyDescriptors { most: 4 }));
}

/// §2.7.4.2: the device's descriptors come behind the driver's.
#[test]
fn a_readable_descriptor_behind_a_writable_one_is_refused() {
    let guest = Guest::new();
    guest.put_header(DATA, 0, 0);
    for table in [
        vec![(STATUS.0, 1, WRITE | NEXT, 1), (DATA, 16, 0, 0)],
        vec![
            (DATA, 16, NEXT, 1),
            (STATUS.0, 1, WRITE | NEXT, 2),
            (DATA, 512, 0, 0),
        ],
        vec![
            (DATA, 16, NEXT, 1),
            (0, 0, WRITE | NEXT, 2),
            (DATA, 512, NEXT, 3),
            (STATUS.0, 1, WRITE, 0),
        ],
    ] {
        assert_eq!(guest.error(&table), ChainError::Order, "{table:x?}");
    }
}

#[test]
fn header_and_status_must_be_there() {
    let guest = Guest::new();
    let short = guest.error(&linked(&[(DATA, 8), (DATA, 7)], &[STATUS]));
    assert_eq!(short, ChainError::NoHeader(15));
    assert_eq!(
        guest.error(&linked(&[], &[STATUS])),
        ChainError::NoHeader(0)
    );
    let lone = guest.error(&linked(&[(DATA, 16), (DATA, 512)], &[]));
    assert_eq!(lone, ChainError::NoStatus);
    let empty = guest.error(&linked(&[(DATA, 16)], &[(STATUS.0, 0)]));
    assert_eq!(empty, ChainError::NoStatus);
}

#[test]
fn more_data_than_offered_is_refused_wherever_it_is() {
    let guest = Guest::new();
    guest.put_header(DATA, 0, 0);
    let rest = LIMITS.bytes as u32 - 0x3000;
    let most = linked(&[(DATA, 16)], &[(DATA, 0x3000), (DATA, rest + 1)]);
    assert_eq!(guest.read(&most).unwrap().writable, LIMITS.bytes);
    let more = linked(&[(DATA, 16)], &[(DATA, 0x3000), (DATA, rest + 2)]);
    assert_eq!(guest.error(&more), ChainError::TooLarge(LIMITS.bytes + 1));
    // The size counts before the place: nothing is looked up for four gigabytes.
    let giant = linked(&[(DATA, 16), (END, u32::MAX - 20)], &[STATUS]);
    let error = guest.error(&giant);
    assert_eq!(error, ChainError::TooLarge(u64::from(u32::MAX) - 20));
}

/// §2.7.5.2: no chain has more than 2^32 bytes.
#[test]
fn totals_that_overflow_are_refused() {
    let guest = Guest::new();
    let parts = [(DATA, 16), (DATA, u32::MAX), (DATA, u32::MAX)];
    let table = linked(&parts, &[STATUS]);
    assert_eq!(guest.error(&table), ChainError::Broken);
}

#[test]
fn an_indirect_table_is_read_as_a_direct_one() {
    let guest = Guest::new();
    guest.put_header(DATA, 1, 5);
    let request = linked(&[(DATA, 16), (DATA + 0x100, 512)], &[STATUS]);
    guest.put_table(TABLE, &request);
    let chain = guest.read(&[(TABLE, 3 * 16, INDIRECT, 0)]).unwrap();
    assert_eq!(chain.header.sector, Sector(5));
    assert_eq!(data(&chain), guest.get(DATA + 0x100, 512));
    // §2.7.5.3.2: the table may be behind ordinary descriptors.
    guest.put_table(TABLE, &linked(&[(DATA + 0x100, 512)], &[STATUS]));
    let table = [(DATA, 16, NEXT, 1), (TABLE, 2 * 16, INDIRECT, 0)];
    let chain = guest.read(&table).unwrap();
    assert_eq!(data(&chain), guest.get(DATA + 0x100, 512));
}

#[test]
fn bad_indirect_tables_are_refused() {
    let guest = Guest::new();
    guest.put_header(DATA, 4, 0);
    let request = linked(&[(DATA, 16)], &[STATUS]);
    guest.put_table(TABLE, &request);
    let nested = TABLE + 0x100;
    guest.put_table(nested, &[(TABLE, 32, INDIRECT, 0)]);
    let endless = TABLE + 0x200;
    guest.put_table(endless, &[(DATA, 16, NEXT, 0)]);
    for (addr, len) in [
        (TABLE, 0),
        (TABLE, 15),
        (TABLE, 33),
        // One entry: the second is promised and outside.
        (TABLE, 16),
        (TABLE, 65536 * 16),
        (TABLE, u32::MAX - 15),
        (nested, 16),
        (endless, 16),
        (END, 32),
        // The second entry is behind the end of memory.
        (END - 16, 32),
        (u64::MAX - 7, 32),
    ] {
        guest.put_table(END - 16, &request[..1]);
        let first = guest.error(&[(addr, len, INDIRECT, 0)]);
        let expected = [ChainError::Broken, ChainError::NoHeader(0)];
        assert!(expected.contains(&first), "{addr:#x} {len}: {first}");
        // Behind a descriptor it is always the promise that isn't kept.
        let behind = guest.error(&[(DATA, 16, NEXT, 1), (addr, len, INDIRECT, 0)]);
        assert_eq!(behind, ChainError::Broken, "{addr:#x} {len}");
    }
}

#[test]
fn a_long_indirect_table_is_cut_off_at_what_was_offered() {
    let guest = Guest::new();
    let table: Vec<Desc> = (1..=0x700).map(|next| (DATA, 0, NEXT, next)).collect();
    guest.put_table(TABLE, &table);
    let error = guest.error(&[(TABLE, 0x700 * 16, INDIRECT, 0)]);
    let most = LIMITS.segments + 2;
    assert_eq!(error, ChainError::TooManyDescriptors { most });
}
