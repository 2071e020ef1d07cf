//! How long a key version may be used.

use time::OffsetDateTime;

use crate::facts::KeyRefusal;

/// How long a key version may be used.
#[derive(Debug, Clone)]
pub(super) struct Times {
    /// With its version, where there is one.
    pub(super) url: String,
    pub(super) expires: Option<OffsetDateTime>,
    pub(super) created: Option<OffsetDateTime>,
    /// The first moment at which it may be used.
    pub(super) not_before: Option<OffsetDateTime>,
    /// Why nobody may use it, whenever it is.
    pub(super) refusal: Option<KeyRefusal>,
}

impl Times {
    /// One that its vault does not have, or does not let anybody use.
    pub(super) fn refused(url: impl Into<String>, refusal: KeyRefusal) -> Self {
        Self {
            url: url.into(),
            expires: None,
            created: None,
            not_before: None,
            refusal: Some(refusal),
        }
    }

    /// Whether nothing was said against its use.
    pub(super) fn is_usable(&self) -> bool {
        self.refusal.is_none()
    }

    /// Whether its vault has it no more.
    pub(super) fn is_gone(&self) -> bool {
        let refusal = self.refusal.as_ref();
        refusal.is_some_and(|refusal| *refusal != KeyRefusal::Disabled)
    }
}
