//! The disks, the snapshots, and the crashes that happen to them.

use std::collections::BTreeMap;
use std::sync::MutexGuard;

use volume::pipeline::Pipeline;
use volume::{Volume, format};
use xts::DataUnit;

use super::content::{Stamp, Windows};
use super::disk::{self, Disk};
use super::faults::Device;
use super::header::{Header, LayerNumber, Layers, Seeker};
use super::merge::{Merge, MergeRun};
use super::rng::Rng;
use super::store::{Fault, SimLayer, SimStore, lock};

#[derive(Debug, Clone, Copy)]
pub struct Options {
    pub fault: Fault,
    pub alignment: u64,
    /// The data unit of all layers; any of each where none is given.
    pub unit: Option<DataUnit>,
    /// Only a few blocks, mostly used as wholes: the same ones are written, discarded, flushed and
    /// given back again and again.
    pub crowded: bool,
    /// Ciphertext is overwritten before its space is given back.
    pub overwrite: bool,
    /// There are snapshots, clones, and all that is done to stacks of layers.
    pub stacks: bool,
    /// Operations fail, and devices hang.
    pub faulty: bool,
    /// Requests are done again after a kill, and disks go to other processes and hosts.
    pub moves: bool,
}

/// Why a run does not go on.
#[derive(Debug)]
pub enum Stop {
    /// A crash comes here.
    Crash,
    /// Something is not as it must be.
    Wrong(String),
}

/// What all parts of the world use.
pub struct Context {
    pub rng: Rng,
    pub options: Options,
    pub layers: Layers,
    pub windows: Windows,
    /// How often what was done, to see that a run comes by all of it.
    pub counts: Counts,
    next: Stamp,
    /// There are no crashes between steps for now.
    calm: bool,
}

pub type Counts = BTreeMap<&'static str, u64>;

impl Context {
    /// A number that is new in this world.
    pub fn stamp(&mut self) -> Stamp {
        self.next += 1;
        self.next
    }

    pub fn count(&mut self, what: &'static str) {
        *self.counts.entry(what).or_default() += 1;
    }

    /// Crashes once in `n` times.
    pub fn may_crash(&mut self, n: u64) -> Result<(), Stop> {
        match !self.calm && self.rng.one_in(n) {
            true => {
                self.count("crashes between steps");
                Err(Stop::Crash)
            }
            false => Ok(()),
        }
    }

    /// The files of a header's top layer.
    pub fn files(&self, header: &Header) -> MutexGuard<'_, SimLayer> {
        lock(&self.layers.get(header.top()).files)
    }

    /// Makes the files of a new layer.
    pub fn make_layer(&mut self, size: u64) -> LayerNumber {
        let unit = match self.options.unit {
            Some(unit) => unit,
            None if self.rng.one_in(2) => DataUnit::B512,
            None => DataUnit::B4096,
        };
        self.layers.make(size, unit, self.options.fault)
    }
}

/// A disk as it was once.
pub struct Snapshot {
    pub header: Header,
    pub contents: Vec<Stamp>,
}

/// How many crashes there are in a run.
const CRASHES: u64 = 12;
/// Sectors of a disk at first where it is one layer: more than two map sectors' worth, and the last
/// block is not whole.
const SECTORS: u64 = (2 * BORDER + 40) * 8 + 3;
/// The same where disks are stacks.
const STACK_SECTORS: u64 = (BORDER + 40) * 8 + 3;
const BORDER: u64 = format::BLOCKS_PER_SECTOR;
/// Sectors by which disks grow at most: what of the last window is not there yet is not used.
const MAX_GROWTH: u64 = 90;

/// Where guests work: the start, the borders between map sectors, and the end.
fn windows(rng: &mut Rng, stacks: bool) -> Windows {
    if !stacks {
        return Windows::new(&[
            (0, 320),
            (BORDER * 8 - 96, 192),
            (BORDER * 16 - 40, 80),
            (SECTORS - 67, 67 + MAX_GROWTH),
        ]);
    }
    // Large requests take long, so few worlds have room for them.
    let first = if rng.one_in(24) { 2300 } else { 112 };
    Windows::new(&[
        (0, first),
        (BORDER * 8 - 24, 48),
        (STACK_SECTORS - 27, 27 + MAX_GROWTH),
    ])
}

pub struct World {
    pub cx: Context,
    pub disks: Vec<Disk>,
    pub snapshots: Vec<Snapshot>,
    /// Layers whose snapshot was deleted, to be merged into the ones above.
    pub merges: Vec<Merge>,
    pub merging: Option<MergeRun>,
    reader: Option<Pipeline<SimStore>>,
    /// The chains of layers get long here.
    pub deep: bool,
    pub most_size: u64,
    /// Crashes so far.
    pub crashes: u64,
}

impl World {
    pub fn new(seed: u64, options: Options) -> Self {
        let mut rng = Rng::new(seed);
        let sectors = if options.stacks {
            STACK_SECTORS
        } else {
            SECTORS
        };
        let mut this = Self {
            deep: options.stacks && rng.one_in(12),
            cx: Context {
                windows: windows(&mut rng, options.stacks),
                rng,
                options,
                layers: Layers::new(Device::new(seed, options.faulty)),
                counts: Counts::new(),
                next: 0,
                calm: false,
            },
            disks: Vec::new(),
            snapshots: Vec::new(),
            merges: Vec::new(),
            merging: None,
            reader: None,
            crashes: 0,
            most_size: (sectors + MAX_GROWTH) * 512,
        };
        let top = this.cx.make_layer(sectors * 512);
        let header = Header::new(vec![(top, sectors * 512)]);
        let empty = vec![0; this.cx.windows.sectors()];
        let disk = Disk::new(&mut this.cx, header, &empty);
        this.disks.push(disk);
        this
    }

    /// Runs until enough crashes; how many there were.
    pub fn run(&mut self) -> Result<u64, String> {
        if self.deep {
            self.cx.calm = true;
            self.pile_up().map_err(|stop| format!("{stop:?}"))?;
            self.cx.calm = false;
        }
        for _ in 0..CRASHES {
            let most = if self.cx.options.crowded { 600 } else { 160 };
            let most = most * if self.cx.options.stacks { 2 } else { 1 };
            let steps = self.cx.rng.below(most) + 20;
            match self.go_on(steps) {
                Ok(()) => {}
                Err(Stop::Crash) => {
                    self.crashes += 1;
                    self.crash(true)?;
                    continue;
                }
                Err(Stop::Wrong(what)) => return Err(what),
            }
            self.crashes += 1;
            self.crash(false)?;
        }
        Ok(CRASHES)
    }

    /// Makes a chain of many layers.
    fn pile_up(&mut self) -> Result<(), Stop> {
        for _ in 0..12 + self.cx.rng.below(20) {
            self.steps(40)?;
            self.push(0)?;
        }
        Ok(())
    }

    fn go_on(&mut self, steps: u64) -> Result<(), Stop> {
        for _ in 0..steps {
            self.step()?;
            if self.cx.options.faulty {
                let which = self.cx.rng.below(self.disks.len() as u64) as usize;
                self.disks[which].look_after(&mut self.cx)?;
            }
            if self.cx.options.moves {
                let which = self.cx.rng.below(self.disks.len() as u64) as usize;
                self.disks[which].move_on(&mut self.cx)?;
            }
            if self.cx.options.stacks {
                self.tend()?;
            }
        }
        match !self.cx.options.stacks && self.cx.rng.one_in(3) {
            true => self.grow(0),
            false => Ok(()),
        }
    }

    /// Something happens on one of the disks.
    pub fn step(&mut self) -> Result<(), Stop> {
        let all = self.disks.len() + usize::from(self.merging.is_some());
        let which = self.cx.rng.below(all as u64) as usize;
        match self.disks.get_mut(which) {
            Some(disk) => disk.step(&mut self.cx),
            None => self.step_merge(),
        }
    }

    /// Guests go on for a while.
    pub fn steps(&mut self, most: u64) -> Result<(), Stop> {
        for _ in 0..self.cx.rng.below(most) {
            self.step()?;
        }
        Ok(())
    }

    pub fn headers(&self) -> impl Iterator<Item = &Header> {
        let snapshots = self.snapshots.iter().map(|snapshot| &snapshot.header);
        self.disks.iter().map(|disk| &disk.header).chain(snapshots)
    }

    /// Removes the files of layers that no header names any more.
    pub fn remove_unused(&mut self) {
        let named: Vec<_> = self.headers().flat_map(|header| &header.layers).collect();
        let named: Vec<_> = named.iter().map(|(number, _)| *number).collect();
        self.merges.retain(|merge| named.contains(&merge.layer));
        self.cx.layers.keep(|number| named.contains(&number));
    }

    /// Some processes die, or all by the power. With `all` no process goes on.
    fn crash(&mut self, all: bool) -> Result<(), String> {
        self.check_holes()?;
        if self.cx.rng.one_in(2) {
            self.cx.count("power losses");
            return self.lose_power();
        }
        self.cx.count("kills");
        let one = self.cx.rng.below(self.disks.len() as u64) as usize;
        let all = all || self.cx.rng.one_in(2);
        let killed = if all {
            0..self.disks.len()
        } else {
            one..one + 1
        };
        if all && let Some(mut run) = self.merging.take() {
            self.cx.count("killed merges");
            run.kill(&mut self.cx.rng);
        }
        let disks = &mut self.disks[killed.clone()];
        let under_way: Vec<_> = disks
            .iter_mut()
            .map(|disk| disk.kill(&mut self.cx))
            .collect();
        self.remove_unused();
        for (index, under_way) in killed.zip(under_way) {
            let disk = &mut self.disks[index];
            disk.open(&mut self.cx);
            if self.cx.options.moves && self.cx.rng.one_in(2) {
                disk.do_again(&mut self.cx, under_way);
                continue;
            }
            let found = disk.read_all(&mut self.cx);
            disk.model
                .after_kill(&found)
                .map_err(|what| format!("disk {index}: {what}"))?;
        }
        self.check_snapshots()
    }

    fn lose_power(&mut self) -> Result<(), String> {
        for disk in &mut self.disks {
            disk.kill(&mut self.cx);
            disk.forget_runtime();
        }
        if let Some(mut run) = self.merging.take() {
            run.kill(&mut self.cx.rng);
        }
        for layer in self.cx.layers.iter() {
            lock(&layer.files).lose_power(&mut self.cx.rng);
        }
        self.remove_unused();
        for (index, disk) in self.disks.iter_mut().enumerate() {
            disk.open(&mut self.cx);
            let found = disk.read_all(&mut self.cx);
            disk.model
                .after_power_loss(&found)
                .map_err(|what| format!("disk {index}: {what}"))?;
        }
        self.check_snapshots()
    }

    /// Every snapshot has what its disk had when it was made, whatever has happened since.
    fn check_snapshots(&mut self) -> Result<(), String> {
        for index in 0..self.snapshots.len() {
            let header = self.snapshots[index].header.clone();
            let found = self.read(&header);
            let snapshot = &self.snapshots[index];
            for (index, (found, expected)) in found.iter().zip(&snapshot.contents).enumerate() {
                if found.is_some_and(|found| found != *expected) {
                    return Err(format!(
                        "a snapshot's sector {} has {found:x?}, not {expected:x}",
                        self.cx.windows.sector(index)
                    ));
                }
            }
        }
        Ok(())
    }

    /// Reads what is not attached.
    fn read(&mut self, header: &Header) -> Vec<Option<Stamp>> {
        let _calm = self.cx.layers.calm();
        let cx = &mut self.cx;
        let lower = header.layers[1..].iter();
        let lower = lower.map(|layer| cx.layers.lower(*layer)).collect();
        let top = cx.layers.map(header.layers[0]);
        let volume = Volume::open_private(top, lower).unwrap().into();
        let store = SimStore::new(cx.layers.files(header), cx.options.alignment);
        let ciphers = cx.layers.ciphers(header);
        match &mut self.reader {
            Some(reader) => {
                *reader.store_mut() = store;
                reader.set_volume(volume);
                reader.set_key(ciphers);
            }
            none => *none = Some(Pipeline::new(volume, store, ciphers).unwrap()),
        }
        let reader = self.reader.as_mut().unwrap();
        disk::read_all(cx, reader, header.size())
    }

    /// Where a hole was made, nothing that the guest wrote may have been durable any more.
    fn check_holes(&mut self) -> Result<(), String> {
        for layer in self.cx.layers.iter() {
            let punched = lock(&layer.files).take_punched();
            if !self.cx.options.overwrite || punched.is_empty() {
                continue;
            }
            let mut seeker = Seeker::new(layer);
            for (sector, old) in punched {
                if seeker.finds(sector, &old) {
                    return Err(format!("sector {sector} became a hole with its ciphertext"));
                }
            }
        }
        Ok(())
    }
}
