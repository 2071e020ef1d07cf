//! Who depends on whom, by what is here: catalog, headers and the databases of vaults are read. No vault is opened or
//! asked, no key is used, and nothing is recorded or brought up to date.

use serde::Serialize;
use uuid::Uuid;

use super::key_user::KeyUser;
use super::safety::{
    Needs, SafeToDisable, Safety, VaultLook, is_version_of, of_elsewhere, safety_of, why_departed,
    why_incomplete, why_restored,
};
use super::seen_keys::SeenKeys;
use super::usage::{key_users_of, sets_with};
use crate::{DiskError, DiskView};
use installation::catalog::{DiskEncryptionSetRecord, IdentityRecord, VaultRecord};
use installation::{Installation, InstallationError};
use vault::{KeyUrl, Permissions, VaultError};

/// Who depends on whom.
#[derive(Debug, Default)]
pub struct Dependencies {
    /// The vaults, by name.
    pub vaults: Vec<SeenVault>,
    /// The key versions in vaults that are kept here.
    pub keys: SeenKeys,
    /// The disk encryption sets, by name.
    pub sets: Vec<SeenSet>,
    /// The identities of users and sets.
    pub identities: Vec<IdentityRecord>,
    /// Disks, snapshots and images, by kind and name.
    pub resources: Vec<DiskView>,
    /// Which key versions wrap them.
    users: Vec<KeyUser>,
}

/// A vault.
#[derive(Debug)]
pub struct SeenVault {
    /// As the catalog has it.
    pub record: VaultRecord,
    /// Whether it is deleted, and can be recovered.
    pub is_deleted: bool,
    /// Who may do what in it; nothing of a vault elsewhere.
    pub policies: Vec<(Uuid, Permissions)>,
    /// Why its database could not be read.
    pub problem: Option<String>,
}

impl SeenVault {
    /// Why it may have keys that were not seen, if it may. Of a vault elsewhere each key that is known says so.
    fn why_unseen(&self, no_key_is_known: bool) -> Option<(SafeToDisable, String)> {
        let name = &self.record.name;
        let why = match &self.problem {
            Some(problem) => format!("the key vault '{name}' is not readable: {problem}"),
            None if self.record.kind.is_remote() && no_key_is_known => format!(
                "the key vault '{name}' is a remote vault, and only its own log says who uses its keys"
            ),
            None => return None,
        };
        Some((SafeToDisable::Unknown, why))
    }
}

/// A disk encryption set.
#[derive(Debug)]
pub struct SeenSet {
    /// As the catalog has it.
    pub record: DiskEncryptionSetRecord,
    /// The key version that wraps its new disks; without a version where that is not known.
    pub active_key: String,
    /// With double encryption: that of the platform-managed key, which wraps them too.
    pub platform_key: Option<String>,
}

impl SeenSet {
    /// All key versions that wrap its new disks.
    fn active_keys(&self) -> impl Iterator<Item = &String> {
        std::iter::once(&self.active_key).chain(&self.platform_key)
    }
}

/// What is taken away.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Loss {
    /// A key version, or with a URL without a version all versions of a key: it is disabled, say, or deleted.
    Key(String),
    /// A vault, by its name: it is deleted, or cannot be reached for longer than disks wait.
    Vault(String),
    /// An identity, by its object id: it is removed, or may use no key any more.
    Identity(Uuid),
}

impl Loss {
    fn why_not_known(&self) -> String {
        match self {
            Self::Key(url) => format!("no key {url} is known here"),
            Self::Vault(name) => format!("no key vault '{name}' is known here"),
            Self::Identity(id) => format!("no identity {id} is known here"),
        }
    }
}

/// What a loss would stop.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Cut {
    /// Whether nothing would stop. Its reasons are those that are not in the lists below: what is elsewhere, or not
    /// known.
    #[serde(flatten)]
    pub safety: Safety,
    /// Disks, snapshots and images, each once: attached disks would stop, others could not be attached or read.
    pub resources: Vec<KeyUser>,
    /// Disk encryption sets with which no disk could be made.
    pub disk_encryption_sets: Vec<String>,
}

/// What was found besides the lists.
type Found = Vec<(SafeToDisable, String)>;

impl Dependencies {
    /// Looks at an installation.
    ///
    /// # Errors
    /// When the catalog cannot be read. What cannot be read of a vault is told in its place.
    pub fn look(installation: &Installation) -> Result<Self, DiskError> {
        let catalog = installation.catalog();
        let mut keys = SeenKeys::default();
        let vaults = catalog.vaults()?.into_iter();
        let vaults = vaults.map(|vault| seen_vault(installation, vault.record, &mut keys));
        let vaults = vaults.collect();
        let seen_set = |record: DiskEncryptionSetRecord| SeenSet {
            active_key: keys
                .active(&record)
                .unwrap_or_else(|| without_followed_version(&record)),
            platform_key: keys.platform(&record),
            record,
        };
        let sets = catalog.all_des()?.into_iter();
        let sets = sets.map(|set| seen_set(set.record)).collect();
        let identities = catalog.identities()?.into_iter();
        let resources = crate::look(installation)?;
        Ok(Self {
            users: key_users_of(&resources, &catalog.resources()?),
            identities: identities.map(|identity| identity.record).collect(),
            vaults,
            keys,
            sets,
            resources,
        })
    }

    /// What wraps each resource: itself with the key of its top layer, and with each other key of its layers.
    pub fn key_users(&self) -> &[KeyUser] {
        &self.users
    }

    /// What a loss would stop.
    ///
    /// # Errors
    /// When the catalog cannot be read.
    pub fn without(&self, installation: &Installation, loss: &Loss) -> Result<Cut, DiskError> {
        let sets = self.sets_without(installation, loss);
        let resources = self.resources_without(installation, loss);
        let mut found = match loss {
            Loss::Key(url) => self.found_of_key(installation, url)?,
            Loss::Vault(name) => self.found_of_vault(installation, name)?,
            Loss::Identity(id) => self.found_of_identity(installation, *id)?,
        };
        if !self.knows(installation, loss) {
            found.push((SafeToDisable::Unknown, loss.why_not_known()));
        }
        let mut safety = Safety::of(found);
        let stops = !resources.is_empty() || !sets.is_empty();
        if stops {
            safety.safe_to_disable = SafeToDisable::No;
        }
        Ok(Cut {
            safety,
            resources,
            disk_encryption_sets: sets,
        })
    }

    /// Whether what is lost is anything that was seen. Of what was not, a name that was mistaken perhaps, nobody can say
    /// what needs it.
    fn knows(&self, installation: &Installation, loss: &Loss) -> bool {
        match loss {
            Loss::Key(url) => {
                let of_users = self.users.iter().map(|user| &user.key_url);
                let of_sets = self.sets.iter().flat_map(|set| set.active_keys());
                let of_vaults = self.keys.versions().map(|(url, _)| url);
                let mut all = of_users.chain(of_sets).chain(of_vaults);
                all.any(|seen| is_version_of(seen, url))
            }
            Loss::Vault(name) => self.vault(name).is_some(),
            Loss::Identity(id) => {
                let own = [installation.operator(), installation.platform()];
                let policies = self.vaults.iter().flat_map(|vault| &vault.policies);
                own.iter().any(|identity| identity.object_id == *id)
                    || self.identities.iter().any(|one| one.object_id == *id)
                    || self.sets.iter().any(|set| set.record.principal_id == *id)
                    || policies.into_iter().any(|(identity, _)| identity == id)
            }
        }
    }

    fn resources_without(&self, installation: &Installation, loss: &Loss) -> Vec<KeyUser> {
        let platform = installation.platform().object_id;
        let needs_it = |user: &&KeyUser| match loss {
            Loss::Key(url) => is_version_of(&user.key_url, url),
            Loss::Vault(name) => self.is_in_vault(&user.key_url, name),
            Loss::Identity(id) => match &user.disk_encryption_set_id {
                Some(set) => self.set(set).is_some_and(|set| set.principal_id == *id),
                None => platform == *id,
            },
        };
        let mut resources: Vec<KeyUser> = self.users.iter().filter(needs_it).cloned().collect();
        // The top layer of each comes first.
        resources.dedup_by(|one, before| (one.kind, &one.name) == (before.kind, &before.name));
        resources
    }

    fn sets_without(&self, installation: &Installation, loss: &Loss) -> Vec<String> {
        let platform = installation.platform().object_id;
        let needs_it = |set: &&SeenSet| match loss {
            Loss::Key(url) => set.active_keys().any(|key| is_version_of(key, url)),
            Loss::Vault(name) => set.active_keys().any(|key| self.is_in_vault(key, name)),
            Loss::Identity(id) => {
                set.record.principal_id == *id || (set.platform_key.is_some() && platform == *id)
            }
        };
        let sets = self.sets.iter().filter(needs_it);
        sets.map(|set| set.record.name.clone()).collect()
    }

    fn set(&self, name: &str) -> Option<&DiskEncryptionSetRecord> {
        let mut sets = self.sets.iter().map(|set| &set.record);
        sets.find(|set| set.name == name)
    }

    fn vault(&self, name: &str) -> Option<&SeenVault> {
        let mut vaults = self.vaults.iter();
        vaults.find(|seen| seen.record.name == name)
    }

    fn is_in_vault(&self, key_url: &str, vault: &str) -> bool {
        let url = key_url.parse::<KeyUrl>().ok();
        let at = url.zip(self.vault(vault));
        at.is_some_and(|(url, vault)| url.vault_url.eq_ignore_ascii_case(&vault.record.url))
    }

    fn found_of_key(&self, installation: &Installation, url: &str) -> Result<Found, DiskError> {
        // What is known to be under it is in the lists.
        let unread = self
            .users
            .iter()
            .filter(|user| user.problem.is_some() && !is_version_of(&user.key_url, url));
        let unread: Vec<_> = unread.cloned().collect();
        let sets = self.sets.iter();
        let sets: Vec<_> = sets
            .flat_map(|set| {
                let name = &set.record.name;
                set.active_keys().map(|key| (name.clone(), key.clone()))
            })
            .collect();
        let mut sets = sets_with(&sets, url);
        sets.retain(|(_, answer)| *answer == SafeToDisable::Unknown);
        let needs = Needs {
            users: &unread,
            sets: &sets,
            vaults: VaultLook::Database,
        };
        let safety = safety_of(installation, url, &needs)?;
        let answer = safety.safe_to_disable;
        Ok(safety
            .reasons
            .into_iter()
            .map(|why| (answer, why))
            .collect())
    }

    fn found_of_vault(&self, installation: &Installation, name: &str) -> Result<Found, DiskError> {
        let mut keys: Vec<String> = Vec::new();
        let of_users = self.users.iter().map(|user| &user.key_url);
        let of_vaults = self.keys.versions().map(|(url, _)| url);
        for url in of_users.chain(of_vaults) {
            if let Ok(mut url) = url.parse::<KeyUrl>()
                && self.is_in_vault(&url.to_string(), name)
            {
                url.key.version = None;
                keys.push(url.to_string());
            }
        }
        keys.sort();
        keys.dedup();
        let mut found = Found::new();
        if let Some(vault) = self.vault(name) {
            found.extend(vault.why_unseen(keys.is_empty()));
        }
        for url in keys {
            found.extend(self.found_of_key(installation, &url)?);
        }
        found.dedup();
        Ok(found)
    }

    /// What an identity has used keys for that is not here, and what was under its set when it left the catalog.
    fn found_of_identity(
        &self,
        installation: &Installation,
        id: Uuid,
    ) -> Result<Found, InstallationError> {
        let mut found = Found::new();
        for departed in installation.catalog().departed()? {
            let set = |name: &Option<String>| self.set(name.as_deref()?);
            let mut sets = departed.keys.iter();
            let is_its = sets
                .any(|key| set(&key.disk_encryption_set).is_some_and(|set| set.principal_id == id));
            if is_its {
                found.push((SafeToDisable::Unknown, why_departed(&departed, true)));
            }
        }
        if let Some(restored) = installation.catalog().restored()? {
            found.push((SafeToDisable::Unknown, why_restored(&restored)));
        }
        for vault in &self.vaults {
            let name = &vault.record.name;
            if vault.record.kind.is_remote() {
                continue;
            }
            match uses_by(installation, name, id) {
                Ok(more) => found.extend(more),
                Err(error) => {
                    let why = format!("the log of the key vault '{name}' is not readable: {error}");
                    found.push((SafeToDisable::Unknown, why));
                }
            }
        }
        Ok(found)
    }
}

/// What an identity has used the keys of a vault for that is not here.
fn uses_by(installation: &Installation, vault: &str, id: Uuid) -> Result<Found, InstallationError> {
    let database = installation.look_at_vault(vault)?;
    let mut found = Found::new();
    if let Some(since) = database.incomplete()? {
        found.push((SafeToDisable::Unknown, why_incomplete(vault, since)));
    }
    for key in database.used_keys()? {
        let mut uses = database.last_uses(&key, None)?;
        uses.retain(|used| used.caller == id);
        let of_key = of_elsewhere(installation, uses)?.into_iter();
        found.extend(of_key.map(|(answer, why)| (answer, format!("of the key '{key}': {why}"))));
    }
    Ok(found)
}

fn seen_vault(installation: &Installation, record: VaultRecord, keys: &mut SeenKeys) -> SeenVault {
    let mut vault = SeenVault {
        record,
        is_deleted: false,
        policies: Vec::new(),
        problem: None,
    };
    if vault.record.kind.is_remote() {
        return vault;
    }
    let mut read = || -> Result<(), VaultError> {
        let database = installation.look_at_vault(&vault.record.name)?;
        vault.is_deleted = database.deletion()?.is_some();
        vault.policies = database.policies()?;
        for mut key in database.seen_keys()? {
            key.is_deleted |= vault.is_deleted;
            keys.put(&vault.record.url, key);
        }
        Ok(())
    };
    let failure = read().err();
    vault.problem = failure.map(|error| error.to_string());
    vault
}

/// The key of a set that wraps new disks with a version which is not known.
fn without_followed_version(set: &DiskEncryptionSetRecord) -> String {
    match set.key_url.parse::<KeyUrl>() {
        Ok(mut url) if set.auto_rotation => {
            url.key.version = None;
            url.to_string()
        }
        _ => set.key_url.clone(),
    }
}
