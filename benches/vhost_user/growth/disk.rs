//! One disk, of some size, content and number of layers, and all that is done with it.

use std::fmt;
use std::time::{Duration, Instant};

use keys::units::BLOCK_SIZE;
use tempfile::TempDir;
use volume::format::file_len;

use crate::attach::{fill, make, touch};
use crate::backends::Place;
use crate::load::{Load, Until};
use crate::pattern::{Pattern, Work};
use crate::report::Report;

use super::Point;
use crate::command::{Attached, Took, median, run};

/// Attaches and detaches, after one that is not counted.
const ATTACHES: usize = 5;
/// Other commands.
const COMMANDS: usize = 3;
/// Places of a disk that are read for the first time.
const FIRST_READS: u64 = 33;
/// Bytes that have a chunk of the map of their own.
const CHUNK: u64 = volume::format::BLOCKS_PER_CHUNK * BLOCK_SIZE;
/// Steady reads go there: to more map than a processor has in its nearer caches.
const WINDOW: u64 = 64 << 30;
const STEADY: Duration = Duration::from_millis(500);
/// Maps that are filled so that reading them takes seconds: one command each is enough.
const MANY: u64 = 2 << 30;

/// What the maps of a disk say.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Content {
    Empty,
    /// All blocks are data in the lowest layer, and inherited by the others.
    Bottom,
    /// All blocks are data in each layer.
    Full,
}

#[derive(Clone, Copy)]
pub struct Shape {
    pub name: &'static str,
    pub bytes: u64,
    pub layers: u32,
    pub content: Content,
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, {} layers", self.series(), self.layers)
    }
}

impl Shape {
    fn series(&self) -> String {
        let content = match self.content {
            Content::Empty => "empty",
            Content::Bottom => "full at the bottom",
            Content::Full => "full",
        };
        format!("{}, {content}", self.name)
    }

    /// Bytes of maps that are written.
    pub fn map_bytes(&self) -> u64 {
        let full = match self.content {
            Content::Empty => 0,
            Content::Bottom => 1,
            Content::Full => u64::from(self.layers),
        };
        full * file_len(self.bytes / BLOCK_SIZE)
    }
}

/// What is measured of one shape.
struct Measuring<'a> {
    shape: &'a Shape,
    place: Place<'a>,
    report: &'a mut Report,
}

/// Makes the disk in an installation of its own, which is removed in the end.
pub fn measure(shape: &Shape, place: &Place, cpu: usize, report: &mut Report) {
    println!("{shape}");
    let dir = TempDir::new_in(place.dir).unwrap();
    let place = Place {
        dir: dir.path(),
        ..*place
    };
    let mut measuring = Measuring {
        shape,
        place,
        report,
    };
    // Snapshots are what layers come from; a disk of one layer gets more at the very end.
    let base = match shape.layers {
        1 => 1,
        layers => layers - COMMANDS as u32,
    };
    measuring.make(base);
    if shape.layers > 1 {
        measuring.snapshots();
        // Those that came with the snapshots.
        measuring.fill(Content::Full);
    }
    measuring.attach();
    measuring.reads(cpu);
    measuring.commands("disk show", &["disk", "show", "disk"]);
    measuring.commands("disk list", &["disk", "list"]);
    // A map that says "data" of a data file of holes is damage, and said so.
    if shape.content == Content::Empty {
        measuring.commands("disk check", &["disk", "check", "disk"]);
    }
    if shape.layers == 1 {
        measuring.snapshots();
    }
    measuring.clones();
}

impl Measuring<'_> {
    /// Makes the disk with so many layers.
    fn make(&self, layers: u32) {
        make(&self.place, "disk", self.shape.name, 1);
        self.fill(Content::Bottom);
        for layer in 1..layers {
            let name = format!("made-{layer}");
            touch(&self.place.dir.join("state/disks/disk"));
            run(
                &self.place,
                &["snapshot", "create", &name, "--source", "disk"],
            );
        }
        self.fill(Content::Full);
    }

    /// Fills the maps that there are, if the disk has that content.
    fn fill(&self, of: Content) {
        if self.shape.content == of {
            fill(&self.place.dir.join("state/disks/disk"), self.shape.bytes);
        }
    }

    fn note(&mut self, what: &str, unit: &str, value: f64) {
        let series = self.shape.series();
        let point = Point {
            what,
            unit,
            series: &series,
            axis: "layers",
            at: self.shape.layers,
            value,
        };
        point.note(self.report);
    }

    fn took(&mut self, what: &str, took: &[Took]) {
        self.note(what, "ms", median(took.iter().map(|took| took.wall)));
        if took.iter().all(|took| took.cpu.is_some()) {
            self.note(
                &format!("{what}: CPU"),
                "ms",
                median(took.iter().filter_map(|took| took.cpu)),
            );
        }
    }

    fn snapshots(&mut self) {
        let create = |place: &Place, number: usize| {
            let name = format!("timed-{number}");
            touch(&place.dir.join("state/disks/disk"));
            run(place, &["snapshot", "create", &name, "--source", "disk"])
        };
        let took: Vec<_> = (0..COMMANDS)
            .map(|number| create(&self.place, number))
            .collect();
        self.took("snapshot create", &took);
    }

    /// Of the snapshot that was made first.
    fn clones(&mut self) {
        let clone = |place: &Place, number: usize| {
            let name = format!("clone-{number}");
            run(place, &["disk", "create", &name, "--source", "timed-0"])
        };
        let took: Vec<_> = (0..COMMANDS)
            .map(|number| clone(&self.place, number))
            .collect();
        self.took("disk create, a clone", &took);
    }

    fn commands(&mut self, what: &str, arguments: &[&str]) {
        let count = if self.shape.map_bytes() > MANY {
            1
        } else {
            COMMANDS
        };
        let took: Vec<_> = (0..count).map(|_| run(&self.place, arguments)).collect();
        self.took(what, &took);
    }

    fn attach(&mut self) {
        let (mut attach, mut detach) = (Vec::new(), Vec::new());
        for _ in 0..=ATTACHES {
            let attached = Attached::new(&self.place, "disk", None);
            attach.push(attached.took);
            detach.push(attached.detach());
        }
        self.took("attach", &attach[1..]);
        self.took("detach", &detach[1..]);
    }

    /// The first read of a part of a disk, one at a time; then reads of what is known.
    fn reads(&mut self, cpu: usize) {
        let mut attached = Attached::new(&self.place, "disk", Some(cpu));
        let chunks = self.shape.bytes.div_ceil(CHUNK);
        let step = (chunks / FIRST_READS).max(1);
        let mut first = Vec::new();
        // That of the first chunk has been read.
        for chunk in (1..chunks).step_by(step as usize) {
            let queue = &mut attached.frontend.queues[0];
            queue.arena.reset();
            let (cpu, start) = (attached.cpu_time(), Instant::now());
            attached.frontend.queues[0]
                .read(chunk * CHUNK / 512, 4096)
                .unwrap();
            let wall = start.elapsed();
            first.push(Took {
                wall,
                cpu: Some(attached.cpu_time() - cpu),
            });
        }
        if !first.is_empty() {
            let us = |times: Vec<Duration>| median(times.into_iter()) * 1e3;
            let wall = us(first.iter().map(|took| took.wall).collect());
            let cpu = us(first.iter().filter_map(|took| took.cpu).collect());
            self.note("first read", "µs", wall);
            self.note("first read: CPU", "µs", cpu);
        }
        let steady = self.steady(&mut attached);
        self.note("random read: CPU", "µs", steady);
        attached.detach();
    }

    fn steady(&self, attached: &mut Attached) -> f64 {
        let window = self.shape.bytes.min(WINDOW);
        for at in (0..window).step_by(CHUNK as usize) {
            let queue = &mut attached.frontend.queues[0];
            queue.arena.reset();
            queue.read(at / 512, 4096).unwrap();
        }
        let mut run = |for_: Duration| {
            let before = attached.cpu_time();
            let queue = &mut attached.frontend.queues[0];
            let poll = Duration::from_micros(50);
            let mut load = Load::new(queue, Pattern::small(Work::Read, 32), window, poll);
            let requests = load.run(Until::Elapsed(for_)).requests;
            drop(load);
            (attached.cpu_time() - before).as_secs_f64() * 1e6 / requests as f64
        };
        run(STEADY / 4);
        run(STEADY)
    }
}
