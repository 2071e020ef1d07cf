//! Tables without sense never do harm, and sensible ones are read whatever way they are cut.

use proptest::prelude::*;

use super::*;

fn place() -> impl Strategy<Value = u64> {
    prop_oneof![
        8 => DATA..END,
        2 => (BORDER - 64)..(BORDER + 64),
        1 => (END - 600)..(END + 64),
        1 => TABLE..TABLE + 0x200,
        1 => any::<u64>(),
    ]
}

fn len() -> impl Strategy<Value = u32> {
    prop_oneof![
        4 => Just(16u32),
        3 => Just(1u32),
        1 => Just(0u32),
        3 => (0u32..8).prop_map(|n| n * 512),
        2 => 0u32..600,
        1 => any::<u32>(),
    ]
}

/// Mostly the next entry, so that chains get long.
fn table(entries: u16) -> impl Strategy<Value = Vec<Desc>> {
    let flags = prop_oneof![
        6 => Just(NEXT),
        4 => Just(NEXT | WRITE),
        3 => Just(WRITE),
        1 => Just(0),
        1 => Just(INDIRECT),
        1 => any::<u16>(),
    ];
    let next = prop_oneof![
        12 => Just(None),
        1 => (0..entries + 2).prop_map(Some),
        1 => any::<u16>().prop_map(Some),
    ];
    let desc = (place(), len(), flags, next);
    prop::collection::vec(desc, 0..=usize::from(entries)).prop_map(|descs| {
        let link = |(index, (addr, len, flags, next)): (usize, (u64, u32, u16, Option<u16>))| {
            (addr, len, flags, next.unwrap_or(index as u16 + 1))
        };
        descs.into_iter().enumerate().map(link).collect()
    })
}

/// The bytes of a request, each part at its place, in memory order with gaps.
fn cut(at: u64, bytes: &[u8], cuts: &[(u32, u32)]) -> Vec<(u64, Vec<u8>)> {
    let (mut at, mut rest, mut parts) = (at, bytes, vec![]);
    for (len, gap) in cuts {
        let (part, behind) = rest.split_at((*len as usize).min(rest.len()));
        parts.push((at, part.to_vec()));
        at += part.len() as u64 + u64::from(*gap);
        rest = behind;
    }
    parts.push((at, rest.to_vec()));
    parts
}

fn cuts() -> impl Strategy<Value = Vec<(u32, u32)>> {
    let len = prop_oneof![0u32..40, 0u32..4000];
    prop::collection::vec((len, 0u32..32), 0..6)
}

fn ranges(parts: &[(u64, Vec<u8>)]) -> Vec<(u64, u32)> {
    let range = |(at, bytes): &(u64, Vec<u8>)| (*at, bytes.len() as u32);
    parts.iter().map(range).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn arbitrary_tables_do_no_harm(
        direct in table(QUEUE_SIZE),
        indirect in table(32),
        (head, entries, segments) in (0..QUEUE_SIZE, 0u32..34, 0usize..16),
        headers in prop::collection::vec((0u32..16, prop_oneof![0u64..64, any::<u64>()]), 8),
        (capacity, read_only) in (0u64..64, any::<bool>()),
        block_sectors in prop_oneof![Just(1u64), Just(8)],
    ) {
        let guest = Guest::new();
        for (at, (kind, sector)) in (DATA..).step_by(16).zip(headers) {
            guest.put_header(at, kind, sector);
        }
        guest.put_table(TABLE, &indirect);
        let mut direct = direct;
        for desc in direct.iter_mut().filter(|desc| desc.2 == INDIRECT) {
            (desc.0, desc.1) = (TABLE, entries * 16);
        }
        let chain = guest.chain(&direct, head);
        let descriptors: Vec<_> = chain.clone().collect();
        let table = MockSplitQueue::new(&guest.memory, QUEUE_SIZE).desc_table_addr();
        let walked = Descriptors::new(&guest.memory, table, QUEUE_SIZE, head);
        prop_assert!(walked.map(parts).eq(descriptors.iter().copied().map(parts)));
        let limits = ChainLimits { segments, ..LIMITS };
        let disk = Disk {
            capacity: Sector(capacity),
            block_sectors,
            read_only,
            serial: [b's'; 20],
            discard: true,
            most_zero_sectors: 8,
        };
        let mut scratch = Scratch::default();
        let result = read_chain(&guest.memory, chain, limits, &mut scratch, Vec::new());
        rules::check(&guest.memory, &descriptors, limits, &disk, result);
    }
}

proptest! {
    #[test]
    fn a_write_is_what_the_guest_put_there(
        content in prop::collection::vec(any::<u8>(), 0..16 * 512),
        sector in any::<u64>(),
        cuts in cuts(),
    ) {
        let guest = Guest::new();
        // Over the border of the regions, more often than not.
        let bytes = [header_bytes(1, sector), content.clone()].concat();
        let parts = cut(BORDER - 0x1000, &bytes, &cuts);
        for (at, bytes) in &parts {
            guest.put(*at, bytes);
        }
        let chain = guest.read(&linked(&ranges(&parts), &[(DATA, 1)]))?;
        prop_assert_eq!((chain.header.kind, chain.header.sector), (1, Sector(sector)));
        prop_assert_eq!((chain.readable, chain.writable), (content.len() as u64, 0));
        prop_assert!(data(&chain) == content);
    }

    #[test]
    fn a_read_goes_where_the_guest_wants_it(
        content in prop::collection::vec(any::<u8>(), 0..16 * 512),
        cuts in cuts(),
    ) {
        let guest = Guest::new();
        guest.put_header(DATA, 0, 0);
        let with_status = [content.as_slice(), &[0xff]].concat();
        let parts = cut(BORDER - 0x1000, &with_status, &cuts);
        let before = guest.get(DATA, 2 * REGION_LEN as usize);
        let chain = guest.read(&linked(&[(DATA, 16)], &ranges(&parts)))?;
        prop_assert_eq!((chain.readable, chain.writable), (0, content.len() as u64));
        Cursor::default().write(&chain.data, &content);
        guest.memory.write_obj(0xffu8, chain.status).unwrap();
        let mut expected = before;
        for (at, bytes) in &parts {
            let at = (at - DATA) as usize;
            expected[at..at + bytes.len()].copy_from_slice(bytes);
        }
        prop_assert!(guest.get(DATA, 2 * REGION_LEN as usize) == expected);
    }
}
