//! kill -9 of the daemon under load: what was completed to the guest is there afterwards.

pub mod load;
mod points;
mod reconnect;
mod stack;

use std::time::{Duration, Instant};

use load::{Mix, World};
use test_support::rng::Rng;
use test_support::{AttachOptions, Backend, Daemon, Disk, await_end, deaths, expect_success, kill};

/// Who is killed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Victims {
    Both,
    Parent,
}

/// Kills as told and waits until all processes are gone, as they have to be on their own.
fn strike(daemon: &mut Daemon, victims: Victims) {
    match victims {
        Victims::Both => daemon.kill(),
        Victims::Parent => {
            let processes = daemon.processes();
            kill(daemon.pid());
            daemon.wait();
            processes.into_iter().for_each(await_end);
        }
    }
}

/// A generator whose seed is printed, and can be given.
pub fn random() -> Rng {
    let seed = std::env::var("SEALDISK_CRASH_SEED").ok();
    let seed = seed.and_then(|seed| seed.parse().ok()).unwrap_or_else(|| {
        std::time::UNIX_EPOCH
            .elapsed()
            .map_or(1, |now| u64::from(now.subsec_nanos()))
    });
    eprintln!("seed {seed}: SEALDISK_CRASH_SEED repeats it");
    Rng::new(seed)
}

/// Rounds of load, a kill at a random moment, a new attach and the look at every sector.
fn kill_under_load(rounds: u32, mix: Mix, victims: Victims, arguments: &[&str]) {
    let mut rng = random();
    let disk = Disk::with(load::DISK_BYTES, arguments);
    let mut world = World::new();
    for round in 0..rounds {
        let mut daemon = disk.attach(&AttachOptions::default());
        world.verify(&daemon);
        let delay = Duration::from_millis(rng.within(20..450));
        let setup = load::setup(round);
        let frontend = daemon.connect_with(&setup);
        let done = world.run(frontend, mix, rng.next(), || {
            std::thread::sleep(delay);
            strike(&mut daemon, victims);
        });
        eprintln!("round {round}: {done} requests in {delay:?}");
    }
    let daemon = disk.attach(&AttachOptions::default());
    world.verify(&daemon);
    let completed = world.completed();
    assert!(
        completed > u64::from(rounds) * 20,
        "only {completed} requests: no load to speak of"
    );
}

#[test]
fn completed_writes_survive_kill_9() {
    kill_under_load(deaths(6), Mix::Writes, Victims::Both, &[]);
}

#[test]
fn completed_writes_survive_kill_9_with_512_byte_data_units() {
    if Backend::chosen() == Backend::Sealdisk {
        kill_under_load(
            deaths(5),
            Mix::All,
            Victims::Both,
            &["--sector-size", "512"],
        );
    }
}

/// On tmpfs blocks that have data are transformed in the mapped file, without the ring.
#[test]
fn completed_writes_survive_kill_9_where_the_file_is_memory() {
    if Backend::chosen() == Backend::Sealdisk {
        let dir = tempfile::TempDir::new_in("/dev/shm").unwrap();
        let data_dir = ["--data-dir", dir.path().to_str().unwrap()];
        kill_under_load(deaths(5), Mix::All, Victims::Both, &data_dir);
    }
}

#[test]
fn completed_discards_and_zeroes_survive_kill_9() {
    kill_under_load(deaths(6), Mix::All, Victims::Both, &[]);
}

#[test]
fn the_data_plane_ends_with_its_parent() {
    kill_under_load(4, Mix::All, Victims::Parent, &[]);
}

/// Every completed write is there after SIGTERM too, and after a frontend that just went.
#[test]
fn an_orderly_end_loses_nothing_either() {
    let disk = Disk::new(load::DISK_BYTES);
    let mut world = World::new();
    for round in 0..4 {
        let mut daemon = disk.attach(&AttachOptions::default());
        world.verify(&daemon);
        let frontend = daemon.connect_with(&load::setup(round));
        world.run(frontend, Mix::All, u64::from(round), || {
            std::thread::sleep(Duration::from_millis(200));
            let status = daemon.terminate();
            assert!(
                status.success(),
                "SIGTERM under load: {status:?}\n{}",
                daemon.log()
            );
        });
    }
    world.verify(&disk.attach(&AttachOptions::default()));
}

/// Wrapping the DEK under another key touches no data: the load sees no error, and the disk opens with
/// whichever key its header names.
#[test]
fn another_key_under_load_is_not_noticed() {
    if Backend::chosen() != Backend::Sealdisk {
        return;
    }
    let disk = Disk::new(load::DISK_BYTES);
    let run = |line: &str| {
        let arguments: Vec<&str> = line.split_whitespace().collect();
        expect_success(&mut disk.command(&arguments)).stdout
    };
    let key = "keyvault key create k --vault-name vault1 --size 2048";
    run("keyvault create vault1");
    run(key);
    run("disk-encryption-set create set --key-url https://vault1.vault.localhost/keys/k -o json");
    let set = run("disk-encryption-set show set -o json");
    let set: serde_json::Value = serde_json::from_slice(&set).unwrap();
    let id = set["identity"]["principalId"].as_str().unwrap();
    run(&format!(
        "keyvault set-policy vault1 --object-id {id} --key-permissions get wrapKey unwrapKey"
    ));

    let mut world = World::new();
    let daemon = disk.attach(&AttachOptions::default());
    let frontend = daemon.connect_with(&load::setup(0));
    let mut moves = 0;
    let done = world.run(frontend, Mix::All, 7, || {
        let end = Instant::now() + Duration::from_secs(3);
        while Instant::now() < end {
            run("disk update disk --disk-encryption-set set");
            run("disk update disk --platform-managed");
            moves += 1;
        }
        run("disk update disk --disk-encryption-set set");
        // A new version of the key, which the set then follows.
        run(key);
        run("disk-encryption-set update set --enable-auto-key-rotation true");
    });
    eprintln!("{done} requests, {moves} times there and back");
    assert!(done > 100 && moves > 0, "{done} requests, {moves} moves");
    drop(daemon);
    world.verify(&disk.attach(&AttachOptions::default()));
    let usage = run("disk-encryption-set show-usage set -o json");
    let usage: serde_json::Value = serde_json::from_slice(&usage).unwrap();
    assert_eq!(usage[0]["resources"][0]["name"], "disk", "{usage}");
    assert_eq!(usage[1]["safeToDisable"], "yes", "{usage}");
}
