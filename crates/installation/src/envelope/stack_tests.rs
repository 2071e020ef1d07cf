//! Headers of many layers, and the way from files of version 1 to those of version 2.

use std::path::{Path, PathBuf};

use proptest::prelude::*;
use uuid::Uuid;

use super::tests::header;
use super::*;
use keys::units::MAX_LAYERS;
use keys::{Dek, LockedBytes};

/// A header as the last program of version 1 wrote it, its older copy under the key version `first`
/// and its newer one under `second`; its DEK is the bytes from 0 to 63.
const FIXTURE: &[u8] = include_bytes!("version-1.header");

fn fixture_dek() -> Dek {
    let mut bytes = LockedBytes::zeroed(64).unwrap();
    for (at, byte) in bytes.as_mut_slice().iter_mut().enumerate() {
        *byte = u8::try_from(at).unwrap();
    }
    Dek::from_locked(bytes).unwrap()
}

struct File {
    _dir: tempfile::TempDir,
    path: PathBuf,
}

impl File {
    fn new(bytes: &[u8]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("header");
        std::fs::write(&path, bytes).unwrap();
        Self { _dir: dir, path }
    }

    fn open(&self) -> HeaderFile {
        HeaderFile::open(&self.path).unwrap()
    }

    fn bytes(&self) -> Vec<u8> {
        std::fs::read(&self.path).unwrap()
    }

    fn read(&self, dek: &Dek) -> Result<Header, EnvelopeError> {
        self.open().read()?.authenticate(dek)
    }
}

#[test]
fn a_file_of_version_1_is_read_as_it_is() {
    let file = File::new(FIXTURE);
    let header = file.read(&fixture_dek()).unwrap();
    assert!(file.bytes() == FIXTURE, "a reader wrote");
    assert_eq!(header.kind, ResourceKind::Disk);
    assert_eq!((header.name.as_str(), header.generation), ("boot-1", 1));
    assert_eq!((header.source.as_ref(), header.job.as_ref()), (None, None));
    let [layer] = header.layers.as_slice() else {
        panic!("{header:?}");
    };
    assert_eq!((layer.origin, layer.size), (header.disk, header.size));
    assert_eq!(layer.disk_encryption_set.as_deref(), Some("des1"));
    assert_eq!(layer.envelope.key_version, "second");
    let whole = |sequence| HeaderCopy::Whole { sequence };
    assert_eq!(file.open().copies().unwrap(), [whole(3), whole(2)]);
}

#[test]
fn a_damaged_copy_of_version_1_is_mended_in_its_place() {
    let mut bytes = FIXTURE.to_vec();
    bytes[600] ^= 1;
    let file = File::new(&bytes);
    let header = file.read(&fixture_dek()).unwrap();
    assert_eq!(header.layers[0].envelope.key_version, "first");
    assert!(file.open().lock().unwrap().mend().unwrap());
    let (now, slot) = (file.bytes(), 16 << 10);
    assert_eq!(now.len(), FIXTURE.len());
    assert!(now[..slot] == FIXTURE[slot..]);
}

#[test]
fn a_file_of_version_1_is_settled_in_its_places() {
    let file = File::new(FIXTURE);
    file.open().lock().unwrap().settle().unwrap();
    let (now, slot) = (file.bytes(), 16 << 10);
    assert_eq!(now.len(), FIXTURE.len());
    assert!(now[..slot] == now[slot..]);
    assert!(file.open().read().unwrap().others().is_empty());
}

/// The fixture, the header that is written over it, and the bytes that the file has then.
fn upgraded(dek: &Dek) -> (Header, Header, Vec<u8>) {
    let file = File::new(FIXTURE);
    let old = file.read(dek).unwrap();
    let mut new = old.clone();
    new.layers[0].envelope.key_version = "third".into();
    file.open().lock().unwrap().write(&new, dek).unwrap();
    let bytes = file.bytes();
    assert_eq!(file.read(dek).unwrap(), new);
    (old, new, bytes)
}

#[test]
fn the_first_update_leaves_two_copies_of_version_2_and_nothing_of_version_1() {
    let (_, new, bytes) = upgraded(&fixture_dek());
    assert_eq!(bytes.len() as u64, HEADER_FILE_LEN);
    let first = usize::try_from(SLOT_OFFSETS[0]).unwrap();
    assert!(bytes[..first].iter().all(|byte| *byte == 0));
    let file = File::new(&bytes);
    let whole = |sequence| HeaderCopy::Whole { sequence };
    assert_eq!(file.open().copies().unwrap(), [whole(4), whole(5)]);
    let mut next = new.clone();
    next.attach = Uuid::new_v4();
    file.open()
        .lock()
        .unwrap()
        .write(&next, &fixture_dek())
        .unwrap();
    assert_eq!(file.open().copies().unwrap(), [whole(6), whole(5)]);
    assert_eq!(file.read(&fixture_dek()).unwrap(), next);
}

/// Writes the header anew over what a crash left, and looks whether all is as after any update.
fn update_after_crash(file: &File, new: &Header, dek: &Dek) {
    file.open().lock().unwrap().write(new, dek).unwrap();
    assert_eq!(&file.read(dek).unwrap(), new);
    let bytes = file.bytes();
    assert!(bytes[..32 << 10].iter().all(|byte| *byte == 0));
    let copies = file.open().copies().unwrap();
    let whole = |copy: &HeaderCopy| matches!(copy, HeaderCopy::Whole { .. });
    assert!(copies.iter().all(whole), "{copies:?}");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    /// Power fails in any of the writes that make a file of version 1 one of version 2, and any
    /// subset of its 512-byte sectors arrived: the old header counts or the new one.
    #[test]
    fn a_crash_in_the_first_update_leaves_the_old_or_the_new_header(
        write in 0..4_usize,
        arrived in proptest::collection::vec(any::<bool>(), SLOT_LEN / 512),
    ) {
        let dek = fixture_dek();
        let (old, new, after) = upgraded(&dek);
        let mut bytes = FIXTURE.to_vec();
        let [first, second] = SLOT_OFFSETS.map(|at| usize::try_from(at).unwrap());
        let writes = [0..0, first..second, second..after.len(), 0..32 << 10];
        for (number, range) in writes.into_iter().enumerate().take(write + 1) {
            bytes.resize(after.len(), 0);
            for (sector, at) in range.step_by(512).enumerate() {
                if number < write || arrived[sector] {
                    bytes[at..at + 512].copy_from_slice(&after[at..at + 512]);
                }
            }
        }
        let file = File::new(&bytes);
        let first_is_whole = bytes[first..second] == after[first..second];
        let wanted = if first_is_whole { &new } else { &old };
        prop_assert_eq!(&file.read(&dek).unwrap(), wanted);
        prop_assert!(file.bytes() == bytes, "a reader wrote");
        update_after_crash(&file, &new, &dek);
    }

    /// A bit of a file of version 1 that is not what it was.
    #[test]
    fn any_flipped_bit_of_version_1_gives_one_of_its_headers(bit in 0..FIXTURE.len() * 8) {
        let mut bytes = FIXTURE.to_vec();
        bytes[bit / 8] ^= 1 << (bit % 8);
        let header = File::new(&bytes).read(&fixture_dek()).unwrap();
        let wanted = if bit / 8 < 16 << 10 { "first" } else { "second" };
        prop_assert_eq!(&header.layers[0].envelope.key_version, wanted);
    }
}

/// A header of `count` layers, the top one under `dek`.
fn stack(dek: &Dek, count: usize) -> Header {
    let mut header = header(dek, "1");
    let top = header.layers[0].clone();
    let beneath = (1..count).map(|number| LayerRecord {
        id: Uuid::new_v4(),
        origin: Uuid::new_v4(),
        size: (number as u64) << 20,
        disk_encryption_set: Some("golden".into()),
        ..top.clone()
    });
    header.layers = beneath.chain([top.clone()]).collect();
    header
}

fn write(path: &Path, header: &Header, dek: &Dek) -> Result<(), String> {
    let refused = |error: EnvelopeError| match error {
        EnvelopeError::Unwritable { reason, .. } => reason,
        other => panic!("{other}"),
    };
    HeaderFile::create(path, header, dek)
        .map(drop)
        .map_err(refused)
}

#[test]
fn as_many_layers_as_there_may_be_fit_with_the_longest_keys() {
    let (dek, dir) = (Dek::generate().unwrap(), tempfile::tempdir().unwrap());
    let mut header = stack(&dek, MAX_LAYERS);
    header.job = Some(Job {
        kind: JobKind::Flatten,
        drop: header.layers[..MAX_LAYERS - 1]
            .iter()
            .map(|l| l.id)
            .collect(),
        paused: true,
        rate: Some(100 << 20),
    });
    header.source = Some(CloneSource {
        kind: ResourceKind::Image,
        id: Uuid::new_v4(),
        name: "n".repeat(80),
    });
    for layer in &mut header.layers {
        layer.envelope.wrapped = vec![0xa5; 512];
        layer.envelope.vault_url = format!("https://{}.vault.azure.net", "v".repeat(24));
        layer.envelope.key_name = "k".repeat(127);
        layer.envelope.key_version = "0".repeat(32);
    }
    let path = dir.path().join("header");
    write(&path, &header, &dek).unwrap();
    let read = HeaderFile::open(&path).unwrap().read().unwrap();
    assert_eq!(read.authenticate(&dek).unwrap(), header);

    // With double encryption the platform's key, which is of 3072 bits, wraps another DEK of each. Of a key of 4096 bits
    // with the longest name two layers less have room.
    for layer in &mut header.layers {
        layer.platform_envelope = Some(Envelope {
            vault_url: "https://platform.vault.localhost".into(),
            key_name: "platform-key".into(),
            key_version: "0".repeat(32),
            wrapped: vec![0xa5; 384],
            ..layer.envelope.clone()
        });
    }
    let mut shorter = header.clone();
    shorter.layers.drain(..2);
    shorter.job.as_mut().unwrap().drop.drain(..2);
    write(&dir.path().join("shorter"), &shorter, &dek).unwrap();
    for layer in &mut header.layers {
        layer.envelope.wrapped = vec![0xa5; 384];
    }
    write(&dir.path().join("double"), &header, &dek).unwrap();

    // Whatever does not fit is refused before anything is written.
    for layer in &mut header.layers {
        layer.envelope.key_name = "k".repeat(512);
        layer.envelope.wrapped = vec![0xa5; 1024];
    }
    let reason = write(&dir.path().join("other"), &header, &dek).unwrap_err();
    assert!(reason.contains("do not fit"), "{reason}");
    assert!(!dir.path().join("other").exists());
}

#[test]
fn layers_that_no_disk_has_are_refused() {
    type Change = fn(&mut Header);
    let cases: &[(&str, Change)] = &[
        ("0 layers", |h| h.layers.clear()),
        ("33 layers", |h| {
            let mut more = h.layers[0].clone();
            for _ in h.layers.len()..33 {
                more.id = Uuid::new_v4();
                h.layers.insert(0, more.clone());
            }
        }),
        ("there twice", |h| h.layers[0].id = h.layers[2].id),
        ("the one beneath it", |h| h.layers[0].size = 3 << 20),
        ("the one beneath it", |h| h.layers[1].size = 2 << 30),
        ("where the top layer has", |h| h.size *= 2),
        ("not under its disk encryption set", |h| {
            h.layers[2].disk_encryption_set = None;
        }),
        ("data unit", |h| h.layers[0].data_unit = 1024),
        ("size of 0", |h| h.layers[0].size = 0),
        ("no multiple", |h| h.layers[0].size -= 1),
        ("odd characters", |h| {
            h.layers[0].disk_encryption_set = Some("a b".into());
        }),
        ("is empty", |h| h.layers[1].envelope.wrapped.clear()),
        ("generation 0", |h| h.generation = 0),
        ("a disk that is incremental", |h| h.incremental = true),
        ("an image that is a clone", |h| {
            h.kind = ResourceKind::Image;
            h.source = Some(source(ResourceKind::Snapshot, "s"));
        }),
        ("a snapshot's name", |h| {
            h.source = Some(source(ResourceKind::Snapshot, "../s"));
        }),
        ("a job of a snapshot", |h| {
            h.kind = ResourceKind::Snapshot;
            h.job = Some(job(vec![h.layers[0].id]));
        }),
        ("a snapshot that is a clone", |h| {
            h.kind = ResourceKind::Snapshot;
            h.source = Some(source(ResourceKind::Disk, "d"));
        }),
        ("a job of an image", |h| {
            h.kind = ResourceKind::Image;
            h.job = Some(flatten(h));
        }),
        ("a job on other layers", |h| h.job = Some(job(vec![]))),
        ("a job on other layers", |h| {
            h.job = Some(job(vec![h.layers[2].id]));
        }),
        ("a job on other layers", |h| {
            h.job = Some(job(vec![h.layers[0].id, h.layers[0].id]));
        }),
        ("a job on other layers", |h| {
            h.job = Some(job(vec![Uuid::nil()]));
        }),
        ("is gone", |h| h.gone = vec![h.layers[1].id]),
        ("is gone", |h| h.gone = vec![Uuid::nil(); 2]),
        ("65 layers that are gone", |h| {
            h.gone = (0..65).map(Uuid::from_u128).collect();
        }),
        ("0 bytes per second", |h| {
            let mut job = job(vec![h.layers[0].id]);
            job.rate = Some(0);
            h.job = Some(job);
        }),
    ];
    let (dek, dir) = (Dek::generate().unwrap(), tempfile::tempdir().unwrap());
    for (number, (why, change)) in cases.iter().enumerate() {
        let mut header = stack(&dek, 3);
        change(&mut header);
        let reason = write(&dir.path().join(number.to_string()), &header, &dek).unwrap_err();
        assert!(reason.contains(why), "{reason} for {why}");
    }
    // And every one of them was refused for that reason alone.
    write(&dir.path().join("good"), &stack(&dek, 3), &dek).unwrap();
    // A snapshot that is a deep copy in the making has both.
    let mut copy = stack(&dek, 3);
    copy.kind = ResourceKind::Snapshot;
    copy.source = Some(source(ResourceKind::Snapshot, "s"));
    copy.job = Some(flatten(&copy));
    write(&dir.path().join("copy"), &copy, &dek).unwrap();
}

fn source(kind: ResourceKind, name: &str) -> CloneSource {
    CloneSource {
        kind,
        id: Uuid::new_v4(),
        name: name.into(),
    }
}

/// The job that copies all layers beneath the top one.
fn flatten(header: &Header) -> Job {
    let beneath = &header.layers[..header.layers.len() - 1];
    Job {
        kind: JobKind::Flatten,
        ..job(beneath.iter().map(|layer| layer.id).collect())
    }
}

fn job(drop: Vec<Uuid>) -> Job {
    Job {
        kind: JobKind::Merge,
        drop,
        paused: false,
        rate: None,
    }
}

#[test]
fn a_header_is_authenticated_by_its_top_layer_alone() {
    let (dek, other) = (Dek::generate().unwrap(), Dek::generate().unwrap());
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("header");
    let mut header = stack(&dek, 3);
    header.layers[0].check = DekCheck::new(header.layers[0].id, &other);
    write(&path, &header, &dek).unwrap();
    let file = HeaderFile::open(&path).unwrap();
    assert_eq!(file.read().unwrap().authenticate(&dek).unwrap(), header);
    let refused = file.read().unwrap().authenticate(&other);
    assert!(matches!(refused, Err(EnvelopeError::WrongDek { .. })));
}

#[test]
fn erasing_a_file_of_either_version_leaves_zeros() {
    for bytes in [FIXTURE.to_vec(), upgraded(&fixture_dek()).2] {
        let file = File::new(&bytes);
        file.open().lock().unwrap().erase().unwrap();
        assert!(file.bytes().iter().all(|byte| *byte == 0));
        let erased = file.open().read();
        assert!(matches!(erased, Err(EnvelopeError::Erased { .. })));
    }
}
