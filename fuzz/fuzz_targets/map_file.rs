//! The map file of a layer, as whoever has the host's files may have changed it.
#![no_main]

use std::io;

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use uuid::Uuid;
use volume::store::ReadAt;
use volume::{BlockState, Geometry, LayerMap, Volume, format};
use xts::DataUnit;

/// Two map sectors and the beginning of a third.
const BLOCKS: u64 = 2 * format::BLOCKS_PER_SECTOR + 100;

struct Bytes(Vec<u8>);

impl ReadAt for Bytes {
    fn size(&self) -> io::Result<u64> {
        Ok(self.0.len() as u64)
    }

    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        let from = usize::try_from(offset).ok().and_then(|at| self.0.get(at..));
        let bytes = from.and_then(|from| from.get(..buffer.len()));
        buffer.copy_from_slice(bytes.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }
}

#[derive(Debug, Arbitrary)]
enum Sector {
    Empty,
    Sealed {
        number: Option<u32>,
        states: Vec<u8>,
    },
    Raw(Vec<u8>),
}

#[derive(Debug, Arbitrary)]
enum Input {
    Raw(Vec<u8>),
    Map {
        flips: Vec<(u16, u8)>,
        sectors: [Sector; 3],
        length: Option<u16>,
    },
}

fn geometry() -> Geometry {
    Geometry {
        disk: Uuid::from_u128(1),
        layer: Uuid::from_u128(2),
        size: BLOCKS * 4096 - 512,
        data_unit: DataUnit::B4096,
    }
}

fn filled<const N: usize>(bytes: &[u8]) -> [u8; N] {
    // Repeated, so that a short input fills a sector.
    std::array::from_fn(|i| bytes.get(i % bytes.len().max(1)).copied().unwrap_or(0))
}

fn bytes(input: Input) -> Vec<u8> {
    match input {
        Input::Raw(bytes) => bytes,
        Input::Map {
            flips,
            sectors,
            length,
        } => {
            let mut file = format::encode_header(&geometry()).to_vec();
            for (index, sector) in sectors.into_iter().enumerate() {
                match sector {
                    Sector::Empty => file.extend([0; format::SECTOR_LEN]),
                    Sector::Sealed { number, states } => {
                        let number = number.map_or(index as u64, u64::from);
                        file.extend(format::encode_sector(number, &filled(&states)));
                    }
                    Sector::Raw(raw) => file.extend(filled::<{ format::SECTOR_LEN }>(&raw)),
                }
            }
            for (at, bits) in flips {
                let at = usize::from(at) % file.len();
                file[at] ^= bits;
            }
            if let Some(length) = length {
                file.resize(usize::from(length), 0);
            }
            file
        }
    }
}

fuzz_target!(|input: Input| {
    let file = Bytes(bytes(input));
    let layer = LayerMap::new(geometry(), Bytes(file.0.clone()));
    let Ok(volume) = Volume::open_private(layer, Vec::new()) else {
        return;
    };
    let sound = volume.map().load(0..BLOCKS).is_ok();
    assert_eq!(volume.verify().is_ok(), sound);
    if !sound {
        return;
    }
    // What was accepted is the file of this layer, and each block is what its two bits say.
    // The disk may have grown since the map was made, and the file be longer than the disk.
    assert!(file.0.len() as u64 >= format::file_len(BLOCKS));
    let made_for = Geometry {
        size: u64::from_le_bytes(file.0[48..56].try_into().unwrap_or_default()),
        ..geometry()
    };
    assert!(made_for.size <= geometry().size);
    assert_eq!(file.0[..4096], format::encode_header(&made_for));
    for block in 0..BLOCKS {
        let sector = format::sector_offset(block / format::BLOCKS_PER_SECTOR) as usize;
        let index = (block % format::BLOCKS_PER_SECTOR) as usize;
        let bits = file.0[sector + index / 4] >> (2 * (index % 4)) & 3;
        assert_eq!(volume.map().get(block), BlockState::from_bits(bits.into()));
    }
    let mut dirty = Vec::new();
    volume.map().take_dirty(&mut dirty, 1 << 20);
    for sector in dirty {
        assert!(sector < format::sectors(BLOCKS));
    }
});
