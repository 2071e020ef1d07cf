//! What all listeners of a server have in common: the vaults, the tokens, and the threads on which
//! what blocks is done.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::time::timeout;

use super::ApiError;
use super::host::VaultHost;
use super::token::TokenService;
use crate::catalog::VaultKind;
use crate::control::{FollowedDes, Installation, LeftBehind};
use crate::vault::EmbeddedVault;

/// Operations under way at once. Far more than there are CPUs, because each waits for the disk
/// too, and the vault makes the records of those that wait durable together.
pub const THREADS: usize = 64;
/// Of these, searches for primes: the rest stays free for disks that wait for their keys.
const SLOW_THREADS: usize = 2;
/// How long a request waits for its turn.
const PATIENCE: Duration = Duration::from_secs(30);
/// Private keys of a vault that are kept ready for use.
const READY_KEYS: usize = 256;

/// How long an operation takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cost {
    /// Milliseconds.
    Usual,
    /// Seconds.
    Slow,
}

/// What all listeners have in common.
pub struct Shared {
    /// The installation whose vaults are served.
    pub installation: Installation,
    /// The token service.
    pub tokens: TokenService,
    /// The domains below which vaults have their names.
    pub domains: Vec<String>,
    vaults: Mutex<HashMap<String, Arc<EmbeddedVault>>>,
    usual: Semaphore,
    slow: Semaphore,
}

impl Shared {
    /// For the vaults of that installation.
    pub fn new(installation: Installation, tokens: TokenService, domains: Vec<String>) -> Self {
        Self {
            installation,
            tokens,
            domains,
            vaults: Mutex::new(HashMap::new()),
            usual: Semaphore::new(THREADS),
            slow: Semaphore::new(SLOW_THREADS),
        }
    }

    /// The vault of that name, which stays open.
    ///
    /// # Errors
    /// 404 when there is none.
    pub fn vault(&self, name: &str) -> Result<Arc<EmbeddedVault>, ApiError> {
        let mut vaults = self.vaults.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(vault) = vaults.get(name) {
            return Ok(Arc::clone(vault));
        }
        let vault = self.installation.vault(name)?;
        vault.cache_private_keys(READY_KEYS);
        let vault = Arc::new(vault);
        vaults.insert(name.into(), Arc::clone(&vault));
        Ok(vault)
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
        cost: Cost,
        work: impl FnOnce(&Self) -> Result<T, ApiError> + Send + 'static,
    ) -> Result<T, ApiError> {
        let permits = async {
            let slow = match cost {
                Cost::Slow => Some(self.slow.acquire().await),
                Cost::Usual => None,
            };
            (slow, self.usual.acquire().await)
        };
        let _permits = timeout(PATIENCE, permits)
            .await
            .map_err(|_| ApiError::busy("the vault has too much to do; try again"))?;
        let shared = Arc::clone(self);
        tokio::task::spawn_blocking(move || work(&shared))
            .await
            .unwrap_or_else(|e| Err(ApiError::internal(format!("an operation failed: {e}"))))
    }

    /// What is to be done without anybody asking: rotations and purges that are due, new signing
    /// keys. Failures are logged; the next time tries again.
    pub fn run_due(&self) {
        if let Err(error) = self.tokens.run_due() {
            log::error!("the token service's key was not replaced: {error}");
        }
        let vaults = match self.installation.catalog().vaults() {
            Ok(vaults) => vaults,
            Err(error) => return log::error!("the catalog cannot be read: {error}"),
        };
        for vault in vaults {
            if matches!(vault.record.kind, VaultKind::Https { .. }) {
                continue;
            }
            let name = vault.record.name;
            let done = self.vault(&name).map(|vault| vault.run_due());
            match done {
                Ok(Ok(done)) => {
                    for what in done {
                        log::info!("key vault '{name}': {what}");
                    }
                }
                Ok(Err(error)) => log::error!("key vault '{name}': {error}"),
                Err(error) => log::error!("key vault '{name}': {}", error.message),
            }
        }
    }

    /// Wraps the disks of sets that follow their key's latest version under that, whoever made it.
    pub fn follow_latest_keys(&self) {
        let followed = match self.installation.follow_latest_keys(None) {
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
