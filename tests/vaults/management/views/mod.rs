//! The API and the command line are two views of one installation: random changes by either of them, and a model that
//! says what both show after each, and which refusals are due.
//!
//! `SEALDISK_SEQUENCES` says how many sequences there are, `SEALDISK_SEED` which comes first.

mod asked;
mod change;
mod draw;
mod model;
mod seen;
mod world;

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicU64, Ordering};

use test_support::rng::Rng;

use change::By;
use draw::draw;
use model::{DEFAULT, Model};
use seen::{by_api, by_command_line, expected};
use world::World;

/// How many sequences there are unless the environment says it.
const SEQUENCES: u64 = 6;
/// Changes of one.
const CHANGES: usize = 16;
/// Installations at the same time: more than CPUs, since commands wait for the disk.
const WORLDS: u64 = 3;

fn from_environment(name: &str, default: u64) -> u64 {
    let text = std::env::var(name).ok();
    text.map_or(default, |text| text.parse().unwrap())
}

#[test]
fn both_views_agree_after_any_changes() {
    let sequences = from_environment("SEALDISK_SEQUENCES", SEQUENCES);
    let first = from_environment("SEALDISK_SEED", rand::random::<u32>().into());
    let next = AtomicU64::new(0);
    std::thread::scope(|scope| {
        let worlds = (0..WORLDS.min(sequences)).map(|_| {
            scope.spawn(|| {
                let mut world = World::new();
                loop {
                    let at = next.fetch_add(1, Ordering::Relaxed);
                    if at >= sequences {
                        return;
                    }
                    world.clear();
                    run(&mut world, first + at);
                }
            })
        });
        for world in worlds.collect::<Vec<_>>() {
            if let Err(panic) = world.join() {
                next.store(sequences, Ordering::Relaxed);
                resume_unwind(panic);
            }
        }
    });
}

/// One sequence.
fn run(world: &mut World, seed: u64) {
    let mut rng = Rng::new(seed);
    let mut model = Model::default();
    model.groups.insert(DEFAULT.into(), Default::default());
    let mut so_far = Vec::new();
    for _ in 0..CHANGES {
        let (change, by) = draw(&mut rng, &model);
        so_far.push(format!("{by:?}: {change:?}"));
        let checked = catch_unwind(AssertUnwindSafe(|| step(world, &mut model, &change, by)));
        if let Err(panic) = checked {
            eprintln!(
                "SEALDISK_SEED={seed} SEALDISK_SEQUENCES=1:\n{}",
                so_far.join("\n")
            );
            resume_unwind(panic);
        }
    }
}

fn step(world: &mut World, model: &mut Model, change: &change::Change, by: By) {
    let due = model.due(change, by).unwrap();
    match world.make(model, change, by) {
        Ok(()) => {
            assert!(due.is_empty(), "done, although {due:?} is due");
            model.apply(change, by);
        }
        Err((cause, said)) => assert!(
            due.contains(&cause),
            "{due:?} is due, and not {cause:?}: {said}"
        ),
    }
    assert_eq!(by_api(&world.client()), expected(model, By::Api), "the API");
    assert_eq!(
        by_command_line(&world.managed),
        expected(model, By::CommandLine),
        "the command line"
    );
}
