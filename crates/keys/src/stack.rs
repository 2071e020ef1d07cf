//! The DEKs of a disk's layers.

use std::io::{Read, Write};

use super::{Dek, KeyError};

/// The DEKs of all layers of a disk, the top layer's first. There is at least one.
///
/// Like a single [`Dek`] it cannot be cloned or printed.
pub struct DekStack {
    top: Dek,
    /// Those beneath it, downwards.
    lower: Vec<Dek>,
}

impl DekStack {
    /// The DEK of the top layer and those of the layers beneath it, downwards.
    pub fn new(top: Dek, lower: Vec<Dek>) -> Self {
        Self { top, lower }
    }

    /// The DEK of the layer that is written to.
    pub fn top(&self) -> &Dek {
        &self.top
    }

    /// That of the layer `index` steps beneath the top.
    pub fn get(&self, index: usize) -> Option<&Dek> {
        match index {
            0 => Some(&self.top),
            _ => self.lower.get(index - 1),
        }
    }

    /// All of them, from the top down.
    pub fn iter(&self) -> impl Iterator<Item = &Dek> {
        std::iter::once(&self.top).chain(&self.lower)
    }

    /// How many layers there are.
    pub fn layers(&self) -> usize {
        1 + self.lower.len()
    }

    /// The same stack with a new layer on top.
    #[must_use]
    pub fn pushed(self, top: Dek) -> Self {
        let Self { top: old, lower } = self;
        let lower = std::iter::once(old).chain(lower).collect();
        Self { top, lower }
    }

    /// Zeroes the DEKs of the `count` uppermost layers; the one beneath them is the top then. At
    /// least one stays.
    pub fn drop_upper(&mut self, count: usize) {
        for _ in 0..count.min(self.lower.len()) {
            self.top = self.lower.remove(0);
        }
    }

    /// Keeps, of the layers beneath the top, those of which `keep` says so by their index; the DEKs
    /// of the others are zeroed.
    pub fn retain_lower(&mut self, mut keep: impl FnMut(usize) -> bool) {
        let mut index = 0;
        self.lower.retain(|_| {
            index += 1;
            keep(index)
        });
    }

    /// Writes all keys, from the top down, into a pipe or socket to the data plane process.
    ///
    /// # Errors
    /// [`KeyError::Transfer`].
    pub fn send(&self, to: &mut impl Write) -> Result<(), KeyError> {
        self.iter().try_for_each(|dek| dek.send(to))
    }

    /// Reads the keys of `layers` layers, as [`DekStack::send`] wrote them, into locked memory.
    ///
    /// # Errors
    /// As [`Dek::receive`].
    pub fn receive(from: &mut impl Read, layers: usize) -> Result<Self, KeyError> {
        let top = Dek::receive(from)?;
        let lower = (1..layers)
            .map(|_| Dek::receive(from))
            .collect::<Result<_, _>>()?;
        Ok(Self { top, lower })
    }
}

/// A disk of one layer.
impl From<Dek> for DekStack {
    fn from(top: Dek) -> Self {
        Self::new(top, Vec::new())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_keep_their_places() {
        let first = Dek::generate().unwrap();
        let bytes: Vec<u8> = first.expose().to_vec();
        let mut stack = DekStack::from(first)
            .pushed(Dek::generate().unwrap())
            .pushed(Dek::generate().unwrap());
        let mut pipe = Vec::new();
        stack.send(&mut pipe).unwrap();
        let received = DekStack::receive(&mut pipe.as_slice(), 3).unwrap();
        assert_eq!(received.get(2).unwrap().expose(), bytes);
        assert_eq!(received.top().expose(), stack.top().expose());
        assert!(received.get(3).is_none());
        assert!(DekStack::receive(&mut &pipe[..100], 3).is_err());
        let mut upper = DekStack::receive(&mut pipe.as_slice(), 3).unwrap();
        upper.drop_upper(2);
        assert_eq!((upper.layers(), upper.top().expose()), (1, &bytes[..]));
        stack.retain_lower(|index| index == 2);
        assert_eq!(stack.layers(), 2);
        assert_eq!(stack.get(1).unwrap().expose(), bytes);
    }
}
