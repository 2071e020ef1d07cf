//! The guest's memory as the frontend announces it.

use std::fs::File;
use std::io;
use std::sync::Arc;

use vhost::vhost_user::message::VhostUserMemoryRegion;
use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryRegion, GuestRegionMmap};

use protocol::{FileId, KeptMemory};

use crate::request::Memory;

use crate::disk::sharing::file_id;

/// Where a region is in the frontend's own address space, in which it names ring addresses.
struct Mapping {
    user: u64,
    guest: u64,
    len: u64,
    file: FileId,
}

/// The current regions. Each change makes a new [`Memory`]; requests keep the one they started with
/// until they are done.
#[derive(Default)]
pub(crate) struct GuestMemory {
    memory: Arc<Memory>,
    mappings: Vec<Mapping>,
}

impl GuestMemory {
    /// The memory as it is now.
    pub(crate) fn current(&self) -> Arc<Memory> {
        self.memory.clone()
    }

    /// Replaces all regions, which may come in any order.
    pub(crate) fn replace(
        &mut self,
        regions: &[VhostUserMemoryRegion],
        files: Vec<File>,
    ) -> io::Result<()> {
        let mut mapped = Vec::with_capacity(regions.len());
        let mut mappings = Vec::with_capacity(regions.len());
        for (region, file) in regions.iter().zip(files) {
            mappings.push(Mapping::of(region, &file)?);
            mapped.push(map(region, file)?);
        }
        mapped.sort_by_key(GuestRegionMmap::start_addr);
        // An empty table is what a frontend sends that takes its memory back.
        self.memory = Arc::new(if mapped.is_empty() {
            Memory::new()
        } else {
            Memory::from_regions(mapped).map_err(io::Error::other)?
        });
        self.mappings = mappings;
        Ok(())
    }

    /// Adds a region.
    pub(crate) fn add(&mut self, region: &VhostUserMemoryRegion, file: File) -> io::Result<()> {
        let mapping = Mapping::of(region, &file)?;
        let mapped = Arc::new(map(region, file)?);
        let memory = self
            .memory
            .insert_region(mapped)
            .map_err(io::Error::other)?;
        self.memory = Arc::new(memory);
        self.mappings.push(mapping);
        Ok(())
    }

    /// Removes a region; guest address, length and the frontend's address must be those of one.
    pub(crate) fn remove(&mut self, region: &VhostUserMemoryRegion) -> io::Result<()> {
        let same = |m: &Mapping| {
            (m.guest, m.len, m.user)
                == (region.guest_phys_addr, region.memory_size, region.user_addr)
        };
        let index = self
            .mappings
            .iter()
            .position(same)
            .ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))?;
        let (memory, _) = self
            .memory
            .remove_region(GuestAddress(region.guest_phys_addr), region.memory_size)
            .map_err(io::Error::other)?;
        self.memory = Arc::new(memory);
        self.mappings.swap_remove(index);
        Ok(())
    }

    /// The files that it lies in.
    pub(crate) fn files(&self) -> Vec<FileId> {
        let mut files: Vec<FileId> = Vec::new();
        for mapping in &self.mappings {
            if !files.contains(&mapping.file) {
                files.push(mapping.file);
            }
        }
        files
    }

    /// All regions, each with its file.
    pub(crate) fn regions(&self) -> impl Iterator<Item = (KeptMemory, &File)> {
        self.mappings.iter().filter_map(|mapping| {
            let region = self.memory.find_region(GuestAddress(mapping.guest))?;
            let file = region.file_offset()?;
            let region = KeptMemory {
                guest: mapping.guest,
                len: mapping.len,
                user: mapping.user,
                offset: file.start(),
            };
            Some((region, file.file()))
        })
    }

    /// The guest address of the frontend's address `user`.
    pub(crate) fn guest_address(&self, user: u64) -> Option<GuestAddress> {
        self.mappings.iter().find_map(|m| {
            let inside = user.checked_sub(m.user).filter(|offset| *offset < m.len)?;
            m.guest.checked_add(inside).map(GuestAddress)
        })
    }

    /// Whether `len` bytes from `at` on are all there.
    pub(crate) fn has(&self, at: GuestAddress, len: usize) -> bool {
        GuestMemoryBackend::check_range(&*self.memory, at, len)
    }
}

impl Mapping {
    fn of(region: &VhostUserMemoryRegion, file: &File) -> io::Result<Self> {
        Ok(Self {
            user: region.user_addr,
            guest: region.guest_phys_addr,
            len: region.memory_size,
            file: file_id(file)?,
        })
    }
}

/// Maps a region. The file must be as long as it says: touching what is behind its end would kill
/// this process.
fn map(region: &VhostUserMemoryRegion, file: File) -> io::Result<GuestRegionMmap<()>> {
    let end = region.mmap_offset.checked_add(region.memory_size);
    if end.is_none_or(|end| file.metadata().is_ok_and(|m| m.is_file() && m.len() < end)) {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    let mapped = region.mmap_region(file).map_err(io::Error::other)?;
    GuestRegionMmap::new(mapped, GuestAddress(region.guest_phys_addr))
        .ok_or_else(|| io::ErrorKind::InvalidInput.into())
}
