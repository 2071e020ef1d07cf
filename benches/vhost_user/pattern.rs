//! What a guest asks of a disk.

/// What each request is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Work {
    Read,
    Write,
    /// Of 100 requests 70 read and the others write.
    Mixed,
    /// A writer writes, then flushes, and only then goes on: both together are one request. As many
    /// writers as the pattern has depth.
    Synced,
}

/// Of ten mixed requests so many read.
pub const READS_OF_TEN: u64 = 7;

/// What the load is.
#[derive(Clone, Copy, Debug)]
pub struct Pattern {
    pub work: Work,
    /// Bytes of a request.
    pub bytes: u32,
    /// Requests in flight.
    pub depth: u16,
    pub random: bool,
}

impl Pattern {
    /// Writes the disk in full.
    pub const FILL: Self = Self {
        work: Work::Write,
        bytes: 1 << 20,
        depth: 8,
        random: false,
    };

    /// Requests of 4 KiB at random places.
    pub fn small(work: Work, depth: u16) -> Self {
        Self {
            work,
            bytes: 4096,
            depth,
            random: true,
        }
    }

    /// What the table calls it.
    pub fn name(&self) -> String {
        let size = match self.bytes {
            bytes if bytes >= 1 << 20 => format!("{} MiB", bytes >> 20),
            bytes if bytes >= 1 << 10 => format!("{} KiB", bytes >> 10),
            bytes => format!("{bytes} B"),
        };
        let random = if self.random { "rand" } else { "" };
        let depth = self.depth;
        match self.work {
            Work::Read => format!("{size} {random}read qd{depth}"),
            Work::Write => format!("{size} {random}write qd{depth}"),
            Work::Mixed => format!("{size} mixed 70/30 qd{depth}"),
            Work::Synced if depth == 1 => format!("{size} write+flush, 1 writer"),
            Work::Synced => format!("{size} write+flush, {depth} writers"),
        }
    }

    /// Whether it leaves the disk as it is.
    pub fn only_reads(&self) -> bool {
        self.work == Work::Read
    }
}

/// What is measured by default.
pub fn all() -> Vec<Pattern> {
    let mut all = Vec::new();
    for (bytes, depths) in [
        (4096, &[1, 8, 32][..]),
        (512, &[32]),
        (65536, &[8]),
        (1 << 20, &[8]),
    ] {
        for &depth in depths {
            for work in [Work::Read, Work::Write] {
                all.push(Pattern {
                    work,
                    bytes,
                    depth,
                    random: bytes <= 4096,
                });
            }
        }
        if bytes == 4096 {
            all.push(Pattern::small(Work::Mixed, 32));
            all.extend([1, 8, 16].map(|writers| Pattern::small(Work::Synced, writers)));
        }
    }
    all
}
