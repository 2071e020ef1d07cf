//! What a stack of layers says of blocks.

use std::fs::File;
use std::path::{Path, PathBuf};

use uuid::Uuid;

use super::super::{LayerPaths, create_layer};
use super::*;

fn layer(dir: &Path, number: u128, size: u64) -> LayerMap {
    let paths = LayerPaths {
        data: dir.join(format!("{number}.data")),
        map: dir.join(format!("{number}.map")),
    };
    let geometry = Geometry {
        disk: Uuid::from_u128(1),
        layer: Uuid::from_u128(number),
        size,
        data_unit: DataUnit::B512,
    };
    create_layer(&paths, &geometry).unwrap();
    LayerMap::new(geometry, File::open(&paths.map).unwrap())
}

fn lower(dir: &Path, number: u128, blocks: u64) -> Arc<LowerLayer> {
    let layer = LowerLayer::open(layer(dir, number, blocks * 4096)).unwrap();
    layer.map.load_all().unwrap();
    layer
}

#[test]
fn the_topmost_layer_that_has_something_counts() {
    let dir = tempfile::tempdir().unwrap();
    let (upper, bottom) = (lower(dir.path(), 2, 60), lower(dir.path(), 3, 50));
    bottom.map.set_data(0..50);
    upper.map.hide(10..20);
    upper.map.set_data(30..40);
    upper.map.set_data(55..56);
    let top = layer(dir.path(), 1, 70 * 4096);
    let volume = Volume::open_private(top, vec![upper, bottom]).unwrap();
    volume.map().load_all().unwrap();
    volume.map().set_data(5..6);
    volume.map().hide(35..37);
    let (layer, zeros) = (|i| Source::Layer(LayerIndex(i)), Source::Zeros);
    let expected = [
        (0, layer(2), 5),
        (5, layer(0), 1),
        (6, layer(2), 4),
        (10, zeros, 10),
        (20, layer(2), 10),
        (30, layer(1), 5),
        (35, zeros, 2),
        (37, layer(1), 3),
        (40, layer(2), 10),
        (50, zeros, 5),
        (55, layer(1), 1),
        (56, zeros, 4),
        (60, zeros, 10),
    ];
    for (first, what, blocks) in expected {
        let run = volume.lookup(first, 1000).unwrap();
        assert_eq!(run, Some(Run { what, blocks }), "from block {first}");
    }
    let lacking = |drop| volume.lacking(0..70, drop).unwrap();
    assert_eq!(lacking(2), 5 + 4 + 10 + 5 + 3 + 10 + 1);
    assert_eq!(lacking(1), 5 + 3 + 1);
    assert!(!volume.has_all_of(1).unwrap() && !volume.has_all_of(2).unwrap());
    // Block 5 and two that are hidden were written since.
    assert_eq!(volume.share_raised(2).unwrap(), (3, 41));
    let lack = |first, drop| volume.lack(first, 1000, drop).unwrap().unwrap().what;
    assert_eq!(lack(12, 1), Lack::Zeros, "the bottom has data there");
    assert_eq!(lack(12, 2), Lack::Nothing, "nothing is left beneath");
    assert_eq!(lack(20, 1), Lack::Nothing);
    assert_eq!(lack(35, 2), Lack::Nothing);
    assert_eq!(lack(20, 2), Lack::Content(LayerIndex(2)));
}

#[test]
fn stacks_that_cannot_be_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let bottom = lower(dir.path(), 2, 9);
    let opened = Volume::open_private(layer(dir.path(), 1, 8 * 4096), vec![bottom.clone()]);
    assert!(matches!(opened, Err(VolumeError::LowerIsLarger { .. })));
    let tall = vec![bottom; MOST_LAYERS];
    let opened = Volume::open_private(layer(dir.path(), 3, 9 * 4096), tall);
    assert!(matches!(opened, Err(VolumeError::TooManyLayers { .. })));
}

#[test]
fn a_volume_that_grows_keeps_what_it_had_not_flushed() {
    let dir = tempfile::tempdir().unwrap();
    let top = layer(dir.path(), 2, 5 * 4096 + 512);
    let geometry = top.geometry.clone();
    let runtime_path = PathBuf::from(format!("/dev/shm/sealdisk-grown-{}", Uuid::new_v4()));
    let (before, now) = (Uuid::new_v4(), Uuid::new_v4());
    let (runtime, _) = RuntimeMap::open(&runtime_path, &geometry, before, now).unwrap();
    let volume = Volume::open_runtime(top, vec![], &runtime).unwrap();
    assert!(volume.map().ensure(0..6).unwrap());
    volume.map().set_data(2..4);
    let _turn = volume.flushes().try_begin().unwrap();
    let size = 9000 * 4096;
    assert!(
        volume.grown(size, &runtime).is_err(),
        "the map is too short"
    );
    let grown = geometry.grown(size).unwrap();

    // A map of the old size counts after the header has the new one, and is made longer then.
    drop(
        RuntimeMap::find(&runtime_path, &grown, now)
            .unwrap()
            .unwrap(),
    );
    assert!(
        RuntimeMap::find(&runtime_path, &geometry, now)
            .unwrap()
            .is_none()
    );
    let volume = volume.grown(size, &runtime).unwrap();
    assert!(volume.flushes().try_begin().is_none(), "one is under way");
    assert_eq!((volume.map().blocks(), volume.flushes().begun()), (9000, 1));
    assert_eq!(volume.map().get(3), super::super::BlockState::Data);
    assert_eq!(volume.map().run(4, 9000).blocks, 8996);
    volume.map().set_data(8999..9000);
    let mut dirty = Vec::new();
    volume.map().take_dirty(&mut dirty, 0);
    assert_eq!(dirty, [0, 4]);
    runtime.grow(&grown).unwrap();
    assert!(
        RuntimeMap::find(&runtime_path, &grown, now)
            .unwrap()
            .is_some()
    );
    std::fs::remove_file(&runtime_path).unwrap();
}
