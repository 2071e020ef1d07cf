//! Handing the disk over to another data plane, which is prepared and waits for it.
//!
//! Up to the moment when the queues hold still this can be given up, and they go on. After it the process
//! touches neither the disk nor the guest's memory, whatever it takes to end: whoever is told of it may have
//! another process go on at once. What was completed is in the runtime map, what waits is in flight in the
//! in-flight region, and what the frontend set up is kept, as when a process dies.

use std::time::Duration;

use rustix::fs::{FlockOperation, flock};

use protocol::{DataPlaneEnd, OnRevoke, Reply};

use super::serve::Server;

/// How long it may take until a message of the frontend is handled, and then until what queues have taken is
/// completed: a guest waits meanwhile.
const PATIENCE: Duration = Duration::from_secs(2);

/// How the process ends. Whoever has not expected it takes it for a death: nothing was flushed, and the runtime map
/// counts.
const NOT_FLUSHED: i32 = 1;

impl Server {
    /// Has the queues hold still, answers the command of that number and ends the process. Whether it goes on, if they
    /// do not.
    pub(crate) fn hand_over(&mut self, control: &DataPlaneEnd, number: u64) -> bool {
        match self.let_go() {
            Ok(()) => {
                // If nobody hears it, nobody goes on: the attach process has ended.
                let _ = control.reply(number, Reply::HandedOver);
                log::info!("the disk is handed over to another data plane");
                std::process::exit(NOT_FLUSHED);
            }
            Err(why) => control.reply(number, Reply::refused(&why)).is_ok(),
        }
    }

    /// Has all queues hold still for good.
    ///
    /// # Errors
    /// Why they go on as before.
    fn let_go(&mut self) -> Result<(), String> {
        let keeper = self.handler().keeper.clone();
        keeper.hold(PATIENCE)?;
        let copy = self.copier.stop();
        let quiesced = self.handler().quiesce(PATIENCE);
        let queues = match quiesced {
            Ok(queues) => queues,
            Err(why) => {
                keeper.release();
                self.copy_again(copy);
                return Err(why);
            }
        };
        // What becomes of requests is no matter: none is taken any more.
        queues.destroy_key(OnRevoke::Pause);
        self.shared.key.destroy(OnRevoke::Pause);
        // Without this they would go on.
        std::mem::forget(queues);
        if let Err(error) = flock(
            self.shared.extent().files.map.file(),
            FlockOperation::Unlock,
        ) {
            log::warn!("the disk is let go when this process has ended: {error}");
        }
        Ok(())
    }
}
