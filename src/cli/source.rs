//! What disks and images are made of: files, disks, snapshots and images.

use std::path::PathBuf;

use super::{CliError, Context};
use disks::Created;
use installation::envelope::ResourceKind;

/// What is meant by a source.
pub(super) enum Meant {
    File(PathBuf),
    Resource(ResourceKind, String),
}

/// Finds out what a source is that may be the name of something of these `kinds`, or a file.
pub(super) fn source(
    context: &Context,
    source: &str,
    kinds: &[ResourceKind],
) -> Result<Meant, CliError> {
    for kind in kinds {
        let prefix = format!("{kind}:");
        if let Some(name) = source.strip_prefix(&prefix) {
            return Ok(Meant::Resource(*kind, name.into()));
        }
    }
    if source.contains('/') {
        return Ok(Meant::File(source.into()));
    }
    let known = disks::resources_named(&context.installation()?, source)?;
    let mut named = kinds.iter().filter(|kind| known.contains(kind));
    let is_file = PathBuf::from(source).exists();
    match (named.next(), named.next(), is_file) {
        (Some(kind), None, false) => Ok(Meant::Resource(*kind, source.into())),
        (None, _, _) => Ok(Meant::File(source.into())),
        (Some(kind), other, _) => {
            let or = other.map_or("./".to_owned(), |other| format!("{other}:"));
            Err(CliError::usage(format!(
                "'{source}' is ambiguous: use {kind}:{source} or {or}{source}"
            )))
        }
    }
}

/// What the operator may not expect: a guessed format, and a size that was filled up.
pub(super) fn source_note(created: &Created, guessed: bool) -> Option<String> {
    let (format, size) = created.source?;
    let mut parts = Vec::new();
    if guessed {
        let though = match &created.looks_like {
            Some(other) => format!(", as it is named, although its content looks like {other}"),
            None => String::new(),
        };
        parts.push(format!(
            "the image is read as {format}{though} (--source-format overrides that)"
        ));
    }
    if !size.is_multiple_of(512) || created.size - size < 4096 && created.size != size {
        parts.push(format!(
            "its {size} bytes are filled up with zeros to {} bytes",
            created.size
        ));
    }
    (!parts.is_empty()).then(|| format!("note: {}", parts.join("; ")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use disks::import::ImageFormat;

    fn note(size: u64, image: u64, guessed: bool) -> Option<String> {
        let created = Created {
            size,
            source: Some((ImageFormat::Raw, image)),
            looks_like: None,
        };
        source_note(&created, guessed)
    }

    #[test]
    fn what_is_guessed_or_filled_up_is_said() {
        assert_eq!(note(8192, 8192, false), None);
        assert!(note(8192, 8192, true).unwrap().contains("read as raw"));
        assert!(note(8192, 8000, false).unwrap().contains("8000 bytes"));
        assert_eq!(note(1 << 30, 8192, false), None);
        assert!(note(1 << 30, 8001, false).unwrap().contains("filled up"));
    }
}
