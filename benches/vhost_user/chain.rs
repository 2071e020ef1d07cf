//! A disk of eight layers, each of which holds an eighth of what the guest sees.

use test_support::expect_success;
use test_support::rng::Rng;

use crate::backends::{Backend, Place};
use crate::layers::sealdisk;

const LAYERS: u64 = 8;
/// Bytes that lie in one layer next to each other.
const STRIPE: u64 = 1 << 20;

/// Puts seven more layers on a disk that is written in full, and into each its stripes.
pub fn grow(backend: &mut Backend, place: &Place, disk: &str) {
    let data = Rng::new(8).bytes(STRIPE as usize);
    for layer in 1..LAYERS {
        let snapshot = format!("{disk}-{layer}");
        let create = ["snapshot", "create", &snapshot, "--source", disk];
        expect_success(sealdisk(place).args(create));
        let stripes = (layer * STRIPE..place.size).step_by((LAYERS * STRIPE) as usize);
        let queue = &mut backend.frontend.queues[0];
        for at in stripes.filter(|at| at + STRIPE <= place.size) {
            queue.arena.reset();
            queue.write(at / 512, &data).unwrap();
        }
        queue.flush().unwrap();
    }
}
