//! Tokens of an identity of another installation, for what an identity of this one signs.

use std::fmt;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use uuid::Uuid;

use crate::VaultError;

type Sign = dyn Fn(&str) -> Result<String, VaultError> + Send + Sync;

/// What proves to another installation that an identity of this one asks (RFC 7523 §2.2).
#[derive(Clone)]
pub struct Assertion {
    subject: Uuid,
    sign: Arc<Sign>,
}

impl Assertion {
    /// Of the identity with that object id; `sign` makes one that is valid now for tokens for a service.
    pub fn new(
        subject: Uuid,
        sign: impl Fn(&str) -> Result<String, VaultError> + Send + Sync + 'static,
    ) -> Self {
        let sign = Arc::new(sign);
        Self { subject, sign }
    }

    /// One that is valid now, once, to get a token for that service.
    ///
    /// # Errors
    /// When there is no key to sign with.
    pub fn sign(&self, resource: &str) -> Result<String, VaultError> {
        (self.sign)(resource)
    }
}

impl fmt::Debug for Assertion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Assertion").field(&self.subject).finish()
    }
}

/// Those of one identity are the same: tokens are kept by it.
impl PartialEq for Assertion {
    fn eq(&self, other: &Self) -> bool {
        self.subject == other.subject
    }
}

impl Eq for Assertion {}

impl Hash for Assertion {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.subject.hash(state);
    }
}
