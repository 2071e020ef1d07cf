//! VHDs as other programs make them, byte by byte: whoever made them, the disk has the footer's current
//! size.

use super::*;

/// One cylinder less than what the geometry of the disk covers at most: the rest is what QEMU loses.
const LOST: usize = 28 << 10;

/// Creators of VHDs, as their footers name them: Virtual PC, Virtual Server, QEMU with either size,
/// Hyper-V, Azure, VirtualBox, Disk2vhd, XenServer, XenConverter, and one that nobody knows.
const CREATORS: [&[u8; 4]; 11] = [
    b"vpc ", b"vs  ", b"qemu", b"qem2", b"win ", b"wa\0\0", b"vbox", b"d2v ", b"tap\0", b"CTXS",
    b"new!",
];

const FIXED: u32 = 2;
const DYNAMIC: u32 = 3;
/// Bytes of a dynamic disk's block.
const BLOCK: usize = 2 << 20;

/// Writes the checksum of a footer, or of a dynamic disk's header.
pub(super) fn seal(structure: &mut [u8]) {
    let at = if structure.len() == 512 { 64 } else { 36 };
    structure[at..at + 4].fill(0);
    let sum: u32 = structure.iter().map(|&b| u32::from(b)).sum();
    structure[at..at + 4].copy_from_slice(&(!sum).to_be_bytes());
}

/// A footer for a disk of `size` bytes whose cylinders, heads and sectors make `LOST` bytes less.
fn footer(creator: &[u8; 4], kind: u32, size: usize) -> Vec<u8> {
    let mut footer = vec![0; 512];
    footer[..8].copy_from_slice(b"conectix");
    footer[8..12].copy_from_slice(&2u32.to_be_bytes());
    footer[12..16].copy_from_slice(&0x1_0000u32.to_be_bytes());
    let header = if kind == FIXED { u64::MAX } else { 512 };
    footer[16..24].copy_from_slice(&header.to_be_bytes());
    footer[28..32].copy_from_slice(creator);
    footer[36..40].copy_from_slice(b"Wi2k");
    footer[40..48].copy_from_slice(&(size as u64).to_be_bytes());
    footer[48..56].copy_from_slice(&(size as u64).to_be_bytes());
    let cylinders = (size - LOST) / 512 / (4 * 17);
    footer[56..58].copy_from_slice(&(cylinders as u16).to_be_bytes());
    footer[58..60].copy_from_slice(&[4, 17]);
    footer[60..64].copy_from_slice(&kind.to_be_bytes());
    footer[68..84].copy_from_slice(b"a disk's uuid...");
    seal(&mut footer);
    footer
}

fn fixed(creator: &[u8; 4], content: &[u8]) -> Vec<u8> {
    [content, &footer(creator, FIXED, content.len())].concat()
}

/// A dynamic disk all of whose blocks are there.
fn dynamic(creator: &[u8; 4], content: &[u8]) -> Vec<u8> {
    let footer = footer(creator, DYNAMIC, content.len());
    let blocks = content.len().div_ceil(BLOCK);
    let mut header = vec![0; 1024];
    header[..8].copy_from_slice(b"cxsparse");
    header[8..16].fill(0xff);
    header[16..24].copy_from_slice(&1536u64.to_be_bytes());
    header[24..28].copy_from_slice(&0x1_0000u32.to_be_bytes());
    header[28..32].copy_from_slice(&(blocks as u32).to_be_bytes());
    header[32..36].copy_from_slice(&(BLOCK as u32).to_be_bytes());
    seal(&mut header);
    let mut table = vec![0xff; (blocks * 4).next_multiple_of(512)];
    let mut data = Vec::new();
    for (n, block) in content.chunks(BLOCK).enumerate() {
        let sector = (1536 + table.len() + data.len()) / 512;
        table[n * 4..n * 4 + 4].copy_from_slice(&(sector as u32).to_be_bytes());
        data.extend([0xff; 512]);
        data.extend(block);
        data.resize(data.len() + BLOCK - block.len(), 0);
    }
    [&footer, &header, &table, &data, &footer]
        .map(Vec::as_slice)
        .concat()
}

/// A disk of 6 MiB and some sectors, with something at its end.
fn content() -> Vec<u8> {
    let mut content = vec![0; (6 << 20) + (13 * 4 * 17 * 512)];
    let end = content.len();
    content[..512].fill(0x11);
    content[end - LOST..].fill(0x33);
    content[end - 512..].fill(0x44);
    content
}

#[test]
fn whoever_made_a_vhd_nothing_of_its_end_is_lost() {
    let (s, content) = (setup(), content());
    for creator in CREATORS {
        for (name, bytes) in [
            ("fixed.vhd", fixed(creator, &content)),
            ("dynamic.vhd", dynamic(creator, &content)),
        ] {
            let what = format!("{name} of {}", String::from_utf8_lossy(creator));
            fs::write(s.path(name), bytes).unwrap();
            let mut source = s.open(&s.path(name), None).unwrap();
            assert_eq!(source.format, ImageFormat::Vpc, "{what}");
            assert_eq!(source.image.size(), content.len() as u64, "{what}");
            let disk = copied(&mut source, content.len());
            assert!(disk.content == content, "{what} differs");
        }
    }
}

#[test]
fn what_a_fixed_disk_begins_with_is_not_its_footer() {
    let (s, mut content) = (setup(), content());
    let end = content.len();
    content[..512].copy_from_slice(&footer(b"win ", DYNAMIC, end / 2));
    fs::write(s.path("d.vhd"), fixed(b"wa\0\0", &content)).unwrap();
    let mut source = s.open(&s.path("d.vhd"), None).unwrap();
    assert!(copied(&mut source, end).content == content);
}

#[test]
fn a_footer_that_is_torn_cut_off_or_contradicted_is_refused() {
    let (s, content) = (setup(), content());
    let refused = |bytes: &[u8], why: &str| {
        fs::write(s.path("d.vhd"), bytes).unwrap();
        let refusal = s.refusal(&s.path("d.vhd"), Some(ImageFormat::Vpc));
        assert!(refusal.contains(why), "{refusal}");
    };
    let whole = fixed(b"win ", &content);
    let mut torn = whole.clone();
    torn[content.len() + 50] ^= 1;
    refused(&torn, "checksum");
    let short = [&content[..4096], &footer(b"win ", FIXED, content.len())].concat();
    refused(&short, "only 4096 are there");
    refused(&content, "no footer");
    let odd = [content.as_slice(), &footer(b"win ", 7, content.len())].concat();
    refused(&odd, "type is 7");

    let whole = dynamic(b"win ", &content);
    let mut torn = whole.clone();
    torn[50] ^= 1;
    refused(&torn, "checksum");
    let mut other = whole.clone();
    let resized = footer(b"win ", DYNAMIC, content.len() * 2);
    other[..512].copy_from_slice(&resized);
    refused(&other, "different things");
    // Without the footer at the end, its copy counts.
    fs::write(s.path("d.vhd"), &whole[..whole.len() - 512]).unwrap();
    let mut source = s.open(&s.path("d.vhd"), None).unwrap();
    assert!(copied(&mut source, content.len()).content == content);
}
