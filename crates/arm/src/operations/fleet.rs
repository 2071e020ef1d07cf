//! Operations in a catalog that hosts share: each is that of the host whose server has begun it, until that host has had no
//! lease for a while. Then another server goes on with it.
//!
//! Two servers may be at one operation for a moment all the same, since one that was frozen does not know yet that its
//! operation is another's. Each step finds what was done before, locks what it changes, and looks whether the operation is
//! still its own before the next one begins ([`is_operation_cancelled`](installation::catalog::OperationCatalog)).

use std::path::Path;
use std::sync::Arc;
use std::thread::sleep;
use std::time::{Duration, Instant};

use server::Site;

use super::lifecycle::{WorkOf, go_on_with};
use super::parts::Server;
use crate::error::ArmError;
use installation::{HostLease, Installation};

/// How often the lease is looked after.
const LOOK: Duration = Duration::from_secs(1);
/// How often it is looked for operations that nobody goes on with.
const ADOPT: Duration = Duration::from_secs(15);
/// How long this host has to have its lease without a break before that: after the database was away nobody has one, and the
/// others renew theirs first.
const SETTLED: Duration = Duration::from_secs(30);
/// How long a host has had no lease whose operations are gone on with by others.
const ORPHANED: Duration = Duration::from_secs(60);

/// Has this host have a lease, in a catalog that hosts share.
///
/// # Errors
/// When another machine has this host's name, or the catalog cannot be reached: then its operations are not gone on with.
pub fn enter(
    installation: &Installation,
    runtime_dir: &Path,
) -> Result<Option<HostLease>, ArmError> {
    if !installation.catalog().is_shared() {
        return Ok(None);
    }
    installation::files::passable_dir(runtime_dir, false)?;
    Ok(HostLease::enter(installation, runtime_dir)?)
}

/// Keeps the lease from now on, and goes on with operations that have no host any more.
///
/// # Errors
/// When there is no thread.
pub fn keep(server: Server<'_>, lease: HostLease, work_of: WorkOf) -> Result<(), ArmError> {
    let (changes, access) = (Arc::clone(server.changes), Arc::clone(server.access));
    let (types, route) = (server.types, server.route);
    let run = move |site: &Site<'_>| {
        let server = Server {
            site,
            changes: &changes,
            access: &access,
            types,
            route,
        };
        look_after(server, &lease, work_of);
    };
    let spawned = server.site.spawn("fleet", run);
    spawned.map_err(|error| ArmError::internal(format!("the fleet has no thread: {error}")))
}

fn look_after(server: Server<'_>, lease: &HostLease, work_of: WorkOf) {
    let installation = server.site.installation();
    let (mut known, mut id, mut since) = (None, lease.id(), Instant::now());
    let mut looked = Instant::now();
    loop {
        sleep(LOOK);
        let renewed = lease.renew_if_due(installation);
        let why = renewed.err().map(|error| error.to_string());
        if why != known {
            if let Some(why) = &why {
                log::warn!("the lease of this host is not renewed: {why}");
            }
            known = why;
        }
        let now = lease.id();
        if now != id || known.is_some() {
            (id, since) = (now, Instant::now());
        }
        if since.elapsed() < SETTLED || looked.elapsed() < ADOPT {
            continue;
        }
        looked = Instant::now();
        let adopted = installation.catalog().adopt_operations(ORPHANED);
        let gone_on = adopted
            .map_err(ArmError::from)
            .and_then(|found| go_on_with(server, found, work_of));
        if let Err(error) = gone_on {
            log::error!(
                "operations of hosts that are gone are not gone on with: {}",
                error.message
            );
        }
    }
}
