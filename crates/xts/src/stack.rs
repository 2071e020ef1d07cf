//! The ciphers of a disk's layers, and re-encryption from one layer's key to the top layer's.

use std::sync::Arc;

use zeroize::Zeroize;

use keys::units::{BLOCK_SIZE, ByteOffset, LayerIndex};
use keys::{Dek, DekStack, LockedBytes};

use super::{Cipher, CipherError, CryptoThreads, DataUnit, Direction};

/// One thread's ciphers of all layers, the top layer's first.
pub struct CipherStack {
    layers: Vec<Cipher>,
    /// Where a block is plaintext on its way from one layer's key to another's, and nowhere else.
    scratch: LockedBytes,
}

impl CipherStack {
    /// Expands the keys of all layers, whose data units are in the same order.
    ///
    /// # Errors
    /// [`CipherError::Key`] when memory cannot be locked, [`CipherError::AwsLc`] when there is none.
    pub fn new(deks: &DekStack, units: &[DataUnit]) -> Result<Self, CipherError> {
        Self::each(deks, units, Cipher::new)
    }

    /// As [`CipherStack::new`], with threads that help ([`Cipher::with_threads`]).
    ///
    /// # Errors
    /// As [`CipherStack::new`].
    pub fn with_threads(
        deks: &DekStack,
        units: &[DataUnit],
        threads: &Arc<CryptoThreads>,
    ) -> Result<Self, CipherError> {
        Self::each(deks, units, |dek, unit| {
            Cipher::with_threads(dek, unit, threads)
        })
    }

    fn each(
        deks: &DekStack,
        units: &[DataUnit],
        cipher: impl Fn(&Dek, DataUnit) -> Result<Cipher, CipherError>,
    ) -> Result<Self, CipherError> {
        debug_assert_eq!(deks.layers(), units.len(), "a key and a data unit each");
        let pairs = deks.iter().zip(units);
        let layers = pairs.map(|(dek, unit)| cipher(dek, *unit));
        Self::with_ciphers(layers.collect::<Result<_, _>>()?)
    }

    /// Uses given ciphers, the top layer's first.
    ///
    /// # Errors
    /// [`CipherError::Key`] when memory cannot be locked.
    pub fn with_ciphers(layers: Vec<Cipher>) -> Result<Self, CipherError> {
        Ok(Self {
            layers,
            scratch: LockedBytes::zeroed(BLOCK_SIZE as usize)?,
        })
    }

    /// How many layers it has keys of.
    pub fn layers(&self) -> usize {
        self.layers.len()
    }

    /// The cipher of the layer that is written to.
    pub fn top(&mut self) -> Option<&mut Cipher> {
        self.layers.first_mut()
    }

    /// The cipher of a layer.
    pub fn layer(&mut self, layer: LayerIndex) -> Option<&mut Cipher> {
        self.layers.get_mut(layer.get())
    }

    /// Re-encrypts in place, under the top layer's key, what is the ciphertext of `layer` at disk
    /// offset `at`, the start of a block, in whole blocks.
    ///
    /// A block is plaintext for an instant, in one page of locked memory that is kept out of core
    /// dumps and wiped before this returns: no cipher of a library goes from key to key without.
    pub fn reencrypt(&mut self, layer: LayerIndex, at: ByteOffset, blocks: &mut [u8]) {
        let Some((top, lower)) = self.layers.split_first_mut() else {
            return;
        };
        let Some(from) = layer.get().checked_sub(1).and_then(|i| lower.get_mut(i)) else {
            return;
        };
        let scratch = self.scratch.as_mut_slice();
        let mut at = at;
        for block in blocks.chunks_mut(BLOCK_SIZE as usize) {
            let plaintext = &mut scratch[..block.len()];
            from.transform(Direction::Decrypt, at, block, plaintext);
            top.transform(Direction::Encrypt, at, plaintext, block);
            at = at.plus(block.len() as u64);
        }
        scratch.zeroize();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use keys::Dek;

    #[test]
    fn a_reencrypted_block_is_what_the_top_layer_would_have_written() {
        for (lower_unit, top_unit) in [
            (DataUnit::B512, DataUnit::B4096),
            (DataUnit::B4096, DataUnit::B512),
            (DataUnit::B4096, DataUnit::B4096),
        ] {
            let (top, between, bottom) = (
                Dek::generate().unwrap(),
                Dek::generate().unwrap(),
                Dek::generate().unwrap(),
            );
            let at = ByteOffset(7 * BLOCK_SIZE);
            let plaintext: Vec<u8> = (0..3 * BLOCK_SIZE).map(|i| (i % 251) as u8).collect();
            let encrypt = |dek: &Dek, unit| {
                let mut cipher = Cipher::new(dek, unit).unwrap();
                let mut into = vec![0; plaintext.len()];
                cipher.transform(Direction::Encrypt, at, &plaintext, &mut into);
                into
            };
            let expected = encrypt(&top, top_unit);
            let mut blocks = encrypt(&bottom, lower_unit);
            assert_ne!(blocks, expected);
            let deks = DekStack::new(top, vec![between, bottom]);
            let mut stack = CipherStack::new(&deks, &[top_unit, top_unit, lower_unit]).unwrap();
            stack.reencrypt(LayerIndex(2), at, &mut blocks);
            assert_eq!(blocks, expected);
            assert!(stack.scratch.as_mut_slice().iter().all(|byte| *byte == 0));
        }
    }
}
