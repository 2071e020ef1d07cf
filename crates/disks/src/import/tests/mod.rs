//! Images made by qemu-img, read back; and images that must be refused.

use std::convert::Infallible;
use std::fs;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

use super::*;

mod containers;
mod hostile;
mod in_use;
mod pipeline;
mod truncated;
mod vhd;

/// A disk in memory that remembers what was written to it.
struct MemoryDisk {
    content: Vec<u8>,
    written: u64,
}

impl PlaintextSink for MemoryDisk {
    type Error = Infallible;

    fn write_behind(&mut self, offset: u64, plaintext: &[u8]) -> Result<(), Infallible> {
        assert!(offset.is_multiple_of(512) && plaintext.len().is_multiple_of(512));
        let offset = usize::try_from(offset).unwrap();
        self.content[offset..offset + plaintext.len()].copy_from_slice(plaintext);
        self.written += plaintext.len() as u64;
        Ok(())
    }
}

struct Setup {
    dir: TempDir,
    content: Vec<u8>,
    data_bytes: u64,
}

const MIB: usize = 1 << 20;

/// 24 MiB of which three places hold data: the first block, 3 MiB in the middle and the end.
fn setup() -> Setup {
    let dir = tempfile::tempdir().unwrap();
    let mut content = vec![0; 24 * MIB];
    let mut data_bytes = 0;
    for (at, length) in [(0, 4096), (5 * MIB, 3 * MIB), (24 * MIB - 4096, 4096)] {
        for (i, byte) in content[at..at + length].iter_mut().enumerate() {
            *byte = (i * 7 + i / 251) as u8 | 1;
        }
        data_bytes += length as u64;
    }
    fs::write(dir.path().join("disk.raw"), &content).unwrap();
    Setup {
        dir,
        content,
        data_bytes,
    }
}

impl Setup {
    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn converted(&self, name: &str, format: &str, options: &[&str]) -> PathBuf {
        let path = self.path(name);
        qemu_img(
            self.dir.path(),
            &[
                &["convert", "-f", "raw", "-O", format],
                options,
                &["disk.raw", name],
            ]
            .concat(),
        );
        path
    }

    fn open(&self, path: &Path, format: Option<ImageFormat>) -> Result<Source, ImportError> {
        open(&spec(path, format), &Cancel::default())
    }

    fn refusal(&self, path: &Path, format: Option<ImageFormat>) -> String {
        match self.open(path, format) {
            Ok(_) => panic!("{} was not refused", path.display()),
            Err(e) => {
                let text = e.to_string();
                assert!(!text.contains('\n'), "{text}");
                text
            }
        }
    }
}

fn spec(path: &Path, format: Option<ImageFormat>) -> SourceSpec {
    SourceSpec {
        path: path.into(),
        format,
        force_share: false,
    }
}

fn qemu_img(dir: &Path, arguments: &[&str]) {
    let output = Command::new("qemu-img")
        .args(arguments)
        .current_dir(dir)
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
}

fn copied(source: &mut Source, disk_size: usize) -> MemoryDisk {
    let mut disk = MemoryDisk {
        content: vec![0; disk_size],
        written: 0,
    };
    let mut last = 0;
    copy(
        source.image.as_mut(),
        disk_size as u64,
        &mut disk,
        &Cancel::default(),
        |done| {
            assert!(done >= last);
            last = done;
        },
    )
    .unwrap();
    assert_eq!(last, source.image.size());
    disk
}

#[test]
fn every_format_gives_the_same_disk_and_zeros_are_not_written() {
    let s = setup();
    let images = [
        ("disk.raw", "raw", ImageFormat::Raw, &[][..]),
        ("disk.qcow2", "qcow2", ImageFormat::Qcow2, &[]),
        ("compressed.qcow2", "qcow2", ImageFormat::Qcow2, &["-c"]),
        (
            "disk.vhd",
            "vpc",
            ImageFormat::Vpc,
            &["-o", "force_size=on"],
        ),
        (
            "fixed.vhd",
            "vpc",
            ImageFormat::Vpc,
            &["-o", "subformat=fixed,force_size=on"],
        ),
        ("disk.vhdx", "vhdx", ImageFormat::Vhdx, &[]),
        ("disk,with=commas.vmdk", "vmdk", ImageFormat::Vmdk, &[]),
        (
            "stream.vmdk",
            "vmdk",
            ImageFormat::Vmdk,
            &["-o", "subformat=streamOptimized"],
        ),
        ("noext", "qcow2", ImageFormat::Qcow2, &[]),
        ("disk.vdi", "vdi", ImageFormat::Vdi, &[]),
        ("static.vdi", "vdi", ImageFormat::Vdi, &["-o", "static=on"]),
        ("disk.qed", "qed", ImageFormat::Qed, &[]),
        ("disk.hdd", "parallels", ImageFormat::Parallels, &[]),
    ];
    for (name, qemu, format, options) in images {
        if qemu != "raw" {
            s.converted(name, qemu, options);
        }
        let mut source = s.open(&s.path(name), None).unwrap();
        assert_eq!(source.format, format, "{name}");
        assert_eq!(source.image.size(), s.content.len() as u64, "{name}");
        let disk = copied(&mut source, s.content.len());
        assert!(disk.content == s.content, "{name} differs");
        assert_eq!(disk.written, s.data_bytes, "{name}");
    }
}

#[test]
fn holes_of_a_raw_file_are_not_read() {
    let s = setup();
    let path = s.path("sparse.raw");
    let file = fs::File::create(&path).unwrap();
    file.set_len(1 << 40).unwrap();
    file.write_all_at(&[1; 4096], 1 << 39).unwrap();
    let mut source = s.open(&path, None).unwrap();
    assert_eq!(
        source.image.next_data(0).unwrap(),
        Some(1 << 39..(1 << 39) + 4096)
    );
    assert_eq!(source.image.next_data((1 << 39) + 4096).unwrap(), None);
    assert_eq!(source.image.next_data(1 << 40).unwrap(), None);
}

#[test]
fn a_size_that_is_no_multiple_of_a_block_is_filled_up_with_zeros() {
    let s = setup();
    let path = s.path("odd.raw");
    fs::write(&path, vec![9; 10_001]).unwrap();
    let disk = copied(&mut s.open(&path, None).unwrap(), 10_240);
    assert!(disk.content[..10_001].iter().all(|&b| b == 9));
    assert!(disk.content[10_001..].iter().all(|&b| b == 0));
    let larger = copied(&mut s.open(&path, None).unwrap(), MIB);
    assert_eq!(larger.written, 12_288);
    assert!(larger.content[10_001..].iter().all(|&b| b == 0));
}

#[test]
fn images_that_name_other_files_are_refused() {
    let s = setup();
    s.converted("base.qcow2", "qcow2", &[]);
    let dir = s.dir.path();
    qemu_img(
        dir,
        &[
            "create",
            "-f",
            "qcow2",
            "-b",
            "base.qcow2",
            "-F",
            "qcow2",
            "top.qcow2",
        ],
    );
    assert!(
        s.refusal(&s.path("top.qcow2"), None)
            .contains("backing file")
    );
    qemu_img(
        dir,
        &[
            "create",
            "-f",
            "qcow2",
            "-o",
            "data_file=other.raw",
            "ext.qcow2",
            "1M",
        ],
    );
    assert!(s.refusal(&s.path("ext.qcow2"), None).contains("data file"));
    s.converted("flat.vmdk", "vmdk", &["-o", "subformat=monolithicFlat"]);
    assert!(s.refusal(&s.path("flat.vmdk"), None).contains("extents"));
}

#[test]
fn a_vmdk_with_a_parent_is_refused() {
    let s = setup();
    s.converted("base.vmdk", "vmdk", &[]);
    let arguments = [
        "create",
        "-f",
        "vmdk",
        "-b",
        "base.vmdk",
        "-F",
        "vmdk",
        "child.vmdk",
    ];
    qemu_img(s.dir.path(), &arguments);
    assert!(
        s.refusal(&s.path("child.vmdk"), None)
            .contains("backing file")
    );
}

#[test]
fn references_are_seen_in_the_first_bytes_too() {
    let s = setup();
    let vmdk = s.converted("sparse.vmdk", "vmdk", &[]);
    let mut bytes = fs::read(&vmdk).unwrap();
    bytes[12..20].fill(0);
    fs::write(&vmdk, &bytes).unwrap();
    assert!(s.refusal(&vmdk, None).contains("embedded descriptor"));

    let vhd = s.converted("diff.vhd", "vpc", &[]);
    let mut bytes = fs::read(&vhd).unwrap();
    let footer = bytes.len() - 512;
    for at in [0, footer] {
        bytes[at + 60..at + 64].copy_from_slice(&[0, 0, 0, 4]);
        vhd::seal(&mut bytes[at..at + 512]);
    }
    fs::write(&vhd, &bytes).unwrap();
    assert!(s.refusal(&vhd, None).contains("differencing"));
}

#[test]
fn a_raw_image_with_a_qcow2_header_inside_stays_raw_when_it_is_called_raw() {
    let s = setup();
    let inner = fs::read(s.converted("inner.qcow2", "qcow2", &[])).unwrap();
    for (name, format) in [("guest.raw", None), ("guest.img", Some(ImageFormat::Raw))] {
        fs::write(s.path(name), &inner).unwrap();
        let source = s.open(&s.path(name), format).unwrap();
        assert_eq!(source.format, ImageFormat::Raw);
        assert_eq!(source.image.size(), inner.len() as u64);
    }
    assert!(
        s.refusal(&s.path("disk.raw"), Some(ImageFormat::Qcow2))
            .contains("qcow2")
    );
}

#[test]
fn a_name_that_the_content_contradicts_is_refused() {
    let s = setup();
    let path = s.path("not.qcow2");
    fs::copy(s.path("disk.raw"), &path).unwrap();
    let refusal = s.refusal(&path, None);
    assert!(refusal.contains("--source-format"), "{refusal}");
}

#[test]
fn damaged_missing_and_odd_images_are_refused() {
    let s = setup();
    for (name, format) in [
        ("q.qcow2", "qcow2"),
        ("d.vhd", "vpc"),
        ("x.vhdx", "vhdx"),
        ("m.vmdk", "vmdk"),
    ] {
        let image = s.converted(name, format, &[]);
        let whole = fs::metadata(&image).unwrap().len();
        for length in [whole - 70_000, whole / 2, 3000] {
            let file = fs::OpenOptions::new().write(true).open(&image).unwrap();
            file.set_len(length).unwrap();
            let refusal = s.refusal(&image, None);
            assert!(refusal.contains("cannot read the image"), "{refusal}");
        }
    }
    assert!(s.refusal(&s.path("nowhere"), None).contains("No such file"));
    assert!(
        s.refusal(s.dir.path(), None)
            .contains("neither a regular file")
    );
    fs::write(s.path("empty.raw"), b"").unwrap();
    assert!(s.refusal(&s.path("empty.raw"), None).contains("is empty"));
    let pipe = s.path("pipe");
    let mode = rustix::fs::Mode::RUSR;
    rustix::fs::mknodat(rustix::fs::CWD, &pipe, rustix::fs::FileType::Fifo, mode, 0).unwrap();
    assert!(s.refusal(&pipe, None).contains("neither a regular file"));
}

#[test]
fn the_server_ends_with_its_reader_and_a_request_to_stop_is_followed() {
    let s = setup();
    let path = s.converted("disk.qcow2", "qcow2", &[]);
    let cancel = Cancel::default();
    let mut source = open(&spec(&path, None), &cancel).unwrap();
    let mut disk = MemoryDisk {
        content: vec![0; s.content.len()],
        written: 0,
    };
    let stop = |done| {
        if done > 6 << 20 {
            cancel.request();
        }
    };
    let size = s.content.len() as u64;
    let result = copy(source.image.as_mut(), size, &mut disk, &cancel, stop);
    assert!(matches!(
        result,
        Err(CopyError::Source(ImportError::Interrupted))
    ));
    assert!(disk.written < s.data_bytes);
    assert!(qemu_nbd_reads(&path));
    drop(source);
    assert!(!qemu_nbd_reads(&path));
}

/// Whether a process has the image in its arguments.
fn qemu_nbd_reads(image: &Path) -> bool {
    let image = image.to_str().unwrap();
    fs::read_dir("/proc").unwrap().flatten().any(|entry| {
        fs::read(entry.path().join("cmdline"))
            .is_ok_and(|arguments| String::from_utf8_lossy(&arguments).contains(image))
    })
}

/// What a well-behaved server says up to the transmission phase: structured replies, the context
/// `base:allocation` as number 1, and an export of 1 MiB.
fn handshake() -> Vec<u8> {
    let option_reply = |option: u32, kind: u32, body: &[u8]| {
        let mut reply = 0x0003_e889_0455_65a9_u64.to_be_bytes().to_vec();
        reply.extend(option.to_be_bytes());
        reply.extend(kind.to_be_bytes());
        reply.extend((body.len() as u32).to_be_bytes());
        reply.extend(body);
        reply
    };
    let mut bytes = b"NBDMAGICIHAVEOPT\0\x03".to_vec();
    bytes.extend(option_reply(8, 1, &[]));
    bytes.extend(option_reply(10, 4, b"\0\0\0\x01base:allocation"));
    bytes.extend(option_reply(10, 1, &[]));
    bytes.extend(option_reply(7, 3, &[0, 0, 0, 0, 0, 0, 0, 0x10, 0, 0, 0, 1]));
    bytes.extend(option_reply(7, 1, &[]));
    bytes
}

/// Connects to a server that says `bytes` whatever it is asked, and closes.
fn scripted_server(bytes: &[u8]) -> Result<(NbdClient, UnixStream), ImportError> {
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    std::io::Write::write_all(&mut theirs, bytes).unwrap();
    theirs.shutdown(std::net::Shutdown::Write).unwrap();
    let client = NbdClient::connect(ours, Cancel::default())?;
    // The server's end stays open for the client's requests, which nobody reads.
    Ok((client, theirs))
}

/// One chunk of a structured reply to the client's first request.
fn chunk(flags: u16, kind: u16, body: &[u8]) -> Vec<u8> {
    let mut reply = 0x668e_33ef_u32.to_be_bytes().to_vec();
    reply.extend(flags.to_be_bytes());
    reply.extend(kind.to_be_bytes());
    reply.extend(1u64.to_be_bytes());
    reply.extend((body.len() as u32).to_be_bytes());
    reply.extend(body);
    reply
}

/// What a client reads into a buffer of 8 bytes at offset 16 when the server replies `chunks`.
fn read_reply(chunks: &[Vec<u8>]) -> Result<[u8; 8], ImportError> {
    let (mut client, _server) = scripted_server(&[handshake(), chunks.concat()].concat())?;
    let mut buffer = [0xee; 8];
    client.read_at(16, &mut buffer).map(|()| buffer)
}

#[test]
fn a_reply_must_cover_what_was_asked_for_and_nothing_else() {
    let at = |offset: u64, rest: &[u8]| [&offset.to_be_bytes()[..], rest].concat();
    let data = |flags, offset, bytes: &[u8]| chunk(flags, 1, &at(offset, bytes));
    let hole = |flags, offset, length: u32| chunk(flags, 2, &at(offset, &length.to_be_bytes()));
    let whole = [data(0, 16, &[1; 4]), hole(1, 20, 4)];
    assert_eq!(read_reply(&whole).unwrap(), [1, 1, 1, 1, 0, 0, 0, 0]);
    let whole = [hole(0, 20, 4), data(0, 16, &[1; 4]), chunk(1, 0, &[])];
    assert_eq!(read_reply(&whole).unwrap(), [1, 1, 1, 1, 0, 0, 0, 0]);
    for bad in [
        vec![data(1, 16, &[1; 4])],
        vec![chunk(1, 0, &[])],
        vec![data(1, 15, &[1; 8])],
        vec![data(1, 16, &[1; 9])],
        vec![data(1, u64::MAX, &[1; 8])],
        vec![hole(1, 16, u32::MAX)],
        vec![data(0, 16, &[1; 8]), data(1, 16, &[1; 8])],
        vec![chunk(1, 1, &[1; 7])],
        vec![chunk(1, 0x8001, b"\0\0\0\x05\0\x04fail")],
        vec![chunk(1, 0x8001, b"\0\0\0\x05\xff\xff")],
        vec![data(0, 16, &[1; 8])],
        Vec::new(),
    ] {
        let refusal = read_reply(&bad).unwrap_err();
        assert!(matches!(refusal, ImportError::Nbd(_)), "{refusal}");
    }
}

/// What a client of an image of 1 MiB finds from 512 on when the server replies `extents`.
fn status_reply(extents: &[[u32; 2]]) -> Result<Option<Range<u64>>, ImportError> {
    let numbers = extents.as_flattened().iter().flat_map(|n| n.to_be_bytes());
    let body: Vec<u8> = [0, 0, 0, 1].into_iter().chain(numbers).collect();
    let (mut client, _server) = scripted_server(&[handshake(), chunk(1, 5, &body)].concat())?;
    client.next_data(512)
}

/// Found by the fuzz target `nbd_replies`: an extent behind the end was data of no length.
#[test]
fn a_status_must_not_tell_of_what_is_behind_the_end() {
    let (data, zeros) = (0, 2);
    let found = status_reply(&[[512, zeros], [512, data], [512, zeros]]);
    assert_eq!(found.unwrap(), Some(1024..1536));
    let found = status_reply(&[[512, zeros], [u32::MAX, data]]);
    assert_eq!(found.unwrap(), Some(1024..MIB as u64));
    assert_eq!(status_reply(&[[u32::MAX, zeros]]).unwrap(), None);
    let rest = MIB as u32 - 512;
    for bad in [
        &[[u32::MAX, zeros], [512, data]][..],
        &[[rest, zeros], [512, zeros]],
        &[[rest, data], [512, zeros]],
    ] {
        let refusal = status_reply(bad).unwrap_err();
        assert!(matches!(refusal, ImportError::Nbd(_)), "{refusal}");
    }
}

proptest::proptest! {
    #[test]
    fn no_server_makes_the_client_panic(
        skip in 0..120usize,
        noise in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..300),
    ) {
        let handshake = handshake();
        let kept = &handshake[..handshake.len().saturating_sub(skip)];
        if let Ok((mut client, _server)) = scripted_server(&[kept, noise.as_slice()].concat()) {
            let mut buffer = [0; 512];
            let _ = client.next_data(0);
            let _ = client.read_at(0, &mut buffer);
        }
    }
}
