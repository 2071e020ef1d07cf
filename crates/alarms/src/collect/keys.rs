//! Keys: which of them something needs, and until when they may be used.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use time::OffsetDateTime;
use uuid::Uuid;

use super::remote_keys::RemoteKeys;
use super::times::Times;
use crate::alarm::{Subject, SubjectKind};
use crate::error::AlarmsError;
use crate::facts::{Facts, KeyFacts, KeyRefusal, Unknown};
use installation::Installation;
use installation::catalog::{DesIdentity, DiskEncryptionSetRecord};
use vault::{KeyPermission, KeyUrl, Permissions, SeenKey, same_key_url, vault_url};

/// The key that wraps what is made now.
#[derive(Debug, Clone)]
pub(super) struct ActiveKey {
    /// Without a version where any version will do.
    pub(super) url: String,
    /// Since when, if it is known.
    pub(super) since: Option<OffsetDateTime>,
    /// Whether its vault has it no more.
    pub(super) is_gone: bool,
}

impl ActiveKey {
    /// Whether a key version is it.
    pub(super) fn is(&self, url: &str) -> bool {
        let parsed = |url: &str| url.parse::<KeyUrl>().ok();
        let (Some(mut one), Some(active)) = (parsed(url), parsed(&self.url)) else {
            return same_key_url(url, &self.url);
        };
        if active.key.version.is_none() {
            one.key.version = None;
        }
        same_key_url(&one.to_string(), &active.to_string())
    }
}

impl From<Times> for ActiveKey {
    fn from(times: Times) -> Self {
        Self {
            since: times.created,
            is_gone: times.is_gone(),
            url: times.url,
        }
    }
}

/// A vault that is kept here, as its database has it.
struct Vault {
    is_deleted: bool,
    versions: Vec<SeenKey>,
    policies: BTreeMap<Uuid, Permissions>,
}

/// A key version that something needs.
struct Needed {
    times: Times,
    by: BTreeSet<String>,
    unserved: BTreeSet<String>,
    /// The sets in whose name it is used; nothing for the platform.
    identities: BTreeSet<Option<String>>,
}

impl Needed {
    fn new(times: Times) -> Self {
        Self {
            times,
            by: BTreeSet::new(),
            unserved: BTreeSet::new(),
            identities: BTreeSet::new(),
        }
    }
}

/// The keys that were looked at, each once.
pub(super) struct KeyBook<'a> {
    installation: &'a Installation,
    /// Nothing where vaults elsewhere are not asked.
    remote: Option<&'a RemoteKeys>,
    /// The vaults that are kept here; nothing where they cannot be read.
    vaults: BTreeMap<String, Option<Rc<Vault>>>,
    sets: Option<Rc<[DiskEncryptionSetRecord]>>,
    /// By the names of their sets.
    active: BTreeMap<String, Option<ActiveKey>>,
    /// By their URLs in small letters, in which case does not count.
    keys: BTreeMap<String, Needed>,
    unknown: BTreeMap<Subject, String>,
}

impl<'a> KeyBook<'a> {
    pub(super) fn new(installation: &'a Installation, remote: Option<&'a RemoteKeys>) -> Self {
        Self {
            installation,
            remote,
            vaults: BTreeMap::new(),
            sets: None,
            active: BTreeMap::new(),
            keys: BTreeMap::new(),
            unknown: BTreeMap::new(),
        }
    }

    /// All disk encryption sets.
    fn sets(&mut self) -> Result<Rc<[DiskEncryptionSetRecord]>, AlarmsError> {
        if let Some(sets) = &self.sets {
            return Ok(sets.clone());
        }
        let stored = self.installation.catalog().all_des()?.into_iter();
        let sets: Rc<[_]> = stored.map(|stored| stored.record).collect();
        self.sets = Some(sets.clone());
        Ok(sets)
    }

    /// Notes that something has a layer that a key version wraps, in the name of a set.
    pub(super) fn need_for(&mut self, url: &str, set: Option<&str>, by: &str, is_served: bool) {
        if let Some(needed) = self.need(url, set) {
            needed.by.insert(by.to_owned());
            if !is_served {
                needed.unserved.insert(by.to_owned());
            }
        }
    }

    /// Notes that a key version is used in the name of a set.
    fn need(&mut self, url: &str, set: Option<&str>) -> Option<&mut Needed> {
        let mut id = url.to_ascii_lowercase();
        if !self.keys.contains_key(&id) {
            let times = self.times(url, set)?;
            id = times.url.to_ascii_lowercase();
            let entry = self.keys.entry(id.clone());
            entry.or_insert_with(|| Needed::new(times));
        }
        let needed = self.keys.get_mut(&id)?;
        needed.identities.insert(set.map(str::to_owned));
        Some(needed)
    }

    /// Notes the keys with which sets wrap what is made now.
    pub(super) fn need_active_keys(&mut self) -> Result<(), AlarmsError> {
        for set in self.sets()?.iter() {
            if let Some(active) = self.active_of_named(&set.name)? {
                self.need(&active.url, Some(&set.name));
            }
        }
        Ok(())
    }

    /// Notes the latest version of each key in the vaults that are kept here: others may use these too.
    pub(super) fn need_latest_versions(&mut self) -> Result<(), AlarmsError> {
        let deleted = self.installation.deleted_vaults()?;
        for stored in self.installation.catalog().vaults()? {
            let name = &stored.record.name;
            if stored.record.kind.is_remote() || deleted.iter().any(|gone| gone.name == *name) {
                continue;
            }
            let Some(vault) = self.vault(name) else {
                continue;
            };
            let is_newest = |version: &&SeenKey| version.is_latest && !version.is_deleted;
            for version in vault.versions.iter().filter(is_newest) {
                let times = times_of(name, &vault, version);
                let entry = self.keys.entry(times.url.to_ascii_lowercase());
                entry.or_insert_with(|| Needed::new(times));
            }
        }
        Ok(())
    }

    /// The key with which a set wraps what is made now.
    fn active_of(&mut self, set: &DiskEncryptionSetRecord) -> Option<ActiveKey> {
        let mut url: KeyUrl = set.key_url.parse().ok()?;
        // One that does not follow its key leaves its disks under the versions that they have.
        if !set.auto_rotation {
            return Some(ActiveKey {
                url: set.key_url.clone(),
                since: set.last_rotation,
                is_gone: false,
            });
        }
        url.key.version = None;
        let times = self.times(&url.to_string(), Some(&set.name))?;
        Some(times.into())
    }

    /// The same of the set of that name, if there is one.
    pub(super) fn active_of_named(&mut self, name: &str) -> Result<Option<ActiveKey>, AlarmsError> {
        if let Some(known) = self.active.get(name) {
            return Ok(known.clone());
        }
        let sets = self.sets()?;
        let set = sets.iter().find(|set| set.name == name);
        // To find it out may take asking a vault elsewhere.
        let active = set.and_then(|set| self.active_of(set));
        self.active.insert(name.to_owned(), active.clone());
        Ok(active)
    }

    /// The latest version of the key of which `url` is a version.
    pub(super) fn latest_of(&mut self, url: &str) -> Option<ActiveKey> {
        let mut url: KeyUrl = url.parse().ok()?;
        url.key.version = None;
        let times = self.times(&url.to_string(), None)?;
        Some(times.into())
    }

    /// Has the facts have the keys, and what is not known of them.
    pub(super) fn finish(mut self, facts: &mut Facts) -> Result<(), AlarmsError> {
        for needed in std::mem::take(&mut self.keys).into_values() {
            let refusals = self.refusals(&needed, facts.now)?;
            facts.keys.push(KeyFacts {
                url: needed.times.url,
                refusals,
                expires: needed.times.expires,
                created: needed.times.created,
                needed_by: needed.by.into_iter().collect(),
                unserved: needed.unserved.into_iter().collect(),
                sets: needed.identities.into_iter().flatten().collect(),
            });
        }
        let unknown = self.unknown.into_iter();
        let unknown = unknown.map(|(subject, why)| Unknown { subject, why });
        facts.unknown.extend(unknown);
        Ok(())
    }

    /// Why a key version may not be used by all who need it.
    fn refusals(
        &mut self,
        needed: &Needed,
        now: OffsetDateTime,
    ) -> Result<Vec<KeyRefusal>, AlarmsError> {
        let mut refusals: Vec<_> = needed.times.refusal.clone().into_iter().collect();
        if let Some(from) = needed.times.not_before.filter(|from| *from > now) {
            refusals.push(KeyRefusal::NotYet { from });
        }
        // Who may use keys of a vault elsewhere is known there.
        let url = needed.times.url.parse::<KeyUrl>().ok();
        let name = url.as_ref().and_then(KeyUrl::vault_name);
        let Some(vault) = name.and_then(|name| self.vault(name)) else {
            return Ok(refusals);
        };
        for set in &needed.identities {
            refusals.extend(self.refusal_of(set.as_deref(), &vault)?);
        }
        Ok(refusals)
    }

    /// Why an identity may not unwrap with the keys of a vault: that of a set, or of the platform.
    fn refusal_of(
        &mut self,
        set: Option<&str>,
        vault: &Vault,
    ) -> Result<Option<KeyRefusal>, AlarmsError> {
        let identity = match set {
            None => self.installation.platform().object_id,
            Some(name) => {
                let sets = self.sets()?;
                let found = sets.iter().find(|found| found.name == name);
                let known = found.filter(|found| found.identity != DesIdentity::None);
                match known {
                    Some(set) => set.principal_id,
                    None => return Ok(Some(KeyRefusal::NoIdentity { set: name.into() })),
                }
            }
        };
        let granted = vault.policies.get(&identity).cloned().unwrap_or_default();
        if granted.contains(KeyPermission::UnwrapKey) {
            return Ok(None);
        }
        Ok(Some(KeyRefusal::NotGranted {
            set: set.map(str::to_owned),
            identity,
            wanted: granted.union(&Permissions::for_disks()).names(),
        }))
    }

    /// How long a key version, or the latest, may be used.
    fn times(&mut self, text: &str, set: Option<&str>) -> Option<Times> {
        let url: KeyUrl = match text.parse() {
            Ok(url) => url,
            Err(error) => return self.not_known(SubjectKind::Key, text, error),
        };
        let Some(name) = url.vault_name() else {
            let set = set?;
            return match self.remote?.times(self.installation, set, &url) {
                Ok(times) => Some(times),
                Err(why) => self.not_known(SubjectKind::Key, text, why),
            };
        };
        let vault = self.vault(name)?;
        let is_it = |version: &&SeenKey| {
            let wanted = url.key.version.as_ref();
            version.name.eq_ignore_ascii_case(&url.key.name)
                && wanted.is_none_or(|wanted| *wanted == version.version)
        };
        // A key of the name of one that is deleted cannot be made.
        Some(match vault.versions.iter().rfind(is_it) {
            Some(version) => times_of(name, &vault, version),
            None => Times::refused(text, KeyRefusal::Missing),
        })
    }

    /// A vault that is kept here.
    fn vault(&mut self, name: &str) -> Option<Rc<Vault>> {
        if let Some(known) = self.vaults.get(name) {
            return known.clone();
        }
        let read = self.installation.look_at_vault(name).and_then(|database| {
            Ok(Vault {
                is_deleted: database.deletion()?.is_some(),
                versions: database.seen_keys()?,
                policies: database.policies()?.into_iter().collect(),
            })
        });
        let vault = match read {
            Ok(vault) => Some(Rc::new(vault)),
            Err(error) => self.not_known(SubjectKind::Vault, name, error),
        };
        self.vaults.insert(name.to_owned(), vault.clone());
        vault
    }

    fn not_known<T>(&mut self, kind: SubjectKind, name: &str, why: impl ToString) -> Option<T> {
        self.note_unknown(kind, name, why);
        None
    }

    /// Notes what could not be looked at.
    pub(super) fn note_unknown(&mut self, kind: SubjectKind, name: &str, why: impl ToString) {
        self.unknown
            .insert(Subject::new(kind, name), why.to_string());
    }
}

fn times_of(name: &str, vault: &Vault, version: &SeenKey) -> Times {
    let (key, id) = (&version.name, &version.version);
    let refusal = match () {
        () if vault.is_deleted => Some(KeyRefusal::VaultDeleted),
        () if version.is_deleted => Some(KeyRefusal::Deleted),
        () if !version.enabled => Some(KeyRefusal::Disabled),
        () => None,
    };
    Times {
        url: format!("{}/keys/{key}/{id}", vault_url(name)),
        expires: version.expires,
        created: Some(version.created),
        not_before: version.not_before,
        refusal,
    }
}
