//! A key that is taken away from a command that has unwrapped it: the command lets go of it, whatever it waits for.

use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::process::{Child, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use test_support::{Host, PATIENCE, expect_success, noise, one_line, qemu_img, text};
use vault::AttributeChange;

const MIB: usize = 1 << 20;
const SIZE: usize = 32 * MIB;

/// A disk `d` under a customer's key, and its content.
fn with_disk() -> (Host, Vec<u8>) {
    let host = Host::that_attaches();
    host.encryption_set("des1", &["get", "wrapKey", "unwrapKey"]);
    let mut content = vec![0; SIZE];
    noise(&mut content);
    let raw = host.path("raw");
    fs::write(&raw, &content).unwrap();
    let create = ["disk", "create", "d", "--disk-encryption-set", "des1"];
    host.ok(&[&create[..], &["--source", text(&raw)]].concat());
    (host, content)
}

fn enable(host: &Host, enabled: bool) {
    host.set_key(&AttributeChange {
        enabled: Some(enabled),
        ..AttributeChange::default()
    });
}

/// That a command ends by itself, since its key is disabled.
fn assert_refused(mut child: Child, what: &str) {
    let deadline = Instant::now() + PATIENCE;
    while child.try_wait().unwrap().is_none() {
        if Instant::now() > deadline {
            child.kill().unwrap();
            panic!("{what} goes on without its key: {:?}", child.wait());
        }
        thread::sleep(Duration::from_millis(20));
    }
    // What it has given nobody is to be taken for its output.
    drop(child.stdout.take());
    let line = one_line(&child.wait_with_output().unwrap());
    assert!(line.contains("disabled"), "{what}: {line}");
}

fn spawn(host: &Host, words: &[&str]) -> Child {
    let mut command = host.command(words);
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    command.spawn().unwrap()
}

#[test]
fn a_reader_that_takes_nothing_keeps_no_plaintext_coming() {
    let (host, content) = with_disk();
    let fifo = host.path("fifo");
    rustix::fs::mknodat(
        rustix::fs::CWD,
        &fifo,
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR,
        0,
    )
    .unwrap();
    for to in [text(&fifo), "-"] {
        let mut child = spawn(&host, &["disk", "decrypt", "d", "--output-file", to]);
        let mut reader: Box<dyn Read> = match child.stdout.take().filter(|_| to == "-") {
            Some(stdout) => Box::new(stdout),
            None => Box::new(File::open(&fifo).unwrap()),
        };
        let mut got = vec![0; MIB];
        reader.read_exact(&mut got).unwrap();
        enable(&host, false);
        assert_refused(child, to);
        reader.read_to_end(&mut got).unwrap();
        assert!(got.len() < SIZE && content.starts_with(&got), "{to}");
        enable(&host, true);
    }
}

#[test]
fn a_vault_that_is_away_stops_no_reader() {
    let (host, content) = with_disk();
    let decrypt = ["disk", "decrypt", "d", "--output-file", "-"];
    let mut child = spawn(&host, &decrypt);
    let mut reader = child.stdout.take().unwrap();
    let mut got = vec![0; MIB];
    reader.read_exact(&mut got).unwrap();
    let (vaults, away) = (host.state().join("vaults"), host.path("away"));
    fs::rename(&vaults, &away).unwrap();
    // The vault is asked at least once meanwhile.
    thread::sleep(Duration::from_secs(7));
    reader.read_to_end(&mut got).unwrap();
    assert!(got == content);
    assert!(child.wait_with_output().unwrap().status.success());
    let _ = fs::remove_dir_all(&vaults);
    fs::rename(&away, &vaults).unwrap();
    assert!(host.ok(&decrypt) == content);
}

#[test]
fn a_job_of_an_unattached_disk_stops_and_goes_on_later() {
    let (host, content) = with_disk();
    // It takes two minutes, and pauses for longer than the vault may not be asked.
    let rotate = ["disk", "rotate-dek", "d", "--rate", "256KiB"];
    let child = spawn(&host, &rotate);
    let deadline = Instant::now() + PATIENCE;
    while host.json("disk show d")["job"].is_null() {
        assert!(Instant::now() < deadline, "the job does not begin");
        thread::sleep(Duration::from_millis(20));
    }
    enable(&host, false);
    assert_refused(child, "rotate-dek");
    assert!(!host.json("disk show d")["job"].is_null());
    enable(&host, true);
    host.ok("disk rotate-dek d --resume");
    assert!(host.json("disk show d")["job"].is_null());
    assert!(host.ok("disk decrypt d --output-file -") == content);
}

#[test]
fn an_import_ends_without_its_key_and_leaves_nothing() {
    let (host, _) = with_disk();
    let (image, raw) = (host.path("image.vdi"), host.path("large"));
    let mut block = vec![0; 4 * MIB];
    noise(&mut block);
    let file = File::create(&raw).unwrap();
    for n in 0..64u64 {
        file.write_all_at(&block, n * block.len() as u64).unwrap();
    }
    qemu_img(&[
        "convert",
        "-f",
        "raw",
        "-O",
        "vdi",
        text(&raw),
        text(&image),
    ]);
    let mut create = host.command(&["disk", "create", "e", "--disk-encryption-set", "des1"]);
    create.args(["--source", text(&image), "--source-format", "vdi"]);
    create.stdout(Stdio::null()).stderr(Stdio::piped());
    let child = create.spawn().unwrap();
    // It waits for a helper that does nothing.
    let helper = helper_of(&child);
    kill_process(helper, Signal::STOP).unwrap();
    enable(&host, false);
    assert_refused(child, "an import");
    assert_eq!(fs::read_dir(host.disks()).unwrap().count(), 1);
    enable(&host, true);
    expect_success(&mut create);
}

/// Its child that reads the image, once the import has begun.
fn helper_of(child: &Child) -> Pid {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let children = test_support::with_descendants(child.id());
        let named = |pid: &u32| {
            fs::read_to_string(format!("/proc/{pid}/comm"))
                .is_ok_and(|name| name.contains("qemu-nbd"))
        };
        if test_support::threads(child.id())
            .iter()
            .any(|(_, name)| name == "key-watch")
            && let Some(pid) = children.into_iter().find(named)
        {
            return Pid::from_raw(pid as i32).unwrap();
        }
        assert!(Instant::now() < deadline, "the import does not begin");
        thread::yield_now();
    }
}
