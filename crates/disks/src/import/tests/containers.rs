//! Files that are no disk's bytes are not taken for such; legitimate disks are.

use super::*;

/// Runs a program that makes `file` of its standard input or of files in `dir`.
fn make(dir: &Path, command: &str) {
    let output = Command::new("sh")
        .args(["-c", command])
        .current_dir(dir)
        .output()
        .unwrap();
    assert!(output.status.success(), "{command}: {output:?}");
}

fn at(offset: usize, magic: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0; 1 << 20];
    bytes[offset..offset + magic.len()].copy_from_slice(magic);
    bytes
}

#[test]
fn containers_are_refused_by_name_and_raw_insists() {
    let s = setup();
    let koly = (1 << 20) - 512;
    for (content, name) in [
        (at(0, b"QFI\xfb\0\0\0\x01"), "qcow image of version 1"),
        (at(0, b"LUKS\xba\xbe\0\x01"), "LUKS container"),
        (at(0, b"LUKS\xba\xbe\0\x02"), "LUKS container"),
        (at(0, b"\xfd7zXZ\0"), "xz-compressed"),
        (at(0, b"\x1f\x8b\x08\0"), "gzip-compressed"),
        (at(0, b"BZh91AY&SY"), "bzip2-compressed"),
        (at(0, b"\x28\xb5\x2f\xfd"), "zstd-compressed"),
        (at(0, b"\x04\x22\x4d\x18"), "lz4-compressed"),
        (at(0, b"PK\x03\x04"), "zip archive"),
        (at(0, b"7z\xbc\xaf\x27\x1c"), "7z archive"),
        (at(0, b"Rar!\x1a\x07\x01\0"), "RAR archive"),
        (at(0, b"070701"), "cpio archive"),
        (at(0, b"sprs"), "Apple sparse image"),
        (at(0, b"encrcdsa"), "encrypted Apple"),
        (at(koly, b"koly\0\0\0\x04\0\0\x02\0"), "DMG"),
        (at(0, b"\x3a\xff\x26\xed"), "Android sparse"),
        (at(0, b"VMA\0"), "Proxmox"),
        (at(0, b"MSWIM\0\0\0"), "WIM"),
        (at(0, b"Bochs Virtual HD Image"), "Bochs"),
        (at(0, b"!<arch>\ndebian-binary   "), "a Debian package"),
        (at(0, b"!<arch>\n/       "), "an ar archive"),
        (at(0, b"AFF10\r\n\0"), "an AFF image"),
        (at(0, b"\xed\xab\xee\xdb"), "an RPM package"),
        (at(0, b"age-encryption.org/v1\n"), "encrypted by age"),
        (
            at(0, b"-----BEGIN AGE ENCRYPTED FILE-----\n"),
            "encrypted by age",
        ),
        (
            at(0, b"-----BEGIN PGP MESSAGE-----\n"),
            "an OpenPGP message",
        ),
        (at(0, b"\x8c\x0d\x04\x09\x03\x0a"), "an OpenPGP message"),
        (at(0, b"\x85\x02\x0c\x03"), "an OpenPGP message"),
        (at(0, b"Salted__"), "encrypted by OpenSSL"),
        (at(0, b"SQLite format 3\0"), "an SQLite database"),
        (
            at(0, b"<!DOCTYPE html><html><body>404"),
            "a page of HTML or XML",
        ),
        (
            at(0, b"\xef\xbb\xbf\r\n  <HTML lang=en>"),
            "a page of HTML or XML",
        ),
        (
            at(0, b"<?xml version=\"1.0\"?><Error>"),
            "a page of HTML or XML",
        ),
        (
            at(0, b"SEALDISK\x01\0\0\0"),
            "the header of a disk of Sealdisk",
        ),
        (
            at(64 << 10, b"SEALDISK\x02\0\0\0"),
            "the header of a disk of Sealdisk",
        ),
        (
            at(128 << 10, b"SEALDISK\x02\0\0\0"),
            "the header of a disk of Sealdisk",
        ),
        (at(0, b"SDBLKMAP\x01"), "the map of a disk of Sealdisk"),
        (at(0, b"SDRUNMAP\x01"), "the runtime map of a disk"),
    ] {
        for file in ["disk.img", "disk", "disk.qcow2"] {
            fs::write(s.path(file), &content).unwrap();
            let refusal = s.refusal(&s.path(file), None);
            assert!(refusal.contains(name), "{name}: {refusal}");
            assert!(refusal.contains("--source-format raw"), "{refusal}");
        }
        let source = s.open(&s.path("disk.img"), Some(ImageFormat::Raw)).unwrap();
        assert_eq!(source.format, ImageFormat::Raw);
        assert!(source.looks_like.is_some_and(|it| it.contains(name)));
    }
}

#[test]
fn what_real_programs_pack_is_seen() {
    let s = setup();
    for (command, name) in [
        ("gzip -c disk.raw > packed", "gzip-compressed"),
        ("xz -0 -c disk.raw > packed", "xz-compressed"),
        ("bzip2 -c disk.raw > packed", "bzip2-compressed"),
        ("tar -cf packed disk.raw", "import \"disk.raw\""),
        ("echo disk.raw | cpio -o -H newc > packed", "cpio archive"),
        (
            "cp disk.raw a.vmdk; touch a.ovf a.mf; tar -H ustar -cf packed a.ovf a.mf a.vmdk",
            "an OVA, which is a tar archive: unpack it with `tar -xf` and import \"a.vmdk\"",
        ),
        (
            "cp disk.raw b.vmdk; tar -cf packed a.ovf a.vmdk b.vmdk",
            "its disks: \"a.vmdk\", \"b.vmdk\"",
        ),
    ] {
        make(s.dir.path(), command);
        let refusal = s.refusal(&s.path("packed"), None);
        assert!(refusal.contains(name), "{command}: {refusal}");
    }
}

#[test]
fn what_disks_begin_with_is_raw() {
    let s = setup();
    let mut mbr = at(510, b"\x55\xaa");
    mbr[..3].copy_from_slice(b"\xeb\x63\x90");
    for (what, content) in [
        ("a boot sector", mbr),
        ("a GPT", at(512, b"EFI PART")),
        ("ISO 9660", at(32769, b"CD001")),
        ("squashfs", at(0, b"hsqs")),
        ("ext4", at(1080, b"\x53\xef")),
        ("xfs", at(0, b"XFSB")),
        ("btrfs", at(0x10040, b"_BHRfS_M")),
        ("NTFS", at(3, b"NTFS    ")),
        // The guest's: nobody else's key is at stake.
        ("BitLocker", at(3, b"-FVE-FS-")),
        ("LVM", at(512, b"LABELONE")),
        ("swap", at(4086, b"SWAPSPACE2")),
        ("zeros", vec![0; 4096]),
        (
            "text",
            b"hello, this is no image, but nobody can know".to_vec(),
        ),
        ("nothing much", vec![7]),
    ] {
        fs::write(s.path("disk.img"), &content).unwrap();
        let source = s.open(&s.path("disk.img"), None).unwrap();
        assert_eq!(source.format, ImageFormat::Raw, "{what}");
        assert_eq!(source.looks_like, None, "{what}");
    }
}

#[test]
fn differencing_images_of_other_programs_are_refused() {
    let s = setup();
    let vdi = s.converted("d.vdi", "vdi", &[]);
    let mut bytes = fs::read(&vdi).unwrap();
    bytes[76] = 4;
    fs::write(&vdi, &bytes).unwrap();
    assert!(s.refusal(&vdi, None).contains("differencing image"));

    s.converted("base.qed", "qed", &[]);
    let create = [
        "create", "-q", "-f", "qed", "-b", "base.qed", "-F", "qed", "top.qed",
    ];
    qemu_img(s.dir.path(), &create);
    assert!(s.refusal(&s.path("top.qed"), None).contains("backing file"));

    let hdd = s.converted("d.hdd", "parallels", &[]);
    fs::write(
        s.path("DiskDescriptor.xml"),
        "<Storage><Image></Image><Image></Image></Storage>",
    )
    .unwrap();
    assert!(s.refusal(&hdd, None).contains("DiskDescriptor.xml"));
    fs::rename(&hdd, s.path("d.hds")).unwrap();
    let refusal = s.refusal(s.dir.path(), None);
    assert!(refusal.contains("d.hds"), "{refusal}");
}

/// What is said of an image that is called what it is not, in the words of this program.
#[test]
fn an_image_that_is_said_to_be_another_is_refused_for_that() {
    let s = setup();
    let formats = [
        ImageFormat::Qcow2,
        ImageFormat::Vhdx,
        ImageFormat::Vmdk,
        ImageFormat::Vdi,
        ImageFormat::Qed,
        ImageFormat::Parallels,
    ];
    let vdi = s.converted("d.vdi", "vdi", &[]);
    for format in formats {
        let refusal = s.refusal(&s.path("disk.raw"), Some(format));
        let what =
            format!("as {format}: it does not begin as such an image does, its content is raw");
        assert!(refusal.contains(&what), "{refusal}");
        if format != ImageFormat::Vdi {
            let refusal = s.refusal(&vdi, Some(format));
            assert!(refusal.contains("its content is vdi"), "{refusal}");
        }
    }
    let refusal = s.refusal(&s.path("disk.raw"), Some(ImageFormat::Vpc));
    assert!(refusal.contains("no footer"), "{refusal}");
}

/// A check that says nothing but numbers, and a server that finds the damage when it reads.
#[test]
fn what_is_damaged_is_said_even_if_a_program_says_less() {
    let s = setup();
    let qed = s.converted("d.qed", "qed", &[]);
    let mut bytes = fs::read(&qed).unwrap();
    let at = |bytes: &[u8], at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap());
    let l1 = at(&bytes, 40) as usize;
    let l2 = at(&bytes, l1) as usize;
    // A cluster that is not one: within another.
    let first = at(&bytes, l2) + 512;
    bytes[l2..l2 + 8].copy_from_slice(&first.to_le_bytes());
    fs::write(&qed, &bytes).unwrap();
    let refusal = s.refusal(&qed, None);
    assert!(refusal.contains("damaged in 1 places"), "{refusal}");

    let vmdk = s.converted("d.vmdk", "vmdk", &["-o", "subformat=streamOptimized"]);
    let mut bytes = fs::read(&vmdk).unwrap();
    // Behind the header's 64 KiB: the sector, the length and the bytes of each grain, in whole sectors.
    let grain = 64 << 10;
    let len = u32::from_le_bytes(bytes[grain + 8..grain + 12].try_into().unwrap()) as usize;
    let second = grain + (12 + len).next_multiple_of(512);
    bytes[second + 50..second + 90].fill(0xff);
    fs::write(&vmdk, &bytes).unwrap();
    let mut source = s.open(&vmdk, None).unwrap();
    let mut disk = MemoryDisk {
        content: vec![0; s.content.len()],
        written: 0,
    };
    let size = s.content.len() as u64;
    let cancel = Cancel::default();
    let Err(CopyError::Source(error)) =
        copy(source.image.as_mut(), size, &mut disk, &cancel, |_| {})
    else {
        panic!("a damaged image was copied");
    };
    let text = error.to_string();
    assert!(
        text.contains("the image is damaged, or truncated"),
        "{text}"
    );
    assert!(!text.contains("isconnect"), "{text}");
}

/// As QEMU leaves an image with lazy reference counts when it is killed.
#[test]
fn an_image_that_was_not_closed_is_refused_with_the_command_that_repairs_it() {
    let s = setup();
    let path = s.converted("lazy image.qcow2", "qcow2", &["-o", "lazy_refcounts=on"]);
    let script = "write -P 9 20M 1M\nflush\nabort\n";
    make(
        s.dir.path(),
        &format!("printf '{script}' | qemu-io -f qcow2 'lazy image.qcow2' >/dev/null 2>&1; true"),
    );
    assert_eq!(fs::read(&path).unwrap()[79] & 1, 1, "the image is dirty");
    let refusal = s.refusal(&path, None);
    let (_, command) = refusal.split_once("with `").unwrap();
    let (command, _) = command.split_once('`').unwrap();
    assert!(
        command.contains("qemu-img check -f qcow2 -r all '"),
        "{refusal}"
    );
    make(s.dir.path(), command);
    let mut source = s.open(&path, None).unwrap();
    let disk = copied(&mut source, s.content.len());
    assert!(disk.content[20 << 20..21 << 20].iter().all(|&b| b == 9));
}

/// As Hyper-V leaves an image when its host dies: an entry in the log (MS-VHDX §2.3) that the headers name.
#[test]
fn a_vhdx_with_a_log_is_refused_with_the_command_that_repairs_it() {
    let s = setup();
    let path = s.converted("disk.vhdx", "vhdx", &[]);
    let mut bytes = fs::read(&path).unwrap();
    let seal = |structure: &mut [u8]| {
        structure[4..8].fill(0);
        let sum = crc32c::crc32c(structure).to_le_bytes();
        structure[4..8].copy_from_slice(&sum);
    };
    let id = [7; 16];
    for header in [64 << 10, 128 << 10] {
        bytes[header + 48..header + 64].copy_from_slice(&id);
        seal(&mut bytes[header..header + 4096]);
    }
    let len = (bytes.len() as u64).to_le_bytes();
    let mut entry = [0; 4096];
    entry[..4].copy_from_slice(b"loge");
    entry[8..12].copy_from_slice(&4096u32.to_le_bytes());
    entry[16..24].copy_from_slice(&1u64.to_le_bytes());
    entry[32..48].copy_from_slice(&id);
    entry[48..56].copy_from_slice(&len);
    entry[56..64].copy_from_slice(&len);
    seal(&mut entry);
    bytes[1 << 20..(1 << 20) + 4096].copy_from_slice(&entry);
    fs::write(&path, &bytes).unwrap();
    let refusal = s.refusal(&path, None);
    let command = format!("`qemu-img check -f vhdx -r all {}`", path.display());
    assert!(refusal.contains(&command), "{refusal}");
}
