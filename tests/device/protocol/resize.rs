//! A disk that grows while it is attached, and how the frontend is told.

use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::process::Output;
use std::time::Duration;

use test_support::frontend::client::{Status, UNMAP, kind};
use test_support::frontend::device::{Frontend, Setup};
use test_support::frontend::message::{
    Connection, NEED_REPLY, REPLY, VERSION, protocol, request, words,
};
use test_support::frontend::queue::Seg;
use test_support::rng::Rng;
use test_support::{AttachOptions, Backend, Disk};

use super::MIB;

/// `VHOST_USER_BACKEND_CONFIG_CHANGE_MSG`.
const CONFIG_CHANGE: u32 = 2;
const OLD: u64 = 4 * MIB;
const NEW: u64 = 300 * MIB;

fn resize(disk: &Disk, size: &str) -> Output {
    disk.command(&["disk", "resize", "disk", "--size", size])
        .output()
        .unwrap()
}

fn resized(disk: &Disk, size: u64) {
    let output = resize(disk, &size.to_string());
    assert!(output.status.success(), "{output:?}");
}

/// A frontend with a channel on which the back-end sends its messages.
fn with_channel(connection: Connection) -> (Frontend, Connection) {
    let setup = Setup::default();
    let frontend = Frontend::start(
        connection,
        &Setup {
            protocol: setup.protocol | protocol::BACKEND_REQ,
            ..setup
        },
    )
    .unwrap();
    let (ours, theirs) = UnixStream::pair().unwrap();
    frontend
        .set(request::SET_BACKEND_REQ_FD, &[], &[theirs.as_fd()])
        .unwrap();
    (frontend, Connection::from(ours))
}

/// Waits for the message and acknowledges it.
fn told(channel: &Connection) {
    let message = channel.receive().unwrap();
    assert_eq!(message.request, CONFIG_CHANGE);
    assert_eq!(message.flags, VERSION | NEED_REPLY);
    assert!(message.body.is_empty());
    channel
        .send(CONFIG_CHANGE, REPLY, &words(&[0]), &[])
        .unwrap();
}

#[test]
fn a_frontend_is_told_and_the_new_area_is_served() {
    if Backend::chosen() == Backend::Qsd {
        return;
    }
    let disk = Disk::with(OLD + 512, &["--sector-size", "512"]);
    let daemon = disk.attach(&AttachOptions::default());
    let connection = Connection::open(daemon.socket()).unwrap();
    let (mut frontend, channel) = with_channel(connection);
    assert_eq!(frontend.config().capacity(), OLD / 512 + 1);
    let data = Rng::new(1).bytes(MIB as usize);
    frontend.queues[0].write(0, &data).unwrap();
    frontend.queues[0].write(OLD / 512, &data[..512]).unwrap();
    assert_eq!(
        frontend.queues[0].read(OLD / 512 + 1, 512),
        Err(Status::IoErr)
    );

    resized(&disk, NEW);
    // As QEMU does, which asks before it acknowledges.
    let message = channel.receive().unwrap();
    assert_eq!(
        (message.request, message.flags),
        (CONFIG_CHANGE, VERSION | NEED_REPLY)
    );
    assert_eq!(frontend.config().capacity(), NEW / 512);
    channel
        .send(CONFIG_CHANGE, REPLY, &words(&[0]), &[])
        .unwrap();

    // The rest of the block that was not whole, and all that follows, reads as zeros.
    for queue in &mut frontend.queues {
        let rest = queue.read(OLD / 512 + 1, 7 * 512).unwrap();
        assert!(rest.iter().all(|b| *b == 0));
        let far = queue.read(NEW / 512 - 2048, MIB as usize).unwrap();
        assert!(far.iter().all(|b| *b == 0));
    }
    frontend.queues[1].write(NEW / 512 - 2048, &data).unwrap();
    frontend.queues[0]
        .write(OLD / 512 + 3, &data[..1024])
        .unwrap();
    frontend.queues[1]
        .write_zeroes(&[(NEW / 512 - 8, 8, UNMAP)])
        .unwrap();
    frontend.queues[0].flush().unwrap();
    assert_eq!(
        frontend.queues[0].write(NEW / 512, &data[..512]),
        Err(Status::IoErr)
    );
    drop((frontend, channel, daemon));

    // What was flushed, and what a kill left: the size and the content stay.
    let daemon = disk.attach(&AttachOptions::default());
    let mut frontend = daemon.connect();
    assert_eq!(frontend.config().capacity(), NEW / 512);
    let queue = &mut frontend.queues[0];
    assert!(queue.read(0, data.len()).as_ref() == Ok(&data));
    assert!(queue.read(OLD / 512, 512).unwrap() == data[..512]);
    assert!(queue.read(OLD / 512 + 1, 1024).unwrap() == [0; 1024]);
    assert!(queue.read(OLD / 512 + 3, 1024).unwrap() == data[..1024]);
    let end = queue.read(NEW / 512 - 2048, MIB as usize).unwrap();
    assert!(end[..data.len() - 4096] == data[..data.len() - 4096]);
    assert!(end[data.len() - 4096..] == [0; 4096]);
}

/// On tmpfs the data file is mapped, and mapped anew.
#[test]
fn a_disk_in_memory_grows_again_and_again_under_load() {
    if Backend::chosen() == Backend::Qsd {
        return;
    }
    let dir = tempfile::TempDir::new_in("/dev/shm").unwrap();
    let disk = Disk::with(OLD, &["--data-dir", dir.path().to_str().unwrap()]);
    grows_under_load(&disk);
}

#[test]
fn a_disk_grows_again_and_again_under_load() {
    if Backend::chosen() == Backend::Sealdisk {
        grows_under_load(&Disk::new(OLD));
    }
}

fn grows_under_load(disk: &Disk) {
    let daemon = disk.attach(&AttachOptions::default());
    let connection = Connection::open(daemon.socket()).unwrap();
    let (mut frontend, channel) = with_channel(connection);
    let mut size = OLD;
    for round in 0..4u64 {
        let queue = &mut frontend.queues[0];
        queue.arena.reset();
        let pending: Vec<_> = (0..32)
            .map(|i| {
                let at = queue.arena.alloc(65536, 4096);
                queue.mem.fill(at, (round * 32 + i) as u8 | 1, 65536);
                queue.request(kind::OUT, i * 128, &[Seg::out(at, 65536)])
            })
            .collect();
        size += 33 * MIB;
        resized(disk, size);
        told(&channel);
        for pending in pending {
            assert_eq!(frontend.queues[0].complete(pending).status, Status::Ok);
        }
        assert_eq!(frontend.config().capacity(), size / 512);
        for i in 0..32 {
            let read = frontend.queues[1].read(i * 128, 65536).unwrap();
            assert!(read.iter().all(|b| *b == (round * 32 + i) as u8 | 1));
        }
        let end = size / 512 - 64;
        frontend.queues[1].assert_serves(end, round);
        frontend.queues[0].discard(&[(end, 64, 0)]).unwrap();
        assert!(
            frontend.queues[0]
                .read(end, 32768)
                .unwrap()
                .iter()
                .all(|b| *b == 0)
        );
        frontend.queues[0].flush().unwrap();
    }
}

#[test]
fn a_disk_that_nobody_uses_grows_and_never_shrinks() {
    if Backend::chosen() == Backend::Qsd {
        return;
    }
    let disk = Disk::new(OLD);
    resized(&disk, NEW);
    let daemon = disk.attach(&AttachOptions::default());
    assert_eq!(daemon.connect().config().capacity(), NEW / 512);
    for (size, why) in [
        ("4MiB", "smaller"),
        ("301MB", "no size"),
        ("314572801", "multiple"),
        ("65TiB", "64 TiB"),
    ] {
        let output = resize(&disk, size);
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(
            !output.status.success() && error.contains(why),
            "{size}: {error}"
        );
    }
    // Without a channel it is found out by asking, and the same size again changes nothing.
    let mut frontend = daemon.connect();
    resized(&disk, NEW + MIB);
    resized(&disk, NEW + MIB);
    assert_eq!(frontend.config().capacity(), (NEW + MIB) / 512);
    frontend.queues[0].assert_serves(NEW / 512, 1);
    // A queue that stands still has the new size when it goes on.
    let base = frontend.stop_queue(1).unwrap();
    resized(&disk, NEW + 2 * MIB);
    frontend.queues[1].base = base;
    frontend.start_queue(1).unwrap();
    frontend.queues[1].assert_serves((NEW + MIB) / 512, 2);
}

#[test]
fn a_frontend_that_misuses_its_channel_harms_nobody() {
    if Backend::chosen() == Backend::Qsd {
        return;
    }
    let disk = Disk::new(OLD);
    let daemon = disk.attach(&AttachOptions::default());
    let mut size = OLD;
    let mut grow = || {
        size += MIB;
        resized(&disk, size);
        size / 512
    };
    // It never answers; it answers with something else; it is gone; it says no.
    let answers: [&dyn Fn(Connection); 4] = [
        &|channel| drop(channel.receive().unwrap()),
        &|channel| channel.send_raw(&[0xff; 64], &[]).unwrap(),
        &|channel| drop(channel),
        &|channel| {
            channel
                .send(CONFIG_CHANGE, REPLY, &words(&[1]), &[])
                .unwrap()
        },
    ];
    for answer in answers {
        let connection = Connection::open(daemon.socket()).unwrap();
        let (mut frontend, channel) = with_channel(connection);
        let (keep, other) = (channel.as_fd().try_clone_to_owned().unwrap(), channel);
        let sectors = grow();
        answer(other);
        assert_eq!(frontend.config().capacity(), sectors);
        frontend.queues[0].assert_serves(sectors - 8, 1);
        drop((keep, frontend));
    }
    // Something that is no stream socket is refused, and the connection ends.
    let connection = Connection::open(daemon.socket()).unwrap();
    let (frontend, channel) = with_channel(connection);
    let file = tempfile::tempfile().unwrap();
    assert!(
        frontend
            .set(request::SET_BACKEND_REQ_FD, &[], &[file.as_fd()])
            .is_err()
    );
    drop(channel);
    // Announced twice, the last one counts; a header in two parts is understood or refused.
    let mut frontend = daemon.connect_after(frontend);
    let half = [request::SET_BACKEND_REQ_FD as u8, 0, 0, 0, 1, 0];
    frontend.conn.send_raw(&half, &[]).unwrap();
    std::thread::sleep(Duration::from_millis(50));
    let _ = frontend.conn.send_raw(&[0; 6], &[]);
    frontend = daemon.connect_after(frontend);
    let sectors = grow();
    assert_eq!(frontend.config().capacity(), sectors);
    frontend.queues[0].assert_serves(sectors - 8, 2);
    drop(frontend);
    let connection = Connection::open(daemon.socket()).unwrap();
    let (frontend, first) = with_channel(connection);
    let (ours, theirs) = UnixStream::pair().unwrap();
    frontend
        .set(request::SET_BACKEND_REQ_FD, &[], &[theirs.as_fd()])
        .unwrap();
    drop(theirs);
    let second = Connection::from(ours);
    grow();
    told(&second);
    drop((first, frontend));
}

/// kill -9 of all processes, now and then of the command too, at some moment of a resize: the disk has
/// its old or its new size, and all that was completed.
#[test]
fn a_kill_at_any_moment_of_a_resize_loses_nothing() {
    if Backend::chosen() == Backend::Qsd {
        return;
    }
    let disk = Disk::new(OLD);
    let (mut size, mut rng) = (OLD, Rng::new(7));
    let mut ends: Vec<(u64, Vec<u8>)> = Vec::new();
    for round in 0..10u64 {
        let mut daemon = disk.attach(&AttachOptions::default());
        let mut frontend = daemon.connect();
        let served = frontend.config().capacity() * 512;
        assert!(
            served == size || served == size - 20 * MIB,
            "{served} of {size}"
        );
        size = served;
        let queue = &mut frontend.queues[0];
        for (sector, data) in &ends {
            assert!(
                queue.read(*sector, data.len()).as_ref() == Ok(data),
                "{sector}"
            );
        }
        // Completed and not flushed, in the last block so far.
        let data = rng.bytes(8192);
        let sector = size / 512 - 16;
        queue.write(sector, &data).unwrap();
        ends.retain(|(at, _)| *at != sector);
        ends.push((sector, data));

        size += 20 * MIB;
        let mut resize = disk
            .command(&["disk", "resize", "disk", "--size", &size.to_string()])
            .stderr(std::process::Stdio::null())
            .stdout(std::process::Stdio::null())
            .spawn()
            .unwrap();
        std::thread::sleep(Duration::from_millis(rng.within(0..90)));
        if round % 3 == 2 {
            resize.kill().unwrap();
        }
        daemon.kill();
        resize.wait().unwrap();
    }
}
