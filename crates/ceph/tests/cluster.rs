//! Against a real cluster, where Ceph is installed.

// Clippy exempts only functions with #[test], and helpers of tests panic as tests do.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use ceph::{CephError, Client, Cluster, Image, Operation, Pool, Settings};
use test_support::ceph::CephCluster;

fn settings(on: &CephCluster) -> Settings {
    Settings {
        conf: Some(on.conf()),
        ..Settings::default()
    }
}

fn client(on: &CephCluster) -> Arc<Cluster> {
    Client::new(settings(on)).unwrap().connect().unwrap()
}

fn pool(on: &CephCluster) -> Arc<Pool> {
    Pool::open(&client(on), "rbd", "").unwrap()
}

/// A new image, open and locked.
fn image(pool: &Arc<Pool>, name: &str, bytes: u64) -> Image {
    // One of a run before.
    let _ = pool.remove_image(name);
    pool.create_image(name, bytes).unwrap();
    let image = Image::open(pool, name).unwrap();
    image.lock().unwrap();
    image
}

const MIB: u64 = 1 << 20;

/// Where operations tell how they ended.
fn ends() -> (
    impl Fn(Result<usize, i32>) + Clone + Send + 'static,
    Receiver<Result<usize, i32>>,
) {
    let (tell, told) = channel();
    (move |end| tell.send(end).unwrap(), told)
}

#[test]
fn what_is_written_is_read_and_seen_to_be_there() {
    let Some(on) = CephCluster::shared() else {
        return;
    };
    let image = image(&pool(on), "written", 64 * MIB);
    assert_eq!(image.size().unwrap(), 64 * MIB);
    let (end, ended) = ends();
    let mut bytes = vec![7u8; 8192];
    // SAFETY: the bytes are there until the end is told.
    unsafe { image.begin_write(8 * MIB, bytes.as_ptr(), bytes.len(), end.clone()) };
    ended.recv().unwrap().unwrap();
    image.begin_flush(end.clone());
    ended.recv().unwrap().unwrap();
    bytes.fill(0);
    // SAFETY: as above.
    unsafe { image.begin_read(8 * MIB + 4096, bytes.as_mut_ptr(), 8192, end.clone()) };
    assert_eq!(ended.recv().unwrap(), Ok(8192));
    assert!(bytes[..4096] == [7; 4096] && bytes[4096..] == [0; 4096]);
    let extents = image.extents(0, 64 * MIB).unwrap();
    assert!(
        extents.iter().any(|it| it.contains(&(8 * MIB))),
        "{extents:?}"
    );
    assert!(
        !extents.iter().any(|it| it.contains(&(32 * MIB))),
        "{extents:?}"
    );
    // Single blocks are given back, and zeros are zeros.
    image.begin_discard(8 * MIB, 4096, end.clone());
    ended.recv().unwrap().unwrap();
    image.begin_zeroes(8 * MIB + 4096, 4096, end);
    ended.recv().unwrap().unwrap();
    image.read(8 * MIB, &mut bytes).unwrap();
    assert!(bytes.iter().all(|byte| *byte == 0));
    // What lies behind the end is no part of it.
    assert!(image.read(64 * MIB - 4096, &mut bytes).is_err());
    assert!(image.write(64 * MIB - 4096, &bytes).is_err());
    image.resize(128 * MIB).unwrap();
    image.write(64 * MIB - 4096, &bytes).unwrap();
    image.flush().unwrap();
    let names = image.pool().images().unwrap();
    assert!(names.iter().any(|name| name == "written"));
}

#[test]
fn who_loses_the_lock_writes_no_more() {
    let Some(on) = CephCluster::shared() else {
        return;
    };
    let first = image(&pool(on), "fenced", 8 * MIB);
    let owner = first.lock_owner().unwrap().unwrap();
    assert_eq!(owner, first.pool().cluster().address());
    first.write(0, &[1; 4096]).unwrap();
    let other = pool(on);
    let second = Image::open(&other, "fenced").unwrap();
    let begun = Instant::now();
    assert!(second.lock().unwrap_err().is_locked());
    assert!(second.write(0, &[2; 4096]).is_err());
    assert!(
        begun.elapsed() < Duration::from_secs(20),
        "it is refused at once"
    );
    first.write(4096, &[1; 4096]).unwrap();
    second.take_lock_from(&owner).unwrap();
    second.write(0, &[2; 4096]).unwrap();
    let refused = first.write(0, &[3; 4096]).unwrap_err();
    assert!(refused.is_fenced(), "{refused}");
    let (end, ended) = ends();
    first.begin_flush(end);
    assert_eq!(ended.recv().unwrap(), Err(108));
    // Its objects neither.
    let operation = Operation::new(first.pool()).replace(b"late");
    let refused = first.pool().change("fenced-object", operation);
    assert!(refused.unwrap_err().is_fenced());
    let mut found = [0; 4096];
    second.read(0, &mut found).unwrap();
    assert_eq!(found, [2; 4096]);
    // For long: it may have been frozen.
    let listed = on.run("ceph", &["osd", "blocklist", "ls"]);
    assert!(listed.contains(owner.trim_start_matches("v2:")), "{listed}");
}

#[test]
fn the_lock_of_a_dead_client_is_taken_at_once() {
    let Some(on) = CephCluster::shared() else {
        return;
    };
    let first = image(&pool(on), "dead", 8 * MIB);
    let owner = first.lock_owner().unwrap().unwrap();
    // It says no good-bye, as a process that was killed.
    std::mem::forget(first);
    let second = Image::open(&pool(on), "dead").unwrap();
    let begun = Instant::now();
    second.take_lock_from(&owner).unwrap();
    assert!(begun.elapsed() < Duration::from_secs(20));
    assert_eq!(
        second.lock_owner().unwrap(),
        Some(second.pool().cluster().address().into())
    );
    drop(second);
    let third = Image::open(&pool(on), "dead").unwrap();
    assert_eq!(third.lock_owner().unwrap(), None, "it was given up");
}

#[test]
fn objects_change_at_once_or_not_at_all() {
    let Some(on) = CephCluster::shared() else {
        return;
    };
    let pool = pool(on);
    let change = |operation| pool.change("changed", operation);
    let operation = || Operation::new(&pool);
    let _ = change(operation().remove());
    assert!(pool.read("changed", 100).unwrap().is_none());
    assert!(pool.omap("changed", "").unwrap().is_none());
    assert!(
        change(operation().if_there().replace(b"x"))
            .unwrap_err()
            .is_missing()
    );
    change(
        operation()
            .if_new()
            .replace(&[1; 65536])
            .set("state", b"live"),
    )
    .unwrap();
    assert!(change(operation().if_new()).unwrap_err().is_there());
    // By the content.
    let swap =
        |from: u8, to: u8| change(operation().if_content(&[from; 65536]).replace(&[to; 65536]));
    swap(1, 2).unwrap();
    assert!(swap(1, 3).unwrap_err().is_other());
    assert_eq!(
        pool.read("changed", 1 << 20).unwrap().unwrap(),
        vec![2; 65536]
    );
    // By a value.
    change(operation().if_value("state", b"live").set("holder.a", b"1")).unwrap();
    let refused = change(
        operation()
            .if_value("state", b"dying")
            .set("holder.b", b"1"),
    );
    assert!(refused.unwrap_err().is_other());
    // By the version.
    let before = pool.omap("changed", "holder.").unwrap().unwrap();
    assert_eq!(before.values.keys().collect::<Vec<_>>(), ["holder.a"]);
    change(operation().unset("holder.a")).unwrap();
    let late = change(
        operation()
            .if_version(before.version)
            .set("state", b"dying"),
    );
    assert!(late.unwrap_err().is_other());
    let now = pool.omap("changed", "").unwrap().unwrap();
    change(operation().if_version(now.version).set("state", b"dying")).unwrap();
    assert_eq!(
        pool.omap("changed", "").unwrap().unwrap().values["state"],
        b"dying"
    );
    assert!(matches!(
        change(operation().set("a\0b", b"")),
        Err(CephError::Name(_))
    ));
}

#[test]
fn more_keys_than_come_at_a_time_are_all_read() {
    let Some(on) = CephCluster::shared() else {
        return;
    };
    let pool = pool(on);
    let _ = pool.change("many", Operation::new(&pool).remove());
    for hundred in 0..25 {
        let keys = (0..100).fold(Operation::new(&pool), |operation, n| {
            operation.set(&format!("key.{hundred:03}{n:03}"), b"value")
        });
        pool.change("many", keys).unwrap();
    }
    pool.change("many", Operation::new(&pool).set("other", b""))
        .unwrap();
    let found = pool.omap("many", "key.").unwrap().unwrap();
    assert_eq!(found.values.len(), 2500);
    assert_eq!(pool.omap("many", "").unwrap().unwrap().values.len(), 2501);
}

#[test]
fn a_pool_that_is_full_says_so_and_has_room_again() {
    let Some(on) = CephCluster::shared() else {
        return;
    };
    let _ = on.run("ceph", &["osd", "pool", "create", "small", "8", "8"]);
    on.run("rbd", &["pool", "init", "small"]);
    on.run(
        "ceph",
        &["osd", "pool", "set-quota", "small", "max_bytes", "8000000"],
    );
    let pool = Pool::open(&client(on), "small", "").unwrap();
    let image = image(&pool, "full", 4096 * MIB);
    let content = vec![9; MIB as usize];
    // It takes the monitors some seconds to see that.
    let refused = (0..4096).find_map(|n| {
        std::thread::sleep(Duration::from_millis(if n < 8 { 0 } else { 100 }));
        image.write(n * MIB, &content).err()
    });
    let refused = refused.expect("it is never full");
    assert!(matches!(refused.errno(), Some(28 | 122)), "{refused}");
    // What is there can be read, written over and given back, and a full one can be opened.
    image.write(0, &content[..4096]).unwrap();
    drop(image);
    let image = Image::open(&pool, "full").unwrap();
    image.lock().unwrap();
    image.read(0, &mut vec![0; 4096]).unwrap();
    on.run(
        "ceph",
        &["osd", "pool", "set-quota", "small", "max_bytes", "0"],
    );
    let end = Instant::now() + Duration::from_secs(60);
    while image.write(4000 * MIB, &content).is_err() {
        assert!(Instant::now() < end, "it stays full");
        std::thread::sleep(Duration::from_millis(100));
    }
}

#[test]
fn a_refusal_says_what_is_wrong() {
    let Some(on) = CephCluster::shared() else {
        return;
    };
    let said = |result: Result<Arc<Pool>, CephError>| result.err().unwrap().to_string();
    let admin = client(on);
    assert!(said(Pool::open(&admin, "nowhere", "")).contains("no pool of that name"));
    let missing = said(Pool::open(&admin, "rbd", "none"));
    assert!(
        missing.contains("rbd namespace create rbd/none"),
        "{missing}"
    );
    on.run(
        "rbd",
        &["namespace", "create", "--pool", "rbd", "--namespace", "own"],
    );
    let own = Pool::open(&admin, "rbd", "own").unwrap();
    assert_eq!(own.name(), "rbd/own");
    assert!(!own.images().unwrap().contains(&"written".to_owned()));
    // A user who may do something else.
    let keyring = on.file("guest.keyring");
    let path = keyring.to_str().unwrap();
    let caps = ["mon", "allow r", "osd", "allow r pool=other"];
    let arguments = ["auth", "get-or-create", "client.guest"].iter();
    let arguments: Vec<_> = arguments
        .chain(&caps)
        .chain(&["-o", path])
        .copied()
        .collect();
    on.run("ceph", &arguments);
    let guest = Settings {
        id: "guest".into(),
        keyring: Some(keyring),
        ..settings(on)
    };
    let guest = Client::new(guest).unwrap().connect().unwrap();
    let pool = Pool::open(&guest, "rbd", "").unwrap();
    let refused = pool.create_image("theirs", MIB).unwrap_err().to_string();
    assert!(refused.contains("osd 'profile rbd pool=rbd'"), "{refused}");
    let refused = guest.fence("127.0.0.1:0/1", 1).unwrap_err().to_string();
    assert!(refused.contains("mon 'profile rbd'"), "{refused}");
    // Nobody of that name, and no configuration.
    let nobody = Settings {
        id: "nobody".into(),
        ..settings(on)
    };
    let refused = Client::new(nobody).err().unwrap().to_string();
    assert!(refused.contains("has no key of client.nobody"), "{refused}");
    let nowhere = Settings {
        conf: Some("/nowhere/ceph.conf".into()),
        ..Settings::default()
    };
    let refused = Client::new(nowhere).err().unwrap().to_string();
    assert!(
        refused.contains("cannot read /nowhere/ceph.conf"),
        "{refused}"
    );
}

#[test]
fn an_image_that_is_set_to_keep_writes_in_memory_is_refused() {
    let Some(on) = CephCluster::shared() else {
        return;
    };
    let pool = pool(on);
    drop(image(&pool, "cached", MIB));
    on.run(
        "rbd",
        &["config", "image", "set", "rbd/cached", "rbd_cache", "true"],
    );
    let refused = Image::open(&pool, "cached").err().unwrap();
    assert!(matches!(refused, CephError::Setting { .. }), "{refused}");
    assert!(Image::open_to_read(&pool, "cached").is_ok());
}
