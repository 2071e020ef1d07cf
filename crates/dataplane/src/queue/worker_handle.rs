//! The other threads' end of a queue's thread.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;

use rustix::thread::{CpuSet, sched_setaffinity};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use keys::{QUEUE_STACK, spawn_with_keys};
use volume::store::StoreError;

use crate::DataplaneError;
use crate::disk::shared::Shared;

use super::command::{Answer, Command};
use super::pulse::{Pulse, Watchdog};
use super::worker::Worker;

/// The other threads' end of a worker.
pub(crate) struct WorkerHandle {
    commands: SyncSender<(Command, SyncSender<Answer>)>,
    wake: Arc<EventFd>,
    pulse: Arc<Pulse>,
    index: usize,
    thread: Option<JoinHandle<()>>,
}

impl WorkerHandle {
    /// Starts the thread of queue `index`, with all that it needs.
    ///
    /// # Errors
    /// [`DataplaneError`] when some of it is unavailable.
    pub(crate) fn spawn(shared: Arc<Shared>, index: usize) -> Result<Self, DataplaneError> {
        let wake =
            EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).map_err(|source| StoreError::Setup {
                what: "make an eventfd",
                source,
            })?;
        let wake = Arc::new(wake);
        let wake_worker = wake.clone();
        let pulse = Arc::new(Pulse::default());
        let its_pulse = pulse.clone();
        let (commands, receiver) = sync_channel(1);
        let (ready, is_ready) = sync_channel(1);
        let serve = move || {
            // Before its buffers are made: they are in the memory of the CPU that touches them first.
            if let Some(cpu) = shared.cpu_of(index) {
                run_on(cpu, index);
            }
            match Worker::new(shared, index, receiver, (wake_worker, its_pulse)) {
                Ok(worker) => {
                    let _ = ready.send(Ok(()));
                    worker.run();
                }
                Err(error) => {
                    let _ = ready.send(Err(error));
                }
            }
        };
        let thread = spawn_with_keys(format!("queue-{index}"), QUEUE_STACK, serve)?;
        let gone = || DataplaneError::Setup("a queue's thread ended at its start".into());
        is_ready.recv().map_err(|_| gone())??;
        Ok(Self {
            commands,
            wake,
            pulse,
            index,
            thread: Some(thread),
        })
    }

    /// Has the worker do something and waits until it is done. The answer is the index of the next
    /// entry of the avail ring, or why it could not be done.
    pub(crate) fn tell(&self, command: Command) -> Answer {
        self.ask(command)?.recv().map_err(|_| gone())?
    }

    /// What watches whether the thread takes its turns.
    pub(crate) fn watchdog(&self) -> Watchdog {
        Watchdog::new(self.index, self.pulse.clone(), self.wake.clone())
    }

    /// As [`WorkerHandle::tell`], without waiting for the answer.
    pub(crate) fn ask(&self, command: Command) -> Result<Receiver<Answer>, String> {
        let (answer, answered) = sync_channel(1);
        self.commands.send((command, answer)).map_err(|_| gone())?;
        self.wake.write(1).map_err(|e| e.to_string())?;
        Ok(answered)
    }
}

/// Has this thread run on one CPU. A CPU that was taken out of the host since is no reason to end: the queue runs
/// elsewhere then.
fn run_on(cpu: u16, queue: usize) {
    let mut one = CpuSet::new();
    if usize::from(cpu) >= CpuSet::MAX_CPU {
        return log::warn!("queue {queue} cannot run on CPU {cpu}");
    }
    one.set(cpu.into());
    if let Err(error) = sched_setaffinity(None, &one) {
        log::warn!("queue {queue} cannot run on CPU {cpu}: {error}");
    }
}

fn gone() -> String {
    "the queue's thread has ended".into()
}

impl Drop for WorkerHandle {
    fn drop(&mut self) {
        let _ = self.tell(Command::Exit);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
