//! What operations use of a server.

use std::sync::Arc;

use server::Site;

use crate::access::Sessions;
use crate::call::{Call, ResourceType, Route};
use crate::changing::Changes;

/// What operations use of a server.
#[derive(Clone, Copy)]
pub struct Server<'a> {
    /// What it has.
    pub site: &'a Site<'a>,
    /// What makes changes.
    pub changes: &'a Arc<Changes>,
    /// The disks whose data somebody has access to.
    pub access: &'a Arc<Sessions>,
    /// The types of resources.
    pub types: &'static [&'static dyn ResourceType],
    /// What answers requests.
    pub route: Route,
}

impl<'a> Server<'a> {
    pub(super) fn of(call: &'a Call<'a>) -> Self {
        Self {
            site: call.site,
            changes: call.changes,
            access: call.access,
            types: call.types,
            route: call.route,
        }
    }
}
