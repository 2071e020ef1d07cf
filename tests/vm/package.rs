//! The Debian package in a whole Debian with systemd: installed, used by its units, upgraded under load, removed and
//! purged, and nothing of a user's is lost.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use tempfile::TempDir;
use test_support::frontend::device::{Frontend, Setup};
use test_support::rng::Rng;
use test_support::{expect_success, program, scratch, text};

use crate::backend::CustomerHost;
use crate::images;
use crate::qemu::{Disk, Firmware, Machine};

/// Where the load of a guest connects.
const SOCKET: &str = "SEALDISK_PACKAGE_LOAD";
/// When it is there, the load ends.
const STOP: &str = "/dev/shm/stop";
/// Blocks that the load writes, again and again.
const BLOCKS: u64 = 1024;

/// The page that is followed.
const TUTORIAL: &str = "docs/tutorial.md";

/// What an administrator does, and looks at. `web` is under the key of a vault that the vault's unit serves, `own` under
/// the platform's, and systemd makes its socket.
const JOB: &str = r#"
set -e
step() { echo "SEALDISK-STEP $*"; }
fail() { echo "FAILED: $*"; systemctl --no-pager list-jobs; journalctl --no-pager -n 60; exit 1; }
field() { sed -n "s/^ *\"$1\": \"\{0,1\}\([^\",]*\).*/\1/p" | head -n 1; }
load() { setpriv --reuid nobody --regid kvm --clear-groups env SEALDISK_PACKAGE_LOAD=$1 \
    /dev/shm/p/load --exact package::a_load --ignored --nocapture; }
await() { n=0; until "$@"; do n=$((n + 1)); [ $n -lt 600 ] || fail "waited for: $*"; sleep 0.2; done; }

mkdir /dev/shm/p
tar -xf /dev/vdb -C /dev/shm/p
chmod 755 /dev/shm/p /dev/shm/p/load
cd /dev/shm/p

step install
dpkg -i old.deb
systemctl is-active sealdisk.target sealdisk-rotate.timer sealdisk-purge.timer
[ "$(stat -c %a:%U /run/sealdisk)" = 711:root ]
[ "$(stat -c %a:%U /var/lib/sealdisk-keyvault)" = 700:sealdisk-keyvault ]

step tutorial
TMPDIR=/var/tmp bash ./tutorial --installed tutorial.md || fail "the tutorial prints something else"
[ "$(sealdisk disk list -o json)" = "[]" ] || fail "something of the tutorial is left"
[ ! -e /etc/systemd/system/sealdisk@web.service.d ] || fail "a drop-in of the tutorial is left"
for unit in sealdisk-metrics sealdisk-alarms; do
    systemctl start $unit.service || fail "$unit does not start"
    systemd-analyze security --no-pager $unit.service | tail -n 1
done

step own
sealdisk disk create own --size 16MiB
sealdisk enable own --socket-activation --group kvm --now
[ "$(systemctl is-active sealdisk@own.service || true)" = inactive ]
touch /dev/shm/stop
load /run/sealdisk/own.sock || fail "a connection does not start the unit"
systemctl is-active sealdisk@own.service || fail "own is not active"
systemctl show -p PrivateNetwork sealdisk@own.service
systemctl stop sealdisk@own.service || fail "own does not stop"
[ "$(sealdisk disk show own -o json | field diskState)" = Unattached ]

step vault
mkdir -p /etc/credstore.encrypted
head -c 32 /dev/urandom | systemd-creds encrypt --name=sealdisk-keyvault - /etc/credstore.encrypted/sealdisk-keyvault
sealdisk-keyvault keyvault create far --master-credential sealdisk-keyvault
sealdisk-keyvault keyvault key create k --vault-name far --size 2048
umask 077
sealdisk-keyvault identity create host1 -o json >host1.json
field secret <host1.json >/etc/sealdisk/host1.secret
umask 022
sealdisk-keyvault keyvault set-policy far --object-id "$(field principalId <host1.json)" --key-permissions get wrapKey unwrapKey
systemctl enable --now sealdisk-keyvault.service || fail "the vault's unit does not start"
[ "$(ps -o user:20= -C sealdisk | sort | uniq -c | grep -c sealdisk-keyvault)" = 1 ]
sealdisk-keyvault keyvault serve --print-ca >ca.pem

step web
sealdisk keyvault connect far --url https://far.vault.localhost:8443 --ca-file ca.pem 2>&1 | tee connected
grep -q "have no network.*: own" connected || fail "nobody says that own has no network"
sealdisk disk-encryption-set create set --key-url https://far.vault.localhost:8443/keys/k \
    --identity-endpoint https://localhost:8443/msi/token --identity-header-file /etc/sealdisk/host1.secret
sealdisk disk create web --size 32MiB --disk-encryption-set set
sealdisk enable web --group kvm --queues 2 --now -- --serial 'my disk' || fail "the disk's unit does not start"
systemctl is-active sealdisk@web.service
[ "$(stat -c %a:%G /run/sealdisk/web.sock)" = 660:kvm ]
cat /proc/$(systemctl show -p MainPID --value sealdisk@web.service)/attr/current
systemctl show -p WatchdogTimestamp sealdisk@web.service | grep -q =. || fail "no watchdog"
for unit in sealdisk@web sealdisk@own sealdisk-keyvault; do
    systemd-analyze security --no-pager $unit.service | tail -n 1
done
for unit in /usr/lib/systemd/system/sealdisk*.service; do
    systemd-analyze security --no-pager --offline=true --threshold=30 "$unit" >/dev/null || fail "$unit is exposed"
done

step upgrade
rm -f /dev/shm/stop
load /run/sealdisk/web.sock >load.log 2>&1 &
await grep -q SEALDISK-LOAD load.log
pid=$(systemctl show -p MainPID --value sealdisk@web.service)
dpkg -i new.deb || fail "the package cannot be upgraded"
[ "$(systemctl show -p MainPID --value sealdisk@web.service)" = "$pid" ] || fail "the unit was started again"
sealdisk disk events web -o json >events
grep -q DataPlaneUpgraded events || fail "the data plane was not upgraded: $(cat events)"
grep -q AttachProcessUpgraded events || fail "the attach process was not upgraded: $(cat events)"
systemctl reload sealdisk@web.service || fail "the unit cannot be loaded again"
for unit in sealdisk-keyvault sealdisk-metrics sealdisk-alarms; do
    [ "$(systemctl is-active $unit.service)" = active ] || fail "$unit is not active after the upgrade"
done
sleep 1
touch /dev/shm/stop
wait $! || fail "the load was disturbed: $(cat load.log)"
grep "the longest" load.log

step crash
kill -9 "$pid"
restarted() { [ "$(systemctl show -p NRestarts --value sealdisk@web.service)" != 0 ]; }
await restarted
await systemctl --quiet is-active sealdisk@web.service
[ "$(systemctl show -p NRestarts --value sealdisk@web.service)" = 1 ] || fail "it was started more than once"

step timers
cp backup.recipients /etc/sealdisk/
for job in rotate purge backup keyvault-backup; do
    systemctl start sealdisk-$job.service || { systemctl status --no-pager sealdisk-$job.service; fail "$job"; }
done
[ "$(ls /var/backups/sealdisk/*.age /var/backups/sealdisk-keyvault/*.age | wc -l)" = 2 ]
dmesg | grep -i 'apparmor="DENIED"' | grep sealdisk && fail "AppArmor denies something" || true

step stop
systemctl stop sealdisk@web.service
[ "$(sealdisk disk show web -o json | field diskState)" = Unattached ]
before=$(sealdisk disk decrypt web | sha256sum)
systemctl start sealdisk@web.service

step remove
dpkg -r sealdisk
[ ! -e /usr/bin/sealdisk ]
[ -z "$(ps -C sealdisk -o pid=)" ] || fail "something of it still runs"

step purge
dpkg -P sealdisk 2>&1 | tee purged
grep -q '/var/lib/sealdisk (' purged && grep -q '/var/lib/sealdisk-keyvault (' purged || fail "nobody says where things are"
[ -z "$(ls -d /etc/systemd/system/*sealdisk@* /etc/systemd/system/*/sealdisk@* 2>/dev/null)" ] || fail "drop-ins are left"

step again
dpkg -i new.deb
systemctl start sealdisk-keyvault.service
[ "$(sealdisk disk decrypt web | sha256sum)" = "$before" ] || fail "web is not what it was"
sealdisk-keyvault keyvault show far
sealdisk enable web --group kvm --now
sealdisk disable web --now
[ "$(systemctl is-system-running)" = running ] || fail "something failed"
"#;

/// The package of the program under test, as this version.
fn package(version: &str, output: &Path) -> PathBuf {
    let mut build = Command::new(root().join("scripts/package"));
    build.args(["--fast", "--version", version, "--output", text(output)]);
    let built = expect_success(build.args(["--program", text(program())])).stdout;
    String::from_utf8(built).expect("a path").trim().into()
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// What the guest gets: a tar archive that is a disk.
fn parcel(dir: &Path) -> PathBuf {
    for (name, version) in [("old.deb", "1.0-1"), ("new.deb", "1.0-2")] {
        std::fs::rename(package(version, dir), dir.join(name)).expect("a package");
    }
    let this = std::env::current_exe().expect("this program");
    let load = dir.join("load");
    expect_success(Command::new("strip").arg("-o").arg(&load).arg(this));
    let recipient = age::x25519::Identity::generate().to_public();
    std::fs::write(dir.join("backup.recipients"), format!("{recipient}\n")).expect("a file");
    for path in ["scripts/tutorial", TUTORIAL] {
        let path = root().join(path);
        std::fs::copy(&path, dir.join(path.file_name().expect("a name"))).expect("a file");
    }
    let parcel = dir.join("parcel");
    let mut tar = Command::new("tar");
    tar.arg("-C").arg(dir).arg("-cf").arg(&parcel);
    tar.args(["old.deb", "new.deb", "load", "backup.recipients"]);
    expect_success(tar.args(["tutorial", "tutorial.md"]));
    parcel
}

#[test]
#[ignore = "takes minutes: scripts/test --full runs it"]
fn a_debian_installs_upgrades_and_purges_the_package() {
    let dir = TempDir::new_in(scratch()).expect("a directory");
    let parcel = parcel(dir.path());
    let host = CustomerHost::new();
    host.import_disk("debian", &images::debian_disk());
    let daemon = host.attach("debian");
    let mut guest = Machine::new(Firmware::SeaBios, JOB)
        .memory_mib(2048)
        .disk(Disk::vhost_user(daemon.socket()))
        .disk(Disk::File(parcel))
        .start();
    // Each may take as long as a guest may for one thing.
    let steps = JOB.lines().filter_map(|line| line.strip_prefix("step "));
    let page = std::fs::read_to_string(root().join(TUTORIAL)).expect("the page");
    for step in steps {
        guest.wait_for(&format!("SEALDISK-STEP {step}"));
        if step == "tutorial" {
            let sections = page.lines().filter(|line| line.starts_with("## "));
            sections.for_each(|section| drop(guest.wait_for(section)));
        }
    }
    let console = guest.finish();
    let steps = console.lines().filter(|line| {
        [
            "SEALDISK-STEP",
            "exposure",
            "the longest",
            "sealdisk-attach",
        ]
        .iter()
        .any(|shown| line.contains(shown))
    });
    steps.for_each(|line| eprintln!("{}", line.trim()));
    daemon.stop();
}

/// Writes and reads until it is told to stop.
#[test]
#[ignore = "the load of the test above, which runs it in its guest"]
fn a_load() {
    let Some(socket) = std::env::var_os(SOCKET) else {
        return;
    };
    let mut frontend = Frontend::open(Path::new(&socket), &Setup::default());
    let queue = &mut frontend.queues[0];
    println!("SEALDISK-LOAD started");
    let (mut writes, mut longest) = (0, Duration::ZERO);
    loop {
        let begun = Instant::now();
        queue.assert_serves(writes % BLOCKS * 8, writes);
        if writes % 16 == 0 {
            assert_eq!(queue.flush(), Ok(()));
        }
        longest = longest.max(begun.elapsed());
        writes += 1;
        if Path::new(STOP).exists() {
            break;
        }
    }
    assert_eq!(queue.flush(), Ok(()));
    for last in writes.saturating_sub(BLOCKS)..writes {
        let expected = Rng::new(last).bytes(4096);
        let found = queue.read(last % BLOCKS * 8, expected.len());
        assert!(found.as_ref() == Ok(&expected), "write {last} is lost");
    }
    println!("{writes} writes; the longest took {longest:?}");
}
