//! Reading and writing at once: what fails on one side, and what is never read.

use super::*;

/// An image that fails to be read from somewhere on, and remembers how far it was read.
struct Failing {
    fails_at: u64,
    read: u64,
}

const SIZE: u64 = 64 << 20;

impl SourceImage for Failing {
    fn size(&self) -> u64 {
        SIZE
    }

    fn read_at(&mut self, offset: u64, buffer: &mut [u8]) -> Result<(), ImportError> {
        let end = offset + buffer.len() as u64;
        if end > self.fails_at {
            return Err(ImportError::Nbd("it is worn out".into()));
        }
        self.read = end;
        buffer.fill(1);
        Ok(())
    }

    fn next_data(&mut self, offset: u64) -> Result<Option<Range<u64>>, ImportError> {
        Ok((offset < SIZE).then_some(offset..SIZE))
    }
}

/// A disk that takes so many bytes.
struct Full {
    left: u64,
}

impl PlaintextSink for Full {
    type Error = &'static str;

    fn write_behind(&mut self, _: u64, plaintext: &[u8]) -> Result<(), &'static str> {
        let left = self.left.checked_sub(plaintext.len() as u64);
        self.left = left.ok_or("it is full")?;
        Ok(())
    }
}

fn copy_with(source: &mut Failing, disk: &mut Full) -> Result<(), CopyError<&'static str>> {
    copy(source, SIZE, disk, &Cancel::default(), |_| {})
}

#[test]
fn a_source_that_fails_ends_the_copy_with_its_error() {
    let mut source = Failing {
        fails_at: 20 << 20,
        read: 0,
    };
    let mut disk = Full { left: u64::MAX };
    match copy_with(&mut source, &mut disk) {
        Err(CopyError::Source(ImportError::Nbd(why))) => assert_eq!(why, "it is worn out"),
        other => panic!("{other:?}"),
    }
    // All that was read before was written.
    assert_eq!(u64::MAX - disk.left, 20 << 20);
}

#[test]
fn a_disk_that_fails_ends_the_copy_and_the_reading() {
    let mut source = Failing {
        fails_at: u64::MAX,
        read: 0,
    };
    match copy_with(&mut source, &mut Full { left: 5 << 20 }) {
        Err(CopyError::Sink(why)) => assert_eq!(why, "it is full"),
        other => panic!("{other:?}"),
    }
    // No more than what the buffers between take is read ahead.
    assert!(source.read <= 16 << 20, "{}", source.read);
}

#[test]
fn space_that_a_qcow2_image_set_aside_is_not_data_where_its_file_has_a_hole() {
    let s = setup();
    let path = s.path("aside.qcow2");
    let options = ["-o", "preallocation=metadata"];
    let image = path.to_str().unwrap();
    let create = [
        &["create", "-q", "-f", "qcow2"][..],
        &options,
        &[image, "64G"],
    ]
    .concat();
    qemu_img(s.dir.path(), &create);
    let output = Command::new("qemu-io")
        .args(["-f", "qcow2", "-c", "write -q -P 7 32G 1M", image])
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    let mut source = s.open(&path, None).unwrap();
    let found = source.image.next_data(0).unwrap().unwrap();
    assert_eq!(found, 32 << 30..(32 << 30) + (1 << 20));
    let mut buffer = [0; 8192];
    // Before and in it.
    source
        .image
        .read_at(found.start - 4096, &mut buffer)
        .unwrap();
    assert_eq!(buffer, *[[0; 4096], [7; 4096]].as_flattened());
    assert_eq!(source.image.next_data(found.end).unwrap(), None);
}

#[test]
fn a_fragmented_image_with_compressed_clusters_is_read_as_qemu_reads_it() {
    let s = setup();
    let path = s.path("mixed.qcow2");
    let image = path.to_str().unwrap();
    qemu_img(s.dir.path(), &["create", "-q", "-f", "qcow2", image, "8M"]);
    // From the end to the beginning, so that the file has the clusters the other way round.
    let mut io = Command::new("qemu-io");
    io.args(["-f", "qcow2"]);
    let mut content = vec![0; 8 * MIB];
    for number in (0..128).rev().filter(|number| number % 5 != 0) {
        let compressed = if number % 7 == 0 { "-c " } else { "" };
        let pattern = number as u8 | 1;
        let start = number * 65536;
        let write = format!("write -q {compressed}-P {pattern} {start} 64k");
        io.arg("-c").arg(write);
        content[start..start + 65536].fill(pattern);
    }
    let output = io.arg(image).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let disk = copied(&mut s.open(&path, None).unwrap(), content.len());
    assert!(disk.content == content);
    let data = content.chunks(4096).filter(|block| block[0] != 0).count();
    assert_eq!(disk.written, data as u64 * 4096);
}
