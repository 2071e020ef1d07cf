//! A running guest whose customer takes the key away, and gives it back.

use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;
use test_support::Daemon;
use test_support::key_search::{may_read_memory, needles, search, search_what_stays};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::backend::CustomerHost;
use crate::images;
use crate::qemu::{Disk, Firmware, Machine, Qemu};

/// An interval of 1 s, another second, and what an emulated guest on a loaded machine adds.
const BOUND: Duration = Duration::from_secs(5);

/// How long anything may take before it counts as a hang.
const PATIENCE: Duration = Duration::from_secs(60);

fn with_fio() -> Firmware {
    Firmware::Direct(images::initramfs_with_fio())
}

fn key_access(host: &CustomerHost) -> Value {
    host.json(&["disk", "show", "data"])["keyAccess"].take()
}

/// Waits until `disk show` has the key in that state and the DEK there.
fn wait_for(host: &CustomerHost, daemon: &Daemon, state: &str, dek: &str) -> Value {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let access = key_access(host);
        if access["state"] == state && access["dek"] == dek {
            return access;
        }
        assert!(
            Instant::now() < deadline,
            "not {state} with the DEK {dek} but {access}\n{}",
            daemon.log()
        );
        thread::sleep(Duration::from_millis(20));
    }
}

fn set_key(host: &CustomerHost, attribute: &[&str]) {
    let key = ["keyvault", "key", "set-attributes", "disk-key"];
    host.ok(&[&key[..], &["--vault-name", "customer"], attribute].concat());
}

/// The guest writes until that fails, prints each success, and goes on when it can.
const WRITE_UNTIL_IT_FAILS: &str = "
set -e
check() {
    fio --name=before --filename=/dev/vda --offset=64m --size=8m --bs=4k --rw=randwrite \\
        --ioengine=psync --direct=1 --verify=crc32c \"$@\" >/tmp/fio 2>&1 || { cat /tmp/fio; exit 1; }
}
check --do_verify=0
dd if=/dev/urandom of=/tmp/block bs=64k count=1 status=none
echo SEALDISK-STEP writing
n=0
while dd if=/tmp/block of=/dev/vda bs=64k seek=$((n % 512)) conv=notrunc oflag=direct status=none 2>/dev/null
do
    n=$((n + 1))
    echo \"success $n\"
done
echo SEALDISK-STEP failed
[ $n -gt 10 ]
until dd if=/dev/vda of=/dev/null bs=64k count=1 iflag=direct status=none 2>/dev/null; do
    usleep 50000
done
echo SEALDISK-STEP resumed
check --verify_only
m=0
while [ $m -lt $n ] && [ $m -lt 512 ]; do
    dd if=/dev/vda of=/tmp/read bs=64k skip=$m count=1 iflag=direct status=none
    cmp /tmp/block /tmp/read
    m=$((m + 1))
done
check
";

#[test]
fn a_guests_requests_fail_within_the_bound_and_nothing_is_lost() {
    let host = CustomerHost::new();
    host.create_disk("data", "128MiB", &[]);
    let dek = host.dek("data");
    let daemon = host.attach_with("data", &["--key-check-interval", "1s"]);
    let mut guest = Machine::new(with_fio(), WRITE_UNTIL_IT_FAILS)
        .disk(Disk::vhost_user(daemon.socket()))
        .start();
    guest.wait_for("SEALDISK-STEP writing");
    guest.wait_for("success 20");
    assert_eq!(key_lives_in(&daemon, &dek), [false, true]);

    set_key(&host, &["--enabled", "false"]);
    let disabled = Instant::now();
    let last = last_success(&guest, disabled);
    guest.wait_for("SEALDISK-STEP failed");
    assert!(last < BOUND, "the last success came {last:?} later");
    eprintln!("last success {last:?} after the key was disabled");
    let access = wait_for(&host, &daemon, "KeyRevoked", "Destroyed");
    assert_eq!(access["reason"]["code"], "KeyDisabled");
    assert_eq!(key_lives_in(&daemon, &dek), [false, false]);

    set_key(&host, &["--enabled", "true"]);
    guest.wait_for("SEALDISK-STEP resumed");
    guest.finish();
    daemon.stop();
}

/// When the console showed a success for the last time, before it showed the first failure.
fn last_success(guest: &Qemu, since: Instant) -> Duration {
    let (mut seen, mut last) = (0, Duration::ZERO);
    loop {
        let console = guest.console();
        let successes = console.matches("success ").count();
        if successes > seen {
            (seen, last) = (successes, since.elapsed());
        }
        if console.contains("SEALDISK-STEP failed") {
            return last;
        }
        assert!(since.elapsed() < PATIENCE, "nothing fails\n{console}");
        thread::sleep(Duration::from_millis(10));
    }
}

/// Whether something of the DEK is in the memory of the attach process, and of the data plane.
fn key_lives_in(daemon: &Daemon, dek: &[u8]) -> [bool; 2] {
    let (control, data_plane) = (daemon.pid(), daemon.data_plane());
    if !may_read_memory() {
        return [false, key_is_held(daemon)];
    }
    let needles = needles(dek);
    let found = [
        (control, search_what_stays(control, &needles)),
        (data_plane, search(data_plane, &needles)),
    ];
    found.map(|(process, found)| {
        if !found.is_empty() {
            let some = &found[..found.len().min(8)];
            eprintln!(
                "process {process} has {} parts of the DEK: {some:#?}",
                found.len()
            );
        }
        !found.is_empty()
    })
}

/// What stands in for a look at the memory where that is forbidden: what the log says.
fn key_is_held(daemon: &Daemon) -> bool {
    !daemon.log().contains("key destroyed")
}

/// fio writes and verifies, round after round, until a second disk is plugged in.
const VERIFY_UNTIL_TOLD: &str = "
set -e
dmesg -c >/dev/null
echo SEALDISK-STEP started
n=0
until [ -b /dev/vdb ]; do
    fio --name=load --filename=/dev/vda --size=2m --offset=$((n % 16 * 2))m --bs=4k --rw=randwrite \\
        --ioengine=libaio --iodepth=8 --direct=1 --verify=crc32c --verify_fatal=1 \\
        --randseed=$n >/tmp/fio 2>&1 || { cat /tmp/fio; exit 1; }
    n=$((n + 1))
    echo \"SEALDISK-STEP round $n\"
done
[ $n -gt 5 ]
! dmesg | grep -i error
";

/// Each way of taking a key away, under load, with `pause`: the guest waits, and sees no error.
#[test]
fn a_paused_guest_outlives_every_revocation_without_an_error() {
    let host = CustomerHost::new();
    host.create_disk("data", "64MiB", &[]);
    // Not under the customer's key: it would be stopped with the other one.
    host.ok(&["disk", "create", "signal", "--size", "1MiB"]);
    let signal = host.attach("signal");
    let options = ["--key-check-interval", "1s", "--key-grace", "3s"];
    let daemon = host.attach_with("data", &[&options[..], &["--on-revoke", "pause"]].concat());
    let mut guest = Machine::new(with_fio(), VERIFY_UNTIL_TOLD)
        .disk(Disk::vhost_user(daemon.socket()))
        .start();
    guest.wait_for("SEALDISK-STEP round 2");
    for (code, take, give) in revocations() {
        take(&host);
        let access = wait_for(&host, &daemon, "KeyRevoked", "Destroyed");
        assert_eq!(access["reason"]["code"], code, "{access}");
        // Nothing comes through any more, and nothing fails.
        thread::sleep(Duration::from_millis(300));
        let rounds = guest.console().matches("SEALDISK-STEP round").count();
        thread::sleep(Duration::from_millis(700));
        let later = guest.console().matches("SEALDISK-STEP round").count();
        assert_eq!(later, rounds, "{code}: the guest goes on without a key");
        give(&host);
        wait_for(&host, &daemon, "Active", "Held");
        guest.wait_for(&format!("SEALDISK-STEP round {}", rounds + 1));
    }
    // Away for less than the grace period: nothing stops.
    hide_vault(&host);
    wait_for(&host, &daemon, "KeyUnreachable", "Held");
    show_vault(&host);
    wait_for(&host, &daemon, "Active", "Held");
    // A round may take longer than the grace period.
    guest.wait_for("SEALDISK-STEP round");
    guest.hot_plug(signal.socket());
    guest.finish();
    daemon.stop();
    signal.stop();
}

/// What takes the key away, the code that it has in the status, and what gives it back.
type Revocation = (&'static str, fn(&CustomerHost), fn(&CustomerHost));

fn revocations() -> Vec<Revocation> {
    vec![
        (
            "KeyDisabled",
            |host| set_key(host, &["--enabled", "false"]),
            |host| set_key(host, &["--enabled", "true"]),
        ),
        (
            "KeyExpired",
            |host| {
                let soon = OffsetDateTime::now_utc() + Duration::from_secs(2);
                let soon = soon.truncate_to_second().format(&Rfc3339).unwrap();
                set_key(host, &["--expires", &soon]);
            },
            |host| set_key(host, &["--expires", "2099-01-01"]),
        ),
        ("Forbidden", revoke_policy, CustomerHost::grant),
        ("Unauthorized", remove_identity, assign_identity),
        ("KeyNotFound", |h| key(h, "delete"), |h| key(h, "recover")),
        ("VaultNotFound", hide_vault, show_vault),
    ]
}

fn revoke_policy(host: &CustomerHost) {
    let identity = host.identity();
    host.ok(&[
        "keyvault",
        "delete-policy",
        "customer",
        "--object-id",
        &identity,
    ]);
}

/// `keyvault key delete`, or `recover`.
fn key(host: &CustomerHost, what: &str) {
    host.ok(&[
        "keyvault",
        "key",
        what,
        "disk-key",
        "--vault-name",
        "customer",
    ]);
}

fn remove_identity(host: &CustomerHost) {
    let remove = ["disk-encryption-set", "identity", "remove"];
    host.ok(&[&remove[..], &["customer-set", "--yes"]].concat());
}

fn assign_identity(host: &CustomerHost) {
    host.ok(&["disk-encryption-set", "identity", "assign", "customer-set"]);
    host.grant();
}

fn hide_vault(host: &CustomerHost) {
    let vaults = host.state().join("vaults");
    std::fs::rename(vaults.join("customer"), host.state().join("away")).unwrap();
}

fn show_vault(host: &CustomerHost) {
    let vaults = host.state().join("vaults");
    std::fs::rename(host.state().join("away"), vaults.join("customer")).unwrap();
}
