//! Page-aligned buffers for ciphertext: pools that grow by need, within what a disk may have.
//!
//! Each queue has a pool. It begins with a few buffers that are its own for good, so that it can always
//! go on, and takes more memory in chunks while it has more under way than these hold. A chunk is given
//! back when it was not needed for a while, and sooner when other pools lack memory; a pool that has more
//! than its share gives up what it has beyond that. Chunks are taken from the end of a pool last
//! and given back first, so that they fall empty when less is under way.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use super::buffer::{BUFFER_LEN, BufferMemory, CHUNK_LEN, IoBuffer, Pages, Region};
use super::{Store, StoreError};

/// Chunks of a pool at most, the first of which is its own for good.
pub const MAX_CHUNKS: usize = 5;
/// Buffers that a pool begins with, where there is memory for as many: what is issued in one burst.
pub const OWN_BUFFERS: usize = 4;

/// How long a chunk is kept that is not needed.
const KEPT: Duration = Duration::from_secs(1);
/// The same while another pool lacks memory.
const KEPT_IN_NEED: Duration = Duration::from_millis(20);
/// How long others give up memory after a pool has last found none.
const WANTED: Duration = Duration::from_millis(200);

/// The memory that the pools of a disk may have together, beyond what is each one's own.
#[derive(Debug)]
pub struct BufferBudget {
    memory: BufferMemory,
    total: usize,
    left: AtomicUsize,
    pools: AtomicUsize,
    start: Instant,
    /// Until when pools beyond their share give up memory, in milliseconds since the start: a pool that
    /// has less than its share has found nothing left.
    wanted: AtomicU64,
}

impl BufferBudget {
    /// `bytes` to be shared by all pools, of this memory.
    pub fn new(bytes: usize, memory: impl Into<BufferMemory>) -> Arc<Self> {
        Arc::new(Self {
            memory: memory.into(),
            total: bytes,
            left: bytes.into(),
            pools: 0.into(),
            start: Instant::now(),
            wanted: 0.into(),
        })
    }

    /// Bytes that pools have taken of it.
    pub fn taken(&self) -> usize {
        self.total - self.left.load(Ordering::Relaxed)
    }

    fn take(&self, bytes: usize) -> bool {
        let less = |left: usize| left.checked_sub(bytes);
        self.left
            .try_update(Ordering::Relaxed, Ordering::Relaxed, less)
            .is_ok()
    }

    fn give_back(&self, bytes: usize) {
        self.left.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Memory that is somebody's for good.
    fn populated(&self, bytes: usize) -> Result<Region, StoreError> {
        let region = self.memory.populated(bytes);
        region.map_err(|source| StoreError::Setup {
            what: "get memory for buffers",
            source,
        })
    }

    fn want(&self) {
        let until = self.start.elapsed() + WANTED;
        self.wanted
            .store(until.as_millis() as u64, Ordering::Relaxed);
    }

    fn is_wanted(&self) -> bool {
        let until = Duration::from_millis(self.wanted.load(Ordering::Relaxed));
        !until.is_zero() && self.start.elapsed() < until
    }

    /// Chunks that a pool keeps while others lack memory.
    fn share(&self) -> usize {
        let pools = self.pools.load(Ordering::Relaxed).max(1);
        (self.total / CHUNK_LEN / pools).max(1)
    }
}

struct Chunk {
    region: Arc<Region>,
    free: Vec<IoBuffer>,
    buffers: usize,
    /// It is given back as soon as all of it is free.
    closing: bool,
}

impl Chunk {
    /// A chunk without memory, that needs no allocation when it gets some.
    fn spare(buffers: usize) -> Self {
        Self {
            region: Arc::new(Region::none()),
            free: Vec::with_capacity(buffers),
            buffers: 0,
            closing: false,
        }
    }

    /// Gives it memory, of buffers of `len` bytes.
    fn fill(&mut self, memory: Region, len: usize, (chunk, slot): (usize, usize)) {
        // No buffer of it is in use.
        let Some(region) = Arc::get_mut(&mut self.region) else {
            return;
        };
        *region = memory;
        self.buffers = region.len / len;
        let region = &self.region;
        let buffer = |i| IoBuffer {
            region: region.clone(),
            start: i * len,
            len,
            chunk,
            slot,
        };
        self.free.extend((0..self.buffers).rev().map(buffer));
    }

    /// Gives the memory back, all of which is free.
    fn clear(&mut self) {
        self.free.clear();
        self.closing = false;
        if let Some(region) = Arc::get_mut(&mut self.region) {
            *region = Region::none();
            self.buffers = 0;
        }
    }

    fn is_free(&self) -> bool {
        self.free.len() == self.buffers
    }
}

/// The buffers of one queue. When there is none left, the caller waits.
pub struct BufferPool {
    budget: Arc<BufferBudget>,
    /// The first is its own for good.
    chunks: Vec<Chunk>,
    /// Those that may follow.
    spare: Vec<Chunk>,
    /// A request found no buffer.
    starved: bool,
    /// Since when the last chunk has not been needed.
    unneeded: Option<Instant>,
}

impl BufferPool {
    /// A pool with `own` buffers, whose memory is taken at once, that grows within the budget.
    ///
    /// # Errors
    /// [`StoreError::Setup`] when there is no memory for them.
    pub fn new(own: usize, budget: &Arc<BufferBudget>) -> Result<Self, StoreError> {
        let region = budget.populated(own.max(1) * BUFFER_LEN)?;
        let mut first = Chunk::spare(own.max(1));
        first.fill(region, BUFFER_LEN, (0, 0));
        let mut chunks = Vec::with_capacity(MAX_CHUNKS);
        chunks.push(first);
        budget.pools.fetch_add(1, Ordering::Relaxed);
        Ok(Self {
            budget: budget.clone(),
            chunks,
            spare: (1..MAX_CHUNKS)
                .map(|_| Chunk::spare(CHUNK_LEN / BUFFER_LEN))
                .collect(),
            starved: false,
            unneeded: None,
        })
    }

    /// A pool of `count` buffers of `len` bytes, a multiple of 512, that the store need not be told of. It
    /// does not grow.
    ///
    /// # Errors
    /// As [`BufferPool::new`].
    pub fn fixed(count: usize, len: usize) -> Result<Self, StoreError> {
        Self::fixed_of(count, len, Pages::Ordinary.into())
    }

    /// As [`BufferPool::fixed`], of the memory that this pool is of.
    pub(crate) fn fixed_beside(&self, count: usize, len: usize) -> Result<Self, StoreError> {
        Self::fixed_of(count, len, self.budget.memory.clone())
    }

    fn fixed_of(count: usize, len: usize, memory: BufferMemory) -> Result<Self, StoreError> {
        let budget = BufferBudget::new(0, memory);
        let region = budget.populated(count * len)?;
        budget.pools.fetch_add(1, Ordering::Relaxed);
        let mut chunk = Chunk::spare(count);
        chunk.fill(region, len, (0, usize::MAX));
        Ok(Self {
            budget,
            chunks: vec![chunk],
            spare: Vec::new(),
            starved: false,
            unneeded: None,
        })
    }

    /// A pool that shares its memory with no other.
    ///
    /// # Errors
    /// As [`BufferPool::new`].
    pub fn alone() -> Result<Self, StoreError> {
        Self::alone_in(Pages::Ordinary)
    }

    /// As [`BufferPool::alone`], of this memory.
    ///
    /// # Errors
    /// As [`BufferPool::new`].
    pub fn alone_in(memory: impl Into<BufferMemory>) -> Result<Self, StoreError> {
        let budget = BufferBudget::new((MAX_CHUNKS - 1) * CHUNK_LEN, memory);
        Self::new(OWN_BUFFERS, &budget)
    }

    /// A free buffer, of those in use before the one used last: it is the most likely to be in a cache.
    pub fn take(&mut self) -> Option<IoBuffer> {
        let mut usable = self.chunks.iter_mut().filter(|chunk| !chunk.closing);
        let buffer = usable.find_map(|chunk| chunk.free.pop());
        match &buffer {
            Some(buffer) if buffer.chunk + 1 == self.chunks.len() => self.unneeded = None,
            Some(_) => {}
            None => self.starved = true,
        }
        buffer
    }

    /// Gives a buffer back.
    pub fn put(&mut self, buffer: IoBuffer) {
        debug_assert!(buffer.chunk < self.chunks.len(), "a buffer of another pool");
        if let Some(chunk) = self.chunks.get_mut(buffer.chunk) {
            debug_assert!(chunk.free.len() < chunk.buffers, "returned twice");
            chunk.free.push(buffer);
        }
    }

    /// Tells a store the memory that there is, before the first operation that names it.
    pub(crate) fn introduce(&self, store: &mut impl Store) {
        for (number, chunk) in self.chunks.iter().enumerate() {
            store.adopt(number, chunk.region.ptr, chunk.region.len);
        }
    }

    /// Grows if buffers were lacking, and gives back what is not needed. To be called between bursts.
    pub(crate) fn tend(&mut self, store: &mut impl Store) {
        if std::mem::take(&mut self.starved) {
            self.grow(store);
        }
        let grown = self.chunks.len() - 1;
        let Some(last) = self.chunks.last_mut().filter(|_| grown > 0) else {
            return;
        };
        let wanted = self.budget.is_wanted();
        last.closing = wanted && grown > self.budget.share();
        if !last.is_free() {
            self.unneeded = None;
            return;
        }
        let since = *self.unneeded.get_or_insert_with(Instant::now);
        let kept = if wanted { KEPT_IN_NEED } else { KEPT };
        if last.closing || since.elapsed() >= kept {
            self.shrink(store);
        }
    }

    /// How long it is until `BufferPool::tend` may have something to give back, though nothing happens.
    pub fn idle_for(&self) -> Option<Duration> {
        let since = self.unneeded?;
        Some(KEPT.saturating_sub(since.elapsed()))
    }

    fn grow(&mut self, store: &mut impl Store) {
        let grown = self.chunks.len() - 1;
        let is_poor = grown < self.budget.share();
        if self.chunks.len() == MAX_CHUNKS || (!is_poor && self.budget.is_wanted()) {
            return;
        }
        if !self.budget.take(CHUNK_LEN) {
            if is_poor {
                self.budget.want();
            }
            return;
        }
        match self.budget.memory.chunk() {
            Ok(region) => {
                let number = self.chunks.len();
                store.adopt(number, region.ptr, region.len);
                if let Some(mut chunk) = self.spare.pop() {
                    chunk.fill(region, BUFFER_LEN, (number, number));
                    self.chunks.push(chunk);
                }
            }
            Err(error) => {
                // It continues with what it has.
                self.budget.give_back(CHUNK_LEN);
                log::debug!("no more memory for buffers: {error}");
            }
        }
    }

    /// Gives the last chunk back, all of which is free.
    fn shrink(&mut self, store: &mut impl Store) {
        self.unneeded = None;
        if let Some(mut chunk) = self.chunks.pop() {
            store.disown(self.chunks.len());
            chunk.clear();
            self.spare.push(chunk);
            self.budget.give_back(CHUNK_LEN);
        }
    }
}

impl Drop for BufferPool {
    fn drop(&mut self) {
        self.budget.pools.fetch_sub(1, Ordering::Relaxed);
        self.budget.give_back((self.chunks.len() - 1) * CHUNK_LEN);
    }
}

#[cfg(test)]
mod tests {
    use std::ptr::NonNull;

    use store_ring::{LaneMemory, Layout};

    use super::*;
    use crate::store::{StoreCompletion, StoreOp, Tag};

    /// Knows which memory it was told of.
    #[derive(Default)]
    struct Adopted(Vec<usize>);

    impl Store for Adopted {
        fn alignment(&self) -> u64 {
            512
        }
        fn adopt(&mut self, chunk: usize, _: NonNull<u8>, _: usize) {
            self.0.push(chunk);
        }
        fn disown(&mut self, chunk: usize) {
            assert_eq!(self.0.pop(), Some(chunk));
        }
        fn has_room(&self) -> bool {
            true
        }
        fn submit(&mut self, _: Tag, _: StoreOp) {}
        fn reap(&mut self, _: &mut Vec<StoreCompletion>) {}
    }

    fn fill(pool: &mut BufferPool, store: &mut Adopted) -> Vec<IoBuffer> {
        let mut taken = Vec::new();
        loop {
            let before = taken.len();
            taken.extend(std::iter::from_fn(|| pool.take()));
            pool.tend(store);
            if taken.len() == before {
                return taken;
            }
        }
    }

    #[test]
    fn a_pool_grows_to_the_budget_and_gives_it_back() {
        let budget = BufferBudget::new(3 * CHUNK_LEN, Pages::Ordinary);
        let (mut store, mut pool) = (Adopted::default(), BufferPool::new(4, &budget).unwrap());
        pool.introduce(&mut store);
        let mut taken = fill(&mut pool, &mut store);
        assert_eq!(taken.len(), 4 + 3 * 32);
        assert_eq!(
            (budget.taken(), &store.0[..]),
            (3 * CHUNK_LEN, &[0, 1, 2, 3][..])
        );
        let mut addresses: Vec<_> = taken.iter().map(|b| b.ptr().addr()).collect();
        addresses.sort_unstable();
        addresses.dedup();
        assert_eq!(addresses.len(), taken.len());
        taken.iter_mut().for_each(|b| b.as_mut_slice().fill(7));
        taken.into_iter().for_each(|buffer| pool.put(buffer));
        // Somebody may need them again soon.
        pool.tend(&mut store);
        assert_eq!(store.0.len(), 4);
        pool.unneeded = Instant::now().checked_sub(KEPT);
        pool.tend(&mut store);
        assert_eq!((budget.taken(), store.0.len()), (2 * CHUNK_LEN, 3));
        drop(pool);
        assert_eq!(budget.taken(), 0);
    }

    #[test]
    fn what_is_beyond_a_share_goes_to_who_lacks() {
        let budget = BufferBudget::new(4 * CHUNK_LEN, Pages::Ordinary);
        let mut stores = [Adopted::default(), Adopted::default()];
        let mut pools = [0, 1].map(|_| BufferPool::new(1, &budget).unwrap());
        let [greedy, poor] = &mut pools;
        let mut taken = fill(greedy, &mut stores[0]);
        let few = fill(poor, &mut stores[1]);
        assert_eq!(
            (taken.len(), few.len()),
            (1 + 4 * 32, 1),
            "it has its own in any case"
        );
        // It goes on at full load, and lets go of two chunks all the same.
        for _ in 0..2 {
            poor.starved = true;
            poor.tend(&mut stores[1]);
            greedy.starved = true;
            greedy.tend(&mut stores[0]);
            let last = taken.split_off(taken.len() - 32);
            last.into_iter().for_each(|buffer| greedy.put(buffer));
            assert!(
                greedy.take().is_none(),
                "what is to be given back is not used"
            );
            greedy.tend(&mut stores[0]);
            poor.starved = true;
            poor.tend(&mut stores[1]);
        }
        assert_eq!((greedy.chunks.len(), poor.chunks.len()), (3, 3));
        poor.starved = true;
        poor.tend(&mut stores[1]);
        greedy.tend(&mut stores[0]);
        assert!(greedy.chunks.iter().all(|c| !c.closing), "it has its share");
    }

    #[test]
    fn a_pool_of_shared_memory_has_of_it_what_there_is() {
        let layout = Layout {
            lanes: 1,
            small: 2,
            chunks: 2,
        };
        let file = LaneMemory::make(layout).unwrap();
        let memory = LaneMemory::map(&file, layout).unwrap();
        let budget = BufferBudget::new(4 * CHUNK_LEN, memory.clone());
        let (mut store, mut pool) = (Adopted::default(), BufferPool::new(4, &budget).unwrap());
        let beside = pool.fixed_beside(16, 4096).unwrap();
        assert!(BufferPool::new(1, &budget).is_err(), "all places are lent");
        pool.introduce(&mut store);
        let taken = fill(&mut pool, &mut store);
        assert_eq!(taken.len(), 4 + 2 * 32, "there is no third chunk");
        assert_eq!(budget.taken(), 2 * CHUNK_LEN);
        for buffer in &taken {
            assert!(memory.data_of(buffer.ptr(), BUFFER_LEN).is_some());
        }
        taken.into_iter().for_each(|buffer| pool.put(buffer));
        drop((pool, beside));
        let lent: Vec<_> = std::iter::from_fn(|| memory.lend_chunk()).collect();
        assert_eq!(lent.len(), 2);
        assert!(BufferPool::new(4, &budget).is_ok());
    }
}
