//! What all listeners of a server have in common: the vaults, the tokens, and the threads on which
//! what blocks is done.

use std::collections::HashMap;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Semaphore;
use tokio::time::timeout;
use uuid::Uuid;

use super::ApiError;
use super::floods::Floods;
use super::front::{Front, Site, Threads, Work, is_one_of};
use super::host::VaultHost;
use super::token::TokenService;
use disks::des::{FollowedDes, LeftBehind};
use installation::{DueTurn, Installation, InstallationError};
use vault::EmbeddedVault;
use vault::audit::Space;

/// Operations under way at once in one vault. Far more than there are CPUs, because each waits for
/// the disk too, and the vault makes the records of those that wait durable together.
const VAULT_THREADS: usize = 64;
/// Of these, those of one identity: the rest stays free for the disks of others.
const IDENTITY_THREADS: usize = 48;
/// Searches for primes at once in one vault.
const SLOW_THREADS: usize = 2;
/// Threads of all vaults together. A vault whose token or disk hangs holds its own places only, so
/// that eight such vaults leave the others all of theirs.
pub const THREADS: usize = 16 * VAULT_THREADS;
/// How long a request waits for its turn.
const PATIENCE: Duration = Duration::from_secs(30);
/// Private keys of a vault that are kept ready for use.
const READY_KEYS: usize = 256;

/// How often it is said that there is little room.
const SPACE_REMINDER: Duration = Duration::from_secs(3600);

/// How long an operation takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cost {
    /// Milliseconds.
    Usual,
    /// Seconds.
    Slow,
}

/// Whose places an operation takes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Lane {
    /// The token service's.
    Tokens,
    /// Those of a vault, for that identity.
    Vault(String, Uuid),
    /// Those of the management API, for that identity.
    Management(Uuid),
    /// Those of whoever reads and writes the bytes of disks.
    Transfers,
}

/// What there is for each vault: nothing that one of them waits for keeps another waiting.
struct Place {
    vault: Mutex<Option<Arc<EmbeddedVault>>>,
    usual: Semaphore,
    slow: Semaphore,
    identities: Mutex<HashMap<Uuid, Arc<Semaphore>>>,
    /// What is due is being done.
    busy: AtomicBool,
    /// Identities over their limit, and until when: who comes nevertheless costs the vault nothing.
    over: Mutex<HashMap<Uuid, Instant>>,
}

/// What all listeners have in common.
pub struct Shared {
    /// The installation whose vaults are served.
    pub installation: Installation,
    /// The token service.
    pub tokens: TokenService,
    /// The domains below which vaults have their names.
    pub domains: Vec<String>,
    /// What is refused before it reaches a vault.
    pub floods: Floods,
    /// Whether this is the one of all servers of the installation that does what is due.
    turn: DueTurn,
    /// When it was said last that there is little room.
    low_since: Mutex<Option<Instant>>,
    places: Mutex<HashMap<String, Arc<Place>>>,
    /// For the token service, and for names that are no vault's as far as is known.
    other: Arc<Place>,
    /// For the bytes of disks.
    transfers: Arc<Place>,
    /// What is served besides vaults, where it has its places.
    front: Option<(Arc<dyn Front>, Arc<Place>)>,
}

impl Place {
    fn new() -> Self {
        Self {
            vault: Mutex::new(None),
            usual: Semaphore::new(VAULT_THREADS),
            slow: Semaphore::new(SLOW_THREADS),
            identities: Mutex::default(),
            busy: AtomicBool::new(false),
            over: Mutex::default(),
        }
    }

    /// The places of an identity. Those of identities that ask for nothing now are forgotten.
    fn identity(&self, identity: Uuid) -> Arc<Semaphore> {
        let mut identities = locked(&self.identities);
        identities.retain(|_, places| Arc::strong_count(places) > 1);
        let places = identities
            .entry(identity)
            .or_insert_with(|| Arc::new(Semaphore::new(IDENTITY_THREADS)));
        Arc::clone(places)
    }
}

impl Threads for Arc<Shared> {
    fn spawn(&self, name: &str, work: Work) -> io::Result<()> {
        let shared = Self::clone(self);
        let builder = std::thread::Builder::new().name(name.into());
        builder.spawn(move || work(&shared.site())).map(drop)
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    /// For the vaults of that installation.
    pub fn new(installation: Installation, tokens: TokenService, domains: Vec<String>) -> Self {
        Self {
            turn: DueTurn::of(installation.place()),
            installation,
            tokens,
            domains,
            floods: Floods::default(),
            low_since: Mutex::default(),
            places: Mutex::default(),
            other: Arc::new(Place::new()),
            transfers: Arc::new(Place::new()),
            front: None,
        }
    }

    /// Serves this besides the vaults.
    #[must_use]
    pub fn with_front(mut self, front: Option<Arc<dyn Front>>) -> Self {
        self.front = front.map(|front| (front, Arc::new(Place::new())));
        self
    }

    /// What is served besides vaults.
    pub fn front(&self) -> Option<&Arc<dyn Front>> {
        self.front.as_ref().map(|(front, _)| front)
    }

    /// See [`Front::begin`].
    ///
    /// # Errors
    /// [`InstallationError`]: nothing is served.
    pub fn begin_front(self: &Arc<Self>) -> Result<(), InstallationError> {
        match self.front() {
            Some(front) => front.begin(&self.site()),
            None => Ok(()),
        }
    }

    /// See [`Front::keep_up`].
    pub fn keep_up_front(self: &Arc<Self>) {
        if let Some(front) = self.front() {
            front.keep_up(&self.site());
        }
    }

    /// What a front uses of this.
    pub fn site(self: &Arc<Self>) -> Site<'_> {
        Site {
            installation: &self.installation,
            tokens: &self.tokens,
            domains: &self.domains,
            floods: &self.floods,
            threads: self,
        }
    }

    /// What is served at that host besides vaults.
    pub fn front_of(&self, authority: &str) -> Option<Arc<dyn Front>> {
        let (front, _) = self.front.as_ref()?;
        is_one_of(authority, &front.hosts()).then(|| Arc::clone(front))
    }

    /// The vault of that name, which stays open.
    ///
    /// # Errors
    /// 404 when there is none.
    pub fn vault(&self, name: &str) -> Result<Arc<EmbeddedVault>, ApiError> {
        let place = self.place(name);
        let found = place
            .as_ref()
            .and_then(|place| locked(&place.vault).clone());
        if let Some(vault) = found.filter(|vault| vault.is_current()) {
            return Ok(vault);
        }
        let vault = self.installation.vault(name)?;
        vault.cache_private_keys(READY_KEYS);
        let vault = Arc::new(vault);
        let place = place.unwrap_or_else(|| self.new_place(name));
        // Another thread may have been faster: then its vault is the one.
        let mut kept = locked(&place.vault);
        // One that was purged, or restored from a backup, is not the vault of that name any more.
        if kept.as_ref().is_some_and(|kept| !kept.is_current()) {
            *kept = None;
        }
        Ok(Arc::clone(kept.get_or_insert(vault)))
    }

    fn place(&self, name: &str) -> Option<Arc<Place>> {
        locked(&self.places).get(name).cloned()
    }

    /// The place of a vault that exists.
    fn new_place(&self, name: &str) -> Arc<Place> {
        let mut places = locked(&self.places);
        let place = places
            .entry(name.into())
            .or_insert_with(|| Arc::new(Place::new()));
        Arc::clone(place)
    }

    /// How to prove who asks, in the form that Azure's SDKs parse.
    pub fn challenge(&self, host: &VaultHost) -> String {
        format!(
            "Bearer authorization=\"https://login.vault.localhost/{}\", resource=\"{}\"",
            self.tokens.tenant(),
            host.resource
        )
    }

    /// Does something that blocks on a thread of its own, so that the network is served meanwhile.
    ///
    /// # Errors
    /// What `work` returned; 503 when its turn did not come.
    pub async fn blocking<T: Send + 'static>(
        self: &Arc<Self>,
        lane: Lane,
        cost: Cost,
        work: impl FnOnce(&Arc<Self>) -> Result<T, ApiError> + Send + 'static,
    ) -> Result<T, ApiError> {
        let (place, identity) = match lane {
            Lane::Tokens => (Arc::clone(&self.other), None),
            Lane::Management(identity) => {
                let place = self.front.as_ref().map(|(_, place)| place);
                let place = Arc::clone(place.unwrap_or(&self.other));
                let identity = place.identity(identity);
                (place, Some(identity))
            }
            Lane::Transfers => (Arc::clone(&self.transfers), None),
            Lane::Vault(name, identity) => {
                let place = self.place(&name).unwrap_or_else(|| Arc::clone(&self.other));
                let identity = place.identity(identity);
                (place, Some(identity))
            }
        };
        let permits = async {
            let identity = match &identity {
                Some(places) => Some(places.acquire().await),
                None => None,
            };
            let slow = match cost {
                Cost::Slow => Some(place.slow.acquire().await),
                Cost::Usual => None,
            };
            (identity, slow, place.usual.acquire().await)
        };
        let _permits = timeout(PATIENCE, permits)
            .await
            .map_err(|_| ApiError::busy("the vault has too much to do; try again"))?;
        let shared = Arc::clone(self);
        let work = move || {
            // A catalog that was lost is still there for who has it open, with all whom it knew.
            shared.installation.renew()?;
            work(&shared)
        };
        tokio::task::spawn_blocking(work)
            .await
            .unwrap_or_else(|e| Err(ApiError::internal(format!("an operation failed: {e}"))))
    }

    /// For how many seconds an identity is over its limit in a vault, as far as is known here.
    pub fn over_limit(&self, vault: &str, identity: Uuid) -> Option<u64> {
        let place = self.place(vault)?;
        let mut over = locked(&place.over);
        let now = Instant::now();
        over.retain(|_, until| *until > now);
        let left = over.get(&identity)?.saturating_duration_since(now);
        Some(left.as_secs() + 1)
    }

    /// Notes that an identity is over its limit for so many seconds.
    pub fn set_over_limit(&self, vault: &str, identity: Uuid, seconds: u64) {
        if let Some(place) = self.place(vault) {
            let until = Instant::now() + Duration::from_secs(seconds.min(60));
            locked(&place.over).insert(identity, until);
        }
    }

    /// Replaces the key that signs tokens when that has served its time, or takes the one that another server has made.
    pub fn renew_token_keys(&self) {
        if let Err(error) = self.tokens.run_due() {
            log::error!("the token service's key was not replaced: {error}");
        }
    }

    /// Whether it is this server's turn to do what is due for all of the installation.
    pub fn has_turn(&self) -> bool {
        self.turn.is_mine().unwrap_or_else(|error| {
            log::error!("whose turn it is to do what is due is not known: {error}");
            false
        })
    }

    /// What is to be done without anybody asking: rotations and purges that are due. Each vault has a thread for that,
    /// since one may hang. Failures are logged; the next time tries again.
    pub fn run_due(self: &Arc<Self>) {
        let vaults = self
            .installation
            .renew()
            .and_then(|()| Ok(self.installation.catalog().vaults()?));
        let vaults = match vaults {
            Ok(vaults) => vaults,
            Err(error) => return log::error!("the catalog cannot be read: {error}"),
        };
        for vault in vaults {
            if vault.record.kind.is_remote() {
                continue;
            }
            let name = vault.record.name;
            let place = self.new_place(&name);
            if place.busy.swap(true, Ordering::AcqRel) {
                continue;
            }
            let shared = Arc::clone(self);
            let started = std::thread::Builder::new()
                .name("due".into())
                .spawn(move || {
                    shared.run_due_of(&name);
                    place.busy.store(false, Ordering::Release);
                });
            if let Err(error) = started {
                log::error!("looking for what is due failed: {error}");
            }
        }
    }

    /// Says when there is little room for the logs, and again each hour, and when there is room again.
    pub fn watch_space(&self) {
        // That of a server is its own to watch.
        if self.installation.place().catalog.server().is_some() {
            return;
        }
        let dir = self.installation.state_dir();
        let space = match Space::at(dir) {
            Ok(space) => space,
            Err(e) => return log::error!("the room in {} is not known: {e}", dir.display()),
        };
        let mut told = locked(&self.low_since);
        match *told {
            Some(at) if space.is_low() && at.elapsed() < SPACE_REMINDER => {}
            _ if space.is_low() => {
                log::error!("{}", space.warning(dir));
                *told = Some(Instant::now());
            }
            Some(_) => {
                log::info!(
                    "there is room for the audit logs in {} again",
                    dir.display()
                );
                *told = None;
            }
            None => {}
        }
    }

    fn run_due_of(&self, name: &str) {
        match self.installation.purge_due_vault(name) {
            Ok(false) => {}
            Ok(true) => return log::info!("the key vault '{name}' was purged"),
            Err(error) => return log::error!("key vault '{name}': {error}"),
        }
        let due = match self.vault(name).map(|vault| vault.run_due()) {
            Ok(Ok(due)) => due,
            Ok(Err(error)) => return log::error!("key vault '{name}': {error}"),
            Err(error) => return log::error!("key vault '{name}': {}", error.message),
        };
        for what in due.done {
            log::info!("key vault '{name}': {what}");
        }
        for what in due.failed {
            log::error!("key vault '{name}': {what}");
        }
    }

    /// Wraps the disks of sets that follow their key's latest version under that, whoever made it.
    pub fn follow_latest_keys(&self) {
        let followed = match disks::des::follow_latest_keys(&self.installation, None) {
            Ok(followed) => followed,
            Err(error) => return log::error!("the sets cannot be looked through: {error}"),
        };
        for FollowedDes { name, outcome } in followed {
            let updated = match outcome {
                Ok(updated) => updated,
                Err(error) => {
                    log::error!("disk encryption set '{name}': {error}");
                    continue;
                }
            };
            let count = updated.rewrapped.len();
            log::info!("disk encryption set '{name}': {count} disks follow its key's new version");
            for LeftBehind { record, reason, .. } in updated.left {
                let (kind, name) = (record.kind, record.name);
                log::error!("the {kind} '{name}' is still wrapped by an older version: {reason}");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::sync::mpsc::channel;

    use super::*;
    use installation::catalog::{Catalog as _, CatalogCopy, DatabaseCatalog};

    /// A vault whose token hangs, and a client that asks it without end, leave others their places.
    #[test]
    fn a_vault_that_hangs_keeps_no_other_waiting() {
        let (greedy, other) = (Uuid::new_v4(), Uuid::new_v4());
        let of = |name: &str, identity| Lane::Vault(name.into(), identity);
        let others = [
            of("calm", greedy),
            of("hung", other),
            Lane::Tokens,
            Lane::Management(greedy),
            Lane::Transfers,
        ];
        nobody_waits_for(of("hung", greedy), others);
    }

    /// Whoever changes what somebody else has leaves the rest of the management API, and logins, their places.
    #[test]
    fn who_asks_the_management_api_without_end_keeps_no_other_waiting() {
        let (greedy, other) = (Uuid::new_v4(), Uuid::new_v4());
        let others = [Lane::Management(other), Lane::Tokens, Lane::Transfers];
        nobody_waits_for(Lane::Management(greedy), others);
    }

    fn shared_in(dir: &Path) -> Arc<Shared> {
        let installation = Installation::open(dir).unwrap();
        let (id, hour) = (installation.id(), Duration::from_secs(3600));
        let domains = vec!["vault.localhost".to_owned()];
        let keys = installation.key_store("tokens").unwrap();
        let tokens = TokenService::open(&keys, id, hour, domains.clone()).unwrap();
        Arc::new(Shared::new(installation, tokens, domains))
    }

    /// What is removed from a catalog that was lost and made again is removed for the server too.
    #[test]
    fn a_request_is_answered_by_the_catalog_that_is_there_now() {
        const PURGED: &str = "https://v.vault.localhost";
        let dir = tempfile::tempdir().unwrap();
        let shared = shared_in(dir.path());
        for name in ["catalog.db", "catalog.db-wal", "catalog.db-shm"] {
            let _ = std::fs::remove_file(dir.path().join(name));
        }
        let path = dir.path().join("catalog.db");
        let copy = CatalogCopy::read(&path).unwrap().unwrap();
        let made = DatabaseCatalog::make_again(&path, &copy).unwrap();
        made.note_purged_vault(PURGED).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        let ask = |shared: &Arc<Shared>| {
            let found = shared.installation.catalog().vault_purged_at(PURGED);
            found.map_err(ApiError::internal)
        };
        let found = runtime.block_on(shared.blocking(Lane::Tokens, Cost::Usual, ask));
        assert!(found.unwrap().is_some());
    }

    fn nobody_waits_for(hung: Lane, others: impl IntoIterator<Item = Lane>) {
        let dir = tempfile::tempdir().unwrap();
        let shared = shared_in(dir.path());
        for name in ["hung", "calm"] {
            shared.new_place(name);
        }
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .max_blocking_threads(THREADS)
            .enable_all()
            .build()
            .unwrap();
        let (let_go, hang) = channel::<()>();
        let hang = Arc::new(Mutex::new(hang));
        runtime.block_on(async {
            for _ in 0..2 * VAULT_THREADS {
                let (shared, hang) = (Arc::clone(&shared), Arc::clone(&hang));
                let lane = hung.clone();
                tokio::spawn(async move {
                    let wait = move |_: &Arc<Shared>| {
                        let _ = locked(&hang).recv();
                        Ok(())
                    };
                    shared.blocking(lane, Cost::Usual, wait).await
                });
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
            for lane in others {
                let cost = match lane {
                    Lane::Tokens | Lane::Management(_) | Lane::Transfers => Cost::Usual,
                    Lane::Vault(..) => Cost::Slow,
                };
                shared.blocking(lane, cost, |_| Ok(())).await.unwrap();
            }
        });
        drop(let_go);
        runtime.shutdown_background();
    }
}
