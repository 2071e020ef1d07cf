//! The connection of a frontend whose data plane dies.

use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use test_support::frontend::client::Status;
use test_support::frontend::device::{Frontend, Setup, feature};
use test_support::frontend::message::{Connection, VERSION, header, protocol, request, words};
use test_support::frontend::queue::Queue;
use test_support::rng::Rng;
use test_support::{AttachOptions, Disk, PATIENCE, data_plane_of, kill, stop};

use super::load::{DISK_BYTES, run, setup};
use super::{MIB_8, assert_goes_on, is_qsd, next_data_plane, settle, strike};

/// The half of a message that was taken is lost with who took it: nobody can go on from there.
#[test]
fn a_message_that_is_half_handled_ends_the_connection() {
    if is_qsd() {
        return;
    }
    let disk = Disk::new(MIB_8);
    let daemon = disk.attach(&AttachOptions::default());
    let frontend = daemon.connect();
    let half = header(request::SET_FEATURES, VERSION, 8);
    frontend.conn.send_raw(&half, &[]).unwrap();
    // Which waits until it is taken.
    strike(&daemon);
    assert!(frontend.conn.closed_by_peer(), "{}", daemon.log());
    let mut frontend = daemon.connect();
    assert_goes_on(&mut frontend, 1);
}

/// What nobody has taken is there for the next one.
#[test]
fn a_message_that_was_not_taken_is_handled_by_the_next() {
    if is_qsd() {
        return;
    }
    let disk = Disk::new(MIB_8);
    let daemon = disk.attach(&AttachOptions::default());
    let mut frontend = daemon.connect();
    let dead = daemon.data_plane();
    settle(dead);
    stop(dead);
    let message = [
        &header(request::SET_FEATURES, VERSION, 8)[..],
        &words(&[frontend.features]),
    ]
    .concat();
    let (first, second) = message.split_at(5);
    frontend.conn.send_raw(first, &[]).unwrap();
    kill(dead);
    next_data_plane(&daemon, dead);
    frontend.conn.send_raw(second, &[]).unwrap();
    assert_goes_on(&mut frontend, 2);
}

/// All that a frontend may set up is as it was: what was not, could be changed after it.
#[test]
fn what_was_set_up_can_be_changed_as_before() {
    if is_qsd() {
        return;
    }
    let disk = Disk::new(MIB_8);
    let daemon = disk.attach(&AttachOptions::default());
    let mut frontend = daemon.connect();
    let data = Rng::new(7).bytes(65536);
    frontend.queues[0].write(77, &data).unwrap();
    strike(&daemon);
    // Rings that stop, and go on where they were.
    for index in 0..2 {
        let base = frontend.stop_queue(index).unwrap();
        let queue = &mut frontend.queues[index as usize];
        assert_eq!(base, queue.avail_idx);
        queue.base = base;
    }
    strike(&daemon);
    for index in 0..2 {
        frontend.start_queue(index).unwrap();
    }
    assert!(frontend.queues[1].read(77, data.len()).as_ref() == Ok(&data));
    frontend.enable(0, false).unwrap();
    strike(&daemon);
    frontend.barrier().unwrap();
    // The disabled one does not serve, and does when it is enabled.
    let queue = &mut frontend.queues[0];
    let pending = queue.begin_write(0, &[1; 512]);
    assert_eq!(queue.next_within(Duration::from_millis(300)), None);
    frontend.enable(0, true).unwrap();
    let queue = &mut frontend.queues[0];
    assert_eq!(queue.complete(pending).status, Status::Ok);
    // The driver's own choice.
    frontend.set_config(32, &[0]).unwrap();
    strike(&daemon);
    assert_eq!(frontend.config().writeback(), 0);
    frontend
        .conn
        .call(request::GET_QUEUE_NUM, &[], &[])
        .unwrap();
    // A device that was reset stays so.
    frontend.set(request::RESET_DEVICE, &[], &[]).unwrap();
    strike(&daemon);
    frontend.set_features(frontend.features).unwrap();
    for queue in &mut frontend.queues {
        queue.reset(0);
    }
    for index in 0..2 {
        frontend.start_queue(index).unwrap();
    }
    assert_goes_on(&mut frontend, 3);
}

/// Nobody is connected, or somebody was.
#[test]
fn a_frontend_connects_after_a_death_too() {
    if is_qsd() {
        return;
    }
    let disk = Disk::new(MIB_8);
    let daemon = disk.attach(&AttachOptions::default());
    strike(&daemon);
    let mut frontend = daemon.connect();
    assert_goes_on(&mut frontend, 1);
    drop(frontend);
    strike(&daemon);
    let mut frontend = daemon.connect();
    assert_goes_on(&mut frontend, 2);
    drop(frontend);
    daemon.stop();
}

/// A frontend that has a region of its own has that used, before and after.
#[test]
fn a_frontends_own_region_is_used_on() {
    if is_qsd() {
        return;
    }
    let disk = Disk::new(DISK_BYTES);
    let daemon = disk.attach(&AttachOptions::default());
    let mut setup = setup();
    setup.protocol |= protocol::INFLIGHT_SHMFD;
    let conn = Connection::open(daemon.socket()).unwrap();
    let mut frontend = Frontend::negotiate(conn, &setup).unwrap();
    assert_ne!(frontend.protocol & protocol::INFLIGHT_SHMFD, 0);
    let shape = words(&[
        0,
        0,
        setup.queues as u64 | u64::from(setup.queue_size) << 16,
    ]);
    let region = frontend.conn.call(request::GET_INFLIGHT_FD, &shape, &[]);
    let region = region.unwrap();
    let file = region.fds.first().expect("a region").as_fd();
    frontend
        .set(request::SET_INFLIGHT_FD, &region.body, &[file])
        .unwrap();
    frontend.set_mem_table().unwrap();
    for index in 0..setup.queues {
        let mut queue = Queue::new(&frontend.mem, index, setup.queue_size);
        queue.reset(0);
        frontend.queues.push(queue);
        frontend.start_queue(index).unwrap();
    }
    let done = run(&mut frontend, 11, || {
        for _ in 0..3 {
            std::thread::sleep(Duration::from_millis(100));
            strike(&daemon);
        }
    });
    assert!(done.requests > 0);
    assert_goes_on(&mut frontend, 5);
}

/// A socket that was connected before (`--fd`) is kept as well.
#[test]
fn a_connection_that_was_inherited_goes_on() {
    if is_qsd() {
        return;
    }
    let disk = Disk::new(MIB_8);
    let (ours, theirs) = UnixStream::pair().unwrap();
    let mut attach = attach_by_fd(&disk, theirs);
    let mut frontend = Frontend::start(Connection::from(ours), &Setup::default()).unwrap();
    assert_goes_on(&mut frontend, 1);
    let dead = data_plane_of(attach.id()).expect("a data plane");
    settle(dead);
    kill(dead);
    assert_goes_on(&mut frontend, 2);
    drop(frontend);
    let end = Instant::now() + PATIENCE;
    let status = loop {
        match attach.try_wait().unwrap() {
            Some(status) => break status,
            None => assert!(Instant::now() < end, "it does not end with its connection"),
        }
        std::thread::sleep(Duration::from_millis(5));
    };
    assert!(status.success(), "{status}");
}

/// `attach` with a socket that it inherits.
pub fn attach_by_fd(disk: &Disk, socket: UnixStream) -> Child {
    // Beyond what the start of a process needs by itself.
    const NUMBER: i32 = 200;
    let mut command = disk.command(&["attach", "disk", "--fd", &NUMBER.to_string()]);
    command.stdin(Stdio::null());
    // SAFETY: one system call between fork and exec; the descriptor that it makes is inherited.
    unsafe {
        command.pre_exec(move || match libc::dup2(socket.as_raw_fd(), NUMBER) {
            -1 => Err(std::io::Error::last_os_error()),
            _ => Ok(()),
        })
    };
    command.spawn().unwrap()
}

/// The channel on which the frontend is told of another size outlives a death.
#[test]
fn a_disk_that_grows_is_told_by_the_next_one() {
    if is_qsd() {
        return;
    }
    let disk = Disk::new(MIB_8);
    let daemon = disk.attach(&AttachOptions::default());
    let setup = Setup {
        protocol: Setup::default().protocol | protocol::BACKEND_REQ,
        features: Setup::default().features & !feature::EVENT_IDX,
        ..Setup::default()
    };
    let mut frontend = daemon.connect_with(&setup);
    let (ours, theirs) = UnixStream::pair().unwrap();
    ours.set_read_timeout(Some(PATIENCE)).unwrap();
    frontend
        .set(request::SET_BACKEND_REQ_FD, &[], &[theirs.as_fd()])
        .unwrap();
    drop(theirs);
    strike(&daemon);
    let channel = Connection::from(ours);
    let resize = std::thread::spawn({
        let mut command = disk.command("disk resize disk --size 16MiB");
        move || command.status().unwrap()
    });
    let told = channel.receive().unwrap();
    assert_eq!(told.request, 2, "VHOST_USER_BACKEND_CONFIG_CHANGE_MSG");
    assert!(resize.join().unwrap().success());
    assert_eq!(frontend.config().capacity(), (16 << 20) / 512);
    strike(&daemon);
    assert_eq!(frontend.config().capacity(), (16 << 20) / 512);
    frontend.queues[0].assert_serves((16 << 20) / 512 - 64, 1);
}
