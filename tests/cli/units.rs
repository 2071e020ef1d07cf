//! Units of systemd: those of contrib/systemd, and the drop-ins that `enable` writes for a disk.

use std::fs;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use tempfile::TempDir;
use test_support::{Host, PATIENCE, kill, program, text};

/// Ten times the exposure that a service may have at most, by systemd's own measure.
const MAX_EXPOSURE: u32 = 30;
/// The same of a disk's service whose vault is elsewhere, or that tells somebody elsewhere of events.
const MAX_EXPOSURE_WITH_NETWORK: u32 = 37;

fn contrib() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("contrib/systemd")
}

/// Whether there is something to test units with.
fn has_systemd() -> bool {
    let found = Command::new("systemd-analyze").arg("--version").output();
    if found.is_err() {
        eprintln!("systemd is missing (scripts/setup test)");
    }
    found.is_ok()
}

/// The names of the units.
fn units() -> Vec<String> {
    let entries = fs::read_dir(contrib()).unwrap();
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<_> = names.filter(|name| !name.ends_with(".conf")).collect();
    names.sort();
    names
}

/// A condition that fails keeps a unit off without a word, also when the installation is there later.
#[test]
fn what_watches_has_no_condition() {
    let path = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/contrib/systemd/sealdisk-alarms.service"
    );
    let unit = fs::read_to_string(path).unwrap();
    assert!(!unit.contains("\nCondition"), "{unit}");
    assert!(unit.contains("\nRestart=on-failure\n"), "{unit}");
}

#[test]
fn systemd_finds_nothing_wrong_with_the_units() {
    if !has_systemd() {
        return;
    }
    let dir = TempDir::new().unwrap();
    let mut command = Command::new("systemd-analyze");
    command.args(["verify", "--man=no"]);
    for name in units() {
        let unit = fs::read_to_string(contrib().join(&name)).unwrap();
        let path = dir.path().join(&name);
        fs::write(&path, unit.replace("/usr/bin/sealdisk", text(program()))).unwrap();
        command.arg(path);
    }
    let output = command.output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    // What the units of this host are like is not asked.
    let of_ours: Vec<_> = said
        .lines()
        .filter(|line| line.contains("sealdisk"))
        .collect();
    assert!(of_ours.is_empty(), "{said}");
}

#[test]
fn no_service_is_more_exposed_than_is_allowed() {
    if !has_systemd() {
        return;
    }
    for name in units().iter().filter(|name| name.ends_with(".service")) {
        let output = Command::new("systemd-analyze")
            .args(["security", "--offline=true", "--no-pager"])
            .arg(format!("--threshold={MAX_EXPOSURE}"))
            .arg(contrib().join(name))
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stdout);
        let overall = said.lines().last().unwrap_or_default();
        eprintln!("{overall}");
        assert!(output.status.success(), "{said}");
        assert!(overall.contains("exposure level"), "{said}");
    }
}

/// A tree with the units in it, as a host has them that is not running.
fn tree() -> TempDir {
    let tree = TempDir::new().unwrap();
    let of_package = tree.path().join("usr/lib/systemd/system");
    fs::create_dir_all(&of_package).unwrap();
    for name in units() {
        fs::copy(contrib().join(&name), of_package.join(&name)).unwrap();
    }
    tree
}

/// A host with a disk `d`, where units could have it.
fn host() -> Host {
    let host = Host::that_attaches();
    host.ok(&["disk", "create", "d", "--size", "1MiB"]);
    host
}

#[test]
fn a_disk_is_enabled_once_and_disabled_without_a_trace() {
    if !has_systemd() {
        return;
    }
    let (host, tree) = (host(), tree());
    let root = text(tree.path());
    let enable = ["enable", "d", "--root", root, "--group", "root"];
    let enable = [&enable[..], &["--queues", "4", "--iops", "500"]].concat();
    let enable = [&enable[..], &["--", "--serial", "my disk"]].concat();
    let with_json = [&["-o", "json"][..], &enable].concat();
    let json =
        |words: &[&str]| -> serde_json::Value { serde_json::from_slice(&host.ok(words)).unwrap() };
    let view = json(&with_json);
    assert_eq!(view["changed"], true, "{view}");
    assert_eq!(view["socket"], "/run/sealdisk/d.sock");
    let dir = tree.path().join("etc/systemd/system");
    let drop_in = dir.join("sealdisk@d.service.d/50-sealdisk.conf");
    let said = fs::read_to_string(&drop_in).unwrap();
    for line in [
        "Environment=\"SEALDISK_SOCKET=--socket-path /run/sealdisk/d.sock --socket-group root\"",
        "Environment=\"SEALDISK_OPTIONS=--num-queues 4 --iops 500 --serial 'my disk'\"",
        &format!(
            "Environment=\"SEALDISK_STATE_DIR={}\"",
            host.state().display()
        ),
        &format!("ReadWritePaths={}", host.state().display()),
        &format!("RequiresMountsFor={}", host.disks().join("d").display()),
    ] {
        assert!(said.lines().any(|found| found == line), "{line}\n{said}");
    }
    assert!(!said.contains("PrivateNetwork"), "{said}");
    let wanted = dir.join("sealdisk.target.wants");
    assert!(wanted.join("sealdisk@d.service").is_symlink());
    assert_eq!(json(&with_json)["changed"], false, "the same again");

    // systemd makes the socket: another unit is enabled, in place of the first.
    let by_socket = [
        "enable",
        "d",
        "--root",
        root,
        "--socket-activation",
        "-o",
        "json",
    ];
    assert_eq!(json(&by_socket)["unit"], "sealdisk@d.socket");
    assert!(fs::read_to_string(&drop_in).unwrap().contains("--fd 3"));
    assert!(wanted.join("sealdisk@d.socket").is_symlink());
    assert!(!wanted.join("sealdisk@d.service").exists());

    // A disk that is gone can still be disabled.
    host.ok(&["disk", "delete", "d", "--yes"]);
    let disable = ["disable", "d", "--root", root, "-o", "json"];
    assert_eq!(json(&disable)["changed"], true);
    assert!(!drop_in.parent().unwrap().exists());
    assert!(!dir.join("sealdisk@d.socket.d").exists());
    assert!(!wanted.join("sealdisk@d.socket").exists());
    host.refused_with("ResourceNotFound", &["disable", "d", "--root", root]);
}

#[test]
fn a_disk_whose_vault_is_elsewhere_gets_a_network() {
    if !has_systemd() {
        return;
    }
    let (host, tree) = (host(), tree());
    let url = "https://far.vault.localhost:8443";
    host.ok(&["keyvault", "connect", "far", "--url", url]);
    host.ok(&["enable", "d", "--root", text(tree.path())]);
    let drop_in = "etc/systemd/system/sealdisk@d.service.d/50-sealdisk.conf";
    let said = fs::read_to_string(tree.path().join(drop_in)).unwrap();
    assert!(said.contains("\nPrivateNetwork=no\n"), "{said}");
    assert!(
        said.contains("\nRestrictAddressFamilies=AF_INET AF_INET6\n"),
        "{said}"
    );
}

/// It would give up what is written later.
#[test]
fn no_unit_gives_writes_up() {
    if !has_systemd() {
        return;
    }
    let (host, tree) = (host(), tree());
    let enable = ["enable", "d", "--root", text(tree.path()), "--"];
    for options in [
        &["--discard-unflushed"][..],
        &["--take-over-from", "n1"],
        &["--take-over-from=n1"],
    ] {
        let refused = host.refused(&[&enable[..], options].concat());
        assert!(refused.contains("by hand"), "{refused}");
    }
    assert!(
        !tree
            .path()
            .join("etc/systemd/system/sealdisk@d.service.d")
            .exists()
    );
}

/// A webhook and a program that pages somebody need a network, and nothing else that the unit does not have.
#[test]
fn who_is_told_of_events_has_a_network() {
    if !has_systemd() {
        return;
    }
    let (host, tree) = (host(), tree());
    let root = text(tree.path());
    let drop_in = tree
        .path()
        .join("etc/systemd/system/sealdisk@d.service.d/50-sealdisk.conf");
    // What the unit is given beyond what one without events is.
    let lines = |more: &[&str]| -> Vec<String> {
        host.ok(&[&["enable", "d", "--root", root], more].concat());
        let said = fs::read_to_string(&drop_in).unwrap();
        let lines = said.lines().map(str::to_owned);
        lines
            .filter(|line| !line.starts_with("Environment") && !line.starts_with('#'))
            .collect()
    };
    let without = lines(&[]);
    for target in [
        "https://alerts.example/hook",
        "HTTPS://alerts.example/hook",
        "/usr/local/bin/page --team storage",
    ] {
        let with = lines(&["--", "--on-event", target]);
        let more: Vec<_> = with.iter().filter(|line| !without.contains(line)).collect();
        assert_eq!(
            more,
            [
                "PrivateNetwork=no",
                "RestrictAddressFamilies=AF_INET AF_INET6",
                "IPAddressDeny="
            ],
            "{target}"
        );
        let analyze = |words: &[&str]| {
            let mut command = Command::new("systemd-analyze");
            command.args(words).arg(format!("--root={root}"));
            command.arg("sealdisk@d.service").output().unwrap()
        };
        let verified = analyze(&["verify", "--man=no"]);
        let said = String::from_utf8_lossy(&verified.stderr);
        assert!(!said.contains("50-sealdisk.conf"), "{said}");
        let threshold = format!("--threshold={MAX_EXPOSURE_WITH_NETWORK}");
        let rated = analyze(&["security", "--offline=true", "--no-pager", &threshold]);
        let said = String::from_utf8_lossy(&rated.stdout);
        assert!(rated.status.success(), "{said}");
    }
}

#[test]
fn what_a_unit_cannot_have_is_refused_and_nothing_is_written() {
    let (mut host, tree) = (host(), tree());
    let root = text(tree.path()).to_owned();
    let enable = |more: &[&str]| {
        let words = ["enable", "d", "--root", &root];
        [&words[..], more]
            .concat()
            .iter()
            .map(|word| (*word).to_owned())
            .collect::<Vec<_>>()
    };
    let refused = |host: &Host, words: &[String], why: &str| {
        let words: Vec<_> = words.iter().map(String::as_str).collect();
        let said = host.refused(&words[..]);
        assert!(said.contains(why), "{words:?}: {said}");
    };
    refused(&host, &enable(&["--queues", "0"]), "'--queues <N>'");
    refused(&host, &enable(&["--num-queues", "0"]), "'--num-queues <N>'");
    refused(
        &host,
        &enable(&["--", "--num-queues", "0"]),
        "'--num-queues",
    );
    let long = format!("/run/sealdisk/{}.sock", "d".repeat(90));
    refused(
        &host,
        &enable(&["--socket-path", &long]),
        "107 at most: give a shorter --socket-path",
    );
    for option in ["--socket-path", "--allow-data-dir"] {
        refused(&host, &enable(&[option, "/run/../srv/d"]), "'..'");
    }
    refused(
        &host,
        &enable(&["--", "--on-event", "/tmp/page"]),
        "of its own",
    );
    refused(
        &host,
        &enable(&["--group", "no-such-group"]),
        "there is no such group",
    );
    refused(
        &host,
        &enable(&["--socket-path", "/tmp/d.sock"]),
        "of its own",
    );
    refused(
        &host,
        &enable(&["--", "--no-such-option"]),
        "--no-such-option",
    );
    refused(
        &host,
        &enable(&["--", "--no-such-option"]),
        "`sealdisk attach --help`",
    );
    refused(&host, &enable(&["--", "--print-sandbox"]), "serve the disk");
    refused(
        &host,
        &enable(&["--", "--serial", "a'b"]),
        "cannot be in a unit",
    );
    host.refused_with("ResourceNotFound", &["enable", "nobody", "--root", &root]);
    host.refused_with("ResourceNotFound", &["disable", "nobody", "--root", &root]);
    let units = tree.path().join("etc/systemd/system");
    assert!(!units.exists());
    // A tree without the units, in which nothing can be enabled.
    if has_systemd() {
        fs::remove_dir_all(tree.path().join("usr")).unwrap();
        host.refused_with("Systemctl", &["enable", "d", "--root", &root]);
        assert!(!units.join("sealdisk@d.service.d").exists());
    }
    if rustix::process::geteuid().is_root() {
        host.give_to(65534);
        host.refused_with("Forbidden", &["enable", "d"]);
        host.refused_with("Forbidden", &["disable", "d"]);
    }
}

/// What a process tells systemd.
struct Notified {
    socket: UnixDatagram,
    path: PathBuf,
}

impl Notified {
    fn new(host: &Host) -> Self {
        let path = host.runtime().join("notify");
        let socket = UnixDatagram::bind(&path).unwrap();
        let often = Some(Duration::from_millis(100));
        socket.set_read_timeout(often).unwrap();
        Self { socket, path }
    }

    /// Waits until it is told that, so often.
    fn wait_for(&self, wanted: &str, times: usize) {
        let end = Instant::now() + PATIENCE;
        let mut found = 0;
        while found < times {
            assert!(Instant::now() < end, "{wanted} was told {found} times");
            let mut message = [0; 4096];
            if let Ok(len) = self.socket.recv(&mut message) {
                let said = String::from_utf8_lossy(&message[..len]);
                found += said.lines().filter(|line| *line == wanted).count();
            }
        }
    }

    /// A command that tells it, with a watchdog.
    fn by(&self, host: &Host, words: &[&str]) -> Command {
        let mut command = host.command(words);
        command
            .env("NOTIFY_SOCKET", &self.path)
            .env("WATCHDOG_USEC", "200000")
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        command
    }
}

/// Attaches the disk `d`, and waits until it is ready.
fn attach_notifying(host: &Host, told: &Notified) -> Child {
    let socket = host.runtime().join("d.sock");
    let attach = ["attach", "d", "--socket-path", text(&socket)];
    let attach = told.by(host, &attach).spawn().unwrap();
    told.wait_for("READY=1", 1);
    attach
}

#[test]
fn an_attach_tells_the_watchdog_that_it_lives_also_after_an_upgrade() {
    let host = host();
    let told = Notified::new(&host);
    let mut attach = attach_notifying(&host, &told);
    told.wait_for("WATCHDOG=1", 3);
    let mut upgrade = host.command("upgrade d").spawn().unwrap();
    // Another program serves, and then it is another program in the same process.
    told.wait_for("RELOADING=1", 1);
    told.wait_for("READY=1", 1);
    assert!(upgrade.wait().unwrap().success());
    told.wait_for("WATCHDOG=1", 3);
    kill(attach.id());
    attach.wait().unwrap();
}

/// Its messages have room for few, and the key guard must not wait for somebody to read them.
#[test]
fn an_attach_goes_on_whose_systemd_does_not_listen() {
    let host = host();
    let told = Notified::new(&host);
    let mut attach = attach_notifying(&host, &told);
    thread::sleep(Duration::from_millis(700));
    host.ok(&["upgrade", "d"]);
    kill(attach.id());
    attach.wait().unwrap();
}

#[test]
fn served_vaults_tell_the_watchdog_that_they_live() {
    let host = host();
    let told = Notified::new(&host);
    let serve = ["keyvault", "serve", "--listen", "127.0.0.1:0"];
    let mut serve = told.by(&host, &serve).spawn().unwrap();
    told.wait_for("READY=1", 1);
    told.wait_for("WATCHDOG=1", 3);
    kill(serve.id());
    serve.wait().unwrap();
}
