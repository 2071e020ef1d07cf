//! Making a lost catalog again: from its copy, which has every id, and from what is in the directories
//! of vaults and disks.
//!
//! The catalog appears complete under its name once the copy's records are in it (see
//! [`DatabaseCatalog::make_again`]); vaults and disks are added one by one, and what is known already
//! stays as it is. What the vaults' logs name and was not found is noted at the end, for each vault of which
//! that was not done since the catalog was made again. So a rebuild that was cut off is repeated.
//!
//! The logs name less than there is: a snapshot or an image has never used a key under its own name. So a catalog that
//! was made again is marked as a restored one is, until the operator says that a rebuild has looked everywhere.

use std::collections::BTreeMap;
use std::path::PathBuf;

use time::{Duration, OffsetDateTime};
use uuid::Uuid;

use crate::lifecycle::complete_vaults::complete_vaults;
use crate::lifecycle::rebuild_resources::{Looked, rebuild_resources};
use crate::lifecycle::rebuilt::Rebuilt;
use installation::catalog::{
    CatalogCopy, DatabaseCatalog, DepartedKey, DepartedRecord, Departure, InstallationRecord,
    VaultRecord,
};
use installation::envelope::ResourceKind;
use installation::{
    CatalogAt, Installation, InstallationError, Place, VaultsLock, prepared_state_dir,
};
use vault::audit::AuditRecord;
use vault::{NAMED_DISKS, same_key_url};

/// What stands for the disks that a log does not name because there are more than it tells apart. No disk
/// can have such a name.
const UNNAMED: &str = "disks without a name";

/// For how long at most a key was used for something before the time at which it says it was made.
const MAKING: Duration = Duration::MINUTE;

/// URLs of key versions with the first time that each was used, by the name of what it was used for.
type UsedBy = BTreeMap<String, BTreeMap<String, OffsetDateTime>>;

/// Adds to the catalog of an installation, which is made when there is none, what is there and is not
/// in it: records from the catalog's copy, vaults by their directories or schemas, disks, snapshots and
/// images by the headers in their usual directories and in `data_dirs`. `all_named` is the operator's word that there
/// are no disks elsewhere: it makes up for what a restored catalog, or one that was made again, did not know, and for what
/// restored vaults lacked, unless something could not be read. A catalog on a server has no copy, and is not made again.
///
/// # Errors
/// [`InstallationError`]. What concerns a single vault or disk is in [`Rebuilt::problems`].
pub fn rebuild(
    place: &Place,
    data_dirs: &[PathBuf],
    all_named: bool,
) -> Result<(Installation, Rebuilt), InstallationError> {
    let mut rebuilt = Rebuilt {
        with_identities: true,
        ..Rebuilt::default()
    };
    let (_lock, installation) = match &place.catalog {
        CatalogAt::StateDir => opened_or_made(place, &mut rebuilt)?,
        CatalogAt::Server(_) => {
            let installation = Installation::open_existing(place)?;
            (VaultsLock::take(installation.place())?, installation)
        }
    };
    let found = installation.register_found_vaults()?;
    rebuilt.vaults = found.registered;
    rebuilt.problems = found.problems;
    let looked = Looked {
        data_dirs,
        all_named,
    };
    rebuild_resources(&installation, looked, &mut rebuilt)?;
    note_what_was_not_found(&installation)?;
    if all_named && rebuilt.problems.is_empty() {
        rebuilt.lacking = complete_vaults(&installation)?;
        installation.catalog().clear_restored()?;
    }
    rebuilt.restored = installation.catalog().restored()?;
    let departed = installation.catalog().departed()?.into_iter();
    let not_found = departed.filter(|record| record.reason == Departure::NotFound);
    rebuilt.not_found = not_found.map(|record| record.name).collect();
    rebuilt.not_found.dedup();
    record_rebuild(&installation, &rebuilt, all_named)?;
    Ok((installation, rebuilt))
}

/// The installation with the catalog that is in its state directory, or one that is made again there.
fn opened_or_made(
    place: &Place,
    rebuilt: &mut Rebuilt,
) -> Result<(VaultsLock, Installation), InstallationError> {
    let state_dir = prepared_state_dir(&place.state_dir)?;
    let path = state_dir.join("catalog.db");
    let lock = VaultsLock::take(&Place::from(&state_dir))?;
    Installation::refuse_elsewhere(&state_dir)?;
    let catalog = if path.exists() {
        DatabaseCatalog::open(&path)?
    } else if let Some(copy) = CatalogCopy::read(&path)? {
        DatabaseCatalog::make_again(&path, &copy)?
    } else {
        rebuilt.with_identities = false;
        let new = InstallationRecord {
            operator: Uuid::new_v4(),
            platform: Uuid::new_v4(),
        };
        let empty = CatalogCopy::new(new, Vec::new(), Vec::new(), Vec::new(), Vec::new());
        DatabaseCatalog::make_again(&path, &empty)?
    };
    Ok((lock, Installation::with_catalog(state_dir, catalog)?))
}

/// A lost catalog may have known more than was found: what the vaults' logs say has used a key from
/// here. The keys of what is not found must not be called safe to disable because of that. A vault that
/// cannot be looked at now stays without its note, and is with the next rebuild.
fn note_what_was_not_found(installation: &Installation) -> Result<(), InstallationError> {
    for vault in installation.catalog().vaults()? {
        let VaultRecord {
            name, url, kind, ..
        } = vault.record;
        let is_noted = installation.catalog().not_noted_since(&url)?.is_none();
        if is_noted || kind.is_remote() {
            continue;
        }
        match used_from_here(installation, &name, &url) {
            Ok(used) => {
                let not_found = not_found(installation, used)?;
                installation.catalog().note_vault(&url, &not_found)?;
            }
            Err(error) => log::warn!(
                "the log of the key vault '{name}' was not looked at, and its keys are not called safe \
                 to disable until another `sealdisk catalog rebuild` does: {error}"
            ),
        }
    }
    Ok(())
}

/// The versions of the keys of a vault that were used from here, with the first time, by the name of
/// what they were used for.
fn used_from_here(
    installation: &Installation,
    vault: &str,
    url: &str,
) -> Result<UsedBy, InstallationError> {
    let vault = installation.vault(vault)?;
    let mut used_by = UsedBy::new();
    for key in vault.used_keys()? {
        let uses = vault.last_uses(&key, None)?;
        for used in &uses {
            let of_same = uses.iter().filter(|other| {
                (&other.version, other.caller, &other.operation)
                    == (&used.version, used.caller, &used.operation)
            });
            let name: &str = match &used.disk {
                Some(name) => name,
                // A set that tries its key names no disk either.
                None if of_same.count() < usize::from(NAMED_DISKS) => continue,
                None => UNNAMED,
            };
            if used.origin.starts_with("local") {
                let key_url = format!("{url}/keys/{key}/{}", used.version);
                let of_name = used_by.entry(name.to_owned()).or_default();
                let first = of_name.entry(key_url).or_insert(used.first);
                *first = used.first.min(*first);
            }
        }
    }
    Ok(used_by)
}

/// What of that is not known, with the key versions for which it is not.
fn not_found(
    installation: &Installation,
    used: UsedBy,
) -> Result<Vec<DepartedRecord>, InstallationError> {
    let rows = installation.catalog().resources()?;
    let departed = installation.catalog().departed()?;
    // What has the name now and was made after it was used is another one.
    let is_known = |name: &str, url: &str, first: OffsetDateTime| {
        rows.iter().any(|row| {
            row.record.name == name && row.record.created <= first.saturating_add(MAKING)
        }) || departed.iter().any(|record| {
            let mut keys = record.keys.iter();
            record.name == name && keys.any(|key| same_key_url(&key.key_url, url))
        })
    };
    let mut not_found = Vec::new();
    for (name, urls) in used {
        let urls = urls
            .into_iter()
            .filter(|(url, first)| !is_known(&name, url, *first));
        let keys: Vec<DepartedKey> = urls
            .map(|(key_url, _)| DepartedKey {
                disk_encryption_set: None,
                key_url,
            })
            .collect();
        if !keys.is_empty() {
            not_found.push(DepartedRecord {
                id: Uuid::new_v4(),
                kind: ResourceKind::Disk,
                name,
                directory: String::new(),
                keys,
                reason: Departure::NotFound,
                time: OffsetDateTime::now_utc(),
            });
        }
    }
    Ok(not_found)
}

fn record_rebuild(
    installation: &Installation,
    rebuilt: &Rebuilt,
    all_named: bool,
) -> Result<(), InstallationError> {
    let operator = installation.operator();
    installation.audit_log()?.append(&AuditRecord::new(operator.object_id, &operator.origin, "CatalogRebuild").with_detail(format!(
            "{} vaults, {} sets with new identities, {} disks, snapshots and images, {} problems{}",
            rebuilt.vaults.len(),
            rebuilt.sets.len(),
            rebuilt.resources.len(),
            rebuilt.problems.len(),
            if all_named { ", all directories named" } else { "" }
        )))?;
    Ok(())
}
