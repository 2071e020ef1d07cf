//! Layers, and the headers that name them.

use std::collections::BTreeMap;
use std::ptr::NonNull;
use std::sync::{Arc, Mutex};

use keys::Dek;
use keys::units::ByteOffset;
use uuid::Uuid;
use volume::{Geometry, LayerMap, LowerLayer, format};
use xts::{Cipher, CipherStack, Cursor, DataUnit, SharedSlice};

use super::content::{GARBAGE, stamp_of};
use super::faults::{Calm, SharedDevice};
use super::store::{Fault, MapReader, Sector, Shared, SimLayer, lock};

/// Names a layer.
pub type LayerNumber = u64;

/// Work that goes on until some layers are not needed any more.
#[derive(Debug, Clone)]
pub struct Job {
    /// Those beneath the top that go, downwards.
    pub drop: Vec<LayerNumber>,
    /// The key that nothing may be left under at the end.
    pub rotates: Option<LayerNumber>,
}

/// What the header of a disk or a snapshot says. It is changed as a whole and durable at once: two
/// copies with checksums, each synced, are tested elsewhere.
#[derive(Debug, Clone)]
pub struct Header {
    /// The layers, the top one first, and the size that each has.
    pub layers: Vec<(LayerNumber, u64)>,
    pub attach: Uuid,
    pub job: Option<Job>,
    /// A sync of the top layer's files has failed, and the disk was not checked since.
    pub failed: bool,
}

impl Header {
    pub fn new(layers: Vec<(LayerNumber, u64)>) -> Self {
        Self {
            layers,
            attach: Uuid::new_v4(),
            job: None,
            failed: false,
        }
    }

    pub fn size(&self) -> u64 {
        self.layers[0].1
    }

    pub fn top(&self) -> LayerNumber {
        self.layers[0].0
    }

    /// How far down a layer is.
    pub fn position(&self, layer: LayerNumber) -> Option<usize> {
        self.layers.iter().position(|(number, _)| *number == layer)
    }

    /// The layer directly above another one.
    pub fn above(&self, layer: LayerNumber) -> Option<LayerNumber> {
        let above = self.position(layer)?.checked_sub(1)?;
        Some(self.layers[above].0)
    }

    /// Names a layer no more.
    pub fn remove(&mut self, layer: LayerNumber) {
        self.layers.retain(|(number, _)| *number != layer);
        if let Some(job) = &mut self.job {
            job.drop.retain(|number| *number != layer);
        }
    }
}

/// A layer: its files, its key.
pub struct Layer {
    pub files: Shared,
    pub geometry: Geometry,
    pub dek: Dek,
}

/// All layers that some header names.
pub struct Layers {
    pub device: SharedDevice,
    all: BTreeMap<LayerNumber, Layer>,
    next: LayerNumber,
}

impl Layers {
    pub fn new(device: SharedDevice) -> Self {
        Self {
            device,
            all: BTreeMap::new(),
            next: 0,
        }
    }

    /// Has the device well for as long as the result lives.
    pub fn calm(&self) -> Calm {
        Calm::new(&self.device)
    }

    /// Makes the files of an empty layer, synced.
    pub fn make(&mut self, size: u64, data_unit: DataUnit, fault: Fault) -> LayerNumber {
        self.next += 1;
        let geometry = Geometry {
            disk: Uuid::new_v4(),
            layer: Uuid::new_v4(),
            size,
            data_unit,
        };
        let map_len = format::file_len(geometry.blocks());
        let start = format::encode_header(&geometry);
        let files = SimLayer::new(
            geometry.data_len(),
            map_len,
            &start,
            fault,
            self.device.clone(),
        );
        let layer = Layer {
            files: Arc::new(Mutex::new(files)),
            geometry,
            dek: Dek::generate().unwrap(),
        };
        self.all.insert(self.next, layer);
        self.next
    }

    pub fn get(&self, number: LayerNumber) -> &Layer {
        &self.all[&number]
    }

    /// All of them, in the order in which they were made.
    pub fn iter(&self) -> impl Iterator<Item = &Layer> {
        self.all.values()
    }

    /// Removes the files of layers that no header names.
    pub fn keep(&mut self, named: impl Fn(LayerNumber) -> bool) {
        self.all.retain(|number, layer| {
            let keep = named(*number);
            if !keep {
                lock(&layer.files).wipe();
            }
            keep
        });
    }

    pub fn geometry(&self, (number, size): (LayerNumber, u64)) -> Geometry {
        Geometry {
            size,
            ..self.get(number).geometry.clone()
        }
    }

    /// A layer's map, as its file has it.
    pub fn map(&self, layer: (LayerNumber, u64)) -> LayerMap {
        let files = self.get(layer.0).files.clone();
        LayerMap::new(self.geometry(layer), MapReader(files))
    }

    pub fn lower(&self, layer: (LayerNumber, u64)) -> Arc<LowerLayer> {
        LowerLayer::open(self.map(layer)).unwrap()
    }

    /// The files of a header's layers.
    pub fn files(&self, header: &Header) -> Vec<Shared> {
        let all = header.layers.iter();
        all.map(|(number, _)| self.get(*number).files.clone())
            .collect()
    }

    pub fn ciphers(&self, header: &Header) -> CipherStack {
        let cipher = |(number, _): &(LayerNumber, u64)| {
            let layer = self.get(*number);
            Cipher::new(&layer.dek, layer.geometry.data_unit).unwrap()
        };
        CipherStack::with_ciphers(header.layers.iter().map(cipher).collect()).unwrap()
    }
}

/// A key, to look for what is under it.
pub struct Seeker(Cipher);

impl Seeker {
    pub fn new(layer: &Layer) -> Self {
        Self(Cipher::new(&layer.dek, layer.geometry.data_unit).unwrap())
    }

    /// Whether a sector of ciphertext is what a guest wrote, under this key.
    pub fn finds(&mut self, sector: u64, ciphertext: &Sector) -> bool {
        let mut plaintext = [0; 512];
        // SAFETY: the array outlives the call, and nobody else has it.
        let slice = unsafe { SharedSlice::new(NonNull::from(&mut plaintext[0]), 512) };
        let at = ByteOffset(sector * 512);
        self.0.decrypt(at, ciphertext, &[slice], Cursor::default());
        stamp_of(&plaintext, sector) != GARBAGE
    }
}
