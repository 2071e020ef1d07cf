//! The runtime map of an attached disk, as whoever has the runtime directory may have changed it.
#![no_main]

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::LazyLock;

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use sealdisk_fuzz::Scratch;
use uuid::Uuid;
use volume::store::ReadAt;
use volume::{Found, Geometry, LayerMap, RuntimeMap, Volume, VolumeError, boot_id, format};
use xts::DataUnit;

/// A chunk of the map and the beginning of another.
const BLOCKS: u64 = format::BLOCKS_PER_CHUNK + format::BLOCKS_PER_SECTOR + 100;
const SIZE: u64 = BLOCKS * 4096 - 512;
const DISK: Uuid = Uuid::from_u128(1);
const LAYER: Uuid = Uuid::from_u128(2);
const ATTACH: Uuid = Uuid::from_u128(3);
const OTHER: Uuid = Uuid::from_u128(9);

/// As the module's text has it.
const FAILED_SYNC: u64 = 512;
const CACHE: u64 = 1024;
const CHANGING: u64 = 2048;
const FLAGS: u64 = 4096;
const DIRTY: u64 = 1 << 20;
const FLUSHING: u64 = 3 << 20;
const SLOTS: u64 = 5 << 20;
const STATES: u64 = 8 << 20;
const LOADED: u64 = 2;

/// A map file that has something else of each sector.
struct Durable;

#[derive(Debug, Arbitrary)]
enum Start {
    Raw(Vec<u8>),
    /// With a correct checksum, which anybody can compute.
    Sealed {
        version: Option<u8>,
        other_disk: bool,
        other_layer: bool,
        size: Option<u64>,
        other_boot: bool,
        /// Which of its two attach ids is the last attach.
        attach: [bool; 2],
        flip: Option<(u8, u8)>,
    },
}

#[derive(Debug, Arbitrary)]
enum Word {
    FailedSync,
    Cache,
    Flag(u8),
    Dirty(u8),
    Flushing(u8),
    State(u16),
    Slot(u16),
    Changing(u8),
}

#[derive(Debug, Arbitrary)]
struct Input {
    start: Start,
    words: Vec<(Word, u64)>,
    length: Option<u32>,
}

impl ReadAt for Durable {
    fn size(&self) -> io::Result<u64> {
        Ok(format::file_len(BLOCKS))
    }

    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        static BYTES: LazyLock<Vec<u8>> = LazyLock::new(|| {
            let sectors =
                (0..format::sectors(BLOCKS)).map(|s| format::encode_sector(s, &durable(s)));
            let header = format::encode_header(&geometry()).to_vec();
            sectors.fold(header, |file, sector| [file, sector.to_vec()].concat())
        });
        let at = offset as usize;
        buffer.copy_from_slice(&BYTES[at..at + buffer.len()]);
        Ok(())
    }
}

fn durable(sector: u64) -> [u8; format::STATES_LEN] {
    std::array::from_fn(|i| (sector as usize ^ i) as u8)
}

fn geometry() -> Geometry {
    Geometry {
        disk: DISK,
        layer: LAYER,
        size: SIZE,
        data_unit: DataUnit::B4096,
    }
}

fn states_end(size: u64) -> u64 {
    STATES + format::sectors(size.div_ceil(4096)) * format::STATES_LEN as u64
}

/// The stamp, and whether it is the disk's.
fn stamp(start: &Start) -> (Vec<u8>, bool) {
    let (version, other_disk, other_layer, size, other_boot, attach, flip) = match start {
        Start::Raw(bytes) => return (bytes.clone(), false),
        Start::Sealed {
            version,
            other_disk,
            other_layer,
            size,
            other_boot,
            attach,
            flip,
        } => (
            version.unwrap_or(6),
            *other_disk,
            *other_layer,
            size.unwrap_or(SIZE),
            *other_boot,
            attach,
            flip,
        ),
    };
    let pick = |other: bool, own: Uuid| if other { OTHER } else { own };
    let mut bytes = b"SDRUNMAP".to_vec();
    bytes.extend(u32::from(version).to_le_bytes());
    bytes.extend([0; 4]);
    bytes.extend(pick(other_disk, DISK).as_bytes());
    bytes.extend(pick(other_layer, LAYER).as_bytes());
    bytes.extend(size.to_le_bytes());
    bytes.extend(pick(other_boot, boot_id().unwrap()).as_bytes());
    for is_last in attach {
        bytes.extend(pick(!is_last, ATTACH).as_bytes());
    }
    bytes.extend(crc32c::crc32c(&bytes).to_le_bytes());
    if let Some((at, bits)) = flip {
        let at = usize::from(*at) % bytes.len();
        bytes[at] ^= bits;
    }
    let counts = version == 6
        && !(other_disk || other_layer || other_boot)
        && (attach[0] || attach[1])
        && size <= SIZE
        && flip.is_none_or(|(_, bits)| bits == 0);
    (bytes, counts)
}

/// The map as it was made, for what is expected of it.
struct Made {
    file: File,
}

impl Made {
    fn new(input: &Input, scratch: &Scratch) -> (Self, bool) {
        let (stamp, mut counts) = stamp(&input.start);
        scratch.fill(&stamp);
        let file = File::options().read(true).write(true).open(scratch.path());
        let made = Self {
            file: file.unwrap(),
        };
        let size = match input.start {
            Start::Sealed { size, .. } => size.unwrap_or(SIZE),
            Start::Raw(_) => SIZE,
        };
        if let Start::Sealed { .. } = input.start {
            made.file.set_len(states_end(SIZE)).unwrap();
        }
        for (word, value) in &input.words {
            let at = match word {
                Word::FailedSync => FAILED_SYNC,
                Word::Cache => CACHE,
                Word::Flag(n) => FLAGS + u64::from(n % 2) * 8,
                Word::Dirty(n) => DIRTY + u64::from(n % 4) * 8,
                Word::Flushing(n) => FLUSHING + u64::from(n % 4) * 8,
                Word::Changing(n) => CHANGING + u64::from(n % 32) * 64,
                Word::Slot(n) => SLOTS + u64::from(*n) % 512 * 64,
                Word::State(n) => STATES + u64::from(*n) % 8190 * 8,
            };
            made.file.write_all_at(&value.to_le_bytes(), at).unwrap();
        }
        if let Some(length) = input.length {
            let length = u64::from(length) % (states_end(SIZE) + 4096);
            made.file.set_len(length).unwrap();
            // A smaller disk's map is made longer, by zeros.
            counts &= counts && length >= states_end(size) && length >= 108;
        }
        if counts {
            // As far as the disk reached when it was stamped.
            let chunks = format::chunks(size.div_ceil(4096));
            let known = |chunk| made.word(FLAGS + chunk * 8) <= LOADED;
            counts = (0..chunks).all(known);
            counts &= made.slots().iter().all(|word| is_of_a_block(*word, size));
        }
        (made, counts)
    }

    /// The words of all slots that say something.
    fn slots(&self) -> Vec<u64> {
        let words = (0..512).map(|slot| self.word(SLOTS + slot * 64));
        words.filter(|word| *word != 0).collect()
    }

    fn word(&self, at: u64) -> u64 {
        let mut word = [0; 8];
        FileExt::read_exact_at(&self.file, &mut word, at).unwrap();
        u64::from_le_bytes(word)
    }
}

/// Whether the word of a slot names sectors of one block of a disk.
fn is_of_a_block(word: u64, size: u64) -> bool {
    let (first, count) = (word / 256, word % 256);
    let last = first + count.max(1) - 1;
    count != 0 && first / 8 == last / 8 && last < size / 512
}

/// Writes that are not finished keep the disk from being served, until they are.
fn finish(made: &Made, map: &RuntimeMap) {
    let named = made.slots().len();
    let layer = LayerMap::new(geometry(), Durable);
    let opened = Volume::open_runtime(layer, Vec::new(), map);
    assert_eq!(matches!(opened, Err(VolumeError::Unfinished)), named > 0);
    DATA.with(|data| {
        data.fill(&[]);
        let file = File::options().read(true).write(true).open(data.path());
        let finished = map.finish_writes(&geometry(), &file.unwrap());
        assert_eq!(finished.unwrap(), named);
    });
    assert_eq!(made.slots(), []);
}

fn serve(made: &Made, map: &RuntimeMap) {
    finish(made, map);
    let cache = map.cache().unwrap();
    assert_eq!(cache.is_some(), matches!(made.word(CACHE), 1 | 2));
    let failed = map.failed_sync().unwrap();
    assert_eq!(failed.is_none(), matches!(made.word(FAILED_SYNC), 0 | 3));
    let flags = [0, 1].map(|chunk| made.word(FLAGS + chunk * 8));
    let mut states = vec![0; (states_end(SIZE) - STATES) as usize];
    FileExt::read_exact_at(&made.file, &mut states, STATES).unwrap();
    let opened = Volume::open_runtime(LayerMap::new(geometry(), Durable), Vec::new(), map);
    // What nobody wrote there is refused: a map of which it is not known what counts is none.
    assert_eq!(opened.is_ok(), flags.iter().all(|flag| *flag <= LOADED));
    let Ok(volume) = opened else {
        return;
    };
    assert_eq!(volume.failed_sync().is_some(), failed.is_some());
    volume.map().load(0..volume.map().blocks()).unwrap();
    for (sector, kept) in (0..).zip(states.chunks(format::STATES_LEN)) {
        let chunk = (sector / format::SECTORS_PER_CHUNK) as usize;
        let found = volume.map().sector_states(sector);
        match flags[chunk] == LOADED {
            true => assert_eq!(found[..], *kept),
            false => assert_eq!(found, durable(sector)),
        }
    }
    let mut dirty = Vec::new();
    volume.map().take_dirty(&mut dirty, 1 << 20);
    for sector in dirty {
        assert!(sector < format::sectors(BLOCKS));
        let chunk = (sector / format::SECTORS_PER_CHUNK) as usize;
        assert_eq!(flags[chunk], LOADED);
    }
}

thread_local! {
    static FILE: Scratch = Scratch::new(".map");
    static DATA: Scratch = Scratch::new(".data");
}

fuzz_target!(|input: Input| {
    FILE.with(|scratch| {
        let (made, counts) = Made::new(&input, scratch);
        let found = RuntimeMap::look(scratch.path(), &geometry(), ATTACH);
        let is_counted = matches!(found, Ok(Found::Counts(_)));
        // A checksum is no secret, and nobody makes a whole stamp by chance.
        assert_eq!(is_counted, counts, "{found:?}");
        if let Some(map) = RuntimeMap::peek(scratch.path(), LAYER) {
            let _ = map.failed_sync();
        }
        match found {
            Ok(Found::Counts(map)) => serve(&made, &map),
            Ok(Found::OfLayer(layer, map)) => {
                assert_eq!(layer, OTHER);
                let _ = map.cache();
            }
            Ok(Found::Missing | Found::Foreign(_)) | Err(_) => {}
        }
    });
});
