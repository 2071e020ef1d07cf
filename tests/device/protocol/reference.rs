//! What any vhost-user-blk back-end has to do, of this daemon and of one on the crate `vhost-user-backend`: a
//! check that the other one fails is a habit of this daemon, or of these tests, and not the protocol.

use std::fs::File;
use std::thread;
use std::time::Instant;

use test_support::frontend::SECTOR;
use test_support::frontend::client::{Status, kind};
use test_support::frontend::device::{Frontend, Setup, feature};
use test_support::rng::Rng;
use test_support::{AttachOptions, Disk, PATIENCE};

use super::MIB;

#[path = "../../../benches/vhost_user/reference.rs"]
mod back_end;

const SIZE: u64 = 4 * MIB;

/// Runs a check on a fresh disk of each back-end.
fn on_both(setup: &Setup, check: impl Fn(&mut Frontend)) {
    let disk = Disk::new(SIZE);
    let daemon = disk.attach(&AttachOptions::default());
    check(&mut daemon.connect_with(setup));

    let dir = tempfile::tempdir().unwrap();
    let (path, socket) = (dir.path().join("file"), dir.path().join("socket"));
    let mut options = File::options();
    let file = options.read(true).write(true).create_new(true).open(path);
    let file = file.unwrap();
    file.set_len(SIZE).unwrap();
    thread::scope(|scope| {
        let served = scope.spawn(|| back_end::serve(file, &socket));
        let start = Instant::now();
        let mut frontend = loop {
            match Frontend::try_open(&socket, setup) {
                Ok(frontend) => break frontend,
                Err(error) => assert!(start.elapsed() < PATIENCE, "it does not serve: {error}"),
            }
            assert!(!served.is_finished(), "it has ended");
            thread::yield_now();
        };
        check(&mut frontend);
    });
}

/// Reads, writes and flushes of any whole number of sectors, against a model.
#[test]
fn random_requests_are_those_of_a_disk() {
    for features in [0, feature::EVENT_IDX] {
        for indirect in [false, true] {
            let setup = Setup {
                indirect,
                ..Setup::default()
            };
            on_both(&setup.with(features), |frontend| {
                let mut rng = Rng::new(13);
                let mut model = vec![0; SIZE as usize];
                for round in 0..200 {
                    let queue = &mut frontend.queues[round % 2];
                    queue.arena.reset();
                    let len = rng.within(1..33) as usize * SECTOR;
                    let sector = rng.within(0..(SIZE as usize - len) as u64 / SECTOR as u64);
                    let range = sector as usize * SECTOR..sector as usize * SECTOR + len;
                    match rng.within(0..10) {
                        0 => queue.flush().unwrap(),
                        1..=5 => {
                            let data = rng.bytes(len);
                            queue.write(sector, &data).unwrap();
                            model[range].copy_from_slice(&data);
                        }
                        _ => assert!(queue.read(sector, len).as_deref() == Ok(&model[range])),
                    }
                }
            });
        }
    }
}

#[test]
fn what_lies_behind_the_end_is_an_error_and_the_next_request_is_served() {
    on_both(&Setup::default(), |frontend| {
        let queue = &mut frontend.queues[0];
        let end = SIZE / SECTOR as u64;
        assert_eq!(queue.read(end - 1, SECTOR), Ok(vec![0; SECTOR]));
        assert_eq!(queue.read(end - 1, 2 * SECTOR), Err(Status::IoErr));
        assert_eq!(queue.write(end, &[1; SECTOR]), Err(Status::IoErr));
        assert_eq!(
            queue.read(u64::MAX / SECTOR as u64, SECTOR),
            Err(Status::IoErr)
        );
        assert_eq!(queue.read(0, SECTOR), Ok(vec![0; SECTOR]));
    });
}

#[test]
fn unknown_requests_are_unsupported() {
    on_both(&Setup::default(), |frontend| {
        let queue = &mut frontend.queues[0];
        let unknown = queue.request(99, 0, &[]);
        assert_eq!(queue.complete(unknown).status, Status::Unsupp);
        let flush = queue.request(kind::FLUSH, 0, &[]);
        assert_eq!(queue.complete(flush).status, Status::Ok);
    });
}

#[test]
fn the_capacity_is_in_the_config() {
    on_both(&Setup::default(), |frontend| {
        assert_eq!(frontend.config().capacity(), SIZE / SECTOR as u64);
    });
}
