//! A promise that nothing happens to, in place of that of `volume`.

#[derive(Debug)]
pub(crate) struct MustComplete<T: Copy>(T);

impl<T: Copy> MustComplete<T> {
    pub(crate) fn new(what: T) -> Self {
        Self(what)
    }

    pub(crate) fn get(&self) -> &T {
        &self.0
    }

    pub(crate) fn complete(self) -> T {
        self.0
    }
}
