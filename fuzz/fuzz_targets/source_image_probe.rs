//! What a source image is taken for, before QEMU's tools see it.
#![no_main]

use std::cell::LazyCell;

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use sealdisk::control::import::{ImageFormat, identify};
use sealdisk_fuzz::Scratch;

/// Extensions of images, and what their names promise.
const NAMES: [(&str, Option<ImageFormat>); 7] = [
    (".raw", Some(ImageFormat::Raw)),
    (".qcow2", Some(ImageFormat::Qcow2)),
    (".vhd", Some(ImageFormat::Vpc)),
    (".vhdx", Some(ImageFormat::Vhdx)),
    (".vmdk", Some(ImageFormat::Vmdk)),
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
}

#[derive(Debug, Arbitrary)]
struct Input {
    name: u8,
    head: Head,
    rest: Vec<u8>,
    /// A VHD's footer at the end: these bytes, from its cookie on.
    footer: Option<Vec<u8>>,
}

thread_local! {
    static FILES: LazyCell<Vec<Scratch>> =
        LazyCell::new(|| NAMES.iter().map(|(suffix, _)| Scratch::new(suffix)).collect());
}

fuzz_target!(|input: Input| {
    let magic: &[u8] = match input.head {
        Head::None => b"",
        Head::Qcow2 => b"QFI\xfb",
        Head::Vhdx => b"vhdxfile",
        Head::Vmdk => b"KDMV",
        Head::VmdkText => b"# Disk DescriptorFile",
        Head::Vpc => b"conectix",
    };
    let mut bytes = [magic, &input.rest].concat();
    if let Some(footer) = &input.footer {
        let mut last = [b"conectix".as_slice(), footer].concat();
        last.resize(512, 0);
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
        let be64 = |at: usize| bytes.get(at..at + 8).map(|b| b.try_into().unwrap());
        if found == ImageFormat::Qcow2 {
            assert_eq!(be64(8).map_or(0, u64::from_be_bytes), 0, "a backing file");
        }
        // What the operator says counts, and the same references are refused.
        assert_eq!(identify(file.path(), Some(found)).unwrap(), found);
        assert_eq!(
            identify(file.path(), Some(ImageFormat::Raw)).unwrap(),
            ImageFormat::Raw
        );
    });
});
