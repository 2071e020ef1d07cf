//! Images whose end is missing: each is refused as truncated, or has lost nothing of its disk.

use super::*;

/// Sizes of disks: whole clusters, and some sectors more.
const SIZES: [usize; 2] = [3 * MIB, 3 * MIB + 9 * 512];

/// Every kind of image that qemu-img makes in one file.
const KINDS: &[(&str, &str, &[&str])] = &[
    ("3.qcow2", "qcow2", &[]),
    ("2.qcow2", "qcow2", &["-o", "compat=0.10"]),
    ("zlib.qcow2", "qcow2", &["-c"]),
    (
        "zstd.qcow2",
        "qcow2",
        &["-c", "-o", "compression_type=zstd"],
    ),
    ("small.qcow2", "qcow2", &["-o", "cluster_size=512"]),
    ("big.qcow2", "qcow2", &["-o", "cluster_size=2M"]),
    (
        "sub.qcow2",
        "qcow2",
        &["-o", "extended_l2=on,cluster_size=128k"],
    ),
    ("meta.qcow2", "qcow2", &["-o", "preallocation=metadata"]),
    ("full.qcow2", "qcow2", &["-o", "preallocation=full"]),
    ("lazy.qcow2", "qcow2", &["-o", "lazy_refcounts=on"]),
    ("bits.qcow2", "qcow2", &["-o", "refcount_bits=64"]),
    ("d.qed", "qed", &[]),
    ("small.qed", "qed", &["-o", "cluster_size=4k,table_size=2"]),
    ("d.vmdk", "vmdk", &[]),
    ("zeroed.vmdk", "vmdk", &["-o", "zeroed_grain=on"]),
    ("6.vmdk", "vmdk", &["-o", "compat6"]),
    ("stream.vmdk", "vmdk", &["-o", "subformat=streamOptimized"]),
    ("d.vdi", "vdi", &[]),
    ("static.vdi", "vdi", &["-o", "static=on"]),
    ("d.hdd", "parallels", &[]),
    ("small.hdd", "parallels", &["-o", "cluster_size=64k"]),
    ("d.vhd", "vpc", &["-o", "force_size=on"]),
    ("fixed.vhd", "vpc", &["-o", "force_size=on,subformat=fixed"]),
    ("d.vhdx", "vhdx", &["-o", "block_size=1M"]),
    (
        "fixed.vhdx",
        "vhdx",
        &["-o", "subformat=fixed,block_size=1M"],
    ),
    ("big.vhdx", "vhdx", &[]),
];

/// A disk of `size` bytes with data in its middle and at its very end.
fn disk_of(size: usize) -> Setup {
    let s = setup();
    let mut content = vec![0; size];
    for (n, byte) in content[MIB..MIB + 300_000].iter_mut().enumerate() {
        *byte = (n * 7 + n / 251) as u8 | 1;
    }
    for (n, byte) in content[size - 512..].iter_mut().enumerate() {
        *byte = n as u8 | 1;
    }
    fs::write(s.path("disk.raw"), &content).unwrap();
    Setup { content, ..s }
}

/// What is in an image, if it is whole.
fn read(s: &Setup, path: &Path) -> Result<Vec<u8>, ImportError> {
    let mut source = s.open(path, None)?;
    let size = source.image.size() as usize;
    let mut disk = MemoryDisk {
        content: vec![0; size.max(s.content.len()).next_multiple_of(512)],
        written: 0,
    };
    let len = disk.content.len() as u64;
    let cancel = Cancel::default();
    match copy(source.image.as_mut(), len, &mut disk, &cancel, |_| {}) {
        Ok(()) => Ok(disk.content),
        Err(CopyError::Source(error)) => Err(error),
        Err(CopyError::Sink(never)) => match never {},
    }
}

fn starts_with(disk: &[u8], content: &[u8]) -> bool {
    disk.starts_with(content) && disk[content.len()..].iter().all(|&b| b == 0)
}

#[test]
fn an_image_without_its_end_is_refused_as_truncated_or_has_lost_nothing() {
    let s = disk_of(SIZES[0]);
    for (name, format, options) in KINDS {
        let path = s.converted(name, format, options);
        assert!(starts_with(&read(&s, &path).unwrap(), &s.content), "{name}");
        let len = fs::metadata(&path).unwrap().len();
        // The last cluster of the others goes far behind the end of the disk.
        if !name.starts_with("big") {
            let cuts = [1, 511, 600, 40_000, 65_535];
            assert!(refused_cuts(&s, &path, &cuts) > 0, "{name}");
        }
        assert_eq!(
            refused_cuts(&s, &path, &[len / 4 * 3, len - 1024, len - 100]),
            3,
            "{name}"
        );
    }
}

/// Of the last cluster, a file has to have what the disk has.
#[test]
fn a_disk_may_end_within_the_last_cluster() {
    let s = disk_of(SIZES[1]);
    let usual = KINDS
        .iter()
        .filter(|(name, ..)| name.starts_with(['d', '3', 'z']) || *name == "sub.qcow2");
    for (name, format, options) in usual {
        let path = s.converted(name, format, options);
        assert!(starts_with(&read(&s, &path).unwrap(), &s.content), "{name}");
        refused_cuts(&s, &path, &[600, 65_535]);
    }
}

/// How many cuts of an image are refused, all of which have to be for that reason; the others must have
/// lost nothing.
fn refused_cuts(s: &Setup, path: &Path, cuts: &[u64]) -> usize {
    let name = path.display();
    let whole = fs::read(path).unwrap();
    let refused = |cut: &&u64| {
        let len = whole.len().saturating_sub(**cut as usize);
        fs::write(path, &whole[..len]).unwrap();
        match read(s, path) {
            Ok(disk) => {
                assert!(
                    starts_with(&disk, &s.content),
                    "{name} without its last {cut} bytes is another disk"
                );
                false
            }
            Err(refusal) => {
                let text = refusal.to_string();
                assert!(text.contains("truncated"), "{cut}: {text}");
                true
            }
        }
    };
    let refused = cuts.iter().filter(refused).count();
    fs::write(path, &whole).unwrap();
    refused
}

/// What an image may have without being truncated.
#[test]
fn whole_images_with_a_history_are_read() {
    let s = disk_of(SIZES[1]);
    let path = s.converted("d.qcow2", "qcow2", &["-o", "preallocation=metadata"]);
    let script = "qemu-img snapshot -c s d.qcow2; qemu-io -c 'write -P 9 1M 1000k' d.qcow2; \
                  qemu-img resize -q d.qcow2 +700k; qemu-img bitmap --add d.qcow2 b; \
                  qemu-io -c 'discard 1M 64k' -c 'write -z 1100k 64k' d.qcow2; \
                  qemu-img resize -q --shrink d.qcow2 2M; qemu-img resize -q d.qcow2 9M";
    let run = Command::new("sh")
        .args(["-ec", script])
        .current_dir(s.dir.path())
        .output()
        .unwrap();
    assert!(run.status.success(), "{run:?}");
    qemu_img(
        s.dir.path(),
        &["convert", "-O", "raw", "d.qcow2", "after.raw"],
    );
    assert_eq!(
        read(&s, &path).unwrap(),
        fs::read(s.path("after.raw")).unwrap()
    );
    // A guest's file system is larger than what it ever wrote.
    for (name, format) in [
        ("e.qcow2", "qcow2"),
        ("e.vmdk", "vmdk"),
        ("e.vdi", "vdi"),
        ("e.qed", "qed"),
        ("e.hdd", "parallels"),
        ("e.vhd", "vpc"),
        ("e.vhdx", "vhdx"),
    ] {
        qemu_img(s.dir.path(), &["create", "-q", "-f", format, name, "100G"]);
        let source = s.open(&s.path(name), None).unwrap();
        assert!(source.image.size() >= 100 << 30, "{name}");
    }
}

/// An image of each format by its tables' reader, for noise to be put into it.
fn small_images() -> &'static [(ImageFormat, Vec<u8>)] {
    static IMAGES: std::sync::OnceLock<Vec<(ImageFormat, Vec<u8>)>> = std::sync::OnceLock::new();
    IMAGES.get_or_init(|| {
        let s = disk_of(3 * MIB);
        let wanted = [
            "3.qcow2",
            "zlib.qcow2",
            "sub.qcow2",
            "small.qed",
            "d.vmdk",
            "stream.vmdk",
            "d.vdi",
            "small.hdd",
            "d.vhd",
            "d.vhdx",
        ];
        let kinds = KINDS.iter().filter(|(name, ..)| wanted.contains(name));
        kinds
            .map(|(name, format, options)| {
                let path = s.converted(name, format, options);
                let mut bytes = fs::read(&path).unwrap();
                bytes.truncate(MIB);
                (format.parse().unwrap(), bytes)
            })
            .collect()
    })
}

/// Each entry of the first table names all that is behind it.
#[test]
fn tables_that_lie_over_each_other_are_refused() {
    const CLUSTER: u32 = 4096;
    let mut bytes = vec![0; 2 * CLUSTER as usize];
    bytes[..4].copy_from_slice(b"QED\0");
    bytes[4..8].copy_from_slice(&CLUSTER.to_le_bytes());
    // Clusters of a table.
    bytes[8..12].copy_from_slice(&1u32.to_le_bytes());
    bytes[40..48].copy_from_slice(&u64::from(CLUSTER).to_le_bytes());
    bytes[48..56].copy_from_slice(&(1u64 << 40).to_le_bytes());
    for (place, entry) in (1..).zip(bytes[CLUSTER as usize..].chunks_exact_mut(8)) {
        entry.copy_from_slice(&u64::to_le_bytes(CLUSTER as u64 + place));
    }
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), &bytes).unwrap();
    let mut file = raw::RawImage::open(file.path()).unwrap();
    let refused = whole::refuse_truncated(&mut file, ImageFormat::Qed, &Cancel::default());
    let refused = refused.unwrap_err().to_string();
    assert!(refused.contains("lie over each other"), "{refused}");
}

proptest::proptest! {
    #[test]
    fn no_table_makes_its_reader_panic(
        which in 0..10usize,
        noise in proptest::collection::vec((0..1024usize, proptest::prelude::any::<u8>()), 0..40),
        len in 0..MIB,
    ) {
        let (format, image) = &small_images()[which];
        let mut bytes = image[..len.min(image.len())].to_vec();
        for (at, byte) in noise {
            if let Some(place) = bytes.get_mut(at) {
                *place = byte;
            }
        }
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), &bytes).unwrap();
        let mut file = raw::RawImage::open(file.path()).unwrap();
        let _ = whole::refuse_truncated(&mut file, *format, &Cancel::default());
    }
}
