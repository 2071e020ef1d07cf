//! Random changes whose outcome is known.

use test_support::rng::Rng;

use super::change::{By, Change, Key, Kind};
use super::model::{DEFAULT, Model};

const GROUPS: [&str; 3] = [DEFAULT, "g", "h"];
const SETS: [&str; 3] = ["s", "t", "u"];

/// Few names, so that they meet; of different kinds different ones.
fn name(rng: &mut Rng, kind: Kind) -> String {
    let names: &[&str] = match kind {
        Kind::Disk => &["a", "b", "c"],
        Kind::Snapshot => &["p", "q"],
        Kind::Image => &["x", "y"],
    };
    rng.pick(names).to_owned()
}

/// A change whose outcome the model knows, and who makes it.
pub fn draw(rng: &mut Rng, model: &Model) -> (Change, By) {
    loop {
        let change = any(rng);
        let by = match change.is_of_api_alone() || rng.one_in(2) {
            true => By::Api,
            false => By::CommandLine,
        };
        let Some(causes) = model.due(&change, by) else {
            continue;
        };
        // What is refused is seldom worth a step.
        if causes.is_empty() || rng.one_in(4) {
            return (change, by);
        }
    }
}

fn any(rng: &mut Rng) -> Change {
    let group = rng.pick(&GROUPS).to_owned();
    let set = rng.pick(&SETS).to_owned();
    let maybe_set = (!rng.one_in(3)).then(|| set.clone());
    let key = rng.pick(&Key::ALL);
    let kind = rng.pick(&Kind::ALL);
    let size = rng.within(1..5);
    let on = rng.one_in(2);
    let tag = rng.pick(&["", "red", "green"]).to_owned();
    match rng.within(0..28) {
        0 | 1 => Change::PutGroup {
            name: rng.pick(&GROUPS[1..]).to_owned(),
            tag,
        },
        2 => Change::DeleteGroup {
            name: rng.pick(&GROUPS[1..]).to_owned(),
        },
        3..6 => Change::CreateSet {
            name: set,
            group,
            key,
            twice: rng.one_in(3),
        },
        6 => Change::MoveSet { name: set, key },
        7 => Change::DeleteSet { name: set },
        // More grants than refusals.
        8..11 => Change::Grant {
            set,
            on: on || rng.one_in(2),
        },
        11 => Change::Enable { key, on },
        12 => Change::Rotate { key },
        13..17 => Change::CreateDisk {
            name: name(rng, Kind::Disk),
            group,
            size,
            set: maybe_set,
        },
        17..22 => copy(rng, kind, group),
        22 => Change::Resize {
            name: name(rng, Kind::Disk),
            size,
        },
        23 | 24 => Change::Move {
            kind,
            name: name(rng, kind),
            set: maybe_set,
        },
        25 => Change::Tag {
            kind,
            name: name(rng, kind),
            tag,
        },
        _ => Change::Delete {
            kind,
            name: name(rng, kind),
        },
    }
}

fn copy(rng: &mut Rng, kind: Kind, group: String) -> Change {
    let sources: &[Kind] = match kind {
        Kind::Disk => &[Kind::Snapshot, Kind::Image],
        Kind::Snapshot => &[Kind::Disk],
        Kind::Image => &[Kind::Disk, Kind::Snapshot],
    };
    let source = rng.pick(sources);
    Change::Copy {
        kind,
        name: name(rng, kind),
        group,
        of: (source, name(rng, source)),
    }
}
