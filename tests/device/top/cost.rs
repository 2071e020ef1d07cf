//! What `top` costs where many disks are attached.

use std::fs;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::param::clock_ticks_per_second;

use super::tmux::Tmux;
use super::{SIZE, top};
use crate::supervise::{MIB_8, is_qsd};
use test_support::{Disk, program, stat, times};

/// Seconds that a process has computed so far.
fn computed(pid: u32) -> f64 {
    let fields = stat(pid).unwrap();
    let ticks = |field: usize| fields[field].parse::<f64>().unwrap();
    (ticks(11) + ticks(12)) / clock_ticks_per_second() as f64
}

/// A hundred disks, which take some GiB and a minute to attach. It measures the program that `SEALDISK_TOP_PROGRAM`
/// names, a release build say.
#[test]
#[ignore = "takes minutes: scripts/test --full"]
fn top_of_a_hundred_disks() {
    if is_qsd() || !Tmux::is_there() {
        return;
    }
    let count = times("SEALDISK_TOP_DISKS", 100);
    let seconds = times("SEALDISK_TOP_SECONDS", 30);
    let disk = Disk::new(MIB_8);
    let names: Vec<_> = (0..count).map(|n| format!("d{n}")).collect();
    let options = ["--num-queues", "2", "--memory", "4MiB"];
    let daemons: Vec<_> = names
        .iter()
        .map(|name| {
            disk.ok(&format!("disk create {name} --size 8MiB"));
            disk.attach_with(name, &options)
        })
        .collect();
    let mut frontends: Vec<_> = daemons.iter().map(|daemon| daemon.connect()).collect();
    for frontend in &mut frontends {
        for sector in 0..50 {
            frontend.queues[0].write(sector * 8, &[7; 4096]).unwrap();
        }
    }
    let measured = std::env::var("SEALDISK_TOP_PROGRAM");
    let measured = measured.unwrap_or_else(|_| program().to_str().unwrap().to_owned());
    for interval in ["1", "2"] {
        let tmux = Tmux::start(SIZE);
        let line = top(&disk, "", "").replace(program().to_str().unwrap(), &measured);
        let line = line.replace("--interval 0.5", &format!("--interval {interval}"));
        let pid_file = disk.path("pid");
        tmux.command(&format!(
            "sh -c 'echo $$ > {}; exec {line}'",
            pid_file.display()
        ));
        tmux.until(|screen| {
            screen.contains(&format!("{count} disks")) && screen.contains("active")
        });
        let pid: u32 = fs::read_to_string(&pid_file)
            .unwrap()
            .trim()
            .parse()
            .unwrap();
        let (before, started) = (computed(pid), Instant::now());
        thread::sleep(Duration::from_secs(seconds.into()));
        let share = (computed(pid) - before) / started.elapsed().as_secs_f64() * 100.0;
        eprintln!("{count} disks, every {interval} s: {share:.2} % of a core");
        tmux.text("q");
    }
    // The same by another way, which has no terminal to draw on.
    let mut batch = Command::new(&measured);
    batch.args(["top", "-b", "-n", "1", "--interval", "0.5", "-o", "json"]);
    batch
        .arg("--runtime-dir")
        .arg(disk.runtime())
        .arg("--state-dir")
        .arg(disk.state());
    let printed = batch.stderr(Stdio::inherit()).output().unwrap().stdout;
    let view: serde_json::Value = serde_json::from_slice(&printed).unwrap();
    assert_eq!(view["disks"].as_array().unwrap().len(), count as usize);
    drop(frontends);
    for daemon in daemons {
        daemon.stop();
    }
}
