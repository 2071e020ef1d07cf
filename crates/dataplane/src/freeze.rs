//! Standing still, and going on with another stack.

use std::io::Write;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, MutexGuard};
use std::time::Duration;

use protocol::{
    COPY_STOPPED, ControlCommand, CopyRequest, DESTROYED, Discard, FROZEN, NOT_COPYING, NOT_FROZEN,
    NOT_RESIZED, NOT_RESTACKED, NOT_RESTORED, RESTACKED, THAWED, receive_command, receive_stack,
};

use super::FrontendError;
use super::handler::BlockHandler;
use super::serve::{Server, open_to_flush};
use super::shared::{Extent, Shared};
use super::standing::Standing;

/// How long what the guest has asked for may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long space is given back before, while the guest goes on: a layer beneath others keeps what it
/// holds.
const RELEASE: Duration = Duration::from_secs(1);
/// Why a command is refused meanwhile.
const STANDS_STILL: &str = "the disk stands still while its layers are changed";

/// A disk that stands still.
struct Frozen<'a> {
    /// Held for as long, so that messages of the frontend wait, which would wait for the queues.
    _handler: MutexGuard<'a, BlockHandler>,
    standing: Standing,
    /// The copy that was under way.
    copy: Option<CopyRequest>,
}

/// How it goes on.
enum GoesOn {
    AsBefore(Option<CopyRequest>),
    Restacked,
    /// Not at all: the control process is gone.
    Ended,
}

impl Server {
    /// Freezes the disk, and obeys until it is told how to go on. Whether it does.
    pub(super) fn freeze(&mut self, control: &UnixStream) -> bool {
        // Most of what is to be flushed is, before anybody has to wait for it.
        if let Err(error) = flush(&self.shared, Some(RELEASE)) {
            return answer(control, &format!("{NOT_FROZEN}{error}"));
        }
        let copy = self.copier.stop();
        let goes_on = self.stand_still(control, copy);
        match goes_on {
            Ok(GoesOn::AsBefore(copy)) => {
                self.copy_again(copy);
                true
            }
            Ok(GoesOn::Restacked) => true,
            Ok(GoesOn::Ended) => {
                // The header may name another stack by now, so nothing of this one may be touched.
                // What was completed is durable.
                log::info!(
                    "the control process went away while the disk stood still: it is served no more"
                );
                std::process::exit(0);
            }
            Err(reason) => {
                self.copy_again(copy);
                answer(control, &format!("{NOT_FROZEN}{reason}"))
            }
        }
    }

    /// Goes on with a copy that was stopped for something else.
    pub(super) fn copy_again(&mut self, copy: Option<CopyRequest>) {
        if let Some(request) = copy
            && let Err(reason) = self.copier.start(&self.shared, request)
        {
            log::warn!("copying up into the top layer does not go on: {reason}");
        }
    }

    fn stand_still(
        &self,
        control: &UnixStream,
        copy: Option<CopyRequest>,
    ) -> Result<GoesOn, String> {
        let mut handler = self.handler();
        let standing = handler.stand_still(PATIENCE)?;
        flush(&self.shared, None).map_err(|e| e.to_string())?;
        let frozen = Frozen {
            _handler: handler,
            standing,
            copy,
        };
        Ok(match answer(control, FROZEN) {
            true => frozen.obey(self, control),
            false => GoesOn::Ended,
        })
    }
}

impl Frozen<'_> {
    fn obey(mut self, server: &Server, mut control: &UnixStream) -> GoesOn {
        loop {
            let Ok(command) = receive_command(&mut control) else {
                return GoesOn::Ended;
            };
            let refused = |prefix| format!("{prefix}{STANDS_STILL}");
            let line = match command {
                Ok(ControlCommand::Thaw) => {
                    return match answer(control, THAWED) {
                        true => GoesOn::AsBefore(self.copy),
                        false => GoesOn::Ended,
                    };
                }
                Ok(ControlCommand::Restack) => match self.restack(server, control) {
                    Ok(Ok(())) => {
                        return match answer(control, RESTACKED) {
                            true => GoesOn::Restacked,
                            false => GoesOn::Ended,
                        };
                    }
                    Ok(Err(error)) => format!("{NOT_RESTACKED}{error}"),
                    // Where the next command begins is not known: it could be taken from a key.
                    Err(error) => {
                        answer(control, &format!("{NOT_RESTACKED}{error}"));
                        return GoesOn::Ended;
                    }
                },
                Ok(ControlCommand::Revoke(mode)) => {
                    self.standing.destroy(mode);
                    server.shared.key.destroy(mode);
                    self.copy = None;
                    log::info!("the key was revoked: no DEK and no cipher is left");
                    DESTROYED.into()
                }
                Ok(ControlCommand::Restore(layers)) => {
                    match server.receive_keys(control, &layers) {
                        // They are zeroed here; the control process tries again.
                        Ok(_) => refused(NOT_RESTORED),
                        Err(error) => format!("{NOT_RESTORED}{error}"),
                    }
                }
                Ok(ControlCommand::Limits(limits)) => {
                    server.shared.limiter.set(&limits);
                    continue;
                }
                Ok(ControlCommand::Resize(_)) => refused(NOT_RESIZED),
                Ok(ControlCommand::Freeze) => refused(NOT_FROZEN),
                Ok(ControlCommand::Copy(_)) => refused(NOT_COPYING),
                Ok(ControlCommand::CopyStop) => {
                    self.copy = None;
                    COPY_STOPPED.into()
                }
                Ok(ControlCommand::Disconnect(number)) => {
                    server.disconnect(number);
                    continue;
                }
                Ok(ControlCommand::Progress) => server.progress_line(),
                Err(error) => {
                    log::warn!("the control process sent something that is not a command: {error}");
                    continue;
                }
            };
            if !answer(control, &line) {
                return GoesOn::Ended;
            }
        }
    }

    /// Takes the stack that is sent. On an inner error nothing has changed; on an outer one nothing
    /// more can be received.
    fn restack(
        &self,
        server: &Server,
        control: &UnixStream,
    ) -> Result<Result<(), FrontendError>, FrontendError> {
        let (stack, opened, deks) = receive_stack(control)?;
        let old = server.shared.extent();
        let opened = opened.map_err(FrontendError::from);
        let new = match opened.and_then(|opened| old.restacked(&stack, opened)) {
            Ok(new) => Arc::new(new),
            Err(error) => return Ok(Err(error)),
        };
        server.shared.key.exchange(deks);
        server.shared.replace(new.clone());
        self.standing.go_on(&new);
        if new.volume.geometry().layer != old.volume.geometry().layer {
            no_longer_written(&old);
        }
        log::info!("serving a stack of {} layers now", new.files.layers());
        Ok(Ok(()))
    }
}

/// Makes durable what was completed, among others who use the volume, and gives space back for as long.
fn flush(shared: &Shared, release: Option<Duration>) -> Result<(), FrontendError> {
    let mut io = open_to_flush(shared)?;
    let overwrite = shared.discard == Discard::Overwrite;
    let flushed = match release {
        Some(patience) => io.flush_and_release(overwrite, patience),
        None => io.flush(),
    };
    if io.has_failed() {
        // Blocks may stay marked that guests would wait for: whoever supervises this starts another.
        log::error!("the ring of a flush has failed");
        std::process::exit(1);
    }
    flushed.map_err(FrontendError::Flush)
}

/// Lets go of the claim of a layer that is beneath others now: who claims the disk claims its top.
fn no_longer_written(old: &Extent) {
    let file = old.files.data.file();
    if let Err(error) = rustix::fs::flock(file, rustix::fs::FlockOperation::Unlock) {
        log::warn!("the claim of a layer that is not written to any more stays: {error}");
    }
}

fn answer(mut control: &UnixStream, line: &str) -> bool {
    writeln!(control, "{line}").is_ok()
}
