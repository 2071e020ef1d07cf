//! One suite for all stores that are waited on: files and lanes here, the store of the simulation there
//! (`tests/simulation/waiting.rs`).

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod lane;
mod suite;

use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use suite::{LEN, Subject, keeps_to_the_contract};
use volume::store::{BufferPool, LayerFile, StackFiles, UringStore};

/// Empty files in a directory that is gone at once: what is open stays.
fn files(directory: &Path) -> Arc<StackFiles> {
    let directory = tempfile::tempdir_in(directory).unwrap();
    let open = |name: &str| {
        let path = directory.path().join(name);
        File::create(&path).unwrap().set_len(LEN).unwrap();
        LayerFile::open(&path).unwrap()
    };
    Arc::new(StackFiles::new(open("data"), open("map"), Vec::new()))
}

fn on_files(directory: &Path) -> Subject<UringStore> {
    Subject {
        store: UringStore::new(files(directory)).unwrap(),
        pool: BufferPool::fixed(32, 64 << 10).unwrap(),
        others: files(directory),
        swapping: Box::new(|| {}),
    }
}

#[test]
fn files_keep_to_the_contract() {
    let directory = tempfile::tempdir().unwrap();
    keeps_to_the_contract(|| on_files(directory.path()));
}

#[test]
fn files_in_memory_keep_to_the_contract() {
    keeps_to_the_contract(|| on_files(Path::new("/dev/shm")));
}
