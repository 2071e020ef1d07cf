//! A pool of a real cluster as a place of resources, where Ceph is installed.

use std::sync::Arc;

use ceph::{Client, Image, Operation, Pool, Settings};
use test_support::ceph::CephCluster;
use uuid::Uuid;

use super::names;
use super::place::RbdPlace;
use super::stack::Stack;
use crate::PlaceError;
use crate::messages::LayerOf;
use crate::place::tests::keeps_to_the_contract;
use crate::place::{NewLayer, Place};

fn pool(on: &CephCluster) -> Arc<Pool> {
    let settings = Settings {
        conf: Some(on.conf()),
        ..Settings::default()
    };
    let cluster = Client::new(settings).unwrap().connect().unwrap();
    Pool::open(&cluster, "rbd", "").unwrap()
}

const LEN: u64 = 1 << 20;
const MAP_LEN: u64 = 8192;

/// A new layer of a place.
fn layer(place: &RbdPlace, holder: Uuid) -> LayerOf {
    let layer = Uuid::new_v4();
    let new = NewLayer {
        layer,
        holder,
        map_start: &[7; 4096],
        data_len: LEN,
    };
    place.create_layer(new).unwrap();
    LayerOf {
        layer,
        data_len: LEN,
        map_len: MAP_LEN,
    }
}

#[test]
fn a_pool_keeps_to_the_contract() {
    let Some(on) = CephCluster::shared() else {
        return;
    };
    keeps_to_the_contract(&RbdPlace::new(pool(on)));
}

#[test]
fn what_is_half_made_or_half_removed_goes() {
    let Some(on) = CephCluster::shared() else {
        return;
    };
    let (place, objects) = (RbdPlace::new(pool(on)), pool(on));
    let holder = Uuid::new_v4();
    // It died before there was an image.
    let id = Uuid::new_v4();
    let held = Operation::new(&objects)
        .if_new()
        .set(names::STATE, names::LIVE);
    let held = held.set(&names::holder(holder), b"1");
    objects.change(&names::holders(id), held).unwrap();
    assert!(place.let_go(id, holder).unwrap());
    // It died after it had said that the layer goes.
    let of = layer(&place, holder);
    let dying = Operation::new(&objects).set(names::STATE, names::DYING);
    objects.change(&names::holders(of.layer), dying).unwrap();
    assert!(matches!(
        place.hold(of.layer, holder),
        Err(PlaceError::Missing(_))
    ));
    assert!(place.holders(of.layer).unwrap().is_empty());
    assert!(place.let_go(of.layer, Uuid::new_v4()).unwrap());
    let images = objects.images().unwrap();
    assert!(!images.contains(&names::image(of.layer)));
    assert!(
        objects
            .omap(&names::holders(of.layer), "")
            .unwrap()
            .is_none()
    );
}

#[test]
fn the_lock_of_the_top_layer_is_had_by_one_alone() {
    let Some(on) = CephCluster::shared() else {
        return;
    };
    let place = RbdPlace::new(pool(on));
    let layers = [layer(&place, Uuid::new_v4()), layer(&place, Uuid::new_v4())];
    let (ours, theirs) = (pool(on), pool(on));
    let nothing = Stack::default();
    let stack = Stack::open(&ours, &layers, false, None, &nothing).unwrap();
    let maps = stack.maps().unwrap();
    for map in &maps {
        let mut bytes = vec![0xee; MAP_LEN as usize];
        std::os::unix::fs::FileExt::read_exact_at(map, &mut bytes, 0).unwrap();
        assert!(bytes[..4096] == [7; 4096] && bytes[4096..] == [0; 4096]);
        assert!(map.set_len(0).is_err(), "nobody makes it shorter");
    }
    let by = ours.cluster().address().to_owned();
    let refused = Stack::open(&theirs, &layers, false, None, &nothing).err();
    assert!(
        matches!(&refused, Some(PlaceError::InUse { by: Some(it), .. }) if *it == by),
        "{refused:?}"
    );
    // It can be read, and what is beneath is nobody's alone.
    Stack::open(&theirs, &layers, true, None, &nothing).unwrap();
    let beneath = Stack::open(&theirs, &layers[1..], false, None, &nothing).unwrap();
    drop(beneath);
    // Another top layer: the one that was the top is only read from then on.
    let top = layer(&place, Uuid::new_v4());
    let pushed = [top, layers[0], layers[1]];
    let pushed = Stack::open(&ours, &pushed, false, None, &stack).unwrap();
    drop(stack);
    let old = Image::open(&theirs, &names::image(layers[0].layer)).unwrap();
    assert_eq!(old.lock_owner().unwrap(), None);
    drop(pushed);
    let end = Stack::open(&theirs, &[top], false, Some("127.0.0.1:0/1"), &nothing);
    assert!(end.is_ok(), "it was given up");
}

#[test]
fn who_is_said_to_be_gone_is_fenced() {
    let Some(on) = CephCluster::shared() else {
        return;
    };
    let place = RbdPlace::new(pool(on));
    let of = layer(&place, Uuid::new_v4());
    let (ours, theirs, nothing) = (pool(on), pool(on), Stack::default());
    let held = Stack::open(&ours, &[of], false, None, &nothing).unwrap();
    let by = ours.cluster().address();
    let taken = Stack::open(&theirs, &[of], false, Some(by), &nothing).unwrap();
    let write = |stack: &Stack| stack.layers[0].image.write(names::DATA_AT, &[1; 512]);
    write(&taken).unwrap();
    assert!(write(&held).unwrap_err().is_fenced());
}
