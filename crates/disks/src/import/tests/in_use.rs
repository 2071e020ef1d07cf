//! QEMU's locks of images.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, Stdio};

use super::*;

/// A qemu-io that has an image open to write.
struct Writer(Child);

impl Writer {
    fn open(image: &Path, format: &str) -> Self {
        let mut child = Command::new("qemu-io")
            .args(["-f", format])
            .arg(image)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        // It answers once the image is open.
        writeln!(child.stdin.as_mut().unwrap(), "length").unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.as_mut().unwrap())
            .read_line(&mut line)
            .unwrap();
        assert!(line.contains("MiB"), "{line}");
        Self(child)
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn an_image_that_a_qemu_writes_to_is_refused_until_it_is_closed() {
    let s = setup();
    for (name, format) in [("disk.raw", "raw"), ("disk.qcow2", "qcow2")] {
        let image = match format {
            "raw" => s.path(name),
            _ => s.converted(name, format, &[]),
        };
        let writer = Writer::open(&image, format);
        let refusal = s.refusal(&image, None);
        assert!(
            refusal.contains("failed to get shared \"write\" lock"),
            "{refusal}"
        );
        assert!(refusal.contains("--force-share"), "{refusal}");
        let insists = SourceSpec {
            force_share: true,
            ..spec(&image, None)
        };
        drop(open(&insists, &Cancel::default()).unwrap());
        drop(writer);
        let mut source = s.open(&image, None).unwrap();
        assert!(copied(&mut source, s.content.len()).content == s.content);
    }
}

#[test]
fn no_qemu_writes_to_an_image_while_it_is_read() {
    let s = setup();
    for (name, format) in [("disk.raw", "raw"), ("disk.qcow2", "qcow2")] {
        let image = match format {
            "raw" => s.path(name),
            _ => s.converted(name, format, &[]),
        };
        let write = || {
            Command::new("qemu-io")
                .args(["-f", format, "-c", "write 0 4k"])
                .arg(&image)
                .output()
                .unwrap()
        };
        let source = s.open(&image, None).unwrap();
        let refused = write();
        let stderr = String::from_utf8_lossy(&refused.stderr);
        assert!(
            stderr.contains("Failed to get \"write\" lock"),
            "{refused:?}"
        );
        // Others may read it at the same time.
        drop(s.open(&image, None).unwrap());
        drop(source);
        assert!(write().status.success());
    }
}
