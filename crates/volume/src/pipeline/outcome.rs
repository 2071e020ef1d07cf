//! How a request stands.

use super::RequestError;

/// The first error of a request, once it has one: nothing that comes after takes it back, and a request
/// ends with what is noted here.
#[derive(Default)]
pub(super) struct Outcome(Option<RequestError>);

impl Outcome {
    /// Has the request fail, unless it does already.
    pub(super) fn fail(&mut self, error: impl Into<RequestError>) {
        self.0.get_or_insert_with(|| error.into());
    }

    pub(super) fn has_failed(&self) -> bool {
        self.0.is_some()
    }

    pub(super) fn into_result(self) -> Result<(), RequestError> {
        self.0.map_or(Ok(()), Err)
    }
}
