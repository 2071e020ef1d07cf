//! Keys in vaults elsewhere. To ask takes time and is on the vault's record, so it is not done at every look.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::times::Times;
use crate::facts::KeyRefusal;
use installation::{Installation, InstallationError};
use vault::{KeyUrl, VaultErrorCode};

/// How long an answer is good.
const GOOD: Duration = Duration::from_secs(3600);
/// How long a vault that did not answer is not asked again.
const PAUSE: Duration = Duration::from_secs(300);

/// What vaults elsewhere have said.
#[derive(Debug, Default)]
pub(super) struct RemoteKeys(Mutex<Known>);

#[derive(Debug, Default)]
struct Known {
    /// By the URL of the key and the set that has asked.
    keys: BTreeMap<(String, String), (Instant, Times)>,
    /// By the URL of the vault and the set that has asked: a vault may refuse one and answer another.
    failed: BTreeMap<(String, String), (Instant, String)>,
}

impl RemoteKeys {
    /// A key version, or the latest, as the identity of a set sees it.
    ///
    /// # Errors
    /// Why that is not known, in one line.
    pub(super) fn times(
        &self,
        installation: &Installation,
        set: &str,
        url: &KeyUrl,
    ) -> Result<Times, String> {
        let key = (url.to_string(), set.to_owned());
        let vault = (url.vault_url.clone(), set.to_owned());
        {
            let known = self.known();
            if let Some((at, times)) = known.keys.get(&key) {
                // What is refused may be granted again at any time.
                let good = if times.is_usable() { GOOD } else { PAUSE };
                if at.elapsed() < good {
                    return Ok(times.clone());
                }
            }
            if let Some((_, why)) = known
                .failed
                .get(&vault)
                .filter(|(at, _)| at.elapsed() < PAUSE)
            {
                return Err(why.clone());
            }
        }
        // Not under the lock: it may take its time.
        let asked = ask(installation, set, url);
        let (now, mut known) = (Instant::now(), self.known());
        match asked {
            Ok(times) => {
                known.failed.remove(&vault);
                known.keys.insert(key, (now, times.clone()));
                Ok(times)
            }
            Err(error) => {
                let why = error.to_string();
                known.failed.insert(vault, (now, why.clone()));
                Err(why)
            }
        }
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        // Nothing is half changed at any point where a holder could panic.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn ask(installation: &Installation, set: &str, url: &KeyUrl) -> Result<Times, InstallationError> {
    let access = installation.unwrapping_key(Some(set), &url.vault_url, url.key.clone())?;
    let bundle = match access.vault.key(&access.caller, &url.key) {
        Err(error) if is_about_the_key(error.code) => {
            let why = error.to_string();
            return Ok(Times::refused(url.to_string(), KeyRefusal::Said { why }));
        }
        answer => answer?,
    };
    let attributes = bundle.attributes;
    Ok(Times {
        url: bundle.key.kid,
        expires: attributes.expires,
        created: Some(attributes.created),
        not_before: attributes.not_before,
        refusal: (!attributes.enabled).then_some(KeyRefusal::Disabled),
    })
}

/// Whether a refusal says that nobody may use the key. One to look at it is none to unwrap with it.
fn is_about_the_key(code: VaultErrorCode) -> bool {
    use VaultErrorCode::{
        KeyDeleted, KeyDisabled, KeyExpired, KeyNotFound, KeyNotYetValid, VaultDeleted,
    };
    matches!(
        code,
        KeyDeleted | KeyDisabled | KeyExpired | KeyNotFound | KeyNotYetValid | VaultDeleted
    )
}
