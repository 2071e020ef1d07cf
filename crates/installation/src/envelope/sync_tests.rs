//! Header files of which a sync fails: what is read then is not what storage has.

use std::path::PathBuf;

use tempfile::TempDir;
use test_support::seccomp::with_failing_syncs;

use super::tests::header;
use super::*;
use keys::Dek;

/// A header file that was created with one header and updated to another; and a third one.
struct Rig {
    _dir: TempDir,
    path: PathBuf,
    dek: Dek,
    first: Header,
    third: Header,
}

fn rig() -> Rig {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("header");
    let dek = Dek::generate().unwrap();
    let first = header(&dek, "first");
    let with = |version: &str| {
        let mut other = first.clone();
        other.layers[0].envelope.key_version = version.into();
        other
    };
    let (second, third) = (with("second"), with("third"));
    let file = HeaderFile::create(&path, &first, &dek).unwrap();
    file.lock().unwrap().write(&second, &dek).unwrap();
    Rig {
        _dir: dir,
        path,
        dek,
        first,
        third,
    }
}

impl Rig {
    fn open(&self) -> HeaderFile {
        HeaderFile::open(&self.path).unwrap()
    }

    fn write(&self, header: &Header) -> Result<(), EnvelopeError> {
        self.open().lock().unwrap().write(header, &self.dek)
    }

    fn read(&self) -> Header {
        let found = self.open().read().unwrap();
        found.authenticate(&self.dek).unwrap()
    }

    fn slot(&self, number: usize) -> Vec<u8> {
        let at = usize::try_from(SLOT_OFFSETS[number]).unwrap();
        std::fs::read(&self.path).unwrap()[at..at + SLOT_LEN].to_vec()
    }

    /// The versions of keys in other copies than the one that counts.
    fn others(&self) -> Vec<String> {
        let found = self.open().read().unwrap();
        let others = found.others().iter();
        others
            .map(|other| other.layers[0].envelope.key_version.clone())
            .collect()
    }
}

fn is_of_sync(result: &Result<(), EnvelopeError>) -> bool {
    matches!(result, Err(EnvelopeError::Io { call: "sync", .. }))
}

#[test]
fn the_only_copy_that_storage_has_for_sure_is_not_written_over() {
    let rig = rig();
    with_failing_syncs("header", |syncs| {
        // The second is synced again, and the third is not.
        syncs.allow(1);
        let failed = rig.write(&rig.third);
        assert!(is_of_sync(&failed), "{failed:?}");
        assert_eq!(rig.read(), rig.third, "the page cache has it");
        let second = rig.slot(0);
        for next in [&rig.first, &rig.third] {
            let failed = rig.write(next);
            assert!(is_of_sync(&failed), "{failed:?}");
            assert!(rig.slot(0) == second, "storage may have nothing else");
        }
        syncs.allow_all();
        rig.write(&rig.first).unwrap();
        assert_eq!(rig.read(), rig.first);
        assert!(rig.slot(0) != second);
    });
}

#[test]
fn who_has_synced_the_newest_copy_does_not_do_so_again() {
    let rig = rig();
    with_failing_syncs("header", |syncs| {
        let file = rig.open();
        let mut lock = file.lock().unwrap();
        syncs.allow(3);
        lock.make_durable().unwrap();
        lock.write_both(&rig.third, &rig.dek).unwrap();
        let failed = lock.write(&rig.first, &rig.dek);
        assert!(is_of_sync(&failed), "{failed:?}");
    });
}

#[test]
fn what_may_come_back_is_told_until_both_copies_say_the_same() {
    let rig = rig();
    assert_eq!(rig.others(), ["first"]);
    rig.open().lock().unwrap().settle().unwrap();
    assert!(rig.others().is_empty());
    with_failing_syncs("header", |syncs| {
        syncs.allow(1);
        assert!(is_of_sync(&rig.write(&rig.third)));
        assert_eq!(rig.others(), ["second"]);
        let settle = || rig.open().lock().unwrap().settle();
        let before = [rig.slot(0), rig.slot(1)];
        assert!(is_of_sync(&settle()));
        assert!(before == [rig.slot(0), rig.slot(1)]);
        // The newest one is durable then, and the other one is not.
        syncs.allow(1);
        assert!(is_of_sync(&settle()));
        assert_eq!(rig.read(), rig.third);
        syncs.allow_all();
        settle().unwrap();
    });
    assert!(rig.others().is_empty());
    assert!(!rig.open().read().unwrap().is_alone());
    assert!(rig.slot(0) == rig.slot(1));
    rig.write(&rig.first).unwrap();
    assert_eq!(rig.read(), rig.first);
    assert_eq!(rig.others(), ["third"]);
}
