//! Import and export of raw and qcow2 images beside `qemu-img convert -W`, which has no cipher, of the same image.
//!
//! Import is measured against a conversion to a raw file, export against one from a raw file. qemu-img leaves what
//! it wrote in the page cache (`-t unsafe`, its default) or syncs it in the end as Sealdisk does (`-t
//! writeback`); both are told. All programs run in turn, on all CPUs, with their sources in the page cache, and
//! nothing of a run before is still to be written to the disk.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use test_support::expect_success;

use crate::backends::Place;
use crate::layers::sealdisk;
use crate::machine::children_time;

const ROUNDS: usize = 5;
/// Bytes that are data or a hole as a whole.
const PART: u64 = 1 << 20;

/// One program's runs: wall-clock and CPU time of each.
struct Runs {
    name: &'static str,
    times: Vec<(Duration, Duration)>,
}

impl Runs {
    fn median(&self, of: impl Fn(&(Duration, Duration)) -> Duration) -> f64 {
        let mut times: Vec<_> = self.times.iter().map(of).collect();
        times.sort();
        times[times.len() / 2].as_secs_f64()
    }
}

/// What is measured of an image, in all programs.
struct Transfer<'a> {
    place: &'a Place<'a>,
    /// The image, in both formats.
    raw: PathBuf,
    qcow2: PathBuf,
    format: &'static str,
}

pub fn measure(place: &Place, _: usize) {
    println!("image, what: program: seconds (as a multiple of qemu-img's speed), seconds of CPU");
    for (image, every) in [("full", 1), ("half sparse", 2)] {
        let (raw, qcow2) = (place.dir.join("image.raw"), place.dir.join("image.qcow2"));
        make_image(&raw, place.size, every);
        convert(&["-f", "raw", "-O", "qcow2"], &raw, &qcow2);
        run(sealdisk(place)
            .args(["disk", "create", "exported", "--source"])
            .arg(&raw));
        for format in ["raw", "qcow2"] {
            let transfer = Transfer {
                place,
                raw: raw.clone(),
                qcow2: qcow2.clone(),
                format,
            };
            report(image, "import", format, &transfer.all(Transfer::import));
            report(image, "export", format, &transfer.all(Transfer::export));
        }
        run(sealdisk(place).args(["disk", "delete", "exported", "--yes"]));
        fs::remove_file(&raw).unwrap();
        fs::remove_file(&qcow2).unwrap();
    }
}

/// The programs, by the option of qemu-img that makes the difference.
const PROGRAMS: [(&str, Option<&str>); 3] = [
    ("qemu-img convert -W", Some("unsafe")),
    ("qemu-img convert -W -t writeback", Some("writeback")),
    ("sealdisk", None),
];

impl Transfer<'_> {
    fn all(&self, one: impl Fn(&Self, Option<&str>) -> (Duration, Duration)) -> Vec<Runs> {
        let mut all = PROGRAMS.map(|(name, _)| Runs {
            name,
            times: Vec::new(),
        });
        for _ in 0..ROUNDS {
            for (runs, (_, cache)) in all.iter_mut().zip(PROGRAMS) {
                runs.times.push(one(self, cache));
            }
        }
        all.into()
    }

    fn import(&self, cache: Option<&str>) -> (Duration, Duration) {
        let source = match self.format {
            "raw" => &self.raw,
            _ => &self.qcow2,
        };
        let Some(cache) = cache else {
            let mut create = sealdisk(self.place);
            create
                .args(["disk", "create", "imported", "--source-format", self.format])
                .arg("--source")
                .arg(source);
            let time = timed(&mut create);
            run(sealdisk(self.place).args(["disk", "delete", "imported", "--yes"]));
            return time;
        };
        let arguments = ["-t", cache, "-f", self.format, "-O", "raw"];
        self.convert(&arguments, source)
    }

    fn export(&self, cache: Option<&str>) -> (Duration, Duration) {
        let Some(cache) = cache else {
            let target = self.place.dir.join("target");
            let mut export = sealdisk(self.place);
            export
                .args(["disk", "export", "exported", "--format", self.format])
                .arg("--file")
                .arg(&target);
            let time = timed(&mut export);
            fs::remove_file(target).unwrap();
            return time;
        };
        let arguments = ["-t", cache, "-f", "raw", "-O", self.format];
        self.convert(&arguments, &self.raw)
    }

    fn convert(&self, arguments: &[&str], source: &Path) -> (Duration, Duration) {
        let target = self.place.dir.join("target");
        let mut command = Command::new("qemu-img");
        command.args(["convert", "-W"]).args(arguments);
        let time = timed(command.arg(source).arg(&target));
        fs::remove_file(target).unwrap();
        time
    }
}

fn report(image: &str, what: &str, format: &str, all: &[Runs]) {
    let first = all[0].median(|time| time.0);
    for runs in all {
        let wall = runs.median(|time| time.0);
        println!(
            "{image}, {what} {format}: {}: {wall:.2} s ({:.2} x), {:.2} s of CPU",
            runs.name,
            first / wall,
            runs.median(|time| time.1)
        );
    }
}

/// An image of random bytes, of which each `every`th part is there.
fn make_image(path: &Path, size: u64, every: u64) {
    let mut random = File::open("/dev/urandom").unwrap();
    let mut file = File::create(path).unwrap();
    file.set_len(size).unwrap();
    let mut part = vec![0; PART as usize];
    for at in (0..size / PART).step_by(every as usize) {
        random.read_exact(&mut part).unwrap();
        std::os::unix::fs::FileExt::write_all_at(&file, &part, at * PART).unwrap();
    }
    file.flush().unwrap();
}

fn convert(arguments: &[&str], from: &Path, to: &Path) {
    let mut command = Command::new("qemu-img");
    run(command.arg("convert").args(arguments).arg(from).arg(to));
}

fn run(command: &mut Command) {
    expect_success(command);
}

/// Wall-clock time, and CPU time of the program and of those that it started.
fn timed(command: &mut Command) -> (Duration, Duration) {
    rustix::fs::sync();
    let (cpu, start) = (children_time(), Instant::now());
    expect_success(command);
    (start.elapsed(), children_time() - cpu)
}
