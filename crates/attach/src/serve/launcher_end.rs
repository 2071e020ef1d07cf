//! The death of the launcher.
//!
//! The disk is served on: nothing of what serves a guest is the launcher's. Its key is guarded on too, since the data
//! plane becomes a child of this process, which kills it where the launcher would have. But no other data plane can be
//! started any more, so whoever watches the disk has to know at once, and not when the next one is needed.

use std::os::fd::AsFd;
use std::sync::Arc;

use crate::begin::data_plane::process;
use crate::error::AttachError;
use crate::guard::key_guard::Moment;
use crate::serve::supervise::{LAUNCHER_END, Supervision, Watched};
use crate::status::{EventKind, Reason};

impl Supervision {
    /// Watches the launcher of the data plane that is supervised, and no other one any more.
    ///
    /// # Errors
    /// [`AttachError::Process`].
    pub(crate) fn watch_launcher(&self, watched: &mut Watched) -> Result<(), AttachError> {
        let launcher = self.attached.data_plane.launcher();
        match &watched.launcher {
            Some(same) if Arc::ptr_eq(same, &launcher) => return Ok(()),
            Some(other) => {
                // It was unwatched when its end was told.
                let _ = watched.waiter.unwatch(&other.as_fd());
                // It may have been that of another program, which does not go on.
                self.attached.event_hub.launcher_ended(None);
            }
            None => {}
        }
        let watching = watched.waiter.watch_end(&launcher.as_fd(), LAUNCHER_END);
        watching.map_err(process("watch the launcher of the data plane"))?;
        watched.launcher = Some(launcher);
        Ok(())
    }

    /// Tells that the launcher has ended, once.
    pub(crate) fn launcher_ended(&mut self, watched: &Watched) {
        let Some(launcher) = watched.launcher.clone() else {
            return;
        };
        let _ = watched.waiter.unwatch(&launcher.as_fd());
        if !launcher.has_ended() {
            return;
        }
        self.attached
            .event_hub
            .launcher_ended(Some(Moment::now().time));
        let reason = Reason {
            code: "LauncherEnded".into(),
            message: "its key is guarded as before, but its data plane can neither be restarted nor upgraded: attach the \
                      disk again when its guest allows it"
                .into(),
        };
        self.tell(EventKind::LauncherEnded, Some(reason));
        // The order may have died with the launcher.
        if self.guard.has_killed() {
            self.attached.data_plane.kill();
        }
        // It is this process's child, or becomes it, and must not stay one that nobody has heard of.
        let bury = std::thread::Builder::new().name("launcher-end".into());
        if let Err(error) = bury.spawn(move || launcher.end()) {
            log::debug!("the end of the launcher is not waited for: {error}");
        }
    }
}
