//! Writing a new qcow2 image, from its beginning to its end.
//!
//! QEMU's programs would have to be given the plaintext over a socket, which costs two more copies of it, and they
//! update tables as they go. A new image that is written in order needs none of that: each cluster goes to the end
//! of the file, each table follows what it is of, and the header, which makes it an image, comes last. So
//! every cluster of the file is in use once, and its reference counts are known without counting.
//!
//! The format is that of QEMU's docs/interop/qcow2.txt, version 3; numbers are big-endian.

use std::fs::File;
use std::io;

use keys::units::is_zero;

use crate::import::Backing;
use crate::transfer::write_back::WriteBack;

/// Bytes of a cluster, QEMU's default.
pub(super) const CLUSTER: u64 = 1 << CLUSTER_BITS;
const CLUSTER_BITS: u32 = 16;
/// Entries of a table that takes one cluster.
const ENTRIES: u64 = CLUSTER / 8;
/// Reference counts of 16 bits in a cluster.
const COUNTS: u64 = CLUSTER / 2;
const REFCOUNT_ORDER: u32 = 4;

const MAGIC: &[u8; 4] = b"QFI\xfb";
const VERSION: u32 = 3;
const HEADER_LEN: u32 = 104;
const BACKING_FORMAT: u32 = 0xe279_2aca;
/// The longest name of a backing file.
const MAX_NAME: usize = 1023;

/// The cluster that an entry names is used once.
const COPIED: u64 = 1 << 63;
/// The cluster reads as zeros, whatever a backing file has.
const ZERO: u64 = 1;

/// A new image.
pub(super) struct Qcow2 {
    file: WriteBack,
    size: u64,
    backing: Option<Backing>,
    /// Clusters of the file that are in use: those from 0 on.
    clusters: u64,
    /// Where the tables are that are written.
    l1: Vec<u64>,
    /// The table under way, and the number of its entry in the other one.
    l2: (usize, Vec<u64>),
}

/// Neighbouring bytes that become neighbours in the file.
#[derive(Default)]
struct Run {
    /// Where they begin in the plaintext.
    from: usize,
    /// Where they begin in the file.
    to: u64,
    len: usize,
}

impl Qcow2 {
    /// An image of `size` bytes in an empty file. What is not written is what `backing` has, zeros without
    /// one.
    ///
    /// # Errors
    /// The name of the backing file is too long.
    pub(super) fn new(file: File, size: u64, backing: Option<Backing>) -> io::Result<Self> {
        let is_long = |backing: &Backing| backing.name.as_os_str().len() > MAX_NAME;
        if backing.as_ref().is_some_and(is_long) {
            return Err(io::Error::other("the name of the backing file is too long"));
        }
        let tables = size.div_ceil(CLUSTER).div_ceil(ENTRIES).max(1);
        Ok(Self {
            file: WriteBack::new(file),
            size,
            backing,
            // The first is the header's.
            clusters: 1,
            l1: vec![0; tables as usize],
            l2: (0, vec![0; ENTRIES as usize]),
        })
    }

    /// Writes `plaintext` at `offset`, which is not before where the last call ended. Zeros take no space.
    /// Over a backing file, the rest of a cluster of which something is written is zeros.
    ///
    /// # Errors
    /// What the system said.
    pub(super) fn write(&mut self, offset: u64, plaintext: &[u8]) -> io::Result<()> {
        let (mut at, mut run) = (0, Run::default());
        while at < plaintext.len() {
            let place = offset + at as u64;
            let left = plaintext.len() - at;
            let len = usize::try_from(CLUSTER - place % CLUSTER).map_or(left, |n| n.min(left));
            if let Some(to) = self.place(place, &plaintext[at..at + len])? {
                if run.from + run.len != at || run.to + run.len as u64 != to {
                    self.write_run(&run, plaintext)?;
                    run = Run {
                        from: at,
                        to,
                        len: 0,
                    };
                }
                run.len += len;
            }
            at += len;
        }
        self.write_run(&run, plaintext)
    }

    /// Where in the file a part of a cluster goes, if it has to be written.
    fn place(&mut self, offset: u64, part: &[u8]) -> io::Result<Option<u64>> {
        let cluster = offset / CLUSTER;
        let table = (cluster / ENTRIES) as usize;
        if table != self.l2.0 {
            self.write_l2()?;
            self.l2.0 = table;
        }
        let zero = is_zero(part);
        let entry = &mut self.l2.1[(cluster % ENTRIES) as usize];
        if *entry & COPIED == 0 {
            if zero {
                *entry = if self.backing.is_some() { ZERO } else { 0 };
                return Ok(None);
            }
            *entry = (self.clusters * CLUSTER) | COPIED;
            self.clusters += 1;
        }
        // What was not written of the file is zeros.
        Ok((!zero).then_some((*entry & !COPIED) + offset % CLUSTER))
    }

    fn write_run(&mut self, run: &Run, plaintext: &[u8]) -> io::Result<()> {
        let bytes = &plaintext[run.from..run.from + run.len];
        self.file.write_all_at(bytes, run.to)
    }

    /// Writes the table under way, if it says anything, and begins an empty one.
    fn write_l2(&mut self) -> io::Result<()> {
        let (number, entries) = &mut self.l2;
        if entries.iter().any(|entry| *entry != 0) {
            let at = self.clusters * CLUSTER;
            self.file.write_all_at(&big_endian(entries), at)?;
            self.clusters += 1;
            self.l1[*number] = at | COPIED;
            entries.fill(0);
        }
        Ok(())
    }

    /// Completes the image. It is not durable yet.
    ///
    /// # Errors
    /// What the system said.
    pub(super) fn finish(mut self) -> io::Result<()> {
        self.write_l2()?;
        let l1 = self.append(&big_endian(&self.l1))?;
        let (blocks, tables) = refcount_clusters(self.clusters);
        let all = self.clusters + blocks + tables;
        let first = self.clusters;
        for block in 0..blocks {
            let used = (all - block * COUNTS).min(COUNTS) as usize;
            let mut counts = [0, 1].repeat(used);
            counts.resize(CLUSTER as usize, 0);
            self.append(&counts)?;
        }
        let places: Vec<u64> = (0..blocks).map(|block| (first + block) * CLUSTER).collect();
        let refcounts = self.append(&big_endian(&places))?;
        self.file.file().set_len(all * CLUSTER)?;
        let header = self.header(l1, refcounts, tables);
        self.file.write_all_at(&header, 0)
    }

    /// Writes whole clusters, filled up with zeros, to the end of the file; where that was.
    fn append(&mut self, bytes: &[u8]) -> io::Result<u64> {
        let at = self.clusters * CLUSTER;
        self.file.write_all_at(bytes, at)?;
        self.clusters += (bytes.len() as u64).div_ceil(CLUSTER);
        Ok(at)
    }

    fn header(&self, l1: u64, refcounts: u64, refcount_clusters: u64) -> Vec<u8> {
        use std::os::unix::ffi::OsStrExt;
        let (mut extensions, mut name) = (Vec::new(), &[][..]);
        if let Some(backing) = &self.backing {
            let format = backing.format.to_string();
            extensions.extend(BACKING_FORMAT.to_be_bytes());
            extensions.extend((format.len() as u32).to_be_bytes());
            extensions.extend(format.bytes());
            extensions.resize(extensions.len().next_multiple_of(8), 0);
            name = backing.name.as_os_str().as_bytes();
        }
        // The end of the extensions.
        extensions.extend([0; 8]);
        let name_at = match name.is_empty() {
            true => 0,
            false => u64::from(HEADER_LEN) + extensions.len() as u64,
        };
        let mut header = Vec::with_capacity(HEADER_LEN as usize);
        header.extend(MAGIC);
        header.extend(VERSION.to_be_bytes());
        header.extend(name_at.to_be_bytes());
        header.extend((name.len() as u32).to_be_bytes());
        header.extend(CLUSTER_BITS.to_be_bytes());
        header.extend(self.size.to_be_bytes());
        // No encryption.
        header.extend(0u32.to_be_bytes());
        header.extend((self.l1.len() as u32).to_be_bytes());
        header.extend(l1.to_be_bytes());
        header.extend(refcounts.to_be_bytes());
        header.extend((refcount_clusters as u32).to_be_bytes());
        // No snapshots (12 bytes), and no incompatible, compatible or autoclear features (8 bytes each).
        header.extend([0; 12 + 3 * 8]);
        header.extend(REFCOUNT_ORDER.to_be_bytes());
        header.extend(HEADER_LEN.to_be_bytes());
        header.extend(extensions);
        header.extend(name);
        header
    }
}

/// How many clusters the reference counts of an image take that has `clusters` others, and how many the table of
/// these: they count themselves too.
fn refcount_clusters(clusters: u64) -> (u64, u64) {
    let (mut blocks, mut tables) = (0, 0);
    loop {
        let all = clusters + blocks + tables;
        let needed = (all.div_ceil(COUNTS), blocks.div_ceil(ENTRIES).max(1));
        if needed == (blocks, tables) {
            return needed;
        }
        (blocks, tables) = needed;
    }
}

fn big_endian(entries: &[u64]) -> Vec<u8> {
    entries
        .iter()
        .flat_map(|entry| entry.to_be_bytes())
        .collect()
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;
    use std::process::Command;

    use super::*;
    use crate::import::ImageFormat;

    fn qemu_img(directory: &Path, arguments: &[&str]) {
        let mut program = Command::new("qemu-img");
        let output = program.args(arguments).current_dir(directory).output();
        let output = output.unwrap();
        assert!(output.status.success(), "{output:?}");
    }

    /// Writes parts of an image and has QEMU check and read it.
    fn read_back(
        directory: &Path,
        size: u64,
        backing: Option<Backing>,
        parts: &[(u64, Vec<u8>)],
    ) -> Vec<u8> {
        let path = directory.join("new.qcow2");
        let _ = fs::remove_file(&path);
        let mut image = Qcow2::new(File::create(&path).unwrap(), size, backing).unwrap();
        for (offset, part) in parts {
            image.write(*offset, part).unwrap();
        }
        image.finish().unwrap();
        qemu_img(directory, &["check", "-q", "-f", "qcow2", "new.qcow2"]);
        let convert = ["convert", "-f", "qcow2", "-O", "raw", "new.qcow2", "back"];
        qemu_img(directory, &convert);
        fs::read(directory.join("back")).unwrap()
    }

    #[test]
    fn qemu_reads_what_was_written_and_finds_no_damage() {
        let directory = tempfile::tempdir().unwrap();
        let cluster = CLUSTER as usize;
        for (size, parts) in [
            (512, vec![(0, vec![1; 512])]),
            (1 << 20, vec![]),
            // Two parts of one cluster, one that is not whole at its end, and zeros among data.
            (
                1 << 20,
                vec![
                    (4096, vec![1; 4096]),
                    (12288, vec![0; 4096]),
                    (32768, vec![2; 2 * cluster]),
                    (
                        3 * CLUSTER,
                        [vec![3; cluster], vec![0; cluster], vec![4; 512]].concat(),
                    ),
                    ((1 << 20) - 512, vec![5; 512]),
                ],
            ),
            // The first cluster of one table and the last of the one before, with one between that is empty.
            (
                (2 << 29) + 512,
                vec![((1 << 29) - 4096, vec![6; 8192]), (2 << 29, vec![7; 512])],
            ),
        ] {
            let mut content = vec![0; size as usize];
            for (offset, part) in &parts {
                let at = *offset as usize;
                content[at..at + part.len()].copy_from_slice(part);
            }
            let back = read_back(directory.path(), size, None, &parts);
            assert!(back == content, "{size}");
        }
    }

    #[test]
    fn zeros_hide_what_a_backing_file_has() {
        let directory = tempfile::tempdir().unwrap();
        let size = 4 * CLUSTER;
        fs::write(directory.path().join("base.raw"), vec![9; size as usize]).unwrap();
        let backing = Backing {
            name: "base.raw".into(),
            format: ImageFormat::Raw,
        };
        let cluster = CLUSTER as usize;
        let parts = [
            (CLUSTER, vec![0; cluster]),
            (
                2 * CLUSTER,
                [vec![0; 4096], vec![1; cluster - 4096]].concat(),
            ),
        ];
        let back = read_back(directory.path(), size, Some(backing), &parts);
        let expected = [
            vec![9; cluster],
            vec![0; cluster],
            parts[1].1.clone(),
            vec![9; cluster],
        ];
        assert!(back == expected.concat());
        let name = "x".repeat(1024).into();
        let long = Backing {
            name,
            format: ImageFormat::Raw,
        };
        let file = File::create(directory.path().join("long")).unwrap();
        assert!(Qcow2::new(file, size, Some(long)).is_err());
    }

    #[test]
    fn reference_counts_count_themselves() {
        for clusters in [
            1,
            COUNTS - 3,
            COUNTS - 2,
            COUNTS - 1,
            COUNTS,
            1 << 24,
            1 << 30,
        ] {
            let (blocks, tables) = refcount_clusters(clusters);
            let all = clusters + blocks + tables;
            assert!(
                blocks * COUNTS >= all && tables * ENTRIES >= blocks,
                "{clusters}"
            );
            // None too many.
            assert!((blocks - 1) * COUNTS < all && (tables - 1) * ENTRIES < blocks);
        }
    }
}
