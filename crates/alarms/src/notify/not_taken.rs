//! Why a target did not take an event.

/// Why an event was not taken.
#[derive(Debug)]
pub(super) struct NotTaken {
    pub(super) why: String,
    /// Another try makes sense.
    pub(super) again: bool,
}
