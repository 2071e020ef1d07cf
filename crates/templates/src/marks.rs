//! Where in a value something was used.

/// A place in a value: names of properties and indices of elements, from the outermost.
pub(crate) type Place = Vec<String>;

/// Places that are marked while a value is evaluated.
#[derive(Debug, Default)]
pub(crate) struct Marks {
    /// Where the evaluation is.
    pub at: Place,
    /// Those that are marked.
    pub found: Vec<Place>,
}
