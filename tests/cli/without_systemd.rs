//! What docs/howto/without-systemd.md says, done as it says it: a disk under runit, and the jobs of cron.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use test_support::{Disk, PATIENCE, alive, expect_success, program, text};

/// The blocks of the page in that language.
fn blocks(language: &str) -> Vec<String> {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/howto/without-systemd.md");
    let page = fs::read_to_string(page).unwrap();
    let begin = format!("```{language}\n");
    let parts = page.split(&begin).skip(1);
    parts
        .map(|part| part.split("```").next().unwrap_or_default().to_owned())
        .collect()
}

/// A command that finds the program under test as `sealdisk`.
fn command(disk: &Disk, name: &str) -> Command {
    let mut command = Command::new(name);
    disk.prepare(&mut command);
    let folder = program().parent().unwrap();
    let path = std::env::var("PATH").unwrap_or_default();
    command.env("PATH", format!("{}:{path}", folder.display()));
    command
}

/// What supervises a service; it ends with the test.
struct Supervised<'a> {
    disk: &'a Disk,
    service: String,
    runsv: Child,
}

impl Supervised<'_> {
    fn sv(&self, words: &[&str]) -> String {
        let mut sv = command(self.disk, "sv");
        let output = expect_success(sv.args(words).arg(&self.service));
        String::from_utf8(output.stdout).unwrap()
    }

    /// The process of the service, which the file of `runsv` has.
    fn process(&self) -> Option<u32> {
        let file = Path::new(&self.service).join("supervise/pid");
        fs::read_to_string(file).ok()?.trim().parse().ok()
    }
}

impl Drop for Supervised<'_> {
    fn drop(&mut self) {
        let mut sv = command(self.disk, "sv");
        let _ = sv
            .args(["-w", "60", "force-shutdown", &self.service])
            .output();
        let _ = self.runsv.wait();
    }
}

fn wait(what: &str, mut is_so: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !is_so() {
        assert!(Instant::now() < end, "{what} never comes");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn runit_keeps_a_disk_attached_and_ends_it_in_order() {
    let disk = Disk::new(1 << 20);
    let runtime = text(disk.runtime());
    let [run] = &blocks("sh")[..] else {
        panic!("one script");
    };
    let group = expect_success(Command::new("id").arg("-gn")).stdout;
    let run = run
        .replace("/run/sealdisk", runtime)
        .replace("attach web", "attach disk")
        .replace("libvirt-qemu", String::from_utf8(group).unwrap().trim());
    let service = disk.path("sealdisk-web");
    fs::create_dir(&service).unwrap();
    fs::write(service.join("run"), run).unwrap();
    fs::set_permissions(service.join("run"), fs::Permissions::from_mode(0o755)).unwrap();
    let log = fs::File::create(disk.path("log")).unwrap();
    let runsv = command(&disk, "runsv").arg(&service).stdout(log).spawn();
    let supervised = Supervised {
        disk: &disk,
        service: text(&service).to_owned(),
        runsv: runsv.unwrap(),
    };
    let state = || disk.json("disk show disk")["diskState"].clone();
    let socket = disk.runtime().join("web.sock");
    wait("the socket", || socket.exists());
    let first = supervised.process().unwrap();
    kill_process(Pid::from_raw(first as i32).unwrap(), Signal::KILL).unwrap();
    wait("another one", || {
        supervised.process().is_some_and(|process| process != first) && state() == "Attached"
    });
    let second = supervised.process().unwrap();
    supervised.sv(&["-w", "300", "stop"]);
    assert!(!alive(second) && !socket.exists());
    assert_eq!(state(), "Unattached");
    let log = fs::read_to_string(disk.path("log")).unwrap();
    assert!(log.contains("what it had completed is kept"), "{log}");
}

#[test]
fn each_job_of_cron_runs() {
    let disk = Disk::new(1 << 20);
    let (keys, recipients) = (disk.path("keys"), disk.path("recipients"));
    expect_success(Command::new("age-keygen").arg("-o").arg(&keys));
    let recipient = expect_success(Command::new("age-keygen").arg("-y").arg(&keys)).stdout;
    fs::write(&recipients, recipient).unwrap();
    let backups = disk.path("backups");
    fs::create_dir(&backups).unwrap();
    let [table] = &blocks("text")[..] else {
        panic!("one table");
    };
    let mut ran = 0;
    for line in table.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        // Five fields of time, as crontab(5) has them, and who runs it.
        assert_eq!(words[5], "root", "{line}");
        let job = words[6..]
            .join(" ")
            .replace("\\%", "%")
            .replace("/run/sealdisk", text(disk.runtime()))
            .replace("/var/backups/sealdisk", text(&backups))
            .replace("/etc/sealdisk/backup.recipients", text(&recipients));
        let mut shell = command(&disk, "sh");
        expect_success(shell.args(["-c", &job]).stderr(Stdio::piped()));
        ran += 1;
    }
    assert_eq!(ran, 3);
    let made = fs::read_dir(&backups).unwrap().next().unwrap().unwrap();
    let name = made.file_name().into_string().unwrap();
    assert!(name.starts_with("20") && name.ends_with(".age"), "{name}");
}
