//! The memory that a data plane and a store process share, as the one may have changed it for the other.
#![no_main]

use std::collections::BTreeSet;
use std::fs::File;
use std::os::unix::fs::FileExt;

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use store_ring::{
    BUFFER_LEN, ClientLane, DEPTH, Data, LaneBells, LaneMemory, Layout, Operation, SMALL_LEN,
    ServerLane, Taken, Target,
};

const LAYOUT: Layout = Layout {
    lanes: 1,
    small: 1,
    chunks: 1,
};

/// Where the only lane has its words, as docs/rbd.md says.
const SUBMITTED: u64 = 0;
const COMPLETED: u64 = 256;
const SUBMISSIONS: u64 = 512;

#[derive(Debug, Arbitrary)]
enum Step {
    /// The data plane does what it should.
    Submit {
        kind: u8,
        slot: u8,
        sector: u32,
        sectors: u8,
        place: u16,
    },
    Publish,
    Reap,
    /// The store process does what it should.
    Take,
    Complete {
        which: u8,
        errno: u16,
    },
    Tell,
    /// One of them stores what it likes.
    Poke {
        at: u16,
        word: u64,
    },
    /// The same, nearly right.
    Entry {
        number: u8,
        what: u8,
        file: u16,
        slot: u16,
        sector: u64,
        sectors: u8,
        place: u32,
    },
    /// A count that is off by this.
    Count {
        of_submissions: bool,
        by: i16,
    },
}

fn word(file: &File, at: u64) -> u64 {
    let mut bytes = [0; 8];
    file.read_exact_at(&mut bytes, at).unwrap();
    u64::from_ne_bytes(bytes)
}

fn store(file: &File, at: u64, word: u64) {
    file.write_all_at(&word.to_ne_bytes(), at).unwrap();
}

/// What was taken lies within the memory for buffers, in whole sectors.
fn check(operation: Operation, buffers: usize) {
    let is_whole = |at: u64, len: u64| {
        assert!(at.is_multiple_of(512) && len.is_multiple_of(512) && len > 0);
        assert!(at.checked_add(len).is_some());
    };
    match operation {
        Operation::Read { at, data, .. } | Operation::Write { at, data, .. } => {
            is_whole(at, data.len as u64);
            assert!(data.at >= buffers && data.len <= BUFFER_LEN);
            assert!(data.at + data.len <= LAYOUT.bytes());
        }
        Operation::Punch { at, len } => is_whole(at, len),
        Operation::Sync { .. } => {}
    }
}

fuzz_target!(|steps: Vec<Step>| {
    let file = LaneMemory::make(LAYOUT).unwrap();
    let bells = LaneBells::make().unwrap();
    let [ours, theirs] = [0, 1].map(|_| LaneMemory::map(&file, LAYOUT).unwrap());
    let lent = ours.lend_small(0).unwrap();
    let buffers = ours.data_of(lent.start().as_ptr(), SMALL_LEN).unwrap().at;
    let mut client = ClientLane::new(ours, 0, bells.try_clone().unwrap()).unwrap();
    let mut server = ServerLane::new(theirs, 0, bells).unwrap();
    let mut taken = BTreeSet::new();
    for step in steps {
        match step {
            Step::Submit {
                kind,
                slot,
                sector,
                sectors,
                place,
            } if client.under_way() < DEPTH => {
                let (at, target) = (u64::from(sector) * 512, Target::Data(slot));
                let data = Data {
                    at: buffers + usize::from(place),
                    len: (1 + usize::from(sectors % 128)) * 512,
                };
                let operation = match kind % 4 {
                    0 => Operation::Read { target, at, data },
                    1 => Operation::Write {
                        target,
                        at,
                        data,
                        durable: kind > 100,
                    },
                    2 => Operation::Sync { target },
                    _ => Operation::Punch {
                        at,
                        len: data.len as u64,
                    },
                };
                client.submit(slot.into(), &operation);
            }
            Step::Submit { .. } => {}
            Step::Publish => client.publish().unwrap(),
            Step::Reap => match client.next_completion() {
                Ok(Some(done)) => assert!((done.slot as usize) < DEPTH),
                Ok(None) => {}
                Err(_) => return,
            },
            Step::Take => match server.take() {
                Ok(Some(Taken { slot, operation })) => {
                    check(operation, buffers);
                    assert!((slot as usize) < DEPTH && taken.insert(slot));
                    assert_eq!(server.under_way(), taken.len());
                }
                Ok(None) => {}
                Err(_) => return,
            },
            Step::Complete { which, errno } => {
                let index = usize::from(which) % taken.len().max(1);
                let slot = taken.iter().nth(index).copied();
                let errno = i32::from(errno % 4096);
                let result = if errno == 0 { Ok(()) } else { Err(errno) };
                assert!(
                    slot.is_none_or(|slot| taken.remove(&slot) && server.complete(slot, result))
                );
                assert_eq!(server.under_way(), taken.len());
            }
            Step::Tell => server.publish().unwrap(),
            Step::Poke { at, word } => store(&file, u64::from(at % 1536) * 8, word),
            Step::Entry {
                number,
                what,
                file: target,
                slot,
                sector,
                sectors,
                place,
            } => {
                let at = SUBMISSIONS + u64::from(number) * 32;
                let head = u64::from(what) | u64::from(target) << 8 | u64::from(slot) << 32;
                store(&file, at, head);
                store(&file, at + 8, sector.wrapping_mul(512));
                store(&file, at + 16, u64::from(sectors) * 512);
                store(&file, at + 24, u64::from(place));
            }
            Step::Count { of_submissions, by } => {
                let at = if of_submissions { SUBMITTED } else { COMPLETED };
                let now = word(&file, at);
                store(&file, at, now.wrapping_add_signed(by.into()));
            }
        }
    }
});
