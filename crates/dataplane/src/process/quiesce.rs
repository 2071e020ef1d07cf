//! Quiescing, and going on with another stack.

use std::sync::{Arc, MutexGuard};
use std::time::Duration;

use protocol::{Cargo, Command, CopyRequest, DataPlaneEnd, Discard, Received, Reply, Stack};

use crate::DataplaneError;
use crate::disk::shared::{Extent, Shared};
use crate::process::signs::alive_while;
use crate::queue::quiesce::QuiescedQueues;
use crate::vhost_user::handler::BlockHandler;

use super::last_resort::Bound;
use super::serve::{Server, next_command, open_to_flush};

/// How long what the guest has asked for may take.
pub(super) const PATIENCE: Duration = Duration::from_secs(10);
/// How long space is given back before, while the guest goes on: a layer beneath others keeps what it
/// holds.
const RELEASE: Duration = Duration::from_secs(1);
/// Why a command is refused meanwhile.
const IS_QUIESCED: &str = "the disk is quiesced while its layers are changed";

/// A disk that is quiesced.
struct QuiescedDisk<'a> {
    /// Held for as long, so that messages of the frontend wait, which would wait for the queues.
    _handler: MutexGuard<'a, BlockHandler>,
    queues: QuiescedQueues,
    /// The copy that was under way.
    copy: Option<CopyRequest>,
}

/// How it goes on.
enum GoesOn {
    AsBefore(Option<CopyRequest>),
    Swapped,
    /// Not at all: the attach process is gone.
    Ended,
}

impl Server {
    /// Quiesces the disk, which answers the command of that number, and obeys until it is told how to go on.
    /// Whether it does.
    pub(crate) fn quiesce(&mut self, control: &DataPlaneEnd, number: u64) -> bool {
        // Most of what is to be flushed is, before anybody has to wait for it.
        if let Err(error) = flush(&self.shared, Some(RELEASE)) {
            return control.reply(number, Reply::refused(&error)).is_ok();
        }
        let copy = self.copier.stop();
        let goes_on = self.quiesce_queues(control, number, copy);
        match goes_on {
            Ok(GoesOn::AsBefore(copy)) => {
                self.copy_again(copy);
                true
            }
            Ok(GoesOn::Swapped) => true,
            Ok(GoesOn::Ended) => {
                // The header may name another stack by now, so nothing of this one may be touched.
                // What was completed is durable.
                log::info!(
                    "the attach process went away while the disk was quiesced: it is served no more"
                );
                std::process::exit(0);
            }
            Err(reason) => {
                self.copy_again(copy);
                control.reply(number, Reply::refused(&reason)).is_ok()
            }
        }
    }

    /// Goes on with a copy that was stopped for something else.
    pub(crate) fn copy_again(&mut self, copy: Option<CopyRequest>) {
        if let Some(request) = copy
            && let Err(reason) = self.copier.start(&self.shared, request)
        {
            log::warn!("copying up into the top layer does not go on: {reason}");
        }
    }

    fn quiesce_queues(
        &self,
        control: &DataPlaneEnd,
        number: u64,
        copy: Option<CopyRequest>,
    ) -> Result<GoesOn, String> {
        let mut handler = self.handler();
        let queues = handler.quiesce(PATIENCE)?;
        flush(&self.shared, None).map_err(|e| e.to_string())?;
        let quiesced = QuiescedDisk {
            _handler: handler,
            queues,
            copy,
        };
        Ok(match control.reply(number, Reply::Quiesced) {
            Ok(()) => quiesced.obey(self, control),
            Err(_) => GoesOn::Ended,
        })
    }
}

impl QuiescedDisk<'_> {
    fn obey(mut self, server: &Server, control: &DataPlaneEnd) -> GoesOn {
        loop {
            let Received {
                number,
                command,
                cargo,
            } = match next_command(control) {
                Some(Some(received)) => received,
                Some(None) => continue,
                None => return GoesOn::Ended,
            };
            let (reply, goes_on) = match command {
                Command::Resume => (Reply::Resumed, Some(GoesOn::AsBefore(self.copy.take()))),
                Command::SwapVolume(stack) => match self.swap(server, &stack, cargo) {
                    Ok(()) => (Reply::VolumeSwapped, Some(GoesOn::Swapped)),
                    Err(error) => (Reply::refused(&error), None),
                },
                other => (self.answer(server, other, cargo), None),
            };
            match (control.reply(number, reply), goes_on) {
                (Err(_), _) => return GoesOn::Ended,
                (Ok(()), Some(goes_on)) => return goes_on,
                (Ok(()), None) => {}
            }
        }
    }

    /// Obeys a command after which the disk is still quiesced.
    fn answer(&mut self, server: &Server, command: Command, cargo: Cargo) -> Reply {
        match command {
            Command::RevokeKey { on_revoke } => {
                let _bound = Bound::begin();
                self.queues.destroy_key(on_revoke);
                server.shared.key.destroy(on_revoke);
                self.copy = None;
                log::info!("the key was revoked: no DEK and no cipher is left");
                Reply::KeyDestroyed
            }
            Command::RestoreKey { layers } => match server.keys_of(cargo, &layers) {
                // They are zeroed here; the attach process tries again.
                Ok(_) => Reply::refused(&IS_QUIESCED),
                Err(error) => Reply::refused(&error),
            },
            Command::SetLimits(limits) => {
                server.shared.limiter.set(&limits);
                Reply::LimitsSet
            }
            Command::StopCopyUp => {
                self.copy = None;
                Reply::CopyUpStopped
            }
            Command::CopyUpProgress => Reply::CopyUpProgress(server.copier.progress()),
            Command::Disconnect { connection } => {
                server.disconnect(connection);
                Reply::Disconnected
            }
            Command::Prepare { .. }
            | Command::Serve(_)
            | Command::Wait(_)
            | Command::TakeDisk(_)
            | Command::LetGo
            | Command::HandOver
            | Command::Resize { .. }
            | Command::Quiesce
            | Command::SwapVolume(_)
            | Command::Resume
            | Command::StartCopyUp(_) => Reply::refused(&IS_QUIESCED),
        }
    }

    /// Takes the stack that came. On an error nothing has changed.
    fn swap(&self, server: &Server, stack: &Stack, cargo: Cargo) -> Result<(), DataplaneError> {
        let (opened, deks) = cargo.disk()?;
        let old = server.shared.extent();
        let new = Arc::new(old.swapped(stack, opened)?);
        server.shared.key.exchange(deks);
        server.shared.replace(new.clone());
        self.queues.serve(&new);
        if new.volume.geometry().layer != old.volume.geometry().layer {
            no_longer_written(&old);
        }
        log::info!("serving a stack of {} layers now", new.files.layers());
        Ok(())
    }
}

/// Makes durable what was completed, among others who use the volume, and gives space back for as long.
pub(super) fn flush(shared: &Shared, release: Option<Duration>) -> Result<(), DataplaneError> {
    let mut io = open_to_flush(shared)?;
    let overwrite = shared.discard == Discard::Overwrite;
    let flushed = alive_while(&shared.counters, || match release {
        Some(patience) => io.flush_and_release(overwrite, patience),
        None => io.flush(),
    });
    if io.has_failed() {
        // Blocks may stay marked that guests would wait for: the supervisor starts another process.
        log::error!("the ring of a flush has failed");
        std::process::exit(1);
    }
    flushed.map_err(DataplaneError::Flush)
}

/// Lets go of the claim of a layer that is beneath others now: who claims the disk claims its top.
fn no_longer_written(old: &Extent) {
    let file = old.files.data.file();
    if let Err(error) = rustix::fs::flock(file, rustix::fs::FlockOperation::Unlock) {
        log::warn!("the claim of a layer that is not written to any more stays: {error}");
    }
}
