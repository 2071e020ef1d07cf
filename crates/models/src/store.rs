//! A map file and its errors, in place of those of `volume`.

use std::io;

pub(crate) trait ReadAt {
    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()>;

    fn next_data(&self, offset: u64) -> io::Result<Option<u64>> {
        Ok(Some(offset))
    }
}

#[derive(Debug)]
pub(crate) enum VolumeError {
    Io {
        what: &'static str,
        source: io::Error,
    },
    MapDamaged {
        sector: u64,
    },
}
