//! The keys and vaults of an installation, and the room that it has. They are looked at in a thread of their own, again
//! and again, so that no scrape waits for a database, a token or a file system.
//!
//! Nothing is used, and nothing recorded: the vaults' databases are read, and no master key is loaded. Keys in remote vaults are not asked for, since
//! each question is one more in the vault's log; what is known of them is what attached disks tell.

mod grants;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use time::OffsetDateTime;
use uuid::Uuid;

use disks::des::SeenKeys;
use installation::catalog::{DiskEncryptionSetRecord, DiskRecord, VaultRecord};
use installation::{Installation, InstallationError, Place};
use vault::audit::Space;
use vault::{Permissions, SeenKey, SeenRecords, VaultDatabase, VaultError};

use self::grants::Policies;
use crate::catalogue as metric;
use crate::disks::flag;
use crate::samples::{Samples, timestamp};

/// What was seen last.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    pub(crate) samples: Samples,
    /// The disks' names by their ids.
    pub(crate) names: HashMap<Uuid, String>,
    /// When it was seen; `None` before the first time.
    at: Option<Instant>,
    /// Why the catalog could not be read, if it could not.
    failure: Option<String>,
}

impl Seen {
    /// The names of the disks in the catalog, if that could be read.
    pub(crate) fn catalog(&self) -> Option<&HashMap<Uuid, String>> {
        (self.at.is_some() && self.failure.is_none()).then_some(&self.names)
    }

    /// Why it is not what there is now, if it is not: it was never seen, or not within `patience`.
    pub(crate) fn is_stale(&self, patience: Duration) -> Option<String> {
        match (self.at, &self.failure) {
            (_, Some(failure)) => Some(failure.clone()),
            (None, None) => Some("keys and vaults were not looked at yet".into()),
            (Some(at), None) if at.elapsed() > patience => {
                let seconds = at.elapsed().as_secs();
                Some(format!(
                    "keys and vaults were last looked at {seconds} s ago"
                ))
            }
            (Some(_), None) => None,
        }
    }
}

/// What was seen last, for scrapes.
pub(crate) type LastSeen = Arc<Mutex<Arc<Seen>>>;

/// What was seen last.
pub(crate) fn last(seen: &LastSeen) -> Arc<Seen> {
    lock(seen).clone()
}

fn lock(seen: &LastSeen) -> MutexGuard<'_, Arc<Seen>> {
    // It is replaced as a whole.
    seen.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Looks at an installation every `period`, until the process ends.
///
/// # Errors
/// When the thread cannot be started.
pub(crate) fn watch(
    place: Place,
    runtime_dir: PathBuf,
    period: Duration,
) -> std::io::Result<LastSeen> {
    let seen = LastSeen::default();
    let told = seen.clone();
    let mut watcher = Watcher::new(place, runtime_dir);
    let work = move || {
        loop {
            let looked = watcher.look();
            *lock(&told) = Arc::new(looked);
            std::thread::sleep(period);
        }
    };
    std::thread::Builder::new()
        .name("installation".into())
        .spawn(work)?;
    Ok(seen)
}

/// What looks.
struct Watcher {
    place: Place,
    runtime_dir: PathBuf,
    installation: Option<Installation>,
    /// What each vault was asked for since it is watched.
    records: BTreeMap<String, SeenRecords>,
    /// What was logged last, so that it is logged once.
    failure: Option<String>,
}

impl Watcher {
    fn new(place: impl Into<Place>, runtime_dir: PathBuf) -> Self {
        Self {
            place: place.into(),
            runtime_dir,
            installation: None,
            records: BTreeMap::new(),
            failure: None,
        }
    }

    fn look(&mut self) -> Seen {
        let mut seen = Seen::default();
        let looked = self.look_at_installation(&mut seen);
        self.look_at_space(&mut seen.samples);
        let now = timestamp(OffsetDateTime::now_utc());
        seen.samples.put(&metric::INSTALLATION_TIME, &[], now);
        let is_up = flag(looked.is_ok());
        seen.samples.put(&metric::INSTALLATION_UP, &[], is_up);
        seen.at = Some(Instant::now());
        seen.failure = looked.err().map(|error| error.to_string());
        if seen.failure != self.failure {
            if let Some(failure) = &seen.failure {
                log::warn!("keys and vaults are not looked at: {failure}");
            }
            self.failure.clone_from(&seen.failure);
        }
        seen
    }

    fn look_at_installation(&mut self, seen: &mut Seen) -> Result<(), InstallationError> {
        // One whose catalog was lost is still there for who has it open.
        let kept = self.installation.take().filter(Installation::is_current);
        let installation = match kept {
            Some(installation) => installation,
            None => Installation::open_existing(&self.place)?,
        };
        let looked = self.look_at_all(&installation, seen);
        if looked.is_ok() {
            self.installation = Some(installation);
        }
        looked
    }

    fn look_at_all(
        &mut self,
        installation: &Installation,
        seen: &mut Seen,
    ) -> Result<(), InstallationError> {
        let catalog = installation.catalog();
        let resources: Vec<_> = catalog.resources()?.into_iter().map(|r| r.record).collect();
        let sets: Vec<_> = catalog
            .all_des()?
            .into_iter()
            .map(|set| set.record)
            .collect();
        let disks = catalog.disks()?.into_iter();
        seen.names = disks
            .map(|disk| (disk.record.id, disk.record.name))
            .collect();
        let vaults = catalog.vaults()?.into_iter().map(|vault| vault.record);
        let vaults: Vec<_> = vaults.filter(|vault| !vault.kind.is_remote()).collect();
        self.records
            .retain(|name, _| vaults.iter().any(|vault| vault.name == *name));
        let (mut keys, mut policies) = (SeenKeys::default(), Policies::new());
        for VaultRecord { name, url, .. } in &vaults {
            let looked = self.look_at_vault(installation, (name, url), seen, &mut keys);
            match &looked {
                Ok(found) => drop(policies.insert(name.clone(), found.clone())),
                Err(error) => log::debug!("the vault {name} is not looked at: {error}"),
            }
            let is_up = flag(looked.is_ok());
            seen.samples.put(&metric::VAULT_UP, &[name], is_up);
        }
        add_keys(&keys, &mut seen.samples, &resources, &sets);
        let needs = grants::Needs::of(&resources, &sets, installation.platform().object_id);
        needs.add(&keys, &policies, &mut seen.samples);
        // The first attach makes it.
        if let Some(last) = installation.last_own_record()? {
            seen.samples
                .put(&metric::AUDIT_RECORDS, &["installation"], last as f64);
        }
        Ok(())
    }

    fn look_at_vault(
        &mut self,
        installation: &Installation,
        (name, url): (&str, &str),
        seen: &mut Seen,
        keys: &mut SeenKeys,
    ) -> Result<BTreeMap<Uuid, Permissions>, VaultError> {
        let database = installation.look_at_vault(name)?;
        if !self.records.contains_key(name) {
            let begun = SeenRecords::from_now_on(&database)?;
            self.records.insert(name.into(), begun);
        }
        let records = self.records.entry(name.into()).or_default();
        records.look(&database)?;
        let is_deleted = database.deletion()?.is_some();
        for key in database.seen_keys()? {
            let is_deleted = is_deleted || key.is_deleted;
            keys.put(url, SeenKey { is_deleted, ..key });
        }
        let samples = &mut seen.samples;
        samples.put(&metric::AUDIT_RECORDS, &[name], records.last as f64);
        for (operation, count) in &records.operations {
            samples.put(&metric::VAULT_REQUESTS, &[name, operation], *count as f64);
        }
        for (code, count) in &records.refusals {
            samples.put(&metric::VAULT_REFUSALS, &[name, code], *count as f64);
        }
        let bytes = size_of_database(installation, name, &database)?;
        samples.put(&metric::VAULT_BYTES, &[name], bytes as f64);
        Ok(database.policies()?.into_iter().collect())
    }

    fn look_at_space(&self, samples: &mut Samples) {
        let state_dir = self.place.state_dir.as_path();
        let vaults = state_dir.join("vaults");
        for (name, dir) in [
            ("state", state_dir),
            ("vaults", &vaults),
            ("runtime", &self.runtime_dir),
        ] {
            if let Ok(space) = Space::at(dir) {
                samples.put(&metric::SPACE_FREE, &[name], space.available as f64);
                samples.put(&metric::SPACE_SIZE, &[name], space.total as f64);
            }
        }
    }
}

/// Of a file with what is not in it yet.
fn size_of_database(
    installation: &Installation,
    name: &str,
    database: &VaultDatabase,
) -> Result<u64, VaultError> {
    if installation.place().catalog.server().is_some() {
        return Ok(database.connection().size()?);
    }
    let path = installation.vault_dir(name).join("vault.db");
    let wal = path.with_extension("db-wal");
    let files = [path, wal].into_iter();
    let files = files.filter_map(|path| path.metadata().ok());
    Ok(files.map(|metadata| metadata.len()).sum())
}

/// Only versions that something uses, and the latest ones: keys that are rotated for years have many.
fn add_keys(
    keys: &SeenKeys,
    samples: &mut Samples,
    resources: &[DiskRecord],
    sets: &[DiskEncryptionSetRecord],
) {
    let mut counts: BTreeMap<(String, &'static str), u64> = BTreeMap::new();
    for resource in resources {
        let kind = resource.kind.as_str();
        let of_layers = resource.layers.iter().map(|layer| &layer.key_url);
        let wraps: BTreeSet<_> = of_layers.chain([&resource.key_url]).collect();
        for url in wraps {
            *counts.entry((url.clone(), kind)).or_default() += 1;
        }
    }
    for ((url, kind), count) in &counts {
        samples.put(&metric::KEY_RESOURCES, &[url, kind], *count as f64);
    }
    let mut shown: BTreeSet<String> = counts.into_keys().map(|(url, _)| url).collect();
    for set in sets {
        let active = keys.active(set).unwrap_or_else(|| set.key_url.clone());
        samples.put(&metric::SET_KEY, &[&set.name, &active], 1.0);
        shown.insert(active);
    }
    let now = OffsetDateTime::now_utc();
    for (url, key) in keys.versions() {
        let is_shown = shown.contains(url) || (key.is_latest && !key.is_deleted);
        if is_shown {
            add_key(samples, url, key, now);
        }
    }
}

fn add_key(samples: &mut Samples, url: &str, key: &SeenKey, now: OffsetDateTime) {
    samples.put(&metric::KEY_ENABLED, &[url], flag(key.may_be_used(now)));
    samples.put(&metric::KEY_LATEST, &[url], flag(key.is_latest));
    samples.put(&metric::KEY_CREATED, &[url], timestamp(key.created));
    if let Some(expires) = key.expires {
        samples.put(&metric::KEY_EXPIRES, &[url], timestamp(expires));
    }
}

#[cfg(test)]
mod tests {
    use vault::{AttributeChange, KeyId, KeySize, KeyVault, NewKey, VaultSettings};

    use super::*;

    #[test]
    fn keys_and_vaults_are_told_without_a_record() {
        let dir = tempfile::tempdir().unwrap();
        let state = dir.path().join("state");
        let installation = Installation::open(&state).unwrap();
        let vault = installation
            .create_vault("myvault", &VaultSettings::default())
            .unwrap();
        let operator = installation.operator();
        let soon = OffsetDateTime::now_utc() + Duration::from_secs(3600);
        let mut new = NewKey::new(KeySize::Rsa2048);
        new.attributes = AttributeChange {
            expires: Some(Some(soon)),
            ..AttributeChange::default()
        };
        let old = vault.create_key(&operator, "k", &new).unwrap();
        let key = vault.create_key(&operator, "k", &NewKey::new(KeySize::Rsa2048));
        let latest = key.unwrap().key.kid;
        let mut watcher = Watcher::new(state.clone(), dir.path().into());
        let seen = watcher.look();
        assert_eq!(seen.is_stale(Duration::from_secs(60)), None);
        let value = |seen: &Seen, metric, labels: &[&str]| seen.samples.value(metric, labels);
        assert_eq!(value(&seen, &metric::VAULT_UP, &["myvault"]), Some(1.0));
        assert_eq!(value(&seen, &metric::KEY_ENABLED, &[&latest]), Some(1.0));
        assert_eq!(value(&seen, &metric::KEY_LATEST, &[&latest]), Some(1.0));
        let unused = value(&seen, &metric::KEY_LATEST, &[&old.key.kid]);
        assert_eq!(unused, None, "nothing needs it");
        let records = value(&seen, &metric::AUDIT_RECORDS, &["myvault"]).unwrap();
        assert!(records > 0.0);
        assert_eq!(
            value(&seen, &metric::VAULT_REQUESTS, &["myvault", "KeyCreate"]),
            None
        );
        assert!(value(&seen, &metric::SPACE_FREE, &["state"]).unwrap() > 0.0);

        let id = KeyId {
            name: "none".into(),
            version: None,
        };
        vault.key(&operator, &id).unwrap_err();
        let seen = watcher.look();
        let asked = value(&seen, &metric::VAULT_REQUESTS, &["myvault", "KeyGet"]);
        assert_eq!(asked, Some(1.0), "since it is watched");
        let refused = value(&seen, &metric::VAULT_REFUSALS, &["myvault", "KeyNotFound"]);
        assert_eq!(refused, Some(1.0));
        let after = value(&seen, &metric::AUDIT_RECORDS, &["myvault"]).unwrap();
        assert_eq!(after, records + 1.0, "looking is not recorded");
    }

    #[test]
    fn a_vault_that_is_lost_is_told_and_the_others_are_still_seen() {
        let dir = tempfile::tempdir().unwrap();
        let installation = Installation::open(dir.path()).unwrap();
        for name in ["one", "two"] {
            drop(
                installation
                    .create_vault(name, &VaultSettings::default())
                    .unwrap(),
            );
        }
        std::fs::write(dir.path().join("vaults/one/vault.db"), "no database").unwrap();
        let mut watcher = Watcher::new(dir.path(), dir.path().into());
        let seen = watcher.look();
        let is_up = |vault| seen.samples.value(&metric::VAULT_UP, &[vault]);
        assert_eq!((is_up("one"), is_up("two")), (Some(0.0), Some(1.0)));
        assert_eq!(seen.samples.value(&metric::INSTALLATION_UP, &[]), Some(1.0));
    }

    #[test]
    fn where_there_is_no_installation_none_is_made() {
        let dir = tempfile::tempdir().unwrap();
        let state = dir.path().join("none/state");
        let mut watcher = Watcher::new(state.clone(), dir.path().into());
        let seen = watcher.look();
        assert_eq!(seen.samples.value(&metric::INSTALLATION_UP, &[]), Some(0.0));
        assert!(seen.is_stale(Duration::from_secs(60)).is_some());
        assert!(!dir.path().join("none").exists());
        drop(Installation::open(&state).unwrap());
        let seen = watcher.look();
        assert_eq!(seen.samples.value(&metric::INSTALLATION_UP, &[]), Some(1.0));
    }

    #[test]
    fn a_catalog_that_was_lost_while_it_was_open_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let state = dir.path().join("state");
        drop(Installation::open(&state).unwrap());
        let mut watcher = Watcher::new(state.clone(), dir.path().into());
        for up in [1.0, 0.0] {
            let seen = watcher.look();
            assert_eq!(seen.samples.value(&metric::INSTALLATION_UP, &[]), Some(up));
            for name in ["catalog.db", "catalog.db-wal", "catalog.db-shm"] {
                let _ = std::fs::remove_file(state.join(name));
            }
        }
    }

    #[test]
    fn an_installation_that_cannot_be_read_is_told() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("catalog.db"), "no database").unwrap();
        let mut watcher = Watcher::new(dir.path(), dir.path().into());
        let seen = watcher.look();
        assert_eq!(seen.samples.value(&metric::INSTALLATION_UP, &[]), Some(0.0));
        assert!(seen.is_stale(Duration::from_secs(60)).is_some());
        assert!(Seen::default().is_stale(Duration::from_secs(60)).is_some());
    }
}
