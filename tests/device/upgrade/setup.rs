//! What the new program serves is what the old one served: layers, limits, a revoked key, what is wrong with the host.

use std::time::{Duration, Instant};

use test_support::frontend::client::Status;
use test_support::frontend::message::{VERSION, header, request, words};
use test_support::rng::Rng;
use test_support::small_fs::SmallFs;
use test_support::{AttachOptions, Customer, Disk};

use super::{MIB_8, assert_goes_on, refusal, upgrade};
use crate::supervise::is_qsd;
use crate::supervise::setup::a_job_outlives;

#[test]
fn layers_can_be_changed_before_and_after() {
    if is_qsd() {
        return;
    }
    let disk = Disk::new(MIB_8);
    let daemon = disk.attach(&AttachOptions::default());
    let mut frontend = daemon.connect();
    let (old, new) = (Rng::new(1).bytes(65536), Rng::new(2).bytes(4096));
    frontend.queues[0].write(0, &old).unwrap();
    disk.ok("snapshot create s --source disk");
    frontend.queues[0].write(8, &new).unwrap();
    upgrade(&disk, None);
    let mut expected = old.clone();
    expected[4096..8192].copy_from_slice(&new);
    assert!(frontend.queues[1].read(0, old.len()).as_ref() == Ok(&expected));
    disk.ok("snapshot create t --source disk");
    disk.ok("disk resize disk --size 16MiB");
    upgrade(&disk, None);
    assert_eq!(frontend.config().capacity(), (16 << 20) / 512);
    disk.ok("disk rotate-dek disk");
    upgrade(&disk, None);
    assert!(frontend.queues[1].read(0, old.len()).as_ref() == Ok(&expected));
    disk.ok("disk update disk --iops 40 --iops-burst 1");
    upgrade(&disk, None);
    let queue = &mut frontend.queues[0];
    queue.read(0, 512).unwrap();
    let begun = Instant::now();
    for _ in 0..20 {
        queue.arena.reset();
        queue.read(0, 512).unwrap();
    }
    assert!(
        begun.elapsed() > Duration::from_millis(400),
        "no limit holds"
    );
    drop(frontend);
    daemon.stop();
}

/// Snapshots that are made while the program changes wait for their turn, or are said to be in the way.
#[test]
fn changes_of_layers_and_upgrades_take_turns() {
    if is_qsd() {
        return;
    }
    let disk = Disk::new(MIB_8);
    let daemon = disk.attach(&AttachOptions::default());
    let mut frontend = daemon.connect();
    std::thread::scope(|scope| {
        let changes = scope.spawn(|| {
            for n in 0..6 {
                disk.ok(&format!("snapshot create s{n} --source disk"));
            }
        });
        while !changes.is_finished() {
            upgrade(&disk, None);
        }
        changes.join().unwrap();
    });
    assert_goes_on(&mut frontend, 1);
    drop(frontend);
    daemon.stop();
}

#[test]
fn a_job_goes_on_with_the_new_program() {
    a_job_outlives(|disk, _| drop(upgrade(disk, None)));
}

/// Requests that wait for space wait on, and are done when there is some.
#[test]
fn requests_that_wait_for_space_wait_on() {
    let Some(fs) = SmallFs::mount("tmpfs") else {
        return;
    };
    let disk = fs.disk(2 * MIB_8);
    let daemon = disk.attach(&AttachOptions::default());
    let mut frontend = daemon.connect();
    let ballast = fs.fill();
    let data = Rng::new(5).bytes(1 << 20);
    let queue = &mut frontend.queues[0];
    queue.arena.reset();
    let pending: Vec<_> = (0..4).map(|i| queue.begin_write(2048 * i, &data)).collect();
    assert_eq!(queue.next_within(Duration::from_millis(800)), None);
    upgrade(&disk, None);
    assert_eq!(queue.next_within(Duration::from_millis(800)), None);
    drop(ballast);
    for pending in pending {
        assert_eq!(queue.complete(pending).status, Status::Ok);
    }
    for i in 0..4 {
        queue.arena.reset();
        assert!(queue.read(2048 * i, data.len()).as_ref() == Ok(&data));
    }
    drop(frontend);
    daemon.stop();
}

/// A key that is revoked stays so, and no vault is asked for one that is granted.
#[test]
fn a_revoked_key_stays_revoked_and_comes_back() {
    if is_qsd() {
        return;
    }
    let customer = Customer::new(MIB_8);
    let daemon = customer.attach(&["--key-check-interval", "1s", "--on-revoke", "pause"]);
    let mut frontend = daemon.connect();
    let data = Rng::new(6).bytes(65536);
    frontend.queues[0].write(0, &data).unwrap();
    customer.enable(false);
    customer.wait_stopped();
    let queue = &mut frontend.queues[0];
    queue.arena.reset();
    let pending = queue.begin_write(0, &data);
    assert_eq!(queue.next_within(Duration::from_millis(300)), None);
    upgrade(&customer.disk, None);
    assert_eq!(queue.next_within(Duration::from_millis(300)), None);
    assert_eq!(customer.show()["keyAccess"]["dek"], "Destroyed");
    customer.enable(true);
    customer.wait_served();
    assert_eq!(frontend.queues[0].complete(pending).status, Status::Ok);
    upgrade(&customer.disk, None);
    // It is revoked as ever.
    customer.enable(false);
    customer.wait_stopped();
    customer.enable(true);
    customer.wait_served();
    assert_goes_on(&mut frontend, 1);
    drop(frontend);
    daemon.stop();
}

#[test]
fn a_vault_that_is_down_keeps_nobody_from_upgrading() {
    if is_qsd() {
        return;
    }
    let customer = Customer::new(MIB_8);
    let daemon = customer.attach(&["--key-check-interval", "1s", "--key-grace", "10m"]);
    let mut frontend = daemon.connect();
    let data = Rng::new(6).bytes(65536);
    frontend.queues[0].write(0, &data).unwrap();
    customer.hide_vault();
    customer.wait_for("KeyUnreachable", "Held");
    upgrade(&customer.disk, None);
    assert!(frontend.queues[1].read(0, data.len()).as_ref() == Ok(&data));
    customer.show_vault();
    customer.wait_served();
    assert_goes_on(&mut frontend, 6);
}

/// A frontend that is in the midst of a message keeps its data plane.
#[test]
fn half_a_message_is_waited_for_and_then_in_the_way() {
    if is_qsd() {
        return;
    }
    let disk = Disk::new(MIB_8);
    let daemon = disk.attach(&AttachOptions::default());
    let mut frontend = daemon.connect();
    let message = [
        &header(request::SET_FEATURES, VERSION, 8)[..],
        &words(&[frontend.features]),
    ]
    .concat();
    let (first, second) = message.split_at(12);
    frontend.conn.send_raw(first, &[]).unwrap();
    let said = refusal(&disk, None);
    assert!(
        said.contains("a message of the frontend is not handled"),
        "{said}"
    );
    frontend.conn.send_raw(second, &[]).unwrap();
    assert_goes_on(&mut frontend, 1);
    upgrade(&disk, None);
    assert_goes_on(&mut frontend, 2);
}
