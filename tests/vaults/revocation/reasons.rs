//! Every way in which a customer takes a key away, and those that only look like one.

use std::thread;
use std::time::{Duration, Instant};

use rusqlite::Connection;
use test_support::frontend::client::Status;
use test_support::frontend::device::Frontend;
use test_support::{Customer, Daemon, PATIENCE};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::{BOUND, FAIL, MIB};

/// An attached disk with a frontend on it.
struct Running {
    customer: Customer,
    daemon: Daemon,
    frontend: Frontend,
}

impl Running {
    fn new(arguments: &'static [&'static str]) -> Self {
        let customer = Customer::new(4 * MIB);
        let daemon = customer.attach(arguments);
        let frontend = daemon.connect();
        Self {
            customer,
            daemon,
            frontend,
        }
    }

    fn write(&mut self) -> Result<(), Status> {
        self.frontend.queues[0].write(0, &[7; 4096])
    }

    /// Writes until that fails; the reason that `disk show` gives then, and how long it took.
    fn stops(&mut self) -> (String, Duration) {
        let started = Instant::now();
        while self.write().is_ok() {
            assert!(started.elapsed() < PATIENCE, "the disk is not stopped");
            thread::sleep(Duration::from_millis(2));
        }
        let after = started.elapsed();
        let access = self.customer.wait_stopped();
        (access["reason"]["code"].as_str().unwrap().to_owned(), after)
    }

    /// Stops, for that reason and within the bound.
    fn stops_for(&mut self, code: &str) {
        let (found, after) = self.stops();
        assert_eq!(found, code);
        assert!(after < BOUND, "{code} took {after:?}");
    }

    fn resumes(&mut self) {
        self.customer.wait_served();
        assert_eq!(self.write(), Ok(()), "{}", self.daemon.log());
    }
}

#[test]
fn a_key_that_is_disabled_stops_the_disk() {
    let mut running = Running::new(FAIL);
    running.customer.enable(false);
    running.stops_for("KeyDisabled");
    running.customer.enable(true);
    running.resumes();
}

#[test]
fn a_key_that_expires_stops_the_disk_at_that_time() {
    let mut running = Running::new(FAIL);
    let expiry = OffsetDateTime::now_utc() + Duration::from_secs(3);
    let expires = expiry.truncate_to_second().format(&Rfc3339).unwrap();
    running.customer.set_key(&["--expires", &expires]);
    assert_eq!(running.write(), Ok(()), "it has not expired yet");
    let (code, _) = running.stops();
    assert_eq!(code, "KeyExpired");
    let late = OffsetDateTime::now_utc() - expiry;
    assert!(late < BOUND, "{late} after the expiry");
    running.customer.set_key(&["--expires", "2099-01-01"]);
    running.resumes();
}

#[test]
fn a_policy_that_is_taken_back_stops_the_disk() {
    let mut running = Running::new(FAIL);
    running.customer.revoke_policy();
    running.stops_for("Forbidden");
    running.customer.grant();
    running.resumes();
}

#[test]
fn a_set_whose_identity_is_removed_stops_its_disks() {
    let mut running = Running::new(FAIL);
    let identity = ["disk-encryption-set", "identity"];
    let run = |running: &Running, last: &[&str]| {
        running.customer.ok(&[&identity[..], last].concat());
    };
    let before = running.customer.identity();
    run(&running, &["remove", "set", "--yes"]);
    running.stops_for("Unauthorized");
    // A new identity is nobody to the vault until it is granted the key.
    run(&running, &["assign", "set"]);
    assert_ne!(running.customer.identity(), before);
    thread::sleep(Duration::from_millis(2500));
    assert_eq!(running.write(), Err(Status::IoErr));
    assert_eq!(
        running.customer.wait_stopped()["reason"]["code"],
        "Forbidden"
    );
    running.customer.grant();
    running.resumes();
}

#[test]
fn a_key_that_is_deleted_stops_the_disk_until_it_is_recovered() {
    let mut running = Running::new(FAIL);
    running.customer.key("delete");
    running.stops_for("KeyNotFound");
    running.customer.key("recover");
    running.resumes();
    // Purged it never comes back; the disk is as good as erased.
    running.customer.key("delete");
    running.stops_for("KeyNotFound");
    running.customer.purge_key();
    thread::sleep(Duration::from_millis(2500));
    assert_eq!(running.write(), Err(Status::IoErr));
    running.customer.wait_stopped();
}

/// Nobody can bring such a vault back, so nothing is waited for.
#[test]
fn a_vault_that_is_purged_between_two_checks_stops_the_disk_at_the_next() {
    let mut running = Running::new(&["--key-check-interval", "4", "--on-revoke", "error"]);
    running.customer.wait_served();
    let installation = running.customer.installation();
    installation
        .delete_vault(Customer::VAULT, true, disks::reconcile)
        .unwrap();
    installation.purge_vault(Customer::VAULT).unwrap();
    let (code, after) = running.stops();
    assert_eq!(code, "KeyNotFound");
    assert!(after < Duration::from_secs(3) + BOUND, "{after:?}");
}

/// As in a catalog that was made again while the vault was not there: the vault may come back.
#[test]
fn a_catalog_that_does_not_know_the_vault_destroys_nothing() {
    let mut running = Running::new(FAIL);
    let installation = running.customer.installation();
    let vault = installation.catalog().vault(Customer::VAULT).unwrap();
    installation
        .catalog()
        .forget_vault(Customer::VAULT)
        .unwrap();
    running.customer.wait_for("KeyUnreachable", "Held");
    assert_eq!(running.write(), Ok(()));
    installation.catalog().insert_vault(&vault.record).unwrap();
    running.resumes();
}

#[test]
fn a_vault_that_is_away_for_less_than_the_grace_period_stops_nothing() {
    let mut running = Running::new(FAIL);
    running.customer.hide_vault();
    let access = running.customer.wait_for("KeyUnreachable", "Held");
    assert!(access["until"].is_string(), "{access}");
    for _ in 0..100 {
        assert_eq!(running.write(), Ok(()));
        thread::sleep(Duration::from_millis(20));
    }
    running.customer.show_vault();
    running.resumes();
    let events = running.customer.events();
    assert_eq!(events, ["Attached", "KeyUnreachable", "KeyReachable"]);
}

#[test]
fn a_vault_that_is_away_for_longer_than_the_grace_period_stops_the_disk_until_it_is_back() {
    let mut running = Running::new(&["--key-check-interval", "1", "--key-grace", "3"]);
    running.customer.hide_vault();
    let away = Instant::now();
    let (_, after) = running.stops();
    assert!(after >= Duration::from_secs(2), "not for the grace period");
    assert!(away.elapsed() < Duration::from_secs(3) + BOUND);
    let access = running.customer.show()["keyAccess"].take();
    let message = access["reason"]["message"].as_str().unwrap();
    assert!(message.contains("grace period of 3 s is over"), "{access}");
    running.customer.show_vault();
    running.resumes();
}

/// A vault that hangs: its database is locked by somebody else for longer than the grace period.
/// Nothing waits for it, not the grace period, not a command, not the end.
#[test]
fn a_vault_that_hangs_holds_nothing_up() {
    let mut running = Running::new(&["--key-check-interval", "1", "--key-grace", "6"]);
    let vault = Connection::open(running.customer.vault().join("vault.db")).unwrap();
    vault.execute_batch("BEGIN IMMEDIATE").unwrap();
    let locked = Instant::now();
    let access = running.customer.wait_for("KeyUnreachable", "Held");
    assert_eq!(access["reason"]["code"], "VaultUnreachable", "{access}");
    let (code, _) = running.stops();
    assert_eq!(code, "VaultUnreachable");
    assert!(
        locked.elapsed() < Duration::from_secs(7) + BOUND,
        "the grace period waited for the vault"
    );
    running
        .customer
        .run(&["disk", "update", "disk", "--iops", "100000"]);
    vault.execute_batch("ROLLBACK").unwrap();
    running.resumes();

    vault.execute_batch("BEGIN IMMEDIATE").unwrap();
    thread::sleep(Duration::from_millis(1500));
    let ending = Instant::now();
    assert!(running.daemon.terminate().success());
    assert!(
        ending.elapsed() < Duration::from_secs(4),
        "the end waited for the vault"
    );
}

/// A disk is stopped by a refusal; that the vault cannot be asked then does not start it again.
#[test]
fn a_refused_disk_stays_stopped_while_the_vault_is_away() {
    let mut running = Running::new(FAIL);
    running.customer.enable(false);
    running.stops_for("KeyDisabled");
    running.customer.hide_vault();
    thread::sleep(Duration::from_millis(2500));
    assert_eq!(running.write(), Err(Status::IoErr));
    running.customer.show_vault();
    running.customer.enable(true);
    running.resumes();
}

/// While the key is revoked the disk is wrapped under another: whoever controls that one decides.
#[test]
fn a_disk_that_is_wrapped_under_another_key_follows_that_one() {
    let mut running = Running::new(FAIL);
    let update = ["disk", "update", "disk", "--platform-managed"];
    running.customer.ok(&update);
    running.customer.enable(false);
    thread::sleep(Duration::from_millis(2500));
    assert_eq!(running.write(), Ok(()), "the customer's key is not its own");
    let url = running.customer.show()["keyAccess"]["keyUrl"].take();
    assert!(url.as_str().unwrap().contains("platform"), "{url}");
    let events = running.customer.events();
    assert_eq!(events, ["Attached", "KeyChanged"]);
}

#[test]
fn a_disk_is_not_attached_without_its_key_or_its_vault() {
    let customer = Customer::new(4 * MIB);
    let attach = ["attach", "disk", "--socket-path", "/dev/shm/never-bound"];
    let refused = |why: &str| {
        let output = customer.disk.command(&attach).output().unwrap();
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && error.contains(why), "{error}");
    };
    customer.enable(false);
    refused("is disabled");
    customer.enable(true);
    customer.hide_vault();
    refused("there is no key vault 'customer'");
}
