//! A disk on storage whose syncs fail.

use std::fs;
use std::time::Instant;

use sealdisk::volume::{FailedSync, RuntimeMap};

use crate::MIB;
use crate::frontend::PATIENCE;
use crate::frontend::client::Status;
use crate::frontend::daemon::{AttachOptions, Disk};
use crate::frontend::rng::Rng;
use crate::frontend::small_fs::FailingFs;

/// The runtime map of the only disk.
fn runtime_map(disk: &Disk) -> Option<fs::File> {
    let mut files = fs::read_dir(disk.runtime_dir()).unwrap().flatten();
    let map = files.find(|file| file.path().extension().is_some_and(|e| e == "map"))?;
    Some(fs::File::open(map.path()).unwrap())
}

#[test]
fn after_a_failed_sync_no_flush_succeeds_and_the_end_is_not_clean() {
    let Some(storage) = FailingFs::mount() else {
        return;
    };
    let disk = storage.disk(16 * MIB);
    let mut daemon = disk.attach(&AttachOptions::default());
    let mut frontend = daemon.connect();
    let [first, second, ..] = &mut frontend.queues[..] else {
        panic!("two queues")
    };
    let data = Rng::new(1).bytes(MIB as usize);
    first.write(0, &data).unwrap();
    first.flush().unwrap();
    // Nothing of the map is to be written any more.
    first.flush().unwrap();
    first.write(0, &data).unwrap();

    let ballast = storage.fail();
    for queue in [&mut *first, &mut *second] {
        for _ in 0..3 {
            assert_eq!(queue.flush(), Err(Status::IoErr));
        }
    }
    // There is space again, which brings nothing back.
    drop(ballast);
    assert_eq!(second.flush(), Err(Status::IoErr));
    assert!(first.read(0, MIB as usize).unwrap() == data);

    let end = Instant::now() + PATIENCE;
    while !daemon.log().contains("SyncFailed") {
        assert!(Instant::now() < end, "nobody says so:\n{}", daemon.log());
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    drop(frontend);
    let status = daemon.terminate();
    assert!(!status.success(), "the end was clean:\n{}", daemon.log());
    let map = RuntimeMap::from_file(runtime_map(&disk).expect("the runtime map is gone"));
    assert_eq!(map.failed_sync().unwrap(), Some(FailedSync::Data));
}
