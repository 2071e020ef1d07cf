//! What a guest must not notice: that another process does again what one that died had under way, that a process
//! hands its disk to another, and that the disk goes to another host.

use std::path::PathBuf;

use uuid::Uuid;
use volume::pipeline::RequestKind;

use super::disk::{COPIER, Disk};
use super::guest::Request;
use super::store::{Fault, lock};
use super::world::{Context, Stop};

impl Disk {
    /// Does again what a process that died had under way, in the order in which it came. The guest knows of none
    /// of it whether it was done; it is told now.
    pub fn do_again(&mut self, cx: &mut Context, under_way: Vec<Request>) {
        cx.count("kills whose requests are done again");
        for mut request in under_way {
            match request.kind {
                // Whoever copies content up begins anew.
                RequestKind::CopyUp { .. } => continue,
                RequestKind::Read => request.memory.fill(0xee),
                RequestKind::Write { .. } | RequestKind::Zero { .. } | RequestKind::Flush => {}
            }
            cx.count("requests done again");
            let queue = cx.rng.below(COPIER as u64) as usize;
            let is_write = matches!(request.kind, RequestKind::Write { .. });
            match cx.options.fault == Fault::TellsWithoutDoing && is_write {
                true => request
                    .sectors
                    .for_each(|sector| self.model.complete(sector)),
                false => self.put(cx, queue, request),
            }
        }
    }

    /// Now and then gives the disk to another process.
    pub fn move_on(&mut self, cx: &mut Context) -> Result<(), Stop> {
        match cx.rng.below(120) {
            0 => self.upgrade(cx),
            1 => self.migrate(cx),
            _ => Ok(()),
        }
    }

    /// Another process goes on with the same runtime map, after the requests that are under way have ended.
    /// Nothing is flushed.
    fn upgrade(&mut self, cx: &mut Context) -> Result<(), Stop> {
        self.drain(cx)?;
        self.kill(cx);
        cx.may_crash(12)?;
        if cx.options.fault == Fault::UpgradesWithoutMap {
            self.forget_runtime();
        }
        cx.count("upgrades");
        self.go_on_elsewhere(cx)
    }

    /// A process on another host goes on without the runtime map, after all was flushed: of that host's files nothing
    /// is there but what is durable.
    fn migrate(&mut self, cx: &mut Context) -> Result<(), Stop> {
        self.drain(cx)?;
        let lies = cx.options.fault == Fault::MigratesUnflushed;
        if !lies && !self.flush(cx, 0)? {
            // The disk stays where it is.
            self.go_on();
            return Ok(());
        }
        self.drain(cx)?;
        self.kill(cx);
        cx.may_crash(12)?;
        self.forget_runtime();
        lock(&cx.layers.get(self.header.top()).files).lose_power(&mut cx.rng);
        self.runtime = PathBuf::from(format!("/dev/shm/sealdisk-sim-{}.map", Uuid::new_v4()));
        cx.count("migrations");
        self.go_on_elsewhere(cx)
    }

    /// What was completed is there, and nothing else: nothing was under way.
    fn go_on_elsewhere(&mut self, cx: &mut Context) -> Result<(), Stop> {
        self.open(cx);
        let found = self.read_all(cx);
        self.model.read_all(&found).map_err(Stop::Wrong)
    }
}
