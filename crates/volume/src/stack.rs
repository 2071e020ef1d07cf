//! The disk as a stack of layers: where the content of a block is.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::store::{ReadAt, StoreError};
use keys::units::{LayerIndex, MAX_LAYERS};
use xts::DataUnit;

use super::failed_sync::{CHECKED, FailedSync, Reason};
use super::flushes::Flushes;
use super::frozen::FrozenMap;
use super::layer::{check_map_file, examine_map};
use super::map::{BlockMap, Content, MapFile, Run};
use super::marks::BlockMarks;
use super::redo::{RedoSlot, TakenSlots};
use super::runtime::RuntimeMap;
use super::{Geometry, VolumeError, format};

/// A layer and the file of its durable map.
#[derive(Clone)]
pub struct LayerMap {
    /// What the layer is.
    pub geometry: Geometry,
    /// Its map file.
    pub file: MapFile,
}

impl LayerMap {
    /// The map of the layer of `geometry`.
    pub fn new(geometry: Geometry, file: impl ReadAt + Send + Sync + 'static) -> Self {
        let file = Arc::new(file);
        Self { geometry, file }
    }
}

/// A layer that is not written to by anybody who reads it here.
pub struct LowerLayer {
    geometry: Geometry,
    map: BlockMap,
}

impl LowerLayer {
    /// Opens a layer whose map is loaded as it is needed; its header and length are checked now.
    ///
    /// # Errors
    /// What is wrong with them.
    pub fn open(layer: LayerMap) -> Result<Arc<Self>, VolumeError> {
        let LayerMap { geometry, file } = layer;
        geometry.check()?;
        check_map_file(&*file, &geometry)?;
        let blocks = geometry.blocks();
        let frozen = file.to_map();
        let frozen = frozen.and_then(|file| FrozenMap::of(file, format::file_len(blocks)));
        let map = BlockMap::frozen(file.clone(), blocks, frozen)?;
        Ok(Arc::new(Self { geometry, map }))
    }

    /// What the layer is.
    pub fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    /// Its map.
    pub fn map(&self) -> &BlockMap {
        &self.map
    }
}

/// How a map is asked for the blocks from one on: as a request does it, or over what is not loaded.
type Look = fn(&BlockMap, u64, u64) -> Result<Option<Run<Content>>, VolumeError>;

/// Where the content of blocks is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// In the data file of this layer.
    Layer(LayerIndex),
    /// Nowhere: they read as zeros.
    Zeros,
}

/// What a block of the top layer is missing, when layers beneath it are to go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Missing {
    /// Nothing: it has its own content, or the layers that go have none.
    Nothing,
    /// The content that this layer has.
    Content(LayerIndex),
    /// The note that it is zeros, whatever is beneath.
    Zeros,
}

/// The disk as all its queue threads share it: which blocks have what, and which are being worked
/// on.
pub struct Volume {
    geometry: Geometry,
    map: Arc<BlockMap>,
    /// From the one beneath the top downwards.
    lower: Vec<Arc<LowerLayer>>,
    state: Arc<State>,
}

/// What stays the same when the disk grows or loses layers.
#[derive(Default)]
struct State {
    marks: BlockMarks,
    redo: Arc<TakenSlots>,
    /// Why a sync has failed; the word of the current map says whether.
    reason: Reason,
    map_synced: AtomicBool,
}

impl Volume {
    /// Opens a disk whose current map lives in this process alone: for work whose loss with the
    /// process does no harm, as an import, or that writes nothing. Maps are loaded, and checked, as
    /// they are needed.
    ///
    /// # Errors
    /// A [`VolumeError`] that says what is wrong with a map.
    pub fn open_private(top: LayerMap, lower: Vec<Arc<LowerLayer>>) -> Result<Self, VolumeError> {
        let blocks = top.geometry.blocks();
        check_map_file(&*top.file, &top.geometry)?;
        Self::new(top.geometry, BlockMap::private(top.file, blocks)?, lower)
    }

    /// Opens a disk whose current map is `runtime`, as an attached disk has it. When the map was
    /// left behind by a process that died, it has what that process had not flushed, and which sectors
    /// that is. Maps are loaded, and checked, as they are needed, so that the size of a disk and the
    /// number of its layers cost nothing here: a guest waits for this when its daemon is started again.
    /// Writes that the process had not finished are to be finished first, by [`RuntimeMap::finish_writes`].
    ///
    /// # Errors
    /// A [`VolumeError`] that says what is wrong with the header or the length of a map, or
    /// [`VolumeError::Unfinished`].
    pub fn open_runtime(
        top: LayerMap,
        lower: Vec<Arc<LowerLayer>>,
        runtime: &RuntimeMap,
    ) -> Result<Self, VolumeError> {
        check_map_file(&*top.file, &top.geometry)?;
        if runtime.has_unfinished(&top.geometry)? {
            return Err(VolumeError::Unfinished);
        }
        let words = runtime.words(&top.geometry)?;
        let blocks = top.geometry.blocks();
        let map = BlockMap::new(words, top.file, blocks, Arc::default())?;
        map.forget_loaders();
        map.adopt_dirty(map.failed_sync().load(Ordering::Acquire) == CHECKED);
        Self::new(top.geometry, map, lower)
    }

    fn new(
        geometry: Geometry,
        map: BlockMap,
        lower: Vec<Arc<LowerLayer>>,
    ) -> Result<Self, VolumeError> {
        geometry.check()?;
        check_order(&geometry, &lower)?;
        Ok(Self {
            geometry,
            map: Arc::new(map),
            lower,
            state: Arc::default(),
        })
    }

    /// Reads all maps to their end, to see that no part of them is damaged, and keeps none of it.
    ///
    /// # Errors
    /// What is wrong with one.
    pub fn verify(&self) -> Result<(), VolumeError> {
        verify(self.map.durable(), &self.geometry)?;
        self.lower
            .iter()
            .try_for_each(|layer| verify(layer.map.durable(), &layer.geometry))
    }

    /// The same disk with `size` bytes, whose runtime map and files are long enough already. To be
    /// made while no request is under way, and to take the place of this one everywhere at once.
    ///
    /// # Errors
    /// [`VolumeError::Size`], [`VolumeError::Shrink`], or [`VolumeError::Io`] when the runtime map
    /// cannot be mapped.
    pub fn grown(&self, size: u64, runtime: &RuntimeMap) -> Result<Self, VolumeError> {
        let geometry = self.geometry.grown(size)?;
        let words = runtime.words(&geometry)?;
        let (file, flushes) = (self.map.durable().clone(), self.flushes().clone());
        let map = BlockMap::new(words, file, geometry.blocks(), flushes)?;
        map.take_over_notes(&self.map);
        map.find_dirty();
        // A last chunk that was loaded stays so: what the disk did not have of it was never written.
        Ok(Self {
            geometry,
            map: Arc::new(map),
            lower: self.lower.clone(),
            state: self.state.clone(),
        })
    }

    /// The same disk over other lower layers, which give the same content: after a merge. To be made
    /// and used as [`Volume::grown`].
    ///
    /// # Errors
    /// [`VolumeError::LowerIsLarger`], [`VolumeError::TooManyLayers`].
    pub fn over(&self, lower: Vec<Arc<LowerLayer>>) -> Result<Self, VolumeError> {
        check_order(&self.geometry, &lower)?;
        Ok(Self {
            geometry: self.geometry.clone(),
            map: self.map.clone(),
            lower,
            state: self.state.clone(),
        })
    }

    /// What the top layer is.
    pub fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    /// The current map of the top layer.
    pub fn map(&self) -> &BlockMap {
        &self.map
    }

    /// The layers beneath the top, downwards.
    pub fn lower(&self) -> &[Arc<LowerLayer>] {
        &self.lower
    }

    /// The data units of all layers, the top layer's first.
    pub fn data_units(&self) -> Vec<DataUnit> {
        let lower = self.lower.iter().map(|layer| layer.geometry.data_unit);
        std::iter::once(self.geometry.data_unit)
            .chain(lower)
            .collect()
    }

    /// Where the content of the blocks from `first` on is, and of how many of them, at most `most`,
    /// it is there. `None` while another thread loads a map that is needed.
    ///
    /// # Errors
    /// A [`VolumeError`] when a map cannot be loaded.
    pub fn lookup(&self, first: u64, most: u64) -> Result<Option<Run<Source>>, VolumeError> {
        let Some(run) = self.map.run_in_chunk(first, most)? else {
            return Ok(None);
        };
        let what = match run.what {
            Content::Data => Source::Layer(LayerIndex::TOP),
            Content::Zeros => Source::Zeros,
            Content::Inherited => {
                return Ok(self
                    .beneath(first, run.blocks, self.lower.len())?
                    .map(|run| Run {
                        what: match run.what {
                            Some(source) => source,
                            None => Source::Zeros,
                        },
                        blocks: run.blocks,
                    }));
            }
        };
        let blocks = run.blocks;
        Ok(Some(Run { what, blocks }))
    }

    /// Whether one of the topmost `layers` layers says anything of the blocks from `first` on; otherwise
    /// as [`Volume::lookup`].
    ///
    /// # Errors
    /// As [`Volume::lookup`].
    pub fn is_held(
        &self,
        first: u64,
        most: u64,
        layers: usize,
    ) -> Result<Option<Run<bool>>, VolumeError> {
        let Some(beneath) = layers.checked_sub(1) else {
            let (what, blocks) = (false, most);
            return Ok(Some(Run { what, blocks }));
        };
        let Some(run) = self.map.run_in_chunk(first, most)? else {
            return Ok(None);
        };
        if run.what != Content::Inherited {
            let (what, blocks) = (true, run.blocks);
            return Ok(Some(Run { what, blocks }));
        }
        let run = self.beneath(first, run.blocks, beneath)?;
        Ok(run.map(|run| Run {
            what: run.what.is_some(),
            blocks: run.blocks,
        }))
    }

    /// What the top layer is missing of the blocks from `first` on, when the `drop` layers beneath it are
    /// to go; otherwise as [`Volume::lookup`].
    ///
    /// # Errors
    /// As [`Volume::lookup`].
    pub fn missing(
        &self,
        first: u64,
        most: u64,
        drop: usize,
    ) -> Result<Option<Run<Missing>>, VolumeError> {
        self.missing_by(BlockMap::run_in_chunk, first, most, drop)
    }

    fn missing_by(
        &self,
        look: Look,
        first: u64,
        most: u64,
        drop: usize,
    ) -> Result<Option<Run<Missing>>, VolumeError> {
        let Some(run) = look(&self.map, first, most)? else {
            return Ok(None);
        };
        if run.what != Content::Inherited {
            let (what, blocks) = (Missing::Nothing, run.blocks);
            return Ok(Some(Run { what, blocks }));
        }
        let Some(run) = self.beneath_by(look, first, run.blocks, drop)? else {
            return Ok(None);
        };
        let what = match run.what {
            Some(Source::Layer(layer)) => Missing::Content(layer),
            // With nothing left beneath, what is inherited is zeros too.
            Some(Source::Zeros) if drop < self.lower.len() => Missing::Zeros,
            Some(Source::Zeros) | None => Missing::Nothing,
        };
        let blocks = run.blocks;
        Ok(Some(Run { what, blocks }))
    }

    /// What the first `layers` layers beneath the top have of blocks that the top inherits; nothing
    /// when they inherit them all.
    fn beneath(
        &self,
        first: u64,
        most: u64,
        layers: usize,
    ) -> Result<Option<Run<Option<Source>>>, VolumeError> {
        self.beneath_by(BlockMap::run_in_chunk, first, most, layers)
    }

    fn beneath_by(
        &self,
        look: Look,
        first: u64,
        mut most: u64,
        layers: usize,
    ) -> Result<Option<Run<Option<Source>>>, VolumeError> {
        for (index, layer) in self.lower.iter().take(layers).enumerate() {
            let blocks = layer.map.blocks();
            if first >= blocks {
                continue;
            }
            let Some(run) = look(&layer.map, first, most.min(blocks - first))? else {
                return Ok(None);
            };
            most = run.blocks;
            let source = match run.what {
                Content::Inherited => continue,
                // There are at most `MAX_LAYERS`.
                Content::Data => Source::Layer(LayerIndex(index as u8 + 1)),
                Content::Zeros => Source::Zeros,
            };
            let (what, blocks) = (Some(source), most);
            return Ok(Some(Run { what, blocks }));
        }
        let (what, blocks) = (None, most);
        Ok(Some(Run { what, blocks }))
    }

    /// How many of `blocks` are still to be copied into the top layer before the `drop` layers
    /// beneath it can go. It loads what their maps have, and asks `goes_on` between parts of it.
    ///
    /// # Errors
    /// As [`Volume::lookup`]; [`VolumeError::Stopped`].
    pub fn count_missing(
        &self,
        blocks: Range<u64>,
        drop: usize,
        goes_on: &dyn Fn() -> bool,
    ) -> Result<u64, VolumeError> {
        let is_missing = |what: &Missing| matches!(what, Missing::Content(_));
        let look = |at, most| self.missing_by(BlockMap::run_or_hole, at, most, drop);
        count(blocks, is_missing, look, goes_on)
    }

    /// Whether nothing is missing when the `drop` layers beneath the top go. It loads what the maps have.
    ///
    /// # Errors
    /// As [`Volume::lookup`].
    pub fn has_all_of(&self, drop: usize) -> Result<bool, VolumeError> {
        let all = 0..self.map.blocks();
        let mut at = all.start;
        while at < all.end {
            match self.missing_by(BlockMap::run_or_hole, at, all.end - at, drop)? {
                Some(run) if run.what == Missing::Nothing => at += run.blocks,
                Some(_) => return Ok(false),
                None => std::thread::yield_now(),
            }
        }
        Ok(true)
    }

    /// How many blocks of all that have content in the `drop` layers beneath the top need not, or not
    /// any more, be copied up; and how many there are. Otherwise as [`Volume::count_missing`].
    ///
    /// # Errors
    /// As [`Volume::count_missing`].
    pub fn copy_up_progress(
        &self,
        drop: usize,
        goes_on: &dyn Fn() -> bool,
    ) -> Result<(u64, u64), VolumeError> {
        let all = 0..self.map.blocks();
        let has_content = |what: &Option<Source>| matches!(what, Some(Source::Layer(_)));
        let look = |at, most| self.beneath_by(BlockMap::run_or_hole, at, most, drop);
        let total = count(all.clone(), has_content, look, goes_on)?;
        let missing = self.count_missing(all, drop, goes_on)?;
        Ok((total.saturating_sub(missing), total))
    }

    /// The marks of blocks being worked on.
    pub fn marks(&self) -> &BlockMarks {
        &self.state.marks
    }

    /// A slot for writes into the data file where that is memory. None where it would not outlive the process,
    /// and none when there is none left.
    pub(super) fn redo_slot(&self) -> Option<RedoSlot> {
        RedoSlot::take(&self.map, &self.state.redo, self.geometry().size)
    }

    /// The flushes of all queues.
    pub fn flushes(&self) -> &Arc<Flushes> {
        self.map.flushes()
    }

    /// Whether all of the map file is known to be durable. At first it is not: what was read from
    /// it may be a write of a process that died before its sync, which only the page cache has.
    pub fn is_map_synced(&self) -> bool {
        self.state.map_synced.load(Ordering::Acquire)
    }

    /// Notes that the map file was synced.
    pub fn set_map_synced(&self) {
        self.state.map_synced.store(true, Ordering::Release);
        // All of it was written again, if that was to be done.
        let word = self.map.failed_sync();
        let _ = word.compare_exchange(CHECKED, 0, Ordering::SeqCst, Ordering::SeqCst);
    }

    /// Has the first flush write all of the map, as far as it says anything: what was read from the file
    /// may be what only the page cache has, since a process before this one could not sync it, of which
    /// nothing else tells. For writing to a layer without a runtime map. It loads all of the
    /// map that says anything.
    ///
    /// # Errors
    /// As [`Volume::lookup`].
    pub fn write_map_anew(&self) -> Result<(), VolumeError> {
        let says_nothing = [0; format::STATES_LEN];
        let mut next = 0;
        while let Some(chunk) = self.map.next_chunk(next)? {
            let sectors = format::sectors_of_chunk(chunk, self.map.blocks());
            let first = sectors.start * format::BLOCKS_PER_SECTOR;
            self.map.load(first..first + 1)?;
            sectors
                .filter(|sector| self.map.sector_states(*sector) != says_nothing)
                .for_each(|sector| self.map.mark_dirty(sector));
            next = chunk + 1;
        }
        Ok(())
    }

    /// Notes that a sync failed: no flush may succeed any more. To be called before anybody is told of
    /// the failure, and before the flush that it belongs to ends.
    pub fn set_failed_sync(&self, what: FailedSync, error: &StoreError) {
        self.state.reason.note(self.map.failed_sync(), what, error);
    }

    /// The sync that has failed, in this process or in an earlier one that had the same runtime map.
    pub fn failed_sync(&self) -> Option<FailedSync> {
        FailedSync::from_word(self.map.failed_sync().load(Ordering::SeqCst))
    }

    /// What the kernel said of [`Volume::failed_sync`], in one line.
    pub fn why_sync_failed(&self) -> &str {
        self.state.reason.text()
    }
}

fn verify(map: &MapFile, geometry: &Geometry) -> Result<(), VolumeError> {
    examine_map(&**map, geometry, |_, states| states.map(drop))
}

/// Counts the blocks of which `look` says what is wanted.
fn count<T>(
    blocks: Range<u64>,
    is_wanted: impl Fn(&T) -> bool,
    look: impl Fn(u64, u64) -> Result<Option<Run<T>>, VolumeError>,
    goes_on: &dyn Fn() -> bool,
) -> Result<u64, VolumeError> {
    let (mut at, mut wanted) = (blocks.start, 0);
    while at < blocks.end {
        if !goes_on() {
            return Err(VolumeError::Stopped);
        }
        let Some(run) = look(at, blocks.end - at)? else {
            std::thread::yield_now();
            continue;
        };
        wanted += if is_wanted(&run.what) { run.blocks } else { 0 };
        at += run.blocks;
    }
    Ok(wanted)
}

/// A layer reaches no further than the one above it.
fn check_order(top: &Geometry, lower: &[Arc<LowerLayer>]) -> Result<(), VolumeError> {
    if lower.len() >= MAX_LAYERS {
        return Err(VolumeError::TooManyLayers {
            layers: lower.len() + 1,
        });
    }
    let mut above = top.size;
    for layer in lower {
        let Geometry { layer, size, .. } = layer.geometry;
        if size > above {
            return Err(VolumeError::LowerIsLarger {
                lower: layer,
                size,
                above,
            });
        }
        above = size;
    }
    Ok(())
}

#[cfg(test)]
mod tests;
