//! A disk of Parallels Desktop: a directory with a description and one or more images.

use std::fs::{self, File};
use std::io::Read;
use std::path::Path;

use super::ImportError;

/// The description's name.
pub(super) const DESCRIPTION: &str = "DiskDescriptor.xml";

/// Names the images in a directory that is such a disk.
pub(super) fn is_directory(path: &Path) -> ImportError {
    let entries = fs::read_dir(path).into_iter().flatten().flatten();
    let mut images: Vec<_> = entries
        .map(|entry| entry.path())
        .filter(|entry| entry.extension().is_some_and(|e| e == "hds"))
        .map(|image| image.display().to_string())
        .collect();
    images.sort();
    ImportError::Directory {
        path: path.into(),
        images: images.join(", "),
    }
}

/// With snapshots a disk has several images, each of which has only what changed since another.
pub(super) fn reference(image: &Path) -> Option<&'static str> {
    const MOST: u64 = 1 << 20;
    let mut description = String::new();
    let file = File::open(image.with_file_name(DESCRIPTION)).ok()?;
    file.take(MOST).read_to_string(&mut description).ok()?;
    (description.matches("<Image>").count() > 1)
        .then_some("the images beneath a snapshot that its DiskDescriptor.xml names")
}
