//! What the next data plane serves is what the last one served: layers, limits, and what is wrong with the host.

use std::time::{Duration, Instant};

use test_support::frontend::client::Status;
use test_support::rng::Rng;
use test_support::small_fs::SmallFs;
use test_support::{AttachOptions, Customer, Daemon, Disk, PATIENCE, threads};

use super::{MIB_8, assert_goes_on, await_restarts, is_qsd, strike};

#[test]
fn layers_that_were_changed_are_served_by_the_next_one() {
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
    strike(&daemon);
    let mut expected = old.clone();
    expected[4096..8192].copy_from_slice(&new);
    assert!(frontend.queues[1].read(0, old.len()).as_ref() == Ok(&expected));
    // And they can be changed again.
    disk.ok("snapshot create t --source disk");
    strike(&daemon);
    disk.ok("disk flatten disk");
    strike(&daemon);
    assert!(frontend.queues[1].read(0, old.len()).as_ref() == Ok(&expected));
    drop(frontend);
    daemon.stop();
}

#[test]
fn a_job_goes_on_with_the_next_one() {
    a_job_outlives(|_, daemon| {
        strike(daemon);
    });
}

/// A new DEK goes on to be given to a disk whose data plane is replaced in the midst of that.
pub fn a_job_outlives(replace: impl FnOnce(&Disk, &Daemon)) {
    if is_qsd() {
        return;
    }
    let disk = Disk::new(4 * MIB_8);
    let daemon = disk.attach(&AttachOptions::default());
    let mut frontend = daemon.connect();
    let data = Rng::new(3).bytes(MIB_8 as usize);
    for part in 0..4 {
        let sector = part * MIB_8 / 512;
        frontend.queues[0].write(sector, &data).unwrap();
    }
    disk.ok("disk rotate-dek disk --no-wait --rate 8MiB");
    std::thread::sleep(Duration::from_millis(300));
    replace(&disk, &daemon);
    let end = Instant::now() + PATIENCE;
    while !disk.json("disk show disk")["job"].is_null() {
        assert!(Instant::now() < end, "{}", daemon.log());
        std::thread::sleep(Duration::from_millis(50));
    }
    let queue = &mut frontend.queues[1];
    assert!(queue.read(0, data.len()).as_ref() == Ok(&data));
    assert_goes_on(&mut frontend, 4);
}

#[test]
fn limits_that_were_changed_hold_for_the_next_one() {
    if is_qsd() {
        return;
    }
    let disk = Disk::new(MIB_8);
    let daemon = disk.attach(&AttachOptions::default());
    let mut frontend = daemon.connect();
    disk.ok("disk update disk --iops 40 --iops-burst 1");
    strike(&daemon);
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
}

/// Requests that wait for space are taken on by the next one, which tries them again.
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
    strike(&daemon);
    assert_eq!(queue.next_within(Duration::from_millis(800)), None);
    drop(ballast);
    for pending in pending {
        assert_eq!(queue.complete(pending).status, Status::Ok);
    }
    for i in 0..4 {
        queue.arena.reset();
        assert!(queue.read(2048 * i, data.len()).as_ref() == Ok(&data));
    }
}

/// No vault is asked: the key waits in the attach process.
#[test]
fn a_vault_that_is_down_keeps_nobody_from_going_on() {
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
    strike(&daemon);
    assert!(frontend.queues[1].read(0, data.len()).as_ref() == Ok(&data));
    await_restarts(&customer.disk, 1);
    customer.show_vault();
    customer.wait_served();
    assert_goes_on(&mut frontend, 6);
}

/// The CPUs that the threads of the queues may run on, as the kernel writes them.
fn cpus_of_queues(data_plane: u32) -> Vec<String> {
    let number = |name: &str| name.strip_prefix("queue-")?.parse::<u32>().ok();
    let queues = threads(data_plane)
        .into_iter()
        .filter_map(|(id, name)| Some((number(&name)?, id)));
    let cpus_of = |thread: u32| {
        let status = std::fs::read_to_string(format!("/proc/{data_plane}/task/{thread}/status"));
        let status = status.unwrap();
        let line = status
            .lines()
            .find(|line| line.starts_with("Cpus_allowed_list"));
        line.unwrap().split_whitespace().nth(1).unwrap().to_owned()
    };
    let mut found: Vec<_> = queues.map(|(number, id)| (number, cpus_of(id))).collect();
    found.sort();
    found.into_iter().map(|(_, cpus)| cpus).collect()
}

#[test]
fn each_queue_runs_on_its_cpu_and_so_does_the_next_ones() {
    let allowed = rustix::thread::sched_getaffinity(None).unwrap();
    let cpus = (0..rustix::thread::CpuSet::MAX_CPU).filter(|cpu| allowed.is_set(*cpu));
    let cpus: Vec<_> = cpus.map(|cpu| cpu.to_string()).collect();
    if is_qsd() || cpus.len() < 2 {
        eprintln!("not tested: it takes two CPUs");
        return;
    }
    let disk = Disk::new(MIB_8);
    let [first, second] = [&cpus[0], &cpus[1]];
    let list = format!("{second},{first}").leak();
    let daemon = disk.attach(&AttachOptions {
        arguments: vec!["--num-queues", "3", "--cpus", list].leak(),
        ..AttachOptions::default()
    });
    let mut frontend = daemon.connect();
    let expected = [second, first, second].map(String::as_str);
    assert_eq!(cpus_of_queues(daemon.data_plane()), expected);
    let next = strike(&daemon);
    assert_goes_on(&mut frontend, 9);
    assert_eq!(cpus_of_queues(next), expected);
    drop(frontend);
    daemon.stop();
    let refused = disk.refused("attach disk --socket-path /nowhere/socket --cpus 0,8191");
    assert!(refused.contains("may not run on CPU 8191"), "{refused}");
}
