//! Commands and attaches, timed.

use std::fs::File;
use std::process::{Child, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use test_support::frontend::device::{Frontend, Setup};
use test_support::{PATIENCE, expect_success, with_descendants};

use crate::backends::Place;
use crate::layers::sealdisk;
use crate::machine::{children_time, cpu_time};

/// What something took.
#[derive(Clone, Copy)]
pub struct Took {
    pub wall: Duration,
    /// User and system time of all processes, where that can be known.
    pub cpu: Option<Duration>,
}

/// Runs a command of the program.
pub fn run(place: &Place, arguments: &[&str]) -> Took {
    let mut command = sealdisk(place);
    command.args(arguments).stdout(Stdio::null());
    let (start, before) = (Instant::now(), children_time());
    expect_success(&mut command);
    Took {
        wall: start.elapsed(),
        cpu: Some(children_time() - before),
    }
}

/// Milliseconds of the middle one.
pub fn median(times: impl Iterator<Item = Duration>) -> f64 {
    let mut times: Vec<_> = times.collect();
    times.sort_unstable();
    times[times.len() / 2].as_secs_f64() * 1e3
}

/// A disk that is served.
pub struct Attached {
    pub frontend: Frontend,
    child: Child,
    /// Until a guest had read the first block.
    pub took: Took,
}

impl Attached {
    /// Attaches a disk, on one CPU if it is told, and has a guest read its first block.
    pub fn new(place: &Place, disk: &str, cpu: Option<usize>) -> Self {
        let socket = place.runtime.join(format!("{disk}.sock"));
        let log = File::create(place.runtime.join(format!("{disk}.log"))).unwrap();
        let mut command = sealdisk(place);
        if let Some(cpu) = cpu {
            command = crate::backends::on_cpu(&command, cpu);
        }
        command.args(["attach", disk, "--socket-path"]).arg(&socket);
        command.stdin(Stdio::null()).stdout(Stdio::null());
        let start = Instant::now();
        let mut child = command.stderr(log).spawn().unwrap();
        let setup = Setup {
            indirect: true,
            ..Setup::default()
        };
        let mut frontend = loop {
            if let Ok(frontend) = Frontend::try_open(&socket, &setup) {
                break frontend;
            }
            assert!(start.elapsed() < PATIENCE, "{command:?} does not serve");
            assert!(child.try_wait().unwrap().is_none(), "{command:?} ended");
            thread::sleep(Duration::from_micros(500));
        };
        frontend.queues[0].read(0, 4096).unwrap();
        let wall = start.elapsed();
        let mut attached = Self {
            frontend,
            child,
            took: Took { wall, cpu: None },
        };
        attached.took.cpu = Some(attached.cpu_time());
        attached
    }

    /// What its processes took so far.
    pub fn cpu_time(&self) -> Duration {
        self.processes().into_iter().map(cpu_time).sum()
    }

    pub fn processes(&self) -> Vec<u32> {
        with_descendants(self.child.id())
    }

    /// Detaches it in order; what that took.
    pub fn detach(self) -> Took {
        let Self {
            frontend,
            mut child,
            ..
        } = self;
        drop(frontend);
        let start = Instant::now();
        kill_process(Pid::from_child(&child), Signal::TERM).unwrap();
        child.wait().unwrap();
        // What a data plane took that its launcher has waited for is told to nobody.
        Took {
            wall: start.elapsed(),
            cpu: None,
        }
    }
}
