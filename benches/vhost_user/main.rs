//! This daemon next to qemu-storage-daemon and fio, from a vhost-user frontend in user space.
//!
//! `scripts/bench` runs it and makes a table and a plot of what it writes. By hand:
//! `cargo bench --bench vhost_user -- run --help`. Nothing here fails by being slow.
//!
//! A backend's processes are on one CPU and the load is on another. All backends are served by the
//! same frontend with the same features (EVENT_IDX, INDIRECT_DESC). Rounds are interleaved: in each
//! round each pattern runs on each backend in turn, so that a machine that gets slower meanwhile
//! gets slower for all of them.

// Clippy exempts only functions with #[test], and this program has nobody to report an error to.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod attach;
mod backends;
mod bare_cipher;
mod chain;
mod command;
mod fio;
mod fixed_rate;
mod flushes;
mod growth;
mod layers;
mod load;
mod machine;
mod pattern;
mod reference;
mod report;
mod run;
mod syscalls;
mod transfer;
mod trim;
mod two_disks;

use std::fs::File;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;

use clap::Parser;
use serde_json::json;
use tempfile::TempDir;
use test_support::program;

use backends::{Kind, Place};
use growth::Part;
use report::Report;

#[derive(Parser)]
enum Program {
    /// Measures
    Run(Options),
    /// Measures what changing a disk's layers costs
    Layers(PartOptions),
    /// Measures how long attaching takes, whatever the size of the disk
    Attach(PartOptions),
    /// Measures what grows with a disk's size, its layers, and the number of disks
    Growth(GrowthOptions),
    /// Measures flushes, writes through, and the giving back of discarded space
    Flushes(PartOptions),
    /// Measures random reads and writes before and after a trim of fifteen sixteenths of a disk
    Trim(PartOptions),
    /// Measures import and export beside qemu-img
    Transfer(PartOptions),
    /// Serves a file by direct I/O, not encrypted: a back-end for `run`
    #[command(hide = true)]
    Reference { file: PathBuf, socket: PathBuf },
}

#[derive(clap::Args)]
struct Options {
    #[command(flatten)]
    part: PartOptions,
    /// Seconds for each pattern, backend and round
    #[arg(long, default_value_t = 2.5)]
    seconds: f64,
    #[arg(long, default_value_t = 3)]
    rounds: u32,
    /// Only patterns whose name has this in it
    #[arg(long, default_value = "")]
    only: String,
    #[arg(
        long,
        value_enum,
        value_delimiter = ',',
        default_value = "sealdisk,sealdisk-8-layers,qsd-raw,qsd-luks,reference,fio,cipher"
    )]
    backends: Vec<Kind>,
    /// Microseconds that the guest looks at the used ring with more than one request in flight
    #[arg(long, default_value_t = 50)]
    guest_poll_us: u64,
    #[arg(long, default_value_t = 1)]
    load_cpu: usize,
    /// An older program, measured as `sealdisk-before`
    #[arg(long)]
    before: Option<PathBuf>,
    /// Also latencies at a fixed rate, half of what the closed loops reached
    #[arg(long)]
    fixed_rate: bool,
    /// Also two queues on two disks against one
    #[arg(long)]
    two_disks: bool,
    /// Also the system calls of this daemon for each request, by strace
    #[arg(long)]
    syscalls: bool,
}

#[derive(clap::Args)]
struct GrowthOptions {
    #[command(flatten)]
    part: PartOptions,
    #[arg(
        long,
        value_enum,
        value_delimiter = ',',
        default_value = "disks,catalog,sharing"
    )]
    parts: Vec<Part>,
    /// Disks of the large catalog
    #[arg(long, default_value_t = 10_000)]
    disks: u32,
}

/// What all parts have.
#[derive(clap::Args)]
struct PartOptions {
    /// Where the disks go (a new directory in it)
    #[arg(long, default_value = "/dev/shm")]
    dir: PathBuf,
    /// What the table calls that place
    #[arg(long, default_value = "tmpfs")]
    storage: String,
    /// Bytes of each disk, all of them written before anything is measured
    #[arg(long, default_value_t = 1 << 30)]
    size: u64,
    #[arg(long, default_value_t = 0)]
    backend_cpu: usize,
    /// Another program than the one of this build
    #[arg(long, default_value = program().as_os_str())]
    sealdisk: PathBuf,
    /// Where JSON lines go, behind those that are there
    #[arg(long)]
    json: Option<PathBuf>,
}

fn main() {
    let arguments: Vec<_> = std::env::args().filter(|a| a != "--bench").collect();
    // `cargo bench` without arguments runs every benchmark; this one takes minutes and programs.
    if arguments.len() == 1 {
        println!("vhost_user: not measured by itself: scripts/bench, or `run` for its parts");
        return;
    }
    match Program::parse_from(arguments) {
        Program::Run(options) => at_place(
            &options.part,
            options.before.as_deref(),
            |place, cpu, report| {
                run::measure(&options, place, cpu, report);
            },
        ),
        Program::Layers(options) => {
            at_place(&options, None, |place, cpu, _| layers::measure(place, cpu));
        }
        Program::Attach(options) => {
            at_place(&options, None, |place, _, report| {
                attach::measure(place, report);
            });
        }
        Program::Growth(options) => {
            let GrowthOptions { part, parts, disks } = &options;
            at_place(part, None, |place, cpu, report| {
                growth::measure(parts, *disks, place, cpu, report);
            });
        }
        Program::Flushes(options) => {
            at_place(&options, None, |place, cpu, _| flushes::measure(place, cpu));
        }
        Program::Trim(options) => at_place(&options, None, trim::measure),
        Program::Transfer(options) => {
            at_place(&options, None, |place, cpu, _| {
                transfer::measure(place, cpu)
            });
        }
        Program::Reference { file, socket } => {
            let mut options = File::options();
            let direct = options.read(true).write(true).custom_flags(libc::O_DIRECT);
            reference::serve(direct.open(file).unwrap(), &socket);
        }
    }
}

/// Measures in a fresh directory, with back-ends on one CPU.
fn at_place(
    options: &PartOptions,
    before: Option<&std::path::Path>,
    measure: impl FnOnce(&Place, usize, &mut Report),
) {
    let dir = TempDir::new_in(&options.dir).unwrap();
    let runtime = TempDir::new_in("/dev/shm").unwrap();
    let place = Place {
        dir: dir.path(),
        runtime: runtime.path(),
        sealdisk: &options.sealdisk,
        before,
        size: options.size,
    };
    let mut file = File::options();
    let open = |path| file.create(true).append(true).open(path).unwrap();
    let json = options.json.as_ref().map(open);
    let mut report = Report::new(json, options.storage.clone());
    report.note(json!({ "machine": machine::description(&options.sealdisk),
        "place": machine::place(&options.dir), "size": options.size }));
    measure(&place, options.backend_cpu % machine::cpus(), &mut report);
}
