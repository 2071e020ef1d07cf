//! Tests of the change of a disk's units, with a systemctl that keeps what it is told in files.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use super::*;
use crate::cli::units::needs::Needs;

/// It has a file `enabled-UNIT` and a file `active-UNIT` for each unit that is, refuses what `fail` names, once, and
/// writes down what it was told.
const SYSTEMCTL: &str = r#"#!/bin/sh
cd "$(dirname "$0")" || exit 1
[ "$1" = --quiet ] && shift
[ "$1" = --no-ask-password ] && shift
command=$1
shift
[ "$1" = -- ] && shift
case $command in is-*) ;; *) echo "$command $*" >>told ;; esac
if [ "$command" = "$(cat fail 2>/dev/null)" ]; then
    rm fail
    echo "no $command today" >&2
    exit 1
fi
for unit; do
    case $command in
        enable) touch "enabled-$unit" ;;
        disable) rm -f "enabled-$unit" ;;
        start) touch "active-$unit" ;;
        stop) rm -f "active-$unit" ;;
        is-enabled) [ -e "enabled-$unit" ] || exit 1 ;;
        is-active) if [ -e "active-$unit" ]; then echo active; else echo inactive; exit 3; fi ;;
    esac
done
"#;

/// A host whose systemd is a directory.
struct Systemd {
    dir: TempDir,
}

impl Systemd {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let program = dir.path().join("systemctl");
        fs::write(&program, SYSTEMCTL).unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
        Self { dir }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn root(&self) -> Root {
        Root::of(self.path("root"))
    }

    fn change(&self, by_socket: bool) -> Result<Changed, CliError> {
        let wanted = Wanted {
            disk: "web".into(),
            socket: "/run/sealdisk/web.sock".into(),
            group: None,
            mode: None,
            by_socket,
            options: Vec::new(),
            needs: Needs::default(),
        };
        let systemctl = Systemctl::of_program(&self.path("systemctl"));
        Change::of(&self.root(), &systemctl, &wanted)?.make()
    }

    fn start(&self, unit: &str) {
        fs::write(self.path(&format!("active-{unit}")), "").unwrap();
    }

    fn fail(&self, command: &str) {
        fs::write(self.path("fail"), command).unwrap();
    }

    /// Whether the service is enabled and active, and the socket, with whether it has a drop-in.
    fn states(&self) -> [bool; 5] {
        let is = |what: &str, unit: &str| self.path(&format!("{what}-{unit}")).exists();
        let (service, socket) = ("sealdisk@web.service", "sealdisk@web.socket");
        [
            is("enabled", service),
            is("active", service),
            is("enabled", socket),
            is("active", socket),
            self.root().drop_in(socket).is_file(),
        ]
    }

    fn told(&self) -> Vec<String> {
        let told = fs::read_to_string(self.path("told")).unwrap();
        told.lines().map(str::to_owned).collect()
    }
}

fn text_of(path: &Path) -> String {
    fs::read_to_string(path).unwrap()
}

const BY_SERVICE: [bool; 5] = [true, true, false, false, false];
const BY_SOCKET: [bool; 5] = [false, false, true, true, true];

#[test]
fn a_disk_that_is_served_has_one_unit_whichever_way_it_is_switched() {
    let systemd = Systemd::new();
    assert!(!systemd.change(false).unwrap().moved);
    systemd.start("sealdisk@web.service");
    assert_eq!(systemd.states(), BY_SERVICE);

    let changed = systemd.change(true).unwrap();
    assert_eq!(changed.unit, "sealdisk@web.socket");
    assert!(changed.moved && changed.drop_ins);
    assert_eq!(systemd.states(), BY_SOCKET);

    // Somebody has connected, which is no reason for a stall when it is enabled again.
    systemd.start("sealdisk@web.service");
    let again = systemd.change(true).unwrap();
    assert!(!again.moved && !again.drop_ins);
    assert_eq!(systemd.states(), [false, true, true, true, true]);

    assert!(systemd.change(false).unwrap().moved);
    assert_eq!(systemd.states(), BY_SERVICE);
    let service = text_of(&systemd.root().drop_in("sealdisk@web.service"));
    assert!(service.contains("--socket-path"), "{service}");
}

#[test]
fn a_disk_that_is_not_served_is_not_started_by_a_switch() {
    let systemd = Systemd::new();
    systemd.change(true).unwrap();
    assert_eq!(systemd.states(), [false, false, true, false, true]);
    systemd.change(false).unwrap();
    assert_eq!(systemd.states(), [true, false, false, false, false]);
    let told = systemd.told();
    assert!(
        !told
            .iter()
            .any(|line| line.starts_with("stop") || line.starts_with("start")),
        "{told:?}"
    );
}

#[test]
fn a_switch_that_fails_half_way_is_undone() {
    for (step, by_socket) in ["daemon-reload", "disable", "enable", "stop", "start"]
        .into_iter()
        .flat_map(|step| [(step, false), (step, true)])
    {
        let systemd = Systemd::new();
        systemd.change(!by_socket).unwrap();
        systemd.start(match by_socket {
            true => "sealdisk@web.service",
            false => "sealdisk@web.socket",
        });
        let drop_in = systemd.root().drop_in("sealdisk@web.service");
        let (before, text) = (systemd.states(), text_of(&drop_in));
        fs::remove_file(systemd.path("told")).unwrap();
        systemd.fail(step);
        let error = systemd.change(by_socket).err().unwrap();
        assert!(
            error.message.contains(&format!("no {step} today"))
                && error.message.ends_with("the units are as they were"),
            "{step}: {}",
            error.message
        );
        assert_eq!(systemd.states(), before, "{step} {by_socket}");
        assert_eq!(text_of(&drop_in), text, "{step}");
        // systemd has read the drop-ins that are back.
        let reloads = systemd.told();
        let reloads = reloads
            .iter()
            .filter(|line| line.starts_with("daemon-reload"));
        assert_eq!(reloads.count(), 2, "{step}");
    }
}

#[test]
fn what_cannot_be_undone_is_said() {
    let systemd = Systemd::new();
    systemd.change(false).unwrap();
    systemd.start("sealdisk@web.service");
    // It fails, and there is no systemctl any more.
    fs::write(systemd.path("fail"), "start").unwrap();
    let script = SYSTEMCTL.replace("    rm fail\n", "    rm fail systemctl\n");
    fs::write(systemd.path("systemctl"), script).unwrap();
    let error = systemd.change(true).err().unwrap();
    assert!(
        error.message.contains("not everything is as it was"),
        "{}",
        error.message
    );
}
