//! What a source image is taken for, before QEMU's tools see it.
#![no_main]

use std::cell::LazyCell;
use std::path::Path;

use arbitrary::Arbitrary;
use disks::import::{Cancel, ImageFormat, SourceSpec, identify, open};
use libfuzzer_sys::fuzz_target;
use sealdisk_fuzz::Scratch;

/// Extensions of images, and what their names promise.
const NAMES: [(&str, Option<ImageFormat>); 10] = [
    (".raw", Some(ImageFormat::Raw)),
    (".qcow2", Some(ImageFormat::Qcow2)),
    (".vhd", Some(ImageFormat::Vpc)),
    (".vhdx", Some(ImageFormat::Vhdx)),
    (".vmdk", Some(ImageFormat::Vmdk)),
    (".vdi", Some(ImageFormat::Vdi)),
    (".qed", Some(ImageFormat::Qed)),
    (".hdd", Some(ImageFormat::Parallels)),
    (".img", None),
    ("", None),
];

#[derive(Debug, Arbitrary)]
enum Head {
    None,
    Qcow2,
    Vhdx,
    Vmdk,
    VmdkText,
    Vpc,
    /// VirtualBox's magic number is behind 64 bytes of text.
    Vdi([u8; 64]),
    Qed,
    Parallels,
    /// What is refused by its name: a qcow of version 1, LUKS, xz.
    Container(u8),
    /// A tar archive: the name and the size of its first member, and what begins with 512 bytes each.
    Tar {
        name: Vec<u8>,
        size: [u8; 12],
    },
}

const CONTAINERS: [&[u8]; 3] = [b"QFI\xfb\0\0\0\x01", b"LUKS\xba\xbe", b"\xfd7zXZ\0"];

impl Head {
    fn bytes(&self) -> Vec<u8> {
        match self {
            Self::None => Vec::new(),
            Self::Qcow2 => b"QFI\xfb".to_vec(),
            Self::Vhdx => b"vhdxfile".to_vec(),
            Self::Vmdk => b"KDMV".to_vec(),
            Self::VmdkText => b"# Disk DescriptorFile".to_vec(),
            Self::Vpc => b"conectix".to_vec(),
            Self::Vdi(text) => [text.as_slice(), b"\x7f\x10\xda\xbe"].concat(),
            Self::Qed => b"QED\0".to_vec(),
            Self::Parallels => b"WithoutFreeSpace".to_vec(),
            Self::Container(which) => CONTAINERS[usize::from(*which) % CONTAINERS.len()].to_vec(),
            Self::Tar { name, size } => {
                let mut header = name.clone();
                header.resize(512, 0);
                header[124..136].copy_from_slice(size);
                header[257..262].copy_from_slice(b"ustar");
                header
            }
        }
    }

    fn is_container(&self) -> bool {
        matches!(self, Self::Container(_) | Self::Tar { .. })
    }
}

#[derive(Debug, Arbitrary)]
struct Input {
    name: u8,
    head: Head,
    rest: Vec<u8>,
    /// A VHD's footer at the end: these bytes, from its cookie on; with the right checksum or not.
    footer: Option<(Vec<u8>, bool)>,
    /// A partition table of 512-byte sectors, one of 4096-byte sectors.
    tables: [bool; 2],
}

/// Bytes of a disk that are its image's first bytes: of a raw image, and of a VHD whose footer says fixed.
fn size_of_bytes(format: ImageFormat, bytes: &[u8]) -> Option<usize> {
    match format {
        ImageFormat::Raw => Some(bytes.len()),
        ImageFormat::Vpc => {
            let footer = bytes.last_chunk::<512>()?;
            let fixed = footer.starts_with(b"conectix") && footer[60..64] == [0, 0, 0, 2];
            let size = u64::from_be_bytes(footer[48..56].try_into().unwrap());
            fixed.then_some(size as usize)
        }
        _ => None,
    }
}

/// Such an image is read without any other program, and is these bytes.
fn read(path: &Path, format: ImageFormat, content: &[u8]) {
    let spec = SourceSpec {
        path: path.into(),
        format: Some(format),
        force_share: true,
    };
    let Ok(mut source) = open(&spec, &Cancel::default()) else {
        assert!(content.is_empty());
        return;
    };
    assert_eq!(source.image.size(), content.len() as u64);
    let mut found = vec![0; content.len()];
    source.image.read_at(0, &mut found).unwrap();
    assert_eq!(found, content);
    let mut end = 0;
    while let Some(range) = source.image.next_data(end).unwrap() {
        assert!(end <= range.start && range.start < range.end);
        end = range.end;
    }
    assert!(end <= content.len() as u64);
    let table = |at: usize| {
        content
            .get(at..)
            .is_some_and(|c| c.starts_with(b"EFI PART"))
    };
    let size = match (table(512), table(4096)) {
        (true, false) => Some(512),
        (false, true) => Some(4096),
        _ => None,
    };
    assert_eq!(source.logical_sector_size, size);
}

thread_local! {
    static FILES: LazyCell<Vec<Scratch>> =
        LazyCell::new(|| NAMES.iter().map(|(suffix, _)| Scratch::new(suffix)).collect());
}

fuzz_target!(|input: Input| {
    let mut bytes = [&input.head.bytes(), &input.rest]
        .map(Vec::as_slice)
        .concat();
    for (at, _) in [512, 4096].into_iter().zip(input.tables).filter(|t| t.1) {
        bytes.resize(bytes.len().max(at + 8), 0);
        bytes[at..at + 8].copy_from_slice(b"EFI PART");
    }
    if let Some((footer, sound)) = &input.footer {
        let mut last = [b"conectix".as_slice(), footer].concat();
        last.resize(512, 0);
        if *sound {
            last[64..68].fill(0);
            let sum: u32 = last.iter().map(|&b| u32::from(b)).sum();
            last[64..68].copy_from_slice(&(!sum).to_be_bytes());
        }
        bytes.extend(last);
    }
    let name = usize::from(input.name) % NAMES.len();
    let promised = NAMES[name].1;
    FILES.with(|files| {
        let file = &files[name];
        file.fill(&bytes);
        let Ok(found) = identify(file.path(), None) else {
            return;
        };
        assert!(promised.is_none_or(|promised| promised == found));
        // What is packed is no disk's bytes, unless the name says that it is raw.
        let guessed_raw = found == ImageFormat::Raw && promised.is_none();
        assert!(!(guessed_raw && input.head.is_container()), "a container");
        let be64 = |at: usize| bytes.get(at..at + 8).map(|b| b.try_into().unwrap());
        if found == ImageFormat::Qcow2 {
            assert_eq!(be64(8).map_or(0, u64::from_be_bytes), 0, "a backing file");
        }
        if let Some(size) = size_of_bytes(found, &bytes) {
            read(file.path(), found, &bytes[..size]);
        }
        // What the operator says counts, and the same references are refused.
        assert_eq!(identify(file.path(), Some(found)).unwrap(), found);
        assert_eq!(
            identify(file.path(), Some(ImageFormat::Raw)).unwrap(),
            ImageFormat::Raw
        );
    });
});
