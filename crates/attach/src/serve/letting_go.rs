//! What others are told when this host lets go of a disk: in a catalog that hosts share, and in a few seconds.
//!
//! What is not told is found out: a disk whose header says that it was let go of is anybody's, and a lease ends by itself.

use std::sync::Arc;
use std::sync::mpsc::sync_channel;
use std::time::Duration;

use crate::serve::attached_disk::AttachedDisk;
use disks::Disk;
use installation::{HostLease, Installation};

/// How long a server of the catalog is waited for.
const PATIENCE: Duration = Duration::from_secs(3);

/// Closes the row of an attach that has ended in order, after its claim was given up.
pub(crate) fn close_row(
    installation: &Arc<Installation>,
    disk: &Arc<Disk>,
    attached_disk: &AttachedDisk,
) {
    let Some(attach) = attached_disk.take_ended() else {
        return;
    };
    if !installation.catalog().is_shared() {
        return;
    }
    let (installation, disk) = (installation.clone(), disk.clone());
    within_patience("that the disk is detached", move || {
        disk.close_attachment(&installation, attach)
            .map_err(|error| error.to_string())
    });
}

/// Ends the lease of this host if no other process of it keeps it.
pub(crate) fn leave(installation: &Arc<Installation>, lease: Option<&Arc<HostLease>>) {
    let Some(lease) = lease.cloned() else {
        return;
    };
    let installation = installation.clone();
    within_patience("that this host has nothing attached", move || {
        lease
            .leave(&installation)
            .map_err(|error| error.to_string())
    });
}

/// Does something for which nobody waits longer than that.
fn within_patience(what: &str, work: impl FnOnce() -> Result<(), String> + Send + 'static) {
    let (done, is_done) = sync_channel(1);
    let told = std::thread::Builder::new()
        .name("letting-go".into())
        .spawn(move || drop(done.send(work())));
    let why = match told.map(|_| is_done.recv_timeout(PATIENCE)) {
        Ok(Ok(Ok(()))) => return,
        Ok(Ok(Err(why))) => why,
        Ok(Err(_)) => "it does not answer".into(),
        Err(error) => error.to_string(),
    };
    log::warn!("the catalog is not told {what}: {why}");
}
