//! What holds of every chain, whatever a guest wrote: the rules once more, said in another way
//! than the code under test. The fuzz target `descriptor_chain` includes this file too.

use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryRegion};

use super::{
    Action, BlockRequest, Chain, ChainError, ChainLimits, Cursor, Descriptor, Disk, Memory,
    RequestKind, Status, interpret,
};

/// Holds `result`, of reading the chain that has `descriptors`, against the rules, and if it was
/// accepted, what is made of it. Memory should differ from place to place.
pub fn check(
    memory: &Memory,
    descriptors: &[Descriptor],
    limits: ChainLimits,
    disk: &Disk,
    result: Result<Chain, ChainError>,
) {
    let broken = broken_rule(memory, descriptors, limits);
    match (result, broken) {
        (Ok(chain), None) => {
            content(memory, descriptors, &chain);
            action(&chain, disk, interpret(&chain, disk, true));
        }
        (Err(_), Some(_)) => {}
        (Ok(_), Some(rule)) => panic!("accepted although {rule}"),
        (Err(error), None) => panic!("refused without a reason: {error}"),
    }
}

fn broken_rule(
    memory: &Memory,
    descriptors: &[Descriptor],
    limits: ChainLimits,
) -> Option<&'static str> {
    let (readable, writable): (Vec<_>, Vec<_>) =
        descriptors.iter().partition(|d| !d.is_write_only());
    let bytes = |list: &[&Descriptor]| list.iter().map(|d| u64::from(d.len())).sum::<u64>();
    let rules = [
        (
            descriptors.last().is_some_and(|d| d.has_next()),
            "the last descriptor has NEXT",
        ),
        (
            descriptors.len() > limits.segments + 2,
            "it has too many descriptors",
        ),
        (
            !descriptors.is_sorted_by_key(|d| d.is_write_only()),
            "a readable descriptor follows a writable one",
        ),
        (bytes(&readable) < 16, "there is no header"),
        (bytes(&writable) < 1, "there is no status"),
        (
            bytes(&readable) + bytes(&writable) > limits.bytes + 17,
            "there is too much data",
        ),
        (
            descriptors.iter().any(|d| !is_in_memory(memory, d)),
            "a descriptor is outside memory",
        ),
    ];
    rules
        .into_iter()
        .find_map(|(broken, rule)| broken.then_some(rule))
}

fn is_in_memory(memory: &Memory, descriptor: &Descriptor) -> bool {
    let (start, len) = (descriptor.addr().0, u64::from(descriptor.len()));
    let Some(end) = start.checked_add(len) else {
        return false;
    };
    // Region by region, as far as they touch.
    let mut at = start;
    while at < end {
        let Some(region) = memory.find_region(GuestAddress(at)) else {
            return false;
        };
        at = region.start_addr().0 + region.len();
    }
    true
}

/// The bytes of the data are those that the descriptors name, without header and status.
fn content(memory: &Memory, descriptors: &[Descriptor], chain: &Chain) {
    let mut named = Vec::new();
    for descriptor in descriptors.iter().filter(|d| d.len() > 0) {
        let mut bytes = vec![0; descriptor.len() as usize];
        memory.read_slice(&mut bytes, descriptor.addr()).unwrap();
        named.extend(bytes);
    }
    assert_eq!(named[..4], chain.header.kind.to_le_bytes());
    assert_eq!(named[8..16], chain.header.sector.0.to_le_bytes());
    let total = chain.data.iter().map(|s| s.len()).sum::<usize>();
    assert_eq!(total as u64, chain.readable + chain.writable);
    let mut data = vec![0; total];
    Cursor::default().read(&chain.data, &mut data);
    assert!(data == named[16..named.len() - 1], "other bytes");
    let last = descriptors.iter().rfind(|d| d.len() > 0).unwrap();
    assert_eq!(chain.status.0, last.addr().0 + u64::from(last.len()) - 1);
}

/// What is done lies on the disk and changes nothing that is read-only; what is not done is no
/// request of the kinds that are served, or not one that is right.
fn action(chain: &Chain, disk: &Disk, action: Action) {
    // Whether or not the driver sets the barrier flag of old.
    let asked = chain.header.kind % (1 << 31);
    let (kind, at, len) = match action {
        Action::Answer { status, written } => {
            assert!(u64::from(written) <= chain.writable);
            let known = [0, 1, 4, 5, 8, 11, 13].contains(&asked);
            assert!(known || status == Status::Unsupported, "type {asked}");
            return;
        }
        Action::Submit(BlockRequest { kind, at, len }) => (kind, at, len),
    };
    assert!(at.0.is_multiple_of(512) && len.is_multiple_of(512));
    let end = u128::from(at.0) + u128::from(len);
    assert!(end <= u128::from(disk.capacity.0) * 512);
    let types: &[u32] = match kind {
        RequestKind::Read => &[0],
        RequestKind::Write { .. } => &[1],
        RequestKind::Flush => &[4, 5],
        RequestKind::Zero { .. } => &[11, 13],
        RequestKind::CopyUp { .. } => &[],
    };
    assert!(types.contains(&asked), "type {asked}");
    let block = u128::from(disk.block_sectors) * 512;
    assert!(end.is_multiple_of(block) && u128::from(len).is_multiple_of(block));
    match kind {
        RequestKind::Read => assert_eq!((len, chain.readable), (chain.writable, 0)),
        RequestKind::Write { .. } => assert_eq!((len, chain.writable), (chain.readable, 0)),
        RequestKind::Zero { .. } => {
            assert_eq!((chain.readable, chain.writable), (16, 0));
            assert!(len <= u64::from(disk.most_zero_sectors) * 512);
        }
        RequestKind::Flush => assert_eq!(len, 0),
        RequestKind::CopyUp { .. } => unreachable!("no guest asks for it"),
    }
    let changes = matches!(kind, RequestKind::Write { .. } | RequestKind::Zero { .. });
    assert!(!(disk.read_only && changes));
}
