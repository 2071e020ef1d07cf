//! Keys: which of them something needs, and until when they may be used.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::rc::Rc;

use time::OffsetDateTime;

use super::remote_keys::RemoteKeys;
use super::times::Times;
use crate::alarm::{Subject, SubjectKind};
use crate::error::AlarmsError;
use crate::facts::{Facts, KeyFacts, Unknown};
use installation::Installation;
use installation::catalog::DiskEncryptionSetRecord;
use vault::{KeyUrl, SeenKey, VaultDatabase, same_key_url, vault_url};

/// The key that wraps what is made now.
#[derive(Debug, Clone)]
pub(super) struct ActiveKey {
    /// Without a version where any version will do.
    pub(super) url: String,
    /// Since when, if it is known.
    pub(super) since: Option<OffsetDateTime>,
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

/// The keys that were looked at.
pub(super) struct KeyBook<'a> {
    installation: &'a Installation,
    /// Nothing where vaults elsewhere are not asked.
    remote: Option<&'a RemoteKeys>,
    /// The versions in vaults that are kept here; nothing where they cannot be read.
    vaults: BTreeMap<String, Option<Rc<[SeenKey]>>>,
    sets: Option<Rc<[DiskEncryptionSetRecord]>>,
    /// By the names of their sets.
    active: BTreeMap<String, Option<ActiveKey>>,
    /// By their URLs in small letters, in which case does not count.
    keys: BTreeMap<String, (Times, BTreeSet<String>)>,
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

    /// Notes that something needs a key version, in the name of a set.
    pub(super) fn need(&mut self, url: &str, set: Option<&str>, by: String) {
        if let Some((_, needed_by)) = self.keys.get_mut(&url.to_ascii_lowercase()) {
            needed_by.insert(by);
            return;
        }
        if let Some(times) = self.times(url, set) {
            let entry = self.keys.entry(times.url.to_ascii_lowercase());
            entry.or_insert((times, BTreeSet::new())).1.insert(by);
        }
    }

    /// Notes the keys with which sets wrap what is made now.
    pub(super) fn need_active_keys(&mut self) -> Result<(), AlarmsError> {
        for set in self.sets()?.iter() {
            if let Some(active) = self.active_of_named(&set.name)? {
                let by = format!("the disk encryption set {}", set.name);
                self.need(&active.url, Some(&set.name), by);
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
            let versions = self.vault(name);
            let latest = versions.iter().flat_map(|versions| versions.iter());
            for version in latest.filter(|version| version.is_latest) {
                let times = times_of(name, version);
                let entry = self.keys.entry(times.url.to_ascii_lowercase());
                entry.or_insert((times, BTreeSet::new()));
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
            });
        }
        url.key.version = None;
        let times = self.times(&url.to_string(), Some(&set.name))?;
        Some(ActiveKey {
            since: Some(times.created),
            url: times.url,
        })
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
        Some(ActiveKey {
            since: Some(times.created),
            url: times.url,
        })
    }

    /// Has the facts have the keys, and what is not known of them.
    pub(super) fn finish(self, facts: &mut Facts) {
        let keys = self.keys.into_values().map(|(times, needed_by)| KeyFacts {
            url: times.url,
            enabled: times.enabled,
            expires: times.expires,
            created: Some(times.created),
            needed_by: needed_by.into_iter().collect(),
        });
        facts.keys.extend(keys);
        let unknown = self.unknown.into_iter();
        let unknown = unknown.map(|(subject, why)| Unknown { subject, why });
        facts.unknown.extend(unknown);
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
        let versions = self.vault(name)?;
        let is_it = |version: &&SeenKey| {
            let wanted = url.key.version.as_ref();
            version.name.eq_ignore_ascii_case(&url.key.name)
                && wanted.is_none_or(|wanted| *wanted == version.version)
        };
        let found = versions.iter().rfind(is_it);
        match found.map(|version| times_of(name, version)) {
            Some(times) => Some(times),
            None => {
                let why = "its vault has no such version: it is deleted, or was never made";
                self.not_known(SubjectKind::Key, text, why)
            }
        }
    }

    /// The versions in a vault that is kept here.
    fn vault(&mut self, name: &str) -> Option<Rc<[SeenKey]>> {
        if let Some(known) = self.vaults.get(name) {
            return known.clone();
        }
        let path = database(self.installation, name);
        let read = VaultDatabase::open(&path).and_then(|database| database.seen_keys());
        let versions = match read {
            Ok(mut versions) => {
                versions.retain(|version| !version.is_deleted);
                Some(Rc::from(versions))
            }
            Err(error) => self.not_known(SubjectKind::Vault, name, error),
        };
        self.vaults.insert(name.to_owned(), versions.clone());
        versions
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

fn times_of(vault: &str, version: &SeenKey) -> Times {
    let SeenKey {
        name, version: id, ..
    } = version;
    Times {
        url: format!("{}/keys/{name}/{id}", vault_url(vault)),
        enabled: version.enabled,
        expires: version.expires,
        created: version.created,
    }
}

/// The database of a vault that is kept here.
pub(super) fn database(installation: &Installation, name: &str) -> PathBuf {
    installation.vaults_dir().join(name).join("vault.db")
}
