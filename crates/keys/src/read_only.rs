//! What is to be done when a file system takes no writes.

use std::io;

/// The end of a message about `error`: what to do when the file system is read-only, or nothing.
pub fn advice(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::ReadOnlyFilesystem => {
            ": the kernel makes a file system read-only whose storage fails; look at its log, detach the disks \
             there, mend the storage and mount it anew"
        }
        _ => "",
    }
}
