//! The real volume and pipeline on a simulated store that loses, reorders and tears what was not
//! synced, driven by a random guest and checked against a plain model after each crash.
//!
//! A run is determined by its seed, which a failure prints. `SEALDISK_SIM_SEED` repeats one,
//! `SEALDISK_SIM_CRASHES` sets how many crashes a test goes through, `SEALDISK_SIM_TIMES` how many times as many as
//! in a run that a developer waits for.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod changes;
mod check;
mod content;
mod disk;
mod faults;
mod guest;
mod header;
mod medium;
mod merge;
mod model;
mod moves;
mod rng;
mod store;
#[path = "../contract/suite.rs"]
mod suite;
mod waiting;
mod world;

use store::Fault;
use world::{Counts, Options, World};
use xts::DataUnit;

fn crashes(default: u64) -> u64 {
    let number = |name| std::env::var(name).ok().map(|n| n.parse::<u64>().unwrap());
    number("SEALDISK_SIM_CRASHES")
        .unwrap_or_else(|| default * number("SEALDISK_SIM_TIMES").unwrap_or(1))
}

/// Runs seeds until enough crashes were seen; the first violation of the model ends it.
fn run(options: Options, crashes: u64) -> Result<(), String> {
    let repeat = std::env::var("SEALDISK_SIM_SEED")
        .ok()
        .map(|seed| seed.parse::<u64>().unwrap());
    let (mut seen, mut counts) = (0, Counts::new());
    for seed in repeat.map_or(0..u64::MAX, |seed| seed..seed + 1) {
        let mut world = World::new(seed, options);
        seen += world.run().map_err(|error| {
            let all = seen + world.crashes;
            format!("seed {seed}, {all} crashes: {error} (repeat with SEALDISK_SIM_SEED={seed})")
        })?;
        let device = faults::device(&world.cx.layers.device);
        for (what, count) in world.cx.counts.iter().chain(&device.counts) {
            *counts.entry(*what).or_default() += count;
        }
        if seen >= crashes {
            println!("{seen} crashes, seeds to {seed}: {counts:?}");
            break;
        }
    }
    Ok(())
}

const SOUND: Options = Options {
    fault: Fault::None,
    alignment: 512,
    unit: Some(DataUnit::B4096),
    crowded: false,
    overwrite: false,
    stacks: false,
    faulty: false,
    moves: false,
};

#[test]
fn completed_writes_survive_kills_and_flushed_ones_power_losses() {
    run(SOUND, crashes(300)).unwrap();
}

#[test]
fn the_same_with_small_data_units() {
    run(
        Options {
            unit: Some(DataUnit::B512),
            ..SOUND
        },
        crashes(140),
    )
    .unwrap();
}

#[test]
fn the_same_on_a_device_of_4096_byte_sectors() {
    run(
        Options {
            alignment: 4096,
            ..SOUND
        },
        crashes(300),
    )
    .unwrap();
}

/// The checker must be able to see what it is there for: a store that lies about a sync makes the
/// same happen as a flush in the wrong order.
#[test]
fn a_sync_of_the_data_that_does_nothing_is_found() {
    let found = run(
        Options {
            fault: Fault::DataSyncLies,
            ..SOUND
        },
        1000,
    );
    assert!(
        found.is_err(),
        "the durable map ran ahead of the data and nobody noticed"
    );
}

#[test]
fn a_sync_of_the_map_that_does_nothing_is_found() {
    let found = run(
        Options {
            fault: Fault::MapSyncLies,
            ..SOUND
        },
        1000,
    );
    assert!(
        found.is_err(),
        "a flushed write was lost and nobody noticed"
    );
}

#[test]
fn a_durable_write_that_is_not_is_found() {
    let found = run(
        Options {
            fault: Fault::DurableWriteLies,
            ..SOUND
        },
        1000,
    );
    assert!(
        found.is_err(),
        "a durable write was lost and nobody noticed"
    );
}

/// What is known of map sectors has to be true: holes that come before the durable map says zero, and
/// writes that are taken to be durable by themselves, are found.
#[test]
fn a_flush_that_is_said_to_be_done_and_is_not_is_found() {
    for crowded in [false, true] {
        let found = run(
            Options {
                fault: Fault::FlushLies,
                crowded,
                ..SOUND
            },
            1000,
        );
        assert!(found.is_err(), "crowded: {crowded}");
    }
}

/// The unkindest order that a disk may choose for holes.
#[test]
fn no_hole_comes_before_the_map_that_makes_it_harmless() {
    run(
        Options {
            fault: Fault::PunchesAreDurable,
            crowded: true,
            ..SOUND
        },
        crashes(300),
    )
    .unwrap();
}

#[test]
fn ciphertext_is_overwritten_before_its_space_is_given_back() {
    for crowded in [false, true] {
        let options = Options {
            fault: Fault::PunchesAreDurable,
            crowded,
            overwrite: true,
            ..SOUND
        };
        run(options, crashes(300)).unwrap();
    }
}

const STACKS: Options = Options {
    unit: None,
    stacks: true,
    ..SOUND
};

#[test]
fn stacks_of_layers_survive_kills_and_power_losses() {
    run(STACKS, crashes(120)).unwrap();
}

#[test]
fn stacks_on_a_device_of_4096_byte_sectors() {
    let options = Options {
        alignment: 4096,
        ..STACKS
    };
    run(options, crashes(80)).unwrap();
}

#[test]
fn stacks_whose_discarded_blocks_are_overwritten_and_given_back() {
    let options = Options {
        fault: Fault::PunchesAreDurable,
        overwrite: true,
        ..STACKS
    };
    run(options, crashes(80)).unwrap();
}

/// What goes wrong with stacks is seen too.
#[test]
fn faults_in_what_is_done_to_stacks_are_found() {
    for fault in [
        Fault::DataSyncLies,
        Fault::MapSyncLies,
        Fault::PushBeforeFlush,
        Fault::DropBeforeFlush,
        Fault::DropBeforeCopiedUp,
        Fault::MergeBeforeFlush,
        Fault::CopiesUpUnmarked,
        Fault::OldMapsAfterMerge,
    ] {
        let found = run(Options { fault, ..STACKS }, 1000);
        assert!(found.is_err(), "nobody noticed: {fault:?}");
        println!("{fault:?}: {}", found.unwrap_err());
    }
}

/// The device fails, does things in part, hangs, and loses what it could not sync.
const FAULTY: Options = Options {
    faulty: true,
    ..SOUND
};

#[test]
fn a_device_that_fails_loses_nothing_that_was_promised() {
    run(FAULTY, crashes(60)).unwrap();
}

#[test]
fn a_device_of_4096_byte_sectors_that_fails() {
    let options = Options {
        alignment: 4096,
        ..FAULTY
    };
    run(options, crashes(30)).unwrap();
}

#[test]
fn space_is_given_back_on_a_device_that_fails() {
    for overwrite in [false, true] {
        let options = Options {
            fault: Fault::PunchesAreDurable,
            crowded: true,
            overwrite,
            ..FAULTY
        };
        run(options, crashes(20)).unwrap();
    }
}

/// A write that fails may leave ciphertext in blocks that stay inherited. Their space was given back as it was.
#[test]
fn what_a_failed_write_left_is_overwritten_too() {
    let options = Options {
        fault: Fault::PunchesAreDurable,
        crowded: true,
        overwrite: true,
        ..FAULTY
    };
    World::new(12, options).run().unwrap();
}

#[test]
fn stacks_on_a_device_that_fails() {
    let options = Options {
        faulty: true,
        ..STACKS
    };
    run(options, crashes(24)).unwrap();
}

/// An error that is noted in one step and overwritten in another: a later flush that says that all is
/// well, which it is not.
#[test]
fn a_failed_sync_that_is_forgotten_is_found_within_100_crashes() {
    for options in [
        FAULTY,
        Options {
            faulty: true,
            ..STACKS
        },
    ] {
        let fault = Fault::ForgetsFailedSync;
        let found = run(Options { fault, ..options }, 100);
        assert!(found.is_err(), "nobody noticed");
        println!("{}", found.unwrap_err());
    }
}

/// Requests that a process that died had under way are done again, and disks go from process to process and from host to
/// host.
const MOVING: Options = Options {
    moves: true,
    ..SOUND
};

#[test]
fn a_guest_that_moves_loses_nothing() {
    run(MOVING, crashes(150)).unwrap();
    let options = Options {
        unit: None,
        stacks: true,
        ..MOVING
    };
    run(options, crashes(24)).unwrap();
}

#[test]
fn faults_in_moves_are_found() {
    for fault in [
        Fault::TellsWithoutDoing,
        Fault::UpgradesWithoutMap,
        Fault::MigratesUnflushed,
    ] {
        let found = run(Options { fault, ..MOVING }, 300);
        assert!(found.is_err(), "nobody noticed: {fault:?}");
        println!("{fault:?}: {}", found.unwrap_err());
    }
}
