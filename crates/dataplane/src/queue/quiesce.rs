//! Quiescing all queues while the disk is swapped for another, and destroying their ciphers.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::{Duration, Instant};

use protocol::OnRevoke;

use crate::disk::shared::Extent;

use super::command::{Answer, Command, WhileQuiesced};
use super::worker_handle::WorkerHandle;

/// Queues that are quiesced: nothing is under way, and they take nothing.
pub(crate) struct QuiescedQueues {
    queues: Vec<SyncSender<WhileQuiesced>>,
}

impl QuiescedQueues {
    /// Has the queues complete what they took, and stay quiesced.
    ///
    /// # Errors
    /// Why one does not, after which all go on as before.
    pub(crate) fn quiesce<'a>(
        workers: impl Iterator<Item = &'a WorkerHandle>,
        patience: Duration,
    ) -> Result<Self, String> {
        let deadline = Instant::now() + patience;
        let mut queues = Vec::new();
        let asked: Vec<_> = workers
            .map(|worker| {
                let (go, told) = sync_channel(1);
                queues.push(go);
                worker.ask(Command::Quiesce(told))
            })
            .collect();
        for asked in asked {
            let left = deadline.saturating_duration_since(Instant::now());
            asked?.recv_timeout(left).map_err(|_| {
                format!("what the guest has asked for is not done within {patience:?}")
            })??;
        }
        Ok(Self { queues })
    }

    /// Has all of them serve `extent` from now on.
    pub(crate) fn serve(&self, extent: &Arc<Extent>) {
        for queue in &self.queues {
            // It waits for this.
            let _ = queue.send(WhileQuiesced::Serve(extent.clone()));
        }
    }

    /// Has all of them destroy their ciphers, and stay quiesced. Should one not, the process ends.
    pub(crate) fn destroy_key(&self, mode: OnRevoke) {
        let told: Vec<_> = self
            .queues
            .iter()
            .map(|queue| {
                let (answer, answered) = sync_channel(1);
                let told = queue.send(WhileQuiesced::DestroyKey(mode, answer));
                told.map_err(|e| e.to_string()).map(|()| answered)
            })
            .collect();
        await_destruction(told);
    }
}

/// Waits until queues have destroyed their ciphers. Should one not let go of its key, the process
/// ends: its memory is gone then in any case.
pub(crate) fn await_destruction(asked: Vec<Result<Receiver<Answer>, String>>) {
    for asked in asked {
        let answer = asked.and_then(|answer| answer.recv().map_err(|e| e.to_string())?);
        if let Err(reason) = answer {
            log::error!("a queue keeps its revoked key, so the data plane ends: {reason}");
            std::process::exit(1);
        }
    }
}
